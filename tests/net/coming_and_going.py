"""Machines join and leave at random under a sweep, cleanly or not, and then it is counted what is left. ``make soak``.

    python tests/net/coming_and_going.py [--seconds 300] [--machines 20] [--trials 2000] [--seed 1]

Each machine is a host of its own, every third of them behind a router. It ends with a table, and with status 1 where a
result is missing or came twice, or where leases, processes, descriptors or memory were left.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from hosts import Host, Network, why_not
from pooled import Desk, Verb, ask, counting, executions, memory_bytes

# so that some still run when five minutes are over
TRIAL_SECONDS = 1.6
# joins are what costs most: more at once only wait for each other
JOINS_AT_ONCE = 3
ENDS = ("clean", "clean", "killed", "partitioned")
AWAY_SECONDS = (2.0, 25.0)
HERE_SECONDS = (10.0, 70.0)
CUT_SECONDS = (5.0, 40.0)
# what a process may keep of two thousand trials and some hundred joins
MOST_MEMORY_BYTES = 60e6
MOST_DESCRIPTORS = 10


@dataclass
class Held:
    """What the pool's own processes have of this machine."""

    memory_bytes: int
    descriptors: int
    processes: int

    @classmethod
    def by(cls, processes: list[psutil.Process]) -> Held:
        return cls(memory_bytes(processes), sum(p.num_fds() for p in processes), len(processes))

    def row(self, name: str, after: Held) -> str:
        memory = f"{self.memory_bytes / 1e6:.0f} → {after.memory_bytes / 1e6:.0f} MB"
        return (
            f"| {name} | {memory} | {self.descriptors} → {after.descriptors} | {self.processes} → {after.processes} |"
        )

    def leaks(self, name: str, after: Held) -> list[str]:
        found = []
        if after.memory_bytes - self.memory_bytes > MOST_MEMORY_BYTES:
            found.append(f"{name}: {(after.memory_bytes - self.memory_bytes) / 1e6:.0f} MB more than before")
        if after.descriptors - self.descriptors > MOST_DESCRIPTORS:
            found.append(f"{name}: {after.descriptors - self.descriptors} descriptors more than before")
        if after.processes > self.processes:
            found.append(f"{name}: {after.processes - self.processes} processes more than before")
        return found


@dataclass
class Soak:
    """One run of it."""

    network: Network
    seed: int
    invite: str = ""
    over: threading.Event = field(default_factory=threading.Event)
    events: Counter[str] = field(default_factory=Counter)
    join_seconds: list[float] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    joining: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(JOINS_AT_ONCE))

    def live(self, host: Host, number: int) -> None:
        """One machine comes and goes until all is over; then it leaves cleanly."""
        luck = random.Random(self.seed * 1000 + number)
        self.over.wait(luck.uniform(0, 20))
        try:
            while not self.over.is_set():
                verb = self._join(host)
                if verb is None:
                    continue
                self.over.wait(luck.uniform(*HERE_SECONDS))
                self._end(host, verb, "clean" if self.over.is_set() else luck.choice(ENDS), luck)
                self.over.wait(luck.uniform(*AWAY_SECONDS))
        except Exception as error:
            self.troubles.append(f"{host.name}: {error}")
        host.kill()

    def _join(self, host: Host) -> Verb | None:
        with self.joining:
            if self.over.is_set():
                return None
            verb = Verb(host, "join", self.invite, "--devices", "1")
            verb.wait_for("lent", 120)
            self.join_seconds.append(time.monotonic() - verb.began)
            self.events["joins"] += 1
            return verb

    def _end(self, host: Host, verb: Verb, how: str, luck: random.Random) -> None:
        self.events[how] += 1
        if how == "killed":
            host.kill()
            return
        if how == "partitioned":
            host.partition()
            self.over.wait(luck.uniform(*CUT_SECONDS))
            host.heal()
            self.over.wait(luck.uniform(*HERE_SECONDS))
        verb.interrupt()
        verb.end(120)
        if left := host.processes():
            self.troubles.append(f"{host.name}: {len(left)} processes after it left: {[p.name() for p in left]}")


