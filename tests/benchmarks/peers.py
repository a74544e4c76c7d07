"""kalavai_nb and its peers behind one face, and what is done to each: ``python -m tests.benchmarks.peers dask killed``.

A run has a process of its own, which prints figures as lines of JSON; tests/benchmarks/sweeps.py makes a table of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from notebook import listens_on

WORKERS = 2
TRIALS, SECONDS = 40, 0.3
BAD = 17
ROUNDS = 3
# of a random search, for each of so many seeds
SEEDS, PLAIN_TRIALS, EPOCHS = 5, 16, 64
Figures = dict[str, float]


class Log:
    """What trials say of themselves: a line each at their beginning and end, by whichever process runs them."""

    def __init__(self) -> None:
        self.path = tempfile.mkstemp(dir=Path.cwd())[1]

    def words(self, first: str) -> list[list[str]]:
        """The lines that begin with this word, split."""
        lines = [line.split() for line in Path(self.path).read_text().splitlines()]
        return [words for words in lines if words[0] == first]

    def wait_for_ends(self, count: int) -> None:
        """Until so many trials have ended, and the next ones are at work."""
        while len(self.words("end")) < count:
            time.sleep(0.01)
        time.sleep(SECONDS / 2)

    def trial(self, bad: Callable[[], None] | None = None) -> Callable[[int], int]:
        """A function of `SECONDS` that writes here; trial `BAD` calls ``bad``."""
        path = self.path

        def work(x: int) -> int:
            append(path, "begin", x, os.getpid())
            if x == BAD and bad:
                bad()
            time.sleep(SECONDS)
            append(path, "end", x)
            return x

        return work


def append(path: str, *words: object) -> None:
    """Add a line to a file: in append mode one write is one line, whoever writes beside."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


class System:
    """One way to run many trials on `WORKERS` workers, as its documentation has it."""

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        """Begin to call ``fn`` on each config; returns at once."""
        raise NotImplementedError

    def kept(self, handle: Any) -> list[Any]:
        """Wait for the end; the values that are handed out then, without those that failed."""
        raise NotImplementedError

    def run(self, fn: Callable[..., Any], configs: Sequence[Any]) -> list[Any]:
        return self.kept(self.begin(fn, configs))

    def search(self, fn: Callable[..., Any], trials: int) -> float:
        """The least value of ``fn({"x": …})`` that TPE finds in so many trials."""
        raise NotImplementedError

    def victim(self, log: Log) -> int:
        """A worker that is at work: for most, the process of the trial that began last."""
        return int(log.words("begin")[-1][2])

    def lost(self, log: Log) -> int:
        """How many workers trial `BAD` took with it: for most, one whenever it was tried."""
        return sum(words[1] == str(BAD) for words in log.words("begin"))

    def close(self) -> None:
        """End all its processes."""


class Ours(System):
    def __init__(self, isolate: bool | str = "auto") -> None:
        import kalavai_nb as kn

        self.pool = kn.Pool(devices=WORKERS, quiet=True)
        self._isolate, self._workers = isolate, {device.worker for device in self.pool.devices}

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        return self.pool.map(fn, configs, show=False, isolate=self._isolate)

    def kept(self, handle: Any) -> list[Any]:
        return [trial.value for trial in handle.wait().trials if trial.state == "COMPLETE"]

    def search(self, fn: Callable[..., Any], trials: int) -> float:
        import kalavai_nb as kn

        space = {"x": kn.uniform(0, 1)}
        return self.pool.sweep(fn, space, metric="value", trials=trials, show=False).wait().best.value["value"]

    def victim(self, log: Log) -> int:
        address = self.pool.devices[0].worker
        return next(p.pid for p in psutil.Process().children(recursive=True) if listens_on(p, address))

    def lost(self, log: Log) -> int:
        return len(self._workers - {device.worker for device in self.pool.devices})

    def close(self) -> None:
        self.pool.close()


class Dask(System):
    def __init__(self, pure: bool = False) -> None:
        from distributed import Client

        self.client = Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
        self._pure = pure

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        return self.client.map(fn, configs, pure=self._pure)

    def kept(self, handle: Any) -> list[Any]:
        return self.client.gather(handle, errors="skip")

    def close(self) -> None:
        self.client.shutdown()


class AskAndTell(Dask):
    """Optuna in this process, Dask behind it: the recipe that is short and does not lose trials to a storage."""

    def search(self, fn: Callable[..., Any], trials: int) -> float:
        import optuna
        from distributed import as_completed

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study, running = optuna.create_study(), {}

        def ask() -> Any:
            trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
            future = self.client.submit(fn, trial.params, pure=False)
            running[future.key] = trial
            return future

        futures = as_completed([ask() for _ in range(WORKERS)])
        for future in futures:
            study.tell(running.pop(future.key), future.result()["value"])
            if len(study.trials) < trials:
                futures.add(ask())
        return study.best_value


