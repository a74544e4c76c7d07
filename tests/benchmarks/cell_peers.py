"""kalavai_nb and its peers as a notebook that runs a cell on so many processes, each as its documentation has it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from notebook import Notebook


@dataclass(frozen=True)
class Peer:
    """How a kernel gets ``ranks`` processes, and how a cell is sent to them; ``me`` tells one from another there."""

    module: str
    opening: str
    magic: str
    me: str
    argv: list[str] | None = None
    env: dict[str, str] = field(default_factory=dict)
    # what its cells must end with
    last: str = ""

    def sends(self, body: str, ranks: int) -> str:
        """The cell that runs ``body`` on so many."""
        return f"{self.magic.format(ranks=ranks)}\n{body}\n{self.last}".strip()


OURS = Peer(
    "kalavai_nb",
    "%load_ext kalavai_nb\nimport kalavai_nb as kn\npool = kn.Pool(quiet=True)",
    "%%pool gpus={ranks}",
    "rank",
)
PEERS = {
    "ipyparallel": Peer(
        "ipyparallel",
        "import ipyparallel as ipp\nrc = ipp.Cluster(n={ranks}).start_and_connect_sync(activate=True)",
        "%%px --targets 0:{ranks}",
        "__import__('os').getpid()",
    ),
    "jupyter-distributed": Peer(
        "jupyter_distributed",
        "",
        "",
        "__import__('os').environ['RANK']",
        [sys.executable, "-m", "jupyter_distributed.kernel", "-f", "{connection_file}"],
        {"JUPYTER_DISTRIBUTED_BASE_KERNEL": "python3", "JUPYTER_DISTRIBUTED_WORLD_SIZE": "{ranks}"},
    ),
    "nbdistributed": Peer(
        "nbdistributed",
        "%load_ext nbdistributed\n%dist_init -n {ranks}",
        "%%distributed",
        "rank",
    ),
    # one worker for a cell, by its design
    "afar": Peer(
        "afar",
        "from distributed import Client\nclient = Client(n_workers=1, dashboard_address=None)\n%load_ext afar",
        "%%afar --get nothing",
        "0",
        last="nothing = None",
    ),
}


@contextmanager
def opened(peer: Peer, ranks: int) -> Iterator[Notebook]:
    """A notebook in which cells can be sent to so many processes."""
    env = {name: value.format(ranks=ranks) for name, value in peer.env.items()}
    # some start their processes as whatever "python" is
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    with Notebook(env=env, argv=peer.argv) as notebook:
        notebook.ok(peer.opening.format(ranks=ranks) or "pass")
        yield notebook


@contextmanager
def all_opened(names: tuple[str, ...], ranks: int) -> Iterator[dict[str, tuple[Peer, Notebook]]]:
    """Those of the named peers that are installed, side by side; one that does not start is left out, and told of."""
    with ExitStack() as stack:
        found = {}
        for name in filter(is_installed, names):
            try:
                found[name] = (PEERS[name], stack.enter_context(opened(PEERS[name], ranks)))
            except (AssertionError, RuntimeError, TimeoutError) as error:
                print(f"{name} did not start on {ranks} ranks: {error}", file=sys.stderr, flush=True)
        yield found


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PEERS[name].module) is not None
