"""Between people's words and a model's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kalavai_nb.errors import ModelError, OptionError

# half of a character that takes several tokens
UNFINISHED = "�"
# more than a character can take: what ends like that now is broken, not unfinished
MOST_TOKENS_OF_A_CHARACTER = 8

Messages = Sequence[Mapping[str, Any]]


def is_messages(prompt: object) -> bool:
    """Whether this is a conversation: a list of messages with a role each."""
    return isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(m, Mapping) for m in prompt)


def is_token_ids(prompt: object) -> bool:
    """Whether this is a prompt in the model's own tokens."""
    numbers = isinstance(prompt, list | tuple) and bool(prompt)
    return numbers and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)  # type: ignore[attr-defined]


def is_one(prompt: object) -> bool:
    """Whether this is one prompt, or what cannot be any, rather than several of them."""
    is_single = isinstance(prompt, str | bytes | Mapping) or not isinstance(prompt, Iterable)
    return is_single or is_messages(prompt) or is_token_ids(prompt)


def encode(tokenizer: Any, prompt: Any, vocabulary: int) -> list[int]:
    """The tokens of a text, of a conversation (by the model's chat template), or of what is tokens already.

    Raises OptionError for anything else, and ModelError for a conversation where the model has no chat template.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
    elif is_messages(prompt):
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "this model has no chat template, so it cannot be given messages. Give it a text, or load a model that "
                "was tuned for chat (their names often end in -Instruct)."
            )
        ids = _of_conversation(tokenizer, prompt)
    elif is_token_ids(prompt):
        ids = list(prompt)
    else:
        raise OptionError(
            f"a prompt is a text, a list of messages ({{'role': …, 'content': …}}) or token ids; got {prompt!r:.80}."
        )
    if not ids:
        raise OptionError("the prompt is empty; a model needs at least one token to go on from.")
    if unknown := [token for token in ids if not 0 <= token < vocabulary]:
        raise OptionError(f"this model has the tokens 0 to {vocabulary - 1}; the prompt has {unknown[0]}.")
    return ids


def _of_conversation(tokenizer: Any, messages: Messages) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's authors
        raise ModelError(f"the model's chat template does not take these messages: {error}") from None
    # the template has the special tokens in it already
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class TextStream:
    """Tokens in, text out as soon as it is final: whole characters, and nothing that may become a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        # tokens before `_read` are in the text; those from `_context` on are decoded along with new ones
        self._context = self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that has become final with this token. Once a stop string came, ``stopped`` is True."""
        self._ids.append(token)
        known, grown = self._decode(self._read), self._decode(len(self._ids))
        is_waiting = len(self._ids) - self._read < MOST_TOKENS_OF_A_CHARACTER
        if len(grown) <= len(known) or (grown.endswith(UNFINISHED) and is_waiting):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(grown[len(known) :])

    def finish(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        rest = self._held + self._decode(len(self._ids))[len(self._decode(self._read)) :]
        self._held, self._read = "", len(self._ids)
        return rest

    def _decode(self, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[self._context : end], skip_special_tokens=True)
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How much of the end of the text is a beginning of the stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
