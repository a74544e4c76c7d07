"""A script with types all the way: a sweep and a cell on a pool of this machine. `mypy --strict` knows what comes back.

python examples/typed.py
"""

from __future__ import annotations

from typing import TypedDict

import kalavai_nb as kn


class Config(TypedDict):
    """What a trial is given."""

    rate: float
    steps: int


class Result(TypedDict):
    """What a trial returns."""

    loss: float
    at: float


def descend(config: Config, trial: kn.LiveTrial) -> Result:
    """Walk down (x - 3)², and say so on the way."""
    x = 0.0
    for step in range(config["steps"]):
        x -= config["rate"] * 2 * (x - 3)
        trial.report(step, loss=(x - 3) ** 2)
    return {"loss": (x - 3) ** 2, "at": x}


def main() -> None:
    """Four rates on two devices."""
    configs: list[Config] = [{"rate": rate, "steps": 20} for rate in (0.01, 0.1, 0.4, 0.9)]
    with kn.Pool(devices=2, quiet=True) as pool:
        sweep: kn.Sweep[Result] = pool.map(descend, configs, metric="loss", show=False)
        losses: list[float] = [result["loss"] for result in sweep]
        best: kn.Trial[Result] = sweep.best
        print(f"best of {len(losses)}: {best.config} with {min(losses):.2g}, on one of {len(pool.devices)} devices")


if __name__ == "__main__":
    main()
