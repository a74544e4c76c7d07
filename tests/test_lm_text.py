"""Words and tokens: text that is final, stop strings, what sampling options may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kalavai_nb.errors import ModelError, OptionError
from kalavai_nb.lm.generation import check_names, read_sampling
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.text import TextStream, encode, is_one
from kalavai_nb.worker.stage.sampler import sample


class Bytes:
    """A tokenizer whose tokens are bytes, so that characters come in several."""

    chat_template = None

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}


@given(st.text(max_size=40))
def test_characters_come_whole_and_nothing_is_lost(text: str) -> None:
    stream, came = TextStream(Bytes()), []
    for byte in text.encode():
        came.append(stream.push(byte))
    came.append(stream.finish())
    assert "".join(came) == text
    assert not any("�" in piece for piece in came[:-1]) or "�" in text


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=4), st.text("ab", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_or_after_it_is_shown(text: str, first: str, second: str) -> None:
    stream, came = TextStream(Bytes(), (first, second)), ""
    for byte in text.encode():
        came += stream.push(byte)
        assert text.startswith(came)
        if stream.stopped:
            break
    came += stream.finish()
    ends = [at for at in (text.find(first), text.find(second)) if at >= 0]
    if not ends:
        assert came == text
    else:
        # the earliest stop string that is complete ends it
        assert not any(stop in came for stop in (first, second))
        assert came == text[: len(came)]
        assert stream.stopped


def test_broken_bytes_are_not_waited_for() -> None:
    stream = TextStream(Bytes())
    came = "".join(stream.push(0xFF) for _ in range(20))
    assert len(came) >= 8
    assert came + stream.finish() == "�" * 20


def request(**sampling: Any) -> Request:
    return Request(1, [1, 2], read_sampling(**sampling, eos=(0,)), Bytes())


def test_a_request_says_why_it_ended() -> None:
    by_eos, by_length, by_stop = request(), request(max_new_tokens=2), request(stop="b")
    by_eos.take(97, [], False)
    by_eos.take(0, [], True)
    by_length.take(97, [], False)
    by_length.take(98, [], True)
    assert by_stop.take(97, [], False) is False
    assert by_stop.take(98, [], False) is True
    for which, reason, text in ((by_eos, "stop", "a\0"), (by_length, "length", "ab"), (by_stop, "stop", "a")):
        result = which.result()
        assert (result.finish_reason, result.text) == (reason, text)
        assert [d.finish_reason for d in which][-1] == reason
        assert which.take(97, [], False) is False


def test_log_probabilities_come_with_their_tokens() -> None:
    asked = request(logprobs=2)
    asked.take(97, [(97, -0.5), (97, -0.5), (98, -1.0)], True)
    [scored] = asked.result().logprobs
    assert (scored.text, scored.logprob, scored.top) == ("a", -0.5, ((97, "a", -0.5), (98, "b", -1.0)))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens= wants a whole number of at least 1; got 0"),
        ({"temperature": -1}, "temperature= wants a number from 0 to 100"),
        ({"temperature": "hot"}, "got 'hot'"),
        ({"top_p": 1.5}, "top_p= wants a number from 0 to 1"),
        ({"top_k": 1.5}, "top_k= wants a whole number"),
        ({"top_k": 1 << 70}, "top_k= wants a whole number"),
        ({"top_p": float("nan")}, "top_p= wants a number from 0 to 1"),
        ({"stop": [""]}, "none of them empty"),
        ({"logprobs": 50}, "logprobs= wants a whole number from 0 to 20"),
        ({"seed": -1}, "seed= wants"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        read_sampling(**wrong)


def test_unknown_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"there is no option 'max_tokens'\. Did you mean 'max_new_tokens'\? The opt"):
        check_names(["top_p", "max_tokens"])
    with pytest.raises(OptionError, match=r"'replica'\. Did you mean 'replicas'\?"):
        check_names(["replica"], ("out", "replicas"))
    with pytest.raises(OptionError, match="there is no option 'eos'"):
        check_names(["eos"])
    check_names(["seed", "details"], ("details",))


def test_without_a_wish_there_are_as_many_tokens_as_there_is_room_for() -> None:
    nothing_said = read_sampling()
    assert [nothing_said.fitted(10, most).max_new_tokens for most in (4096, 266, 42, 11)] == [256, 256, 32, 1]
    assert read_sampling(max_new_tokens=32).fitted(10, 42).max_new_tokens == 32
    for asked, tokens in ((nothing_said, 42), (read_sampling(max_new_tokens=33), 10)):
        with pytest.raises(ModelError, match="that is more than max_len=42"):
            asked.fitted(tokens, 42)


@pytest.mark.parametrize("prompt", ["a", b"a", 5, None, {"role": "user"}, [1, 2], [{"role": "user"}]])
def test_one_prompt_is_told_from_several(prompt: Any) -> None:
    assert is_one(prompt)
    assert not is_one([prompt, "b"])


def test_prompts_that_cannot_be_meant_are_refused() -> None:
    for wrong in ("", [], 7, [1, "a"], None):
        with pytest.raises(OptionError):
            encode(Bytes(), wrong, 256)
    with pytest.raises(OptionError, match="the tokens 0 to 255; the prompt has 256"):
        encode(Bytes(), [1, 256], 256)
    with pytest.raises(ModelError, match="no chat template"):
        encode(Bytes(), [{"role": "user", "content": "hello"}], 256)


def test_samples_depend_on_seed_and_place_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    wish = read_sampling(temperature=1.0, seed=3).to_dict()
    one_by_one = [sample(logits[row : row + 1], [wish], [row])[0][0] for row in range(3)]
    assert sample(logits, [wish] * 3, [0, 1, 2])[0] == one_by_one
    drawn = {tuple(sample(logits, [{**wish, "seed": seed}] * 3, [0, 1, 2])[0]) for seed in range(20)}
    assert len(drawn) > 10


def test_sampling_is_what_it_says() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    expected = logits[0].softmax(-1)
    wish = read_sampling(temperature=1.0, seed=1).to_dict()
    counts = torch.bincount(torch.tensor([sample(logits, [wish], [n])[0][0] for n in range(4000)]), minlength=4)
    assert torch.allclose(counts / 4000, expected, atol=0.03)
    only_two = read_sampling(temperature=1.0, top_k=2, seed=1).to_dict()
    assert {sample(logits, [only_two], [n])[0][0] for n in range(200)} == {2, 3}
    nucleus = read_sampling(temperature=1.0, top_p=0.6, seed=1).to_dict()
    assert {sample(logits, [nucleus], [n])[0][0] for n in range(200)} == {3}
    greedy = read_sampling(logprobs=2).to_dict()
    [token], [scored] = sample(logits, [greedy], [0])
    assert token == 3
    assert scored == [(3, pytest.approx(float(expected[3].log()))), (3, scored[1][1]), (2, scored[2][1])]