class Ray(System):
    def __init__(self) -> None:
        import ray

        self._ray = ray
        ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        task = self._ray.remote(fn)
        return [task.remote(config) for config in configs]

    def kept(self, handle: Any) -> list[Any]:
        with contextlib.suppress(self._ray.exceptions.RayError):
            return self._ray.get(handle)
        values = []
        for reference in handle:
            with contextlib.suppress(self._ray.exceptions.RayError):
                values.append(self._ray.get(reference))
        return values

    def close(self) -> None:
        self._ray.shutdown()


class Joblib(System):
    """The generator, which keeps what came before the first failure; the list keeps nothing."""

    def __init__(self) -> None:
        import joblib

        self._joblib = joblib

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        parallel = self._joblib.Parallel(n_jobs=WORKERS, return_as="generator")
        return parallel(self._joblib.delayed(fn)(config) for config in configs)

    def kept(self, handle: Any) -> list[Any]:
        values = []
        # whatever the trial raised
        with contextlib.suppress(Exception):
            for value in handle:
                values.append(value)
        return values


class IPyParallel(System):
    def __init__(self) -> None:
        import ipyparallel

        self._client = ipyparallel.Cluster(n=WORKERS, log_level=40).start_and_connect_sync()
        self._view = self._client.load_balanced_view()

    def begin(self, fn: Callable[..., Any], configs: Sequence[Any]) -> Any:
        return self._view.map_async(fn, configs)

    def kept(self, handle: Any) -> list[Any]:
        return handle.get()

    def close(self) -> None:
        self._client.shutdown(hub=True)


SYSTEMS: dict[str, Callable[[], System]] = {
    "kalavai_nb": Ours,
    "kalavai_nb/isolated": partial(Ours, isolate=True),
    "dask": Dask,
    "dask/pure": partial(Dask, pure=True),
    "ray": Ray,
    "joblib": Joblib,
    "ipyparallel": IPyParallel,
    "Optuna on dask": AskAndTell,
}


# trials


def nothing(_: Any) -> None:
    pass


def parabola(config: dict[str, float]) -> dict[str, float]:
    return {"value": (config["x"] - 0.5) ** 2}


def by_chance(_: Any) -> tuple[float, float]:
    return random.random(), float(np.random.random())


