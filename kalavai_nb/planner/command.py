"""``kalavai-nb plan`` and ``%pool plan``: options read, plan made, shown."""

from __future__ import annotations

import argparse
import json
from typing import Any

from kalavai_nb.planner.growth import PRESETS
from kalavai_nb.planner.plan import Plan, plan
from kalavai_nb.planner.quants import OTHERS, QUANTS

NAME = "plan"
HELP = "how many GPUs a model needs, at each quantisation, now and in some years"
_EPILOG = """\
examples:
  kalavai-nb plan 70B --gpus "RTX 3060 x4"
  kalavai-nb plan ./my-model --gpus "RTX 3090, 12GB" --quant int4 --max-len 8192
  kalavai-nb plan 30B --gpus "48GB x2" --years 5 --preset article

Nothing is loaded, nothing is measured: it is arithmetic, and it says what it assumes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", help="a folder with a config.json, a GGUF file, an id of the hub, or a size such as 70B"
    )
    parser.add_argument("--gpus", metavar="LIST", help='such as "RTX 3060 x2, 24GB"; default: cards of each usual size')
    names = ", ".join(quant.name for quant in (*QUANTS, *OTHERS))
    parser.add_argument("--quant", metavar="Q", help=f"{names}, int4, or auto; default: as the model is")
    parser.add_argument("--max-len", type=int, default=4096, metavar="N", help="tokens of a sequence (4096)")
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="sequences at once (1)")
    parser.add_argument("--years", type=float, default=0, metavar="N", help="how many it takes in so many years")
    parser.add_argument("--preset", metavar="P", help=f"rates of growth: {', '.join(PRESETS)}; default: parameters")
    parser.add_argument("--model-growth", type=float, metavar="X", help="by which factor models grow in a year")
    parser.add_argument(
        "--gpu-growth", type=float, metavar="X", help="by which factor the memory of GPUs grows in a year"
    )
    parser.add_argument("--rtt-ms", type=float, metavar="MS", help="round trip between devices (20 assumed)")
    parser.add_argument("--link-mbit", type=float, metavar="MBIT", help="what a link carries (100 Mbit/s assumed)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def make(options: argparse.Namespace, devices: Any = None) -> Plan:
    """The plan that was asked for, on ``devices`` where no ``--gpus`` are named."""
    return plan(
        options.model,
        devices if options.gpus is None else options.gpus,
        quant=options.quant,
        years=options.years,
        preset=options.preset,
        model_growth=options.model_growth,
        gpu_growth=options.gpu_growth,
        max_len=options.max_len,
        max_batch=options.max_batch,
        rtt_seconds=None if options.rtt_ms is None else options.rtt_ms / 1000,
        link_bits_per_second=None if options.link_mbit is None else options.link_mbit * 1e6,
    )


def run(options: argparse.Namespace) -> int:
    """Print the plan; 0 whether it fits or not, since both are answers."""
    made = make(options)
    print(json.dumps(made.to_dict(), indent=2) if options.json else made)
    return 0
