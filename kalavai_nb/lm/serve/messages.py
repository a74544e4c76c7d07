"""OpenAI's messages as those that a chat template takes: a role each, and text."""

from __future__ import annotations

from typing import Any

from kalavai_nb.lm.serve.faults import refused
from kalavai_nb.lm.serve.fields import wants

# what OpenAI calls the role, and what templates call it
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# of an assistant's message that comes back as it went out
EMPTY: tuple[Any, ...] = (None, [], {}, "")
TEXT_PARTS = {"text": "text", "refusal": "refusal"}


def read_messages(value: Any) -> list[dict[str, str]]:
    """Check a conversation. Raises a Fault for tools, images and all else that is no text."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise wants("messages", "a list of messages with a role and content, one at least", value)
    return [_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def _message(message: dict[str, Any], where: str) -> dict[str, str]:
    role = message.get("role")
    if role in ("tool", "function"):
        raise refused(f"`{where}` has the role {role!r}: this server calls no tools.", where, "unsupported_value")
    if not isinstance(role, str) or role not in ROLES:
        raise wants(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    for field, more in message.items():
        if field not in ("role", "content", "name") and more not in EMPTY:
            raise refused(f"`{where}.{field:.100}` cannot be had here; messages are text.", where, "unsupported_value")
    name = message.get("name")
    if name is not None and not isinstance(name, str):
        raise wants(f"{where}.name", "a text", name)
    named = {"name": name} if name else {}
    return {"role": ROLES[role], "content": _text(message.get("content"), f"{where}.content"), **named}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise wants(where, "a text or a list of text parts", content)
    return "\n".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wants(where, "a part with a type, such as {'type': 'text', 'text': …}", part)
    if kind not in TEXT_PARTS:
        raise refused(f"`{where}` is of type {kind!r:.80}: this model reads text only.", where, "unsupported_value")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise wants(f"{where}.{TEXT_PARTS[kind]}", "a text", text)
    return text
