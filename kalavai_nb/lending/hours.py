"""The hours in which a machine is lent: spans of the week by the clock on its wall. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from kalavai_nb.errors import OptionError

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MINUTES = 24 * 60
WANTED = "wanted spans such as 22:00-08:00, Sat-Sun or Mon-Fri 18:00-08:00, with commas between them"
_SPAN = re.compile(r"(?:(?P<days>[a-z]+(?:\s*-\s*[a-z]+)?)\s*)?(?P<times>\d.*)?", re.IGNORECASE)
_TIMES = re.compile(r"(\d{1,2})(?::(\d\d))?\s*-\s*(\d{1,2})(?::(\d\d))?")


@dataclass(frozen=True)
class Span:
    """From one minute of the day to another, on the days (0 is Monday) on which it begins; over midnight or not."""

    days: tuple[int, ...]
    begin: int
    end: int

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else f"{_days_text(self.days)} "
        times = "" if (self.begin, self.end) == (0, DAY_MINUTES) else f"{_clock(self.begin)}-{_clock(self.end)}"
        return f"{days}{times}".strip() or "Mon-Sun"


@dataclass(frozen=True)
class Hours:
    """When a machine is lent: in any of its spans, or always where there are none.

    A moment is a datetime; one without a zone is of this machine's own time. A span begins and ends when the clock on
    the wall shows that time or a later one for the first time on that day: so what lies in the hour that is left out in
    spring begins or ends at the jump, and what lies in the hour that comes twice in autumn does so the first time.
    """

    spans: tuple[Span, ...] = ()

    @classmethod
    def parse(cls, texts: str | Iterable[str]) -> Hours:
        """``"22:00-08:00"``, ``"Sat-Sun, Mon-Fri 18:00-08:00"``, or several such texts. Raises OptionError."""
        parts = [texts] if isinstance(texts, str) else list(texts)
        spans: list[Span] = []
        for part in parts:
            before = ""
            for text in (each.strip() for each in re.split(r"([,;])", part)):
                if text in (",", ";"):
                    before = before if text == "," else ""
                    continue
                spans.append(_span(text, before))
                before = text
        return cls(tuple(dict.fromkeys(spans)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.spans)) or "always"

    def open_at(self, moment: datetime) -> bool:
        """Whether the machine is lent at this moment."""
        stamp = moment.timestamp()
        return not self.spans or any(begin <= stamp < end for begin, end in self._around(moment, days_after=0))

    def next_change(self, moment: datetime) -> datetime | None:
        """When that changes next; None where it never does."""
        stamp, is_open = moment.timestamp(), self.open_at(moment)
        spans = list(self._around(moment, days_after=8)) if self.spans else []
        # every span that begins before this is among them, and a week is over by then
        known = stamp + 7.5 * DAY_MINUTES * 60
        for edge in sorted({edge for span in spans for edge in span if stamp < edge < known}):
            if any(begin <= edge < end for begin, end in spans) != is_open:
                return datetime.fromtimestamp(edge, moment.tzinfo)
        return None

    def _around(self, moment: datetime, days_after: int) -> Iterable[tuple[float, float]]:
        """The spans that begin from the day before on, as seconds since the epoch."""
        midnight = datetime(moment.year, moment.month, moment.day)
        for distance in range(-1, days_after + 1):
            day = midnight + timedelta(days=distance)
            for span in self.spans:
                if day.weekday() in span.days:
                    end = span.end if span.end > span.begin else span.end + DAY_MINUTES
                    yield _shown(day, span.begin, moment.tzinfo), _shown(day, end, moment.tzinfo)


ALWAYS = Hours()


def _shown(day: datetime, minutes: int, zone: tzinfo | None) -> float:
    """When clocks show this time of this day, or a later one, for the first time; in seconds since the epoch."""
    wall = day + timedelta(minutes=minutes)
    stamp = wall.replace(tzinfo=zone).timestamp()
    if _wall(stamp, zone) == wall:
        return stamp
    # it is left out: find the jump, which is less than a day before
    early, late = stamp - DAY_MINUTES * 60, stamp
    while late - early > 1:
        middle = (early + late) // 2
        early, late = (early, middle) if _wall(middle, zone) >= wall else (middle, late)
    return late


def _wall(stamp: float, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(stamp, zone).replace(tzinfo=None, fold=0)


def _span(text: str, before: str) -> Span:
    match = _SPAN.fullmatch(text)
    if not text or not match:
        raise OptionError(f"hours {text!r} cannot be meant: {WANTED}.")
    days, times = match["days"] or "", match["times"] or ""
    if days and times and before.isalpha():
        raise OptionError(
            f"hours {before!r} then {text!r} can mean the whole of {before} or the same times on both: write "
            f"{before}-{days} {times} for the same times, or {before}; {text} for the whole day."
        )
    begin, end = _minutes(text, times) if times else (0, DAY_MINUTES)
    return Span(_days(text, days) if days else tuple(range(len(DAYS))), begin, end)


def _minutes(text: str, times: str) -> tuple[int, int]:
    match = _TIMES.fullmatch(times.strip())
    if not match:
        raise OptionError(f"hours {text!r} cannot be meant: {WANTED}.")
    begin, end = (int(match[at]) * 60 + int(match[at + 1] or 0) for at in (1, 3))
    if begin >= DAY_MINUTES or end > DAY_MINUTES or max(match[2] or "", match[4] or "") >= "60":
        raise OptionError(f"hours {text!r} name a time that no clock shows: wanted 00:00 to 24:00.")
    if begin == end:
        raise OptionError(f"hours {text!r} begin when they end: leave the times out where the whole day is meant.")
    return begin, end


def _days(text: str, days: str) -> tuple[int, ...]:
    found = []
    for name in (each.strip() for each in days.split("-")):
        numbers = [number for number, day in enumerate(DAYS) if name.lower().startswith(day.lower())]
        if not numbers or not _FULL[numbers[0]].startswith(name.lower()):
            raise OptionError(f"hours {text!r}: there is no day {name!r}. The days are {', '.join(DAYS)}.")
        found += numbers
    first, last = found[0], found[-1]
    count = (last - first) % len(DAYS) + 1
    return tuple(sorted((first + each) % len(DAYS) for each in range(count)))


_FULL = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _days_text(days: tuple[int, ...]) -> str:
    # a run of days, perhaps over the end of the week: it begins where the day before is not in it
    first = next((day for day in days if (day - 1) % len(DAYS) not in days), days[0])
    last = (first + len(days) - 1) % len(DAYS)
    return DAYS[first] if first == last else f"{DAYS[first]}-{DAYS[last]}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
