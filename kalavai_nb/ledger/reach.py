"""Which machines reach each other."""

from __future__ import annotations

from collections import defaultdict


class Reach:
    """Pairs of machines, as far as they were measured. A machine always reaches itself."""

    def __init__(self) -> None:
        self.version = 0
        self._together: defaultdict[str, set[str]] = defaultdict(set)
        self._apart: defaultdict[str, set[str]] = defaultdict(set)

    def set(self, machine_a: str, machine_b: str, mutual: bool) -> None:
        """These two reach each other, both ways, or they do not."""
        now, before = (self._together, self._apart) if mutual else (self._apart, self._together)
        if machine_a == machine_b or machine_b in now[machine_a]:
            return
        for one, other in ((machine_a, machine_b), (machine_b, machine_a)):
            now[one].add(other)
            before[one].discard(other)
        self.version += 1

    def forget(self, machine: str) -> None:
        """What is known of this machine's links holds no more: it may come back elsewhere."""
        for known in (self._together, self._apart):
            for other in known.pop(machine, ()):
                known[other].discard(machine)
        self.version += 1

    def together(self, one: str, other: str) -> bool:
        """Whether they are known to reach each other."""
        return one == other or other in self._together[one]

    def perhaps(self, one: str, other: str) -> bool:
        """Whether they are not known to be apart."""
        return other not in self._apart[one]
