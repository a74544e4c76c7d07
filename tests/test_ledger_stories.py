"""Whatever owners, devices and links do: what a pool promises holds after every step, and everybody is served.

Each run is a story of a pool of four machines; what the ledger says is compared with what can be counted.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kalavai_nb.errors import NotEnoughDevices
from kalavai_nb.ledger import AWAY_SECONDS, Drained, Evict, Granted, Need, Refused, Yield
from kalavai_nb.state import Lease
from ledgers import GIB, IDLE, Pool, device

OWNERS = "abcd"
DEVICES = (
    device(0, "m0", flops=9e12, memory_bytes=16 * GIB),
    device(1, "m0", flops=9e12, memory_bytes=16 * GIB),
    device(2, "m0", flops=1e12),
    device(3, "m1", flops=1e12),
    device(4, "m1", flops=1e12),
    device(5, "m2"),
    device(6, "m3", kind="cpu", name="EPYC"),
)
MACHINES = ("m0", "m1", "m2", "m3")
NUMBERS = st.integers(0, 30)
NEEDS = st.fixed_dictionaries(
    {
        "owner": st.sampled_from(OWNERS),
        "count": st.sampled_from([1, 1, 2, 3, 4]),
        "kind": st.sampled_from(["session", "session", "trial", "spare"]),
        "share": st.sampled_from([0.25, 0.5, 1.0, 1.0]),
        "type": st.sampled_from(["", "", "", "cuda", "cpu"]),
        "host": st.sampled_from(["", "", "", "m0", "m1"]),
        "vram_bytes": st.sampled_from([0, 0, 16 * GIB]),
        "avoid": st.sampled_from([(), (), ("d0",), ("d1", "d3")]),
        "prefer": st.sampled_from([(), ("d5", "d0")]),
        "connected": st.booleans(),
        "what": st.sampled_from(["", "sweep"]),
    }
)
GROUPS = st.fixed_dictionaries({"owner": st.sampled_from(OWNERS), "count": st.sampled_from([2, 4]), "per": st.just(2)})


class Story(RuleBasedStateMachine):
    """``needs`` are the requests that wait, ``closing`` the devices of which what ran there has not ended yet."""

    @initialize(known=st.booleans())
    def begin(self, known: bool) -> None:
        self.pool = Pool(*DEVICES, owners=OWNERS)
        self.needs: dict[str, Need] = {}
        self.closing: list[str] = []
        self.links: dict[frozenset[str], bool] = {}
        self.leaving: set[str] = set()
        self.drained: set[str] = set()
        self.asked: set[tuple[str, bool]] = set()
        self.number = itertools.count()
        for pair in itertools.combinations(MACHINES, 2) if known else ():
            self.link(pair=pair, mutual=True)

    # what happens

    @rule(fields=st.one_of(NEEDS, NEEDS, GROUPS))
    def ask(self, fields: dict[str, Any]) -> None:
        need, id = Need(**fields), f"r{next(self.number)}"
        try:
            self.pool.ledger.request(id, need, self.pool.now)
        except NotEnoughDevices:
            return
        self.needs[id] = need
        self.decide()

    @rule(owner=st.sampled_from(OWNERS), more=st.integers(0, 2))
    def wake(self, owner: str, more: int) -> None:
        busy = {id for need in self.needs.values() for id in need.wakes}
        idle = [lease for lease in self.of(owner) if not lease.running and lease.id not in busy]
        if idle:
            lease, size = idle[0], len(idle[0].devices)
            others = {id for other in idle[1:] for id in other.devices} - set(lease.devices)
            same = {"per": size, "share": lease.share, "avoid": tuple(others)}
            self.ask({"owner": owner, "count": size * (1 + more), "wakes": (lease.id,), **same})

    @rule(which=NUMBERS)
    def rest(self, which: int) -> None:
        running = [lease.id for lease in self.pool.ledger.leases.values() if lease.running and lease.kind == "session"]
        self.pool.rest(running[which : which + 1])
        self.decide()

    @rule(which=NUMBERS)
    def release(self, which: int) -> None:
        self.pool.ledger.release(list(self.pool.ledger.leases)[which : which + 1])
        self.decide()

    @rule(which=NUMBERS)
    def promote(self, which: int) -> None:
        spares = [lease.id for lease in self.pool.ledger.leases.values() if lease.kind == "spare"]
        self.pool.ledger.recast(spares[which : which + 1], "model")
        self.decide()

    @rule(which=NUMBERS)
    def cancel(self, which: int) -> None:
        for id in list(self.needs)[which : which + 1]:
            del self.needs[id]
            self.pool.ledger.cancel(id)
        self.decide()

    @rule(which=NUMBERS)
    def clear(self, which: int) -> None:
        for id in self.closing[which : which + 1]:
            self.closing.remove(id)
            self.pool.ledger.cleared(id)
        self.decide()

    @rule(owner=st.sampled_from(OWNERS))
    def forget(self, owner: str) -> None:
        """The owner goes, what it left running is ended, and it comes again under the same id."""
        held = {id for lease in self.pool.ledger.remove_owner(owner) for id in lease.devices}
        assert not self.of(owner)
        for id in held:
            self.pool.ledger.clearing(id)
            self.closing.append(id)
        self.needs = {id: need for id, need in self.needs.items() if need.owner != owner}
        self.pool.ledger.add_owner(owner, f"{owner}.ipynb")
        self.decide()

    @rule(known=st.sampled_from(DEVICES))
    def lose(self, known: Any) -> None:
        self.pool.ledger.remove_device(known.id, self.pool.now)
        self.closing = [id for id in self.closing if id != known.id]
        self.leaving.discard(known.id)
        self.drained.discard(known.id)
        self.decide()

    @rule(known=st.sampled_from(DEVICES))
    def come_back(self, known: Any) -> None:
        if known.id not in self.pool.ledger.devices:
            self.pool.ledger.add_device(known)
            self.decide()

    @rule(known=st.sampled_from(DEVICES))
    def leave(self, known: Any) -> None:
        self.pool.ledger.leave(known.id, "its owner takes it back", self.pool.now + 40)
        self.leaving |= {known.id} & set(self.pool.ledger.devices)
        self.decide()

    @rule(known=st.sampled_from(DEVICES))
    def stay(self, known: Any) -> None:
        self.pool.ledger.stay(known.id)
        # it may leave again, and is said so again then
        self.asked -= {(lease.id, True) for lease in self.on(known.id)}
        self.leaving.discard(known.id)
        self.drained.discard(known.id)
        self.decide()

    @rule(pair=st.sampled_from(list(itertools.combinations(MACHINES, 2))), mutual=st.booleans())
    def link(self, pair: Any, mutual: bool) -> None:
        self.pool.ledger.set_links(*pair, mutual)
        self.links[frozenset(pair)] = mutual
        self.decide()

    @rule(seconds=st.sampled_from([1.0, AWAY_SECONDS, IDLE]))
    def wait(self, seconds: float) -> None:
        self.pool.now += seconds
        self.decide()

    # what the ledger decides

    def decide(self) -> None:
        before = dict(self.pool.ledger.leases)
        idle = {id for id, lease in before.items() if not lease.running}
        for decision in self.pool.decide():
            match decision:
                case Granted():
                    self.check_grant(decision, before)
                case Refused():
                    assert decision.reason
                    del self.needs[decision.request]
                case Evict():
                    assert decision.lease.id in idle
                    ripe = self.pool.now - decision.lease.since >= IDLE
                    assert ripe or set(decision.lease.devices) & self.leaving
                    self.closing += decision.lease.devices
                case Yield():
                    assert decision.lease.kind in ("trial", "spare")
                    assert (decision.lease.id, decision.is_leaving) not in self.asked
                    assert not decision.is_leaving or set(decision.lease.devices) & self.leaving
                    self.asked.add((decision.lease.id, decision.is_leaving))
                case Drained():
                    assert decision.device in self.leaving - self.drained
                    assert not self.on(decision.device)
                    self.drained.add(decision.device)
        assert self.pool.decide() == [], "deciding again decides nothing new"

    def check_grant(self, granted: Granted, before: dict[str, Lease]) -> None:
        need, devices = self.needs.pop(granted.request), self.pool.ledger.devices
        given = [id for lease in granted.leases for id in lease.devices]
        assert granted.owner == need.owner
        assert len(given) == len(set(given)) == need.count
        assert not set(given) & (set(self.closing) | self.leaving)
        machines = {devices[id].machine for id in given}
        if need.connected:
            assert all(self.links.get(frozenset(pair)) for pair in itertools.combinations(machines, 2))
        for lease in granted.leases:
            assert lease.running
            assert len(lease.devices) == need.per
            assert len({devices[id].machine for id in lease.devices}) == 1
            assert all(need.fits(devices[id]) for id in lease.devices)
            assert lease.id not in before or lease.id in need.wakes
            for id in lease.devices:
                assert all(other.owner == need.owner for other in self.on(id) if not other.running)

    # what holds after every step

    @invariant()
    @precondition(lambda self: hasattr(self, "pool"))
    def nothing_is_given_twice(self) -> None:
        ledger = self.pool.ledger
        for lease in ledger.leases.values():
            assert set(lease.devices) <= set(ledger.devices)
            assert lease.owner in ledger.owners
        for id in ledger.devices:
            assert sum(lease.share for lease in self.on(id) if lease.running) <= 1 + 1e-6
            assert self.on(id) == ledger.on(id)

    @invariant()
    @precondition(lambda self: hasattr(self, "pool"))
    def who_waits_is_told_why(self) -> None:
        waiting = self.pool.ledger.waiting(self.pool.now)
        assert {each.id for each in waiting} == set(self.needs) == set(self.pool.ledger.queued)
        running = {owner: sum(len(x.devices) for x in self.of(owner) if x.running) for owner in OWNERS}
        order = [(running[each.owner], int(each.id[1:])) for each in waiting]
        assert order == sorted(order), "who runs least comes first, then who has waited longest"
        assert all(each.reason for each in waiting)

    def teardown(self) -> None:
        """All are back, measured and at rest, and time goes by: then everybody is served."""
        if not hasattr(self, "pool"):
            return
        ledger = self.pool.ledger
        for known in DEVICES:
            self.stay(known=known)
            self.come_back(known=known)
        for pair in itertools.combinations(MACHINES, 2):
            self.link(pair=pair, mutual=True)
        for _ in range(4 * len(self.needs) + 4):
            ledger.release([lease.id for lease in ledger.leases.values() if lease.kind != "session"])
            self.pool.rest([lease.id for lease in ledger.leases.values() if lease.running])
            self.pool.now += IDLE
            self.decide()
            for id in self.closing:
                ledger.cleared(id)
            self.closing = []
            self.decide()
        assert not self.needs

    # counted anew

    def of(self, owner: str) -> list[Lease]:
        return [lease for lease in self.pool.ledger.leases.values() if lease.owner == owner]

    def on(self, id: str) -> list[Lease]:
        return [lease for lease in self.pool.ledger.leases.values() if id in lease.devices]


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
