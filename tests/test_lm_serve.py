"""A served model, asked by the official client: what it answers, what it refuses, and who goes away in between."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import kalavai_nb as kn
from kalavai_nb.errors import OptionError
from kalavai_nb.lm.serve.app import MOST_BODY_BYTES
from kalavai_nb.lm.serve.server import ModelServer, serve
from kalavai_nb.lm.sharded_lm import ShardedLM
from tiny_lm import TEMPLATE, VOCABULARY, tiny_lm

MAX_LEN = 1500
SLOTS = 8
LETTERS = [chr(number) for number in range(32, 127)] + ["\n"]
SAY = [{"role": "user", "content": "Say something"}]


def readable_lm(directory: Path) -> Path:
    """A tiny model that says only ASCII, one or two characters a token, and never ends by itself."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    path = tiny_lm(directory, eos_token_id=None, pad_token_id=0, bos_token_id=None)
    merges = [(a, b) for a in LETTERS[33:59] for b in LETTERS[33:59]][: VOCABULARY - len(LETTERS)]
    vocabulary = {text: number for number, text in enumerate([*LETTERS, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, chat_template=TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pool() -> Iterator[kn.Pool]:
    with kn.Pool(devices=3, quiet=True) as pool:
        yield pool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return readable_lm(tmp_path_factory.mktemp("readable"))


@pytest.fixture(scope="module")
def lm(pool: kn.Pool, model: Path) -> Iterator[ShardedLM]:
    with pool.load(model, gpus=2, max_len=MAX_LEN, max_batch=SLOTS, spares=0, show=False) as lm:
        yield lm


@pytest.fixture(scope="module")
def server(lm: ShardedLM) -> Iterator[ModelServer]:
    with serve(lm, 0, "127.0.0.1", None, "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def plain(server: ModelServer) -> Iterator[httpx.Client]:
    """For what the official client would not send."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as plain:
        yield plain


def client_of(server: ModelServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0, timeout=60)


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not true():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def events_of(response: httpx.Response) -> list[str]:
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


# what it answers


def test_it_says_which_model_there_is(client: openai.OpenAI) -> None:
    [card] = client.models.list().data
    assert (card.id, card.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == card


def test_a_chat_is_what_generate_gives(client: openai.OpenAI, lm: ShardedLM) -> None:
    known = lm.generate(SAY, max_new_tokens=20, details=True)
    answer = client.chat.completions.create(model="tiny", messages=SAY, temperature=0, max_completion_tokens=20)  # type: ignore[arg-type]
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", known.text, "length")
    assert choice.logprobs is None
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (known.prompt_tokens, 20)
    assert answer.usage.total_tokens == known.prompt_tokens + 20


def test_a_stream_says_the_same_piece_by_piece(plain: httpx.Client, lm: ShardedLM) -> None:
    body = {"model": "tiny", "messages": SAY, "temperature": 0, "max_tokens": 20, "stream": True}
    response = plain.post("/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    *told, last = events_of(response)
    assert last == "[DONE]"
    first, *middle, end, usage = map(json.loads, told)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert {chunk["id"] for chunk in (first, *middle, end, usage)} == {first["id"]}
    assert {chunk["object"] for chunk in (first, *middle, end, usage)} == {"chat.completion.chunk"}
    assert len(middle) == 20
    assert all(chunk["usage"] is None for chunk in (first, *middle, end))
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
    known = lm.generate(SAY, max_new_tokens=20, details=True)
    assert text == known.text
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 20
    assert usage["usage"]["prompt_tokens"] == known.prompt_tokens


def test_the_clients_own_helper_for_streams_understands_it(client: openai.OpenAI, lm: ShardedLM) -> None:
    known = lm.generate(SAY, max_new_tokens=12)
    options: dict[str, Any] = {"messages": SAY, "temperature": 0, "stop": known[5:]}
    with client.chat.completions.stream(model="tiny", **options) as stream:
        [choice] = stream.get_final_completion().choices
    assert known.startswith(choice.message.content or "")
    assert choice.finish_reason == "stop"


def test_messages_may_come_in_parts_and_with_newer_roles(client: openai.OpenAI, lm: ShardedLM) -> None:
    said = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        # as the client gives it back
        {"role": "assistant", "content": "three", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": "four"},
    ]
    meant = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=said, temperature=0, max_tokens=8)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == lm.generate(meant, max_new_tokens=8)


def test_a_chat_may_go_on_to_the_end_of_the_context(client: openai.OpenAI, lm: ShardedLM) -> None:
    long = [{"role": "user", "content": "x" * (MAX_LEN - 40)}]
    answer = client.chat.completions.create(model="tiny", messages=long)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_LEN
    assert answer.choices[0].finish_reason == "length"


def test_completions_take_texts_and_tokens_one_or_many(client: openai.OpenAI, lm: ShardedLM) -> None:
    texts = ["Once upon", "def f(x):", "1, 2, 3"]
    tokens = [lm.tokenizer(text)["input_ids"] for text in texts]
    known = lm.generate(texts, max_new_tokens=16)
    many: tuple[Any, ...] = (texts, tokens)
    for prompt in many:
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0)
        assert [choice.text for choice in answer.choices] == known
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (sum(map(len, tokens)), 48)
    one: tuple[Any, ...] = (texts[0], tokens[0])
    for prompt in one:
        [choice] = client.completions.create(model="tiny", prompt=prompt, temperature=0).choices
        assert (choice.text, choice.finish_reason) == (known[0], "length")


def test_choices_differ_and_a_seed_gives_them_again(client: openai.OpenAI, lm: ShardedLM) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, best_of=2, seed=seed, top_p=0.9)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 2
        return [choice.text for choice in answer.choices]

    first = ask(7)
    assert len(set(first)) == 4
    assert ask(7) == first
    assert ask(8) != first
    assert len(set(ask(-7))) == 4
    assert first[0] == lm.generate("a", max_new_tokens=16, temperature=1.0, top_p=0.9, seed=7)
    greedy = client.completions.create(model="tiny", prompt="a", seed=7, extra_body={"top_k": 1})
    assert greedy.choices[0].text == lm.generate("a", max_new_tokens=16)


def test_a_stream_of_several_choices_keeps_them_apart(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b"], "n": 2, "seed": 3}
    whole = client.completions.create(**options)
    texts, reasons = [""] * 4, [""] * 4
    for chunk in client.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        reasons[chunk.choices[0].index] += chunk.choices[0].finish_reason or ""
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length"] * 4


def test_stop_strings_end_it_and_are_not_said(client: openai.OpenAI, lm: ShardedLM) -> None:
    known = lm.generate("Once", max_new_tokens=30, temperature=1.0, seed=4)
    stop = known[9:12]
    expected = known[: known.index(stop)]
    assert expected
    options: dict[str, Any] = {"model": "tiny", "prompt": "Once", "seed": 4, "max_tokens": 30}
    for stops in (stop, ["\x00", stop, "\x01", "\x02"]):
        [choice] = client.completions.create(**options, stop=stops).choices
        assert (choice.text, choice.finish_reason) == (expected, "stop")
    chunks = list(client.completions.create(**options, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_models_own_end_is_no_part_of_what_it_says(
    client: openai.OpenAI, lm: ShardedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = lm.generate("Once", max_new_tokens=30, temperature=1.0, seed=4, details=True)
    at = next(i for i in range(4, 30) if known.token_ids[i] not in known.token_ids[:i])
    monkeypatch.setattr(lm, "_eos", (known.token_ids[at],))
    answer = client.completions.create(model="tiny", prompt="Once", seed=4, max_tokens=30, logprobs=0)
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert len(choice.logprobs.tokens) == at
    assert answer.usage is not None
    assert answer.usage.completion_tokens == at + 1


def test_logprobs_of_a_chat(client: openai.OpenAI, lm: ShardedLM) -> None:
    known = lm.generate(SAY, max_new_tokens=6, logprobs=2, details=True)
    options: dict[str, Any] = {"model": "tiny", "messages": SAY, "temperature": 0, "max_tokens": 6, "logprobs": True}
    whole = client.chat.completions.create(**options, top_logprobs=2).choices[0].logprobs.content
    streamed = [
        token
        for chunk in client.chat.completions.create(**options, top_logprobs=2, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    for told in (whole, streamed):
        assert [token.token for token in told] == [token.text for token in known.logprobs]
        assert [token.logprob for token in told] == pytest.approx([token.logprob for token in known.logprobs], abs=1e-4)
        assert all(bytes(token.bytes).decode() == token.token for token in told)
        assert all(token.top_logprobs[0].token == token.token for token in told)
        assert all(len(token.top_logprobs) == 2 for token in told)
    assert client.chat.completions.create(**options).choices[0].logprobs.content[0].top_logprobs == []


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "Once", "seed": 5, "max_tokens": 12, "logprobs": 2}
    [choice] = client.completions.create(**options).choices
    told = choice.logprobs
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == choice.text
    assert [choice.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True)]
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == logprob
        assert len(top) in (2, 3)
    chunks = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    assert [token for chunk in chunks if chunk for token in chunk.tokens] == told.tokens
    assert [offset for chunk in chunks if chunk for offset in chunk.text_offset] == told.text_offset


# what it refuses

CHAT: dict[str, Any] = {"model": "tiny", "messages": SAY, "max_tokens": 1}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Once", "max_tokens": 1}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {**CHAT, "tools": [TOOL]}, "tools"),
        ("/chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice"),
        ("/chat/completions", {**CHAT, "functions": [{"name": "look"}]}, "functions"),
        ("/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
        ("/chat/completions", {**CHAT, "modalities": ["audio"]}, "modalities"),
        ("/chat/completions", {**CHAT, "logit_bias": {"5": 1}}, "logit_bias"),
        ("/chat/completions", {**CHAT, "presence_penalty": 0.5}, "presence_penalty"),
        ("/chat/completions", {**CHAT, "frequency_penalty": -1}, "frequency_penalty"),
        ("/chat/completions", {**CHAT, "messages": []}, "messages"),
        ("/chat/completions", {**CHAT, "messages": "hello"}, "messages"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "tool", "content": "4"}]}, "messages[0]"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "queen", "content": "4"}]}, "messages[0].role"),
        ("/chat/completions", {**CHAT, "messages": [{"role": "user"}]}, "messages[0].content"),
        ("/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ("/chat/completions", {**CHAT, "logprobs": 2}, "logprobs"),
        ("/chat/completions", {**CHAT, "max_completion_tokens": 2}, "max_tokens"),
        ("/chat/completions", {**CHAT, "min_p": 0.1}, "min_p"),
        ("/chat/completions", {**CHAT, "temperature": 2.5}, "temperature"),
        ("/chat/completions", {**CHAT, "temperature": "hot"}, "temperature"),
        ("/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
        ("/chat/completions", {**CHAT, "max_tokens": True}, "max_tokens"),
        ("/chat/completions", {**CHAT, "top_p": -1}, "top_p"),
        ("/chat/completions", {**CHAT, "seed": 1.5}, "seed"),
        ("/chat/completions", {**CHAT, "n": 0}, "n"),
        ("/chat/completions", {**CHAT, "stop": [*"abcde"]}, "stop"),
        ("/chat/completions", {**CHAT, "stop": ""}, "stop"),
        ("/chat/completions", {**CHAT, "stream": "yes"}, "stream"),
        ("/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, "stream_options"),
        ("/completions", {**TEXT, "echo": True}, "echo"),
        ("/completions", {**TEXT, "suffix": "end"}, "suffix"),
        ("/completions", {**TEXT, "best_of": 3}, "best_of"),
        ("/completions", {**TEXT, "messages": SAY}, "messages"),
        ("/completions", {**TEXT, "prompt": None}, "prompt"),
        ("/completions", {**TEXT, "prompt": ""}, "prompt"),
        ("/completions", {**TEXT, "prompt": []}, "prompt"),
        ("/completions", {**TEXT, "prompt": ["a", [1, 2]]}, "prompt"),
        ("/completions", {**TEXT, "prompt": [1, 10**6]}, "prompt"),
        ("/completions", {**TEXT, "prompt": [-1]}, "prompt"),
        ("/completions", {**TEXT, "prompt": ["a"] * 100, "n": 100}, "n"),
        ("/completions", {**TEXT, "logprobs": 21}, "logprobs"),
        ("/completions", {**TEXT, "model": None}, "model"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(plain: httpx.Client, path: str, body: Any, param: str) -> None:
    response = plain.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert len(error["message"]) > 20
    assert set(error) == {"message", "type", "param", "code"}


def test_fields_that_ask_for_nothing_are_welcome(plain: httpx.Client) -> None:
    nothing = {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "store": False,
        "user": "ada",
        "metadata": {"run": "1"},
        "parallel_tool_calls": True,
        "stream": False,
        "stop": None,
        "n": 1,
        "service_tier": "auto",
    }
    assert plain.post("/chat/completions", json={**CHAT, **nothing}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
    ],
    ids=["empty", "cut off", "list", "null", "no text", "deep", "NaN", "infinite", "half a character"],
)
def test_a_body_that_is_no_request_is_refused(plain: httpx.Client, body: bytes) -> None:
    response = plain.post("/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_without_end_is_not_read_to_its_end(plain: httpx.Client) -> None:
    response = plain.post("/completions", content=b" " * (MOST_BODY_BYTES + 1))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


def test_too_long_a_prompt_is_said_in_the_words_that_agents_know(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "x" * MAX_LEN}]
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {MAX_LEN} tokens") as chat:
        client.chat.completions.create(model="tiny", messages=long)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match=r"4 in the prompt, 1500 in the completion") as text:
        client.completions.create(model="tiny", prompt="Once", max_tokens=MAX_LEN)
    assert chat.value.code == text.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as asked:
        client.chat.completions.create(model="gpt-6", messages=SAY)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError) as retrieved:
        client.models.retrieve("org/gpt-6")
    assert asked.value.code == retrieved.value.code == "model_not_found"
    assert asked.value.param == "model"


def test_places_that_are_not_there_say_so(plain: httpx.Client) -> None:
    for method, path, status in (("POST", "/embeddings", 404), ("GET", "/chat/completions", 405)):
        response = plain.request(method, path)
        assert response.status_code == status
        assert "Invalid URL" in response.json()["error"]["message"]


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic {key}", "Bearer {key}x", "Bearer é"])
def test_without_the_key_nothing_is_told(server: ModelServer, header: str | None) -> None:
    headers = {"Authorization": header.format(key=server.key)} if header else {}
    connection = HTTPConnection(server.url.removeprefix("http://").removesuffix("/v1"), timeout=60)
    with contextlib.closing(connection):
        for method, path, body in (("POST", "/v1/chat/completions", json.dumps(CHAT)), ("GET", "/v1/models", None)):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert (response.status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
            assert server.key not in text


def test_the_official_client_sees_a_wrong_key(server: ModelServer) -> None:
    with client_of(server).with_options(api_key="sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_pages_of_other_origins_get_no_leave(plain: httpx.Client) -> None:
    response = plain.options("/models", headers={"Origin": "http://elsewhere", "Access-Control-Request-Method": "GET"})
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)


# several at once, and those who leave


def test_eight_streams_at_once_each_say_what_they_say_alone(server: ModelServer, lm: ShardedLM) -> None:
    alone = [lm.submit("And so", max_new_tokens=40, temperature=1.0, seed=seed).result() for seed in range(SLOTS)]
    assert len({generation.text for generation in alone}) == SLOTS

    def ask(seed: int) -> tuple[str, float, float]:
        with client_of(server) as client:
            text, began = "", 0.0
            options: dict[str, Any] = {"model": "tiny", "prompt": "And so", "seed": seed, "max_tokens": 40}
            for chunk in client.completions.create(**options, stream=True):
                began = began or time.monotonic()
                text += chunk.choices[0].text
            return text, began, time.monotonic()

    with ThreadPoolExecutor(SLOTS) as threads:
        texts, began, ended = zip(*threads.map(ask, range(SLOTS)), strict=True)
    assert list(texts) == [generation.text for generation in alone]
    assert max(began) < min(ended)


def test_whoever_leaves_gives_the_slot_back_at_once(server: ModelServer, lm: ShardedLM, plain: httpx.Client) -> None:
    [ring] = lm._rings.all
    body = {"model": "tiny", "prompt": "Once", "temperature": 0, "max_tokens": MAX_LEN - 4}
    clients = [client_of(server) for _ in range(SLOTS - 1)]
    streams = [client.completions.create(**body, stream=True) for client in clients]  # type: ignore[call-overload]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(httpx.ReadTimeout):
        plain.post("/completions", json=body, timeout=0.2)
    under_way = list(ring._underway)
    assert len(under_way) >= SLOTS - 1
    for stream, client in zip(streams, clients, strict=True):
        stream.close()
        client.close()
    # there is no slot for this one before another is free
    assert plain.post("/completions", json=TEXT).status_code == 200
    until(lambda: ring.load == 0)
    assert {request.so_far().finish_reason for request in under_way} == {"cancelled"}
    assert all(len(request.made) < MAX_LEN - 4 for request in under_way)


def test_it_answers_while_the_notebook_computes(server: ModelServer) -> None:
    ask = (
        "import openai, sys\n"
        "client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2])\n"
        "answer = client.completions.create(model='tiny', prompt='Once', max_tokens=4)\n"
        "assert answer.usage.completion_tokens == 4"
    )
    with subprocess.Popen([sys.executable, "-c", ask, server.url, server.key]) as agent:
        while agent.poll() is None:
            sum(range(10_000))
    assert agent.returncode == 0


# its health, and its end


def test_health_is_a_token(server: ModelServer, lm: ShardedLM) -> None:
    address = f"{server.url.removesuffix('/v1')}/health"
    with httpx.Client() as anybody, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: anybody.get(address), range(4)))
    assert all(answer.status_code == 200 and answer.json()["status"] == "ok" for answer in answers)
    until(lambda: lm._rings.all[0].load == 0)


def test_a_model_that_ends_is_gone_for_its_clients(pool: kn.Pool, model: Path) -> None:
    with (
        pool.load(model, gpus=1, max_len=MAX_LEN, spares=0, show=False) as lm,
        serve(lm, 0, "127.0.0.1", "a-key-of-mine", None) as server,
        client_of(server) as client,
    ):
        stream = client.completions.create(model=lm.name, prompt="Once", max_tokens=MAX_LEN - 4, stream=True)
        next(iter(stream))
        lm.close()
        with pytest.raises(openai.APIError, match="was closed"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="was closed") as asked:
            client.completions.create(model=lm.name, prompt="Once")
        assert asked.value.status_code == 503
        assert asked.value.response.headers["x-should-retry"] == "false"
        assert httpx.get(f"{server.url.removesuffix('/v1')}/health").status_code == 503


def test_a_server_that_is_closed_leaves_nothing_behind(lm: ShardedLM) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    started = time.monotonic()
    server = serve(lm, 0, "127.0.0.1", None, None)
    assert time.monotonic() - started < 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    with client_of(server) as client:
        stream = client.completions.create(model=lm.name, prompt="Once", max_tokens=MAX_LEN - 4, stream=True)
        next(iter(stream))
        server.close()
        with pytest.raises(openai.APIError, match="was ended"):
            list(stream)
    server.close()
    assert "closed" in repr(server)
    assert "closed" in server._repr_html_()
    assert not [thread for thread in threading.enumerate() if thread is server._thread]
    until(lambda: lm._rings.all[0].load == 0)
    port = int(server.url.split(":")[2].split("/")[0])
    with serve(lm, port, "127.0.0.1", None, None) as again:
        assert again.url == server.url
        assert again.key != server.key
        with pytest.raises(OptionError, match=f"port {port} of 127.0.0.1 cannot be had: .*port=0"):
            serve(lm, port, "127.0.0.1", None, None)


def test_answers_are_not_held_back_for_fuller_packets(server: ModelServer) -> None:
    # asyncio sets TCP_NODELAY only where the protocol is known; without it, each answer comes 40 ms late
    assert server._listener.proto == socket.IPPROTO_TCP


def test_what_is_seen_of_a_server_does_not_tell_its_key(server: ModelServer) -> None:
    for text in (repr(server), server._repr_html_()):
        assert server.url in text
        assert server.key not in text
        assert server.key[:6] in text


def test_a_wider_door_is_warned_of(lm: ShardedLM, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lm, 0, "0.0.0.0", None, "tiny"):
        assert "every machine that reaches this one and has the key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("port", "host", "key", "wanted"),
    [
        (70000, "127.0.0.1", None, "port="),
        (True, "127.0.0.1", None, "port="),
        (0, "no such host", None, "host="),
        (0, "192.0.2.1", None, "cannot be had"),
        (0, "127.0.0.1", "", "key="),
        (0, "127.0.0.1", "a b", "key="),
    ],
)
def test_options_that_cannot_be_meant(lm: ShardedLM, port: Any, host: str, key: Any, wanted: str) -> None:
    with pytest.raises(OptionError, match=wanted):
        serve(lm, port, host, key, None)
