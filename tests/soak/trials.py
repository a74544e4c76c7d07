"""What a soak does with sweeps: short and long trials, some that fail, stopped and resumed, killed, searched for."""

from __future__ import annotations

import time
from collections import Counter

from soak.bench import DEVICES, Bench, Later, freeze, kill

# what becomes of `troubled` for six configs in a row
ENDS = ["COMPLETE", "FAILED"] * 3


def short_ones(bench: Bench) -> None:
    count = bench.luck.randint(20, 120)
    bench.counts["trials"] += count
    bench.ok(
        f"sweep = pool.map(lambda x: x * 10, range({count}))\n"
        f"assert sweep.values == [x * 10 for x in range({count})], sweep\ndel sweep"
    )


def that_fail(bench: Bench) -> None:
    """Those that raise, exit and hang fail alone."""
    count = 6 * bench.luck.randint(1, 3)
    bench.counts["trials"] += count
    bench.ok(f"sweep = pool.map(troubled, range({count}), timeout=3, show=False).wait()")
    states = bench.value("[str(trial.state) for trial in sweep.trials]")
    assert states == ENDS * (count // 6), states
    errors = bench.value("[type(trial.error).__name__ for trial in sweep.failed]")
    assert errors == ["ValueError", "TrialError", "TrialTimeout"] * (count // 6), errors
    bench.ok("sweep.table()\ndel sweep")


def killed(bench: Bench) -> None:
    """SIGKILL to the process of a trial: that one fails, and no other."""
    note, count = bench.note(), bench.luck.randint(4, 10)
    _begin(bench, count, 1.5, str(note))
    time.sleep(bench.luck.uniform(0, 1))
    line = bench.luck.choice(bench.lines(note))
    kill(line[1])
    bench.ok("sweep.wait()")
    failed = bench.value("{trial.index: str(trial.error) for trial in sweep.failed}")
    # the trial may have ended in this very moment
    assert all("SIGKILL" in text for text in failed.values()), failed
    assert set(failed) <= {str(line[0])}, failed
    bench.ok("assert all(t.value == t.index * 10 for t in sweep.trials if t not in sweep.failed)\ndel sweep")


def frozen(bench: Bench) -> None:
    """SIGSTOP and SIGCONT to a trial's process: it only takes longer."""
    note, count = bench.note(), bench.luck.randint(4, 8)
    _begin(bench, count, 1.0, str(note))
    freeze(bench.luck.choice(bench.lines(note))[1], bench.luck.uniform(0.5, 4))
    _all_right(bench, count)


def worker_killed(bench: Bench) -> None:
    """What ran on it runs again; no result is missing."""
    bench.disturb()
    note, count = bench.note(), bench.luck.randint(8, 16)
    victim = bench.worker()
    _begin(bench, count, 0.7, str(note))
    bench.lines(note, bench.luck.randint(1, 5))
    victim.kill()
    _all_right(bench, count)
    bench.wait_for_devices()


def resumed(bench: Bench) -> None:
    """A sweep with a name that grows each time; stopped half-way, by ■ or by `stop`, it goes on."""
    name, more = f"kept-{bench.luck.randint(1, 4)}", bench.luck.randint(8, 16)
    before = bench.grown[name]
    bench.grown[name] += more
    bench.counts["trials"] += more
    count, note = bench.grown[name], bench.directory / name
    begin = f"pool.map(noted, [(x, 0.3, {str(note)!r}) for x in range({count})], name={name!r}, show=False)"
    bench.ok(f"sweep = {begin}")
    bench.lines(note, before + 1)
    if bench.luck.random() < 0.5:
        bench.press(bench.begin("print('begun', flush=True)\nsweep.wait()\ntime.sleep(60)"))
    bench.ok("sweep.stop()")
    states = set(bench.value("[str(trial.state) for trial in sweep.trials]"))
    assert states <= {"COMPLETE", "STOPPED"}, states
    bench.ok(f"sweep = {bench.luck.choice([begin, 'sweep.resume()'])}")
    _all_right(bench, count)
    runs = Counter(x for x, _ in bench.lines(note))
    assert set(runs) == set(range(count)), runs
    # one that was stopped may have run once more, and none that was done; each call stops at most one for each device
    again = [x for x, times in runs.items() if times > 1]
    assert len(again) <= DEVICES * bench.counts["sweep resumed"] + DEVICES, runs
    bench.ok(f"assert kn.sweeps[{name!r}].values == [x * 10 for x in range({count})]")


def searched(bench: Bench) -> None:
    """TPE and ASHA."""
    count = bench.luck.randint(10, 25)
    bench.counts["trials"] += count
    named = f", name='searched-{bench.number()}'" if bench.luck.random() < 0.3 else ""
    bench.ok(
        "sweep = pool.sweep(learned, {'x': kn.uniform(-10, 10), 'y': [1, 2]}, metric='loss', search='tpe', "
        f"stop='asha', trials={count}, seed={bench.number()}{named}).wait()"
    )
    states = bench.value("[str(trial.state) for trial in sweep.trials]")
    assert len(states) == count, states
    assert set(states) <= {"COMPLETE", "PRUNED"}, states
    bench.ok("assert sweep.best.value == min(t.value for t in sweep.trials if str(t.state) == 'COMPLETE')\ndel sweep")


def laden(bench: Bench) -> None:
    """Trials that bring home large values, checkpoints and files; forgotten again, since they fill the disk."""
    name, count = f"laden-{bench.number()}", bench.luck.randint(2, 6)
    bench.counts["trials"] += count
    bench.ok(f"sweep = pool.map(laden, range({count}), name={name!r}, show=False)")
    bench.ok(f"assert [v.sum() for v in sweep.values] == [200_000.0 * x for x in range({count})]")
    bench.ok(
        f"assert all((sweep[x].directory and open(sweep[x].directory + '/note.txt').read() == f'{{x}} 0') "
        f"and sweep.checkpoint(x)['content'][7] == x for x in range({count}))"
    )
    bench.ok(f"del sweep\nkn.sweeps.forget({name!r})")


def in_background(bench: Bench) -> None:
    """A sweep on a device or two while other things are done."""
    number, count = bench.number(), bench.luck.randint(5, 20)
    bench.counts["trials"] += count
    name = f"sweep_{number}"
    configs = f"[(x, {bench.luck.uniform(0.2, 1.5):.2f}, {str(bench.note())!r}) for x in range({count})]"
    bench.ok(f"{name} = pool.map(noted, {configs}, max_parallel={bench.luck.randint(1, 2)}, show=False)")

    def check(is_disturbed: bool) -> None:
        bench.ok(f"assert {name}.values == [x * 10 for x in range({count})], {name}\ndel {name}")

    bench.later.append(Later("sweep in the background", bench.luck.randint(1, 5), check))


def _begin(bench: Bench, count: int, seconds: float, note: str) -> None:
    bench.counts["trials"] += count
    bench.ok(f"sweep = pool.map(noted, [(x, {seconds}, {note!r}) for x in range({count})], isolate=True, show=False)")


def _all_right(bench: Bench, count: int) -> None:
    bench.ok(f"assert sweep.values == [x * 10 for x in range({count})], sweep\ndel sweep")
