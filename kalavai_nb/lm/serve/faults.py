"""What goes wrong, as OpenAI's clients know it: a status, and a body with a sentence, a type, a field and a code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kalavai_nb.errors import KalavaiError, ModelError, ModelLost, OptionError, PoolClosed

# the official client asks twice more unless it is told that this is in vain
IN_VAIN = {"x-should-retry": "false"}
TRY_AGAIN_SECONDS = 5


class Fault(Exception):
    """An answer that is an error. ``headers`` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.param, self.code = status, type, param, code
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> Fault:
    """The request cannot be met as it was put."""
    return Fault(400, message, param=param, code=code)


def wrong_key(given: str) -> Fault:
    """Who asks has not been told the key, or has another one."""
    what = "no key came with the request" if not given else "the key that came with the request is not this server's"
    message = f"{what}: send `Authorization: Bearer KEY`, where KEY is what `server.key` says in the notebook."
    return Fault(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(wanted: object, served: str) -> Fault:
    """There is one model here, and it has another name."""
    message = f"The model `{wanted!s:.200}` does not exist here; this server has `{served}`."
    return Fault(404, message, param="model", code="model_not_found")


def too_long(prompt_tokens: int, max_tokens: int | None, max_len: int, param: str) -> Fault:
    """In OpenAI's words, which agents look for. ``max_tokens`` None is what there is room for: none."""
    if max_tokens is None:
        asked = f"your {param} resulted in {prompt_tokens} tokens. Please reduce the length of the {param}."
    else:
        asked = (
            f"you requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} in the {param}, {max_tokens} in the "
            f"completion). Please reduce the length of the {param} or completion."
        )
    message = f"This model's maximum context length is {max_len} tokens. However, {asked}"
    return Fault(400, message, param=param, code="context_length_exceeded")


def too_large(limit_bytes: int) -> Fault:
    """A body that is not read to its end, so that the connection ends with it."""
    message = f"The body of a request has {limit_bytes} bytes at most here; send fewer or shorter prompts at once."
    return Fault(413, message, code="request_too_large", headers={"Connection": "close"})


def gone(message: str, again: bool = False) -> Fault:
    """There is no model behind this server: not any more, or, with ``again``, not just now."""
    headers = {"Retry-After": str(TRY_AGAIN_SECONDS)} if again else IN_VAIN
    return Fault(503, message, type="server_error", code="model_unavailable", headers=headers)


def fault_of(error: BaseException, model_has_ended: bool) -> Fault:
    """What an error of ours means to a client, when a generation has begun."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ModelLost | PoolClosed) or (model_has_ended and isinstance(error, KalavaiError)):
        return gone(str(error))
    if isinstance(error, ModelError):
        return Fault(500, str(error), type="server_error", code="model_failed", headers=IN_VAIN)
    if isinstance(error, OptionError):
        return refused(str(error))
    message = f"The server met an error of its own: {type(error).__name__}. The notebook's log says more."
    return Fault(500, message, type="server_error", headers=IN_VAIN)