def digits_training(path: str) -> Callable[[dict[str, Any], Any], float]:
    """A small network on scikit-learn's digits, trained by SGD; a line in ``path`` for each epoch."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    inputs, labels = load_digits(return_X_y=True)
    data = train_test_split(np.float32(inputs / 16), labels, test_size=0.4, random_state=0, stratify=labels)

    def train(config: dict[str, Any], trial: Any) -> float:
        import torch
        from torch.nn import Dropout, Linear, ReLU, Sequential
        from torch.nn.functional import cross_entropy

        torch.set_num_threads(1)
        seen, held_out, seen_labels, held_out_labels = map(torch.as_tensor, data)
        width, accuracy = config["width"], 0.0
        model = Sequential(Linear(64, width), ReLU(), Dropout(config["dropout"]), Linear(width, 10))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config["lr"], momentum=config["momentum"], weight_decay=config["decay"]
        )
        for epoch in range(1, EPOCHS + 1):
            model.train()
            for batch in torch.randperm(len(seen)).split(config["batch"]):
                optimizer.zero_grad()
                cross_entropy(model(seen[batch]), seen_labels[batch]).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                accuracy = (model(held_out).argmax(1) == held_out_labels).float().mean().item()
            append(path, "epoch", accuracy)
            trial.report(epoch, accuracy=accuracy)
        return accuracy

    return train


def raise_error() -> None:
    raise ValueError("no data")


def exit_process() -> None:
    os._exit(9)


# cases


def no_ops(system: System, count: int) -> Iterator[Figures]:
    """Time per trial that does nothing."""
    for _ in range(ROUNDS):
        started = time.monotonic()
        assert len(system.run(nothing, range(count))) == count
        yield {"ms": 1000 * (time.monotonic() - started) / count}


def search(system: System) -> Iterator[Figures]:
    """Time per trial of a search by TPE."""
    system.search(parabola, 20)
    started, count = time.monotonic(), 200
    assert system.search(parabola, count) < 1e-3
    yield {"ms": 1000 * (time.monotonic() - started) / count}


def closure(system: System) -> Iterator[Figures]:
    """100 trials of a function with 50 MB: seconds, and bytes over loopback, from whomever."""
    array = np.random.default_rng(0).random(6_250_000)
    before, started = _loopback_bytes(), time.monotonic()
    assert system.run(lambda x: float(array[x]), range(100)) == array[:100].tolist()
    yield {"seconds": time.monotonic() - started, "megabytes": (_loopback_bytes() - before) / 1e6}


def killed(system: System) -> Iterator[Figures]:
    """SIGKILL of a worker half-way, and the time beside that of an undisturbed run just before."""
    for _ in range(ROUNDS):
        calm = time.monotonic()
        assert len(system.run(Log().trial(), range(TRIALS))) == TRIALS
        log, started = Log(), time.monotonic()
        handle = system.begin(log.trial(), range(TRIALS))
        log.wait_for_ends(TRIALS // 2)
        os.kill(system.victim(log), signal.SIGKILL)
        kept = system.kept(handle)
        yield {**_counts(kept, log), "ratio": (time.monotonic() - started) / (started - calm)}


def faulty(system: System, bad: Callable[[], None]) -> Iterator[Figures]:
    """One bad trial among good ones."""
    log = Log()
    kept = system.run(log.trial(bad), range(TRIALS))
    yield {**_counts(kept, log), "lost": system.lost(log)}


def stopped(system: System) -> Iterator[Figures]:
    """■ after 10 trials while waiting for all: how many more begin."""
    log = Log()
    handle = system.begin(log.trial(), range(TRIALS))
    begun: list[int] = []

    def press() -> None:
        log.wait_for_ends(10)
        begun.append(len(log.words("begin")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with contextlib.suppress(KeyboardInterrupt):
        system.kept(handle)
    # as long as all others would take
    time.sleep(SECONDS * TRIALS / WORKERS)
    yield {"further": len(log.words("begin")) - begun[0]}


def same_config(system: System) -> Iterator[Figures]:
    """Distinct random numbers of Python and of NumPy, the fewer of both, for ten equal configs."""
    values = system.run(by_chance, [1] * 10)
    yield {"distinct": min(len(set(numbers)) for numbers in zip(*values, strict=True))}


def asha(system: Ours) -> Iterator[Figures]:
    """Epochs until the best score of a random search, which has ``EPOCHS * PLAIN_TRIALS`` of them, is there again.

    ``of_budget`` counts them against that budget, ``of_own`` against those the random search itself needed. Both see
    the same configs in the same order; ASHA sees more of them.
    """
    import kalavai_nb as kn

    space = {
        "lr": kn.loguniform(1e-4, 1),
        "momentum": kn.uniform(0, 0.99),
        "dropout": kn.uniform(0, 0.5),
        "decay": kn.loguniform(1e-6, 1e-2),
        "width": [16, 32, 64, 128],
        "batch": [32, 64, 128],
    }
    budget = EPOCHS * PLAIN_TRIALS

    def scores(log: Log) -> list[float]:
        return [float(words[1]) for words in log.words("epoch")][:budget]

    def begin(log: Log, seed: int, **options: Any) -> Any:
        options = {"metric": "accuracy", "mode": "max", "search": "random", "seed": seed, "show": False, **options}
        return system.pool.sweep(digits_training(log.path), space, **options)

    for seed in range(SEEDS):
        plain, pruned = Log(), Log()
        begin(plain, seed, trials=PLAIN_TRIALS).wait()
        best = max(scores(plain))
        sweep = begin(pruned, seed, trials=50 * PLAIN_TRIALS, stop="asha")
        while len(scores(pruned)) < budget and max(scores(pruned), default=0.0) < best:
            time.sleep(0.1)
        sweep.stop()
        needed = next((epochs for epochs, score in enumerate(scores(pruned), 1) if score >= best), float("inf"))
        yield {"of_budget": needed / budget, "of_own": needed / (1 + scores(plain).index(best))}


CASES: dict[str, Callable[[Any], Iterable[Figures]]] = {
    "no_ops": partial(no_ops, count=1000),
    "no_ops_isolated": partial(no_ops, count=200),
    "search": search,
    "closure": closure,
    "killed": killed,
    "raises": partial(faulty, bad=raise_error),
    "exits": partial(faulty, bad=exit_process),
    "stopped": stopped,
    "same_config": same_config,
    "asha": asha,
}


def main(name: str, case: str) -> None:
    """Print the figures of one system in one case, or that it is not installed."""
    # what a shell has put into the background ignores it, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        system = SYSTEMS[name]()
    except ModuleNotFoundError:
        print(json.dumps("not installed"), flush=True)
        return
    try:
        system.run(nothing, range(TRIALS))  # warm
        for figures in CASES[case](system):
            print(json.dumps(figures), flush=True)
    finally:
        system.close()


def _counts(kept: list[Any], log: Log) -> Figures:
    return {"kept": len(set(kept)), "executions": len(log.words("begin"))}


def _loopback_bytes() -> int:
    return psutil.net_io_counters(pernic=True)["lo"].bytes_sent


if __name__ == "__main__":
    main(*sys.argv[1:])
