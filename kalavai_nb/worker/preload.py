"""What the fork server imports once, for every rank and trial of this machine. Touches no GPU, knows no Dask.

In steps: what every rank needs, before it serves anybody; what training code imports beside it, and what stages of
models do, when it is told to (by signals, see child.py), since that takes as long again and the first cell should not
wait for it.
"""

import contextlib
import gc
import signal
import sys

# tqdm.auto decides once what it is: before there is a kernel, it is the one that prints, which needs no widgets
with contextlib.suppress(ImportError):
    import tqdm.auto  # noqa: F401

# ipykernel takes a debugger in with debugpy; nobody can attach one to a rank, and the import costs 0.6 s in each
sys.modules["debugpy"] = None  # type: ignore[assignment]
import ipykernel.debugger  # noqa: E402, F401

del sys.modules["debugpy"]

import kalavai_nb.worker.rank  # noqa: E402
import kalavai_nb.worker.trial  # noqa: E402, F401
from kalavai_nb.worker.child import FOR_MODELS, FOR_TRIALS  # noqa: E402

# a broken torch must not keep a machine out of the pool: cells without torch still run there
with contextlib.suppress(Exception):
    import torch.distributed
    import torch.nn.parallel

    # each trial seeds it anew; the first time in a process it imports what takes 10 ms
    torch.manual_seed(0)

# objects that exist now are shared with every child; the collector must not write to their pages
gc.freeze()


def _import_more(*_: object) -> None:
    # the first torch optimizer imports this, 2 s for each trial that is not forked from here
    with contextlib.suppress(Exception):
        import torch._dynamo
        import torch.utils.data  # noqa: F401
    gc.freeze()


def _import_for_models(*_: object) -> None:
    # what is missing or broken is said by the stage that needs it
    with contextlib.suppress(Exception):
        import kalavai_nb.worker.stage.process  # noqa: F401
    gc.freeze()


signal.signal(FOR_TRIALS, _import_more)
signal.signal(FOR_MODELS, _import_for_models)
