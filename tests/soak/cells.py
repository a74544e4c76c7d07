"""What a soak does with cells: small and large ones, with errors, stopped, killed and frozen."""

from __future__ import annotations

from soak.bench import Bench, Later, all_said, freeze, kill

LINES = 20_000
ARRAY_NUMBERS = 6_250_000  # of 8 bytes: 50 MB


def small(bench: Bench) -> None:
    """A cell that uses a name of the notebook; its ranks keep theirs for the next one."""
    gpus, number = bench.gpus(), bench.number()
    bench.ok(f"given = {number}")
    cell = bench.ok(f"%%pool gpus={gpus}\nmine = given * 10 + rank\nprint('of', world_size)")
    all_said(cell, f"of {gpus}", gpus)
    values = bench.value(f"pool.run('result = mine', gpus={gpus}, out=['result'])['result']")
    assert values == [number * 10 + rank for rank in range(gpus)], values


def large_output(bench: Bench) -> None:
    gpus, number = bench.gpus(most=2), bench.number()
    cell = bench.ok(f"%%pool gpus={gpus}\nfor n in range({LINES}): print('line', n)\nprint('end {number}')")
    for line in (f"end {number}", *(f"line {n}" for n in (0, LINES // 2, LINES - 1))):
        all_said(cell, line, gpus)


def large_array(bench: Bench) -> None:
    """50 MB sent, changed in the ranks, changed here and sent again; and 8 MB home."""
    gpus, number = bench.gpus(most=2), bench.number()
    bench.ok(f"array = np.full({ARRAY_NUMBERS}, {float(number)})")
    for add in (0, 1):
        bench.ok(f"array[-1] += {add}")
        cell = bench.ok(f"%%pool gpus={gpus}\nprint('sum', int(array.sum()))\narray[:1000] = -1")
        total = number * ARRAY_NUMBERS + add
        all_said(cell, f"sum {total}", gpus)
    assert bench.value("bool((array[:1000] == array[1000]).all())")
    bench.ok(f"%%pool gpus={gpus} out=part\npart = array[:1_000_000] + rank")
    assert bench.value("[each[0] for each in part]") == [rank - 1.0 for rank in range(gpus)]
    bench.ok(f"%%pool gpus={gpus}\ndel array, part")
    bench.ok("del array, part")


def error(bench: Bench) -> None:
    gpus = bench.gpus()
    source, wanted = bench.luck.choice(
        [
            ("raise ValueError('as it should')", "ValueError: as it should"),
            ("def f(:", "CellSyntaxError"),
            ("{}['missing']", "KeyError: 'missing'"),
            (f"if rank == {gpus - 1}: 1 / 0\nimport time\ntime.sleep(600)", "ZeroDivisionError: division by zero"),
            ("import os\nos._exit(3)", "RankDied"),
        ]
    )
    cell = bench.run(f"%%pool gpus={gpus}\n{source}")
    assert cell.error.startswith(wanted), cell.error
    cell = bench.ok(f"%%pool gpus={gpus}\nprint('clean')")
    all_said(cell, "clean", gpus)


def together(bench: Bench) -> None:
    """Ranks that talk to each other by torch.distributed."""
    gpus = bench.gpus()
    source = "import torch, torch.distributed as dist\ndist.init_process_group('gloo')\ntensor = torch.ones(1) * rank"
    ends = "dist.all_reduce(tensor)\nprint('sum', int(tensor))\ndist.destroy_process_group()"
    cell = bench.ok(f"%%pool gpus={gpus}\n{source}\n{ends}")
    all_said(cell, f"sum {sum(range(gpus))}", gpus)


def stopped(bench: Bench) -> None:
    """■ at a random moment, also while ranks are still being leased and started."""
    if bench.luck.random() < 0.5:
        bench.restart()
    body = bench.luck.choice(["import time\\ntime.sleep(600)", "while True: pass"])
    source = f"get_ipython().run_cell_magic('pool', 'gpus={bench.gpus()}', '{body}')"
    bench.press(bench.begin(f"print('begun', flush=True)\n{source}"))
    cell = bench.ok("%%pool gpus=1\nprint('clean')")
    all_said(cell, "clean", 1)


def rank_killed(bench: Bench) -> None:
    gpus, note = bench.gpus(), bench.note()
    request = bench.begin(_noting(gpus, str(note), 600))
    kill(bench.luck.choice(bench.ranks(request, note, gpus)))
    cell = bench.finish(request)
    assert cell.error.startswith("RankDied"), cell.error
    assert "SIGKILL" in cell.error, cell.error
    bench.ok(f"%%pool gpus={gpus}\npass")


def rank_frozen(bench: Bench) -> None:
    gpus, note = bench.gpus(), bench.note()
    request = bench.begin(_noting(gpus, str(note), 1))
    freeze(bench.luck.choice(bench.ranks(request, note, gpus)), bench.luck.uniform(0.5, 4))
    cell = bench.finish(request)
    assert cell.status == "ok", cell.error
    all_said(cell, "slept", gpus)


def worker_killed(bench: Bench) -> None:
    """The cell on it ends with a sentence; the device comes back."""
    bench.disturb()
    gpus, note = bench.gpus(), bench.note()
    bench.ok(f"%%pool gpus={gpus}\npass")
    victim = bench.at(bench.luck.choice(bench.value("[rank.worker for rank in pool.runs[-1].ranks]")))
    request = bench.begin(_noting(gpus, str(note), 600))
    bench.ranks(request, note, gpus)
    victim.kill()
    cell = bench.finish(request)
    assert "lost with its worker" in cell.error, cell.error
    bench.wait_for_devices()
    cell = bench.ok(f"%%pool gpus={gpus}\nprint('back')")
    all_said(cell, "back", gpus)


def in_background(bench: Bench) -> None:
    """A cell with --async; its handle is asked later."""
    number, seconds, gpus = bench.number(), bench.luck.uniform(1, 6), bench.gpus(most=1)
    name = f"job_{number}"
    result = f"result_{number}"
    bench.ok(f"%%pool gpus={gpus} out={result} --async={name}\nimport time\ntime.sleep({seconds})\n{result} = {number}")

    def check(is_disturbed: bool) -> None:
        cell = bench.run(f"assert {name}.result()['{result}'] == [{number}], {name}.result()")
        bench.ok(f"del {name}")
        expected = ("", "RankDied") if is_disturbed else ("",)
        assert cell.error.partition(":")[0] in expected, cell.error

    bench.later.append(Later("cell in the background", bench.luck.randint(1, 4), check, is_cell=True))


def _noting(gpus: int, note: str, seconds: float) -> str:
    lines = [
        "import os, time",
        f"with open({note!r}, 'a') as file: file.write(f'{{rank}} {{os.getpid()}}\\n')",
        "print('begun', flush=True)",
        f"time.sleep({seconds})",
        "print('slept')",
    ]
    return "\n".join([f"%%pool gpus={gpus}", *lines])
