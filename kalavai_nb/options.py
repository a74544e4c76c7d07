"""What a cell may ask for: one definition for ``%%pool`` and ``pool.run``, parsed whole before anything is touched."""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from kalavai_nb.errors import OptionError
from kalavai_nb.security import parse_seconds

_UNITS = {"": 2**30, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NAMES = re.compile(r"[^\W\d]\w*(,[^\W\d]\w*)*")


@dataclass(frozen=True)
class RunOptions:
    """The options of one cell.

    Attributes
    ----------
    gpus : int or None
        Devices to run on, one rank each; None is all of them; 0 is a CPU process beside every device, taking none.
    per : int
        Devices per rank.
    ranks : tuple of slice or int
        Which ranks run the cell; empty is all.
    type, host : str
        Glob over the device's name or kind, and over its host's name.
    vram : int
        Least memory of a device. As an option it is in GiB, ``24`` or ``"24GB"``; here it is in bytes.
    reach : {None, "direct", "any"}
        Whether ranks have to be on machines that dial each other, as torch.distributed needs; None is "direct" where
        ``gpus`` is a number.
    send : tuple of str or None
        Names to send; None is those the cell uses.
    out, scatter : tuple of str
        Names to bring home as lists by rank; names to split over the ranks.
    timeout, wait : float or None
        Seconds the cell may run; seconds to wait for devices.
    on_error : {"stop", "wait", "continue"}
        What one failed rank means for the others.
    show : {"merge", "tabs", "rank0", "none"}
        How the output of several ranks is shown.
    background : str or None
        Not None: return a handle at once, bound to this name where it is not empty (``--async``).
    dry_run : bool
        Say what would happen, and do nothing.
    """

    gpus: int | None = None
    per: int = 1
    ranks: tuple[slice | int, ...] = ()
    type: str = ""
    vram: int = 0
    host: str = ""
    reach: str | None = None
    send: tuple[str, ...] | None = None
    out: tuple[str, ...] = ()
    scatter: tuple[str, ...] = ()
    timeout: float | None = None
    wait: float | None = None
    on_error: str = "stop"
    show: str = "merge"
    background: str | None = None
    dry_run: bool = False

    def updated(self, given: Mapping[str, Any]) -> RunOptions:
        """The same with these options, as text or as Python values. Raises OptionError with the nearest name."""
        read: dict[str, Any] = {}
        for key, value in given.items():
            field = _ALIASES.get(key, key)
            if field not in _READERS:
                raise OptionError(
                    f"there is no option {key!r}.{nearest(key)} The options are: {', '.join(OPTION_NAMES)}."
                )
            if field in read:
                raise OptionError(f"{key}= is given twice, under two names of the same option.")
            try:
                read[field] = _READERS[field](value)
            except (ValueError, TypeError) as error:
                raise OptionError(f"{key}={value} cannot be meant: {error}.") from None
        options = replace(self, **read)
        if options.gpus and options.gpus % options.per:
            raise OptionError(
                f"gpus={options.gpus} cannot be shared out with per={options.per}: wanted a multiple of it."
            )
        return options

    @property
    def wants_reach(self) -> bool:
        """Whether the ranks of a cell are to be placed where they reach each other."""
        return self.reach == "direct" or (self.reach is None and bool(self.gpus))

    def chosen(self, world_size: int) -> list[int]:
        """The ranks that run, of a gang of this size."""
        if not self.ranks:
            return list(range(world_size))
        everyone, chosen = range(world_size), []
        for part in self.ranks:
            if isinstance(part, int) and part >= world_size:
                raise OptionError(f"ranks={part} was asked for, but this gang has the ranks 0 to {world_size - 1}.")
            chosen += list(everyone[part]) if isinstance(part, slice) else [part]
        if not chosen:
            raise OptionError(f"ranks= chooses none of the ranks 0 to {world_size - 1}.")
        return sorted(set(chosen))


def parse(line: str) -> dict[str, str]:
    """The words of a ``%%pool`` line as {option: text}; a ``--flag`` without a value has the text ``"true"``.

    Raises OptionError for a word that is neither ``key=value`` nor ``--flag``.
    """
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise OptionError(f"the options {line!r} cannot be read: {error}.") from None
    given: dict[str, str] = {}
    for place, word in enumerate(words):
        key, equals, value = word.removeprefix("--").partition("=")
        if not key or (not equals and not word.startswith("--")):
            if whole := _torn(words, place):
                raise OptionError(f"{word!r} stands alone: no spaces round = or in a value, as in {whole}.")
            raise OptionError(
                f"{word!r} is no option: wanted key=value or --flag, such as gpus=2 or --async.{nearest(key)}"
            )
        key = key.replace("-", "_")
        if key in given:
            raise OptionError(f"{key}= is given twice: {given[key]!r} and {value!r}.")
        given[key] = value if equals else "true"
    return given


def nearest(key: str, names: Iterable[str] | None = None) -> str:
    """The question whether the nearest of these names was meant (of ``%%pool``'s options, if none are given)."""
    near = difflib.get_close_matches(key, OPTION_NAMES if names is None else list(names), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _torn(words: Sequence[str], place: int) -> str:
    """The option that the word in this place is a part of, with its spaces taken out; empty where it is of none."""
    before, word = words[place - 1] if place else "", words[place]
    after = "".join(words[place + 1 : place + 3])
    key, equals, value = before.partition("=")
    if equals and not value and _is_option(key):
        # `gpus= 2`
        return f"{before}{word}"
    if _is_option(word) and words[place + 1 : place + 2] == ["="]:
        # `gpus = 2`
        return f"{word}{after}"
    if _is_option(word) and after.startswith("="):
        # `gpus =2`
        return f"{word}{words[place + 1]}"
    if key in ("timeout", "wait", "vram"):
        # `timeout=10 min` and `vram=24 GB`
        for whole in (f"{value}{word}", f"{value}{word[:1].lower()}"):
            with contextlib.suppress(ValueError):
                _READERS[key](whole)
                return f"{key}={whole}"
    return ""


def _is_option(word: str) -> bool:
    key = word.replace("-", "_")
    return _ALIASES.get(key, key) in _READERS


def _count(value: Any) -> int | None:
    if value is None or str(value).lower() == "all":
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        raise ValueError("wanted a number of devices, 'all', or 0 for CPU processes")
    return int(value)


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d*", str(value)):
        raise ValueError("wanted a number of devices per rank, 1 or more")
    return int(value)


def _ranks(value: Any) -> tuple[slice | int, ...]:
    if isinstance(value, str):
        return tuple(_rank_part(part) for part in value.split(","))
    parts = (value,) if isinstance(value, (int, slice)) else tuple(value)
    if any(isinstance(p, bool) or not isinstance(p, (int, slice)) or (isinstance(p, int) and p < 0) for p in parts):
        raise ValueError("wanted ranks such as 0, [0, 2] or slice(1, None)")
    return parts


def _rank_part(text: str) -> slice | int:
    if re.fullmatch(r"\d+", text):
        return int(text)
    if match := re.fullmatch(r"(\d*):(\d*)", text):
        return slice(int(match[1] or 0), int(match[2]) if match[2] else None)
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        return slice(int(match[1]), int(match[2]) + 1)
    raise ValueError("wanted ranks such as 0, 0,2, 0-2 or 1:")


def _bytes(value: Any) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B)?", str(value), re.IGNORECASE)
    if not match:
        raise ValueError("wanted gigabytes, such as 24 or 24GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str):
        value = ",".join(value)
    if value and not _NAMES.fullmatch(value):
        raise ValueError("wanted names with commas between them, such as a,b")
    return tuple(value.split(",")) if value else ()


def _send(value: Any) -> tuple[str, ...] | None:
    if value is None or value == "auto":
        return None
    return () if value == "none" else _names(value)


def _seconds(value: Any) -> float | None:
    return None if value in (None, "none") else parse_seconds(value)


def _one_of(*choices: str) -> Any:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"wanted one of {', '.join(choices)}")
        return str(value)

    return read


def _flag(value: Any) -> bool:
    if value in (True, "true", "yes", "1"):
        return True
    if value in (False, "false", "no", "0"):
        return False
    raise ValueError("it is a flag and takes no value")


def _background(value: Any) -> str | None:
    if value in (True, "true", ""):
        return ""
    if value in (False, None, "false", "no", "0"):
        return None
    names = _names(value)
    if len(names) != 1:
        raise ValueError("wanted one name for the handle")
    return names[0]


_READERS: dict[str, Any] = {
    "gpus": _count,
    "per": _positive,
    "ranks": _ranks,
    "type": str,
    "vram": _bytes,
    "host": str,
    "reach": lambda value: value if value is None else _one_of("direct", "any")(value),
    "send": _send,
    "out": _names,
    "scatter": _names,
    "timeout": _seconds,
    "wait": _seconds,
    "on_error": _one_of("stop", "wait", "continue"),
    "show": _one_of("merge", "tabs", "rank0", "none"),
    "background": _background,
    "dry_run": _flag,
}
# `async` is a word of Python's own, so plain Python says async_
_ALIASES = {"async": "background", "async_": "background", "rank": "ranks"}
OPTION_NAMES = tuple("async" if f.name == "background" else f.name for f in fields(RunOptions))