def run(directory: Path, machines: int, seconds: float, trials: int, seed: int) -> int:
    """The soak; the exit status."""
    with Network(directory) as network:
        hub, desk_host = network.host("hub"), network.host("desk")
        pool = Verb(hub, "start", "den", "--no-devices")
        pool.wait_for("ready")
        user = str(ask(hub, "invite", "--role", "user")["invite"])
        soak = Soak(network, seed, str(ask(hub, "invite", "--role", "worker", "--uses", "1000")["invite"]))
        with Desk(desk_host) as desk:
            desk.ok(f"import kalavai_nb as kn, time, json\npool = kn.Pool({user!r}, quiet=True)")
            hosts = [network.host(f"m{number}", behind_nat=number % 3 == 2) for number in range(machines)]
            # what is loaded once is there before it is counted
            first = Verb(hosts[0], "join", soak.invite, "--devices", "1")
            first.wait_for("lent")
            desk.ok("pool.map(lambda x: x, range(20), show=False).values")
            first.interrupt()
            first.end()
            before = {"hub": Held.by(hub.processes()), "notebook": Held.by(desk_host.processes())}
            print(
                f"{machines} machines, {trials} trials of {TRIAL_SECONDS} s, {seconds:.0f} s, seed {seed}", flush=True
            )

            log = directory / "executions"
            desk.ok(counting(log, TRIAL_SECONDS))
            desk.ok(f"sweep = pool.map(work, range({trials}), show=False)")
            began = time.monotonic()
            threads = [
                threading.Thread(target=soak.live, args=(host, number), daemon=True)
                for number, host in enumerate(hosts)
            ]
            for thread in threads:
                thread.start()
            counts = "len([t for t in sweep.trials if t.state == 'COMPLETE'])"
            while (spent := time.monotonic() - began) < seconds:
                done = desk.value(counts)
                print(f"{spent:4.0f} s: {done} done, {dict(soak.events)}", flush=True)
                time.sleep(15)
            # those that are there finish what is left; the sweep may also end without all of it
            while (done := desk.value(counts)) < trials and time.monotonic() - began < seconds + 300:
                if desk.value("all(t.state not in ('WAITING', 'RUNNING') for t in sweep.trials)"):
                    break
                print(f"{time.monotonic() - began:4.0f} s: {done} done, {dict(soak.events)}", flush=True)
                time.sleep(5)
            spent = time.monotonic() - began
            soak.over.set()
            for thread in threads:
                thread.join(180)
            right = desk.value("sum(t.value == t.config * 10 for t in sweep.trials if t.state == 'COMPLETE')")
            attempts = desk.value("sum(t.attempts for t in sweep.trials)")
            soak.troubles += desk.value("[f'trial {t.index}: {t.error}' for t in sweep.trials if t.error]")
            desk.ok("del sweep\nimport gc; gc.collect()")
            desk.ok("begun = time.monotonic()\nwhile pool.devices and time.monotonic() < begun + 30: time.sleep(0.2)")
            snapshot = desk.value("pool.snapshot().to_dict()")
            after = {"hub": Held.by(hub.processes()), "notebook": Held.by(desk_host.processes())}
            return report(soak, before, after, snapshot, log, trials, right, attempts, spent)


def report(
    soak: Soak,
    before: dict[str, Held],
    after: dict[str, Held],
    snapshot: dict[str, list[object]],
    log: Path,
    trials: int,
    right: int,
    attempts: int,
    spent: float,
) -> int:
    """Print what was seen; 1 where something is wrong."""
    runs = Counter(each.config for each in executions(log))
    again = runs.total() - len(runs)
    lost = soak.events["killed"] + soak.events["partitioned"]
    joins = sorted(soak.join_seconds)
    troubles = list(soak.troubles)
    if right != trials:
        troubles.append(f"{right} of {trials} trials have their result")
    if again > lost:
        troubles.append(f"{again} executions more than trials, where {lost} machines were lost")
    if snapshot["leases"] or snapshot["queue"] or snapshot["devices"]:
        left = {name: len(snapshot[name]) for name in ("leases", "queue", "devices")}
        troubles.append(f"left in the pool: {left}")
    for name in before:
        troubles += before[name].leaks(name, after[name])
    print("\n| what | seen |\n|---|---|")
    print(f"| trials with their result | {right} of {trials} in {spent:.0f} s |")
    print(f"| executions, attempts told | {runs.total()} ({again} again), {attempts} |")
    ends = ", ".join(f"{soak.events[how]} {how}" for how in ("clean", "killed", "partitioned"))
    print(f"| joins, ends | {soak.events['joins']}; {ends} |")
    if joins:
        print(f"| from join to lent | median {joins[len(joins) // 2]:.1f} s, longest {joins[-1]:.1f} s |")
    print(f"| left in the pool | {len(snapshot['leases'])} leases, {len(snapshot['devices'])} devices |")
    print("\n| process | memory of its own | descriptors | processes |\n|---|---|---|---|")
    for name in before:
        print(before[name].row(name, after[name]))
    for trouble in troubles:
        print(f"WRONG: {trouble}")
    return 1 if troubles else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--machines", type=int, default=20)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if reason := why_not():
        print(f"NO SOAK: {reason}")
        return 1
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        return run(Path(directory), options.machines, options.seconds, options.trials, options.seed)


if __name__ == "__main__":
    sys.exit(main())
