"""Every error a person can meet. Each sentence says what was wanted, what there is, and what to do next.

KalavaiError
├── OptionError (ValueError)       an option of %%pool, pool.run or pool.map that cannot be meant
├── NotEnoughDevices               more devices than the pool has, or than came free within `wait`
├── CellSyntaxError                a cell that is no Python (in plain Python, `pool.run` raises SyntaxError itself)
├── SendError                      a name of the notebook that cannot travel to the ranks
├── RankError                      what went wrong in a rank
│   ├── RemoteError                an exception whose own type does not exist here
│   ├── RankDied                   the process of a rank is gone
│   └── CellTimeout (TimeoutError) the cell ran longer than `timeout`
├── PoolClosed                     the pool is closed, or its head is gone
├── InviteError (ValueError)       an invite that is cut off or wrong, or a membership that is not there
│   └── NotWelcome                 the pool refuses: revoked, expired, used up, or not known there
├── MissingExtra (ImportError)     a package that only some need is not installed
├── ModelError (ValueError)        a model that cannot be loaded, or not be run as asked
│   └── ModelLost (RuntimeError)   devices of a model are gone and nothing can take their place; has what came so far
└── SweepError                     a sweep that cannot give what was asked of it; names all failed trials
    └── TrialError                 the failure of one trial, where its own type does not exist here
        └── TrialTimeout (TimeoutError)    the trial ran longer than `timeout`

TrialStopped (BaseException)       raised in a trial, by `trial.report`, when it should end
"""

import traceback
from collections.abc import Sequence
from typing import Any


class KalavaiError(Exception):
    """Base of all errors of kalavai_nb."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the sentence, not the frames of our own code that lead to it."""
        return [f"\x1b[31m{type(self).__name__}\x1b[0m: {self}"]


class OptionError(KalavaiError, ValueError):
    """An option that is unknown or whose value cannot be meant."""


class NotEnoughDevices(KalavaiError):
    """The pool cannot grant what was asked for: too few devices, or none came free in time."""


class CellSyntaxError(KalavaiError):
    """A ``%%pool`` cell that is no Python. IPython would show a SyntaxError with the frames that found it."""

    def __init__(self, error: SyntaxError, cell_number: int) -> None:
        super().__init__(str(error))
        error.filename = f"Cell In[{cell_number}]"
        self._lines = "".join(traceback.format_exception_only(error)).splitlines()

    def _render_traceback_(self) -> list[str]:
        return self._lines


class SendError(KalavaiError):
    """A name that the cell uses cannot be sent to the ranks."""


class RankError(KalavaiError):
    """Something went wrong in a rank."""


class RemoteError(RankError):
    """An exception raised in a rank whose own type cannot be built in the notebook."""


class RankDied(RankError):
    """The process of a rank ended in mid cell."""


class CellTimeout(RankError, TimeoutError):
    """The cell ran longer than its ``timeout``."""


class PoolClosed(KalavaiError):
    """The pool is closed, or its head cannot be reached any more."""


class InviteError(KalavaiError, ValueError):
    """An invite that cannot be used."""


class NotWelcome(InviteError):
    """The pool refuses an invite or a member: revoked, expired, used up, or not known there."""


class MissingExtra(KalavaiError, ImportError):
    """A package that only some parts need is not installed."""


class ModelError(KalavaiError, ValueError):
    """A model that cannot be loaded, or not be run as it was asked to."""


class ModelLost(ModelError, RuntimeError):
    """Devices of a model are gone, and nothing that is left can take their place.

    ``partial`` has what was generated before, one `Generation` for each prompt.
    """

    def __init__(self, sentence: str, partial: Sequence[Any] = ()) -> None:
        super().__init__(sentence)
        self.partial = list(partial)


class SweepError(KalavaiError):
    """A sweep cannot give what was asked of it, such as the values of trials that failed."""


class TrialError(SweepError):
    """The failure of one trial whose own exception type cannot be built in the notebook."""


class TrialTimeout(TrialError, TimeoutError):
    """The trial ran longer than its ``timeout``."""


class TrialStopped(BaseException):
    """The trial should end now: it was pruned, or the sweep was stopped.

    No Exception, so that ``except Exception`` in a training loop lets it through.
    """


def revived(kind: str, sentence: str) -> KalavaiError:
    """The error that another process of ours has told of: its kind by name, and what it said."""
    found = globals().get(kind)
    return found(sentence) if isinstance(found, type) and issubclass(found, KalavaiError) else KalavaiError(sentence)
