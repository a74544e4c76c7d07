"""One copy of a model over stages in a ring, and the requests that go through it.

One thread, the ring's own, changes all state. It hears of everything by one queue: what stages say, by the pool and
by their connections; what people ask for. A request has all that is needed to go on after a loss: its tokens so far and
its seed. So when the formation was mended, the first stage is sent all that is unfinished, and what still comes of an
earlier epoch is dropped.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kalavai_nb.engine import Engine
from kalavai_nb.errors import KalavaiError, ModelError, ModelLost
from kalavai_nb.frames import Head
from kalavai_nb.lm.crew import LOOK_SECONDS, Crew, Item
from kalavai_nb.lm.formation import Formation
from kalavai_nb.lm.member import Member
from kalavai_nb.lm.rate import Rate
from kalavai_nb.lm.request import Request
from kalavai_nb.lm.seating import Place
from kalavai_nb.lm.settings import Settings, StageFacts
from kalavai_nb.lm.underway import Underway, sequences
from kalavai_nb.lm.watch import Watch
from kalavai_nb.planner.shape import ModelShape
from kalavai_nb.planner.split import Split
from kalavai_nb.weights.source import ModelSource

OnNews = Callable[["Ring"], None]
# takes an unfinished request of a ring that is lost, if it can
Adopt = Callable[[Request], bool]
# a frame holds so many sequences at most, whatever has to be replayed
SEQUENCES_AT_ONCE = 32


class Ring:
    """A pipeline over leased devices. Everything but what begins with an underscore may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        run: str,
        source: ModelSource,
        shape: ModelShape,
        settings: Settings,
        on_news: OnNews = lambda _: None,
        adopt: Adopt = lambda _: False,
    ) -> None:
        self._engine, self._source = engine, source
        self._on_news, self._adopt = on_news, adopt
        self._crew = Crew(engine, run, f"model {source.name}", settings)
        self._watch = Watch()
        self._formation = Formation(self._crew, source, shape, settings, self._watch, self._hear_next)
        self._underway = Underway()
        self._rate = Rate()
        self._fault = ""
        self.notes: list[str] = []
        self._closing = False
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="kalavai-ring", daemon=True)

    def lease(
        self, count: int, on_wait: Callable[[str], None], devices: tuple[str, ...], wait: float | None = None
    ) -> None:
        """Lease the devices of the stages, before `start`. See `Crew.lease`."""
        self._crew.lease(count, on_wait, devices, wait)

    def start(self) -> None:
        """Begin to bring it up; `wait` waits for that."""
        self._thread.start()

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Until the model can be used; ``look`` is called meanwhile. Raises what went wrong."""
        while not self._up.wait(LOOK_SECONDS):
            look()
        if self._error:
            raise self._error

    def submit(self, request: Request) -> None:
        self._crew.items.put(("submit", "", {"request": request}))
        if self._error:
            # nobody reads that any more
            request.fail(self._error)

    def cancel(self, requests: Iterable[Request]) -> None:
        self._crew.items.put(("cancel", "", {"requests": list(requests)}))

    def take_unfinished(self) -> list[Request]:
        """What it has not finished; it does not go on with that."""
        answer: queue.SimpleQueue[list[Request]] = queue.SimpleQueue()
        self._crew.items.put(("take", "", {"answer": answer}))
        while self._error is None:
            with contextlib.suppress(queue.Empty):
                return answer.get(timeout=LOOK_SECONDS)
        # it may have answered last of all
        return [] if answer.empty() else answer.get()

    def close(self) -> None:
        """End the stages, and whatever is unfinished. Idempotent."""
        self._closing = True
        self._crew.items.put(("close", "", {}))
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        elif not self._up.is_set():
            self._clean()

    @property
    def digest(self) -> str:
        """The name of the model's content."""
        return self._source.digest

    @property
    def error(self) -> BaseException | None:
        """What it ended of, if it has."""
        return self._error

    @property
    def state(self) -> str:
        """What it does now: "running", "mending", what it waits for, or what it ended of."""
        return f"ended: {self._error}" if self._error else self._formation.state

    @property
    def load(self) -> int:
        """How many requests are unfinished."""
        return len(self._underway)

    @property
    def tokens_per_second(self) -> float:
        """What it has generated in the last seconds, of all requests together."""
        return self._rate.per_second()

    @property
    def split(self) -> Split | None:
        """What was planned when the layers were last shared out."""
        return self._formation.split

    @property
    def places(self) -> list[Place]:
        """The stages in the order of the ring, with who has them now."""
        return list(self._formation.places)

    @property
    def stages(self) -> list[StageFacts]:
        return self._formation.stages

    @property
    def spares(self) -> list[Member]:
        """Members without a stage."""
        return self._formation.spares

    @property
    def members(self) -> list[Member]:
        return list(self._crew.members.values())

    # the ring's thread

    def _live(self) -> None:
        try:
            self._formation.form()
            self._go_on()
            self._up.set()
            self._formation.keep_spares()
            while not self._closing:
                self._hear(self._next_item(LOOK_SECONDS))
                if not self._formation.is_whole:
                    self.notes.append(self._formation.mend(self._fault))
                    self._fault = ""
                    self._go_on()
                self._keep_watch()
                self._formation.keep_spares()
        except ModelLost as lost:
            self._error = ModelLost(str(lost), [request.so_far() for request in self._underway])
        except BaseException as error:
            self._error = error if isinstance(error, KalavaiError) else _unexpected(error)
        finally:
            self._clean()
            self._up.set()

    def _clean(self) -> None:
        """The end, whichever: nobody waits for what will never come."""
        error = self._error = self._error or ModelError(
            f"{self._source.name} was closed; load it again with pool.load(…)."
        )
        # whatever a pool that ends says of itself
        with contextlib.suppress(Exception):
            self._crew.close()
        self._crew.forget()
        with contextlib.suppress(queue.Empty):
            while True:
                kind, _, fields = self._crew.items.get_nowait()
                if kind == "submit":
                    self._underway.add(fields["request"])
        for request in self._underway.give_away():
            if self._closing or not self._adopt(request):
                request.fail(error)
        self._on_news(self)

    def _next_item(self, seconds: float) -> Item:
        try:
            return self._crew.items.get(timeout=seconds)
        except queue.Empty:
            self._engine.check()
            return ("nothing", "", {})

    def _hear_next(self, seconds: float) -> None:
        """The same for those who bring the ring up, and have to stop when it is closed."""
        self._hear(self._next_item(seconds))
        if self._closing:
            raise ModelError(f"{self._source.name} was closed while it was brought up.")

    def _hear(self, item: Item) -> None:
        kind, _, fields = item
        member = self._crew.hear(item)
        if kind == "news" and fields.get("epoch") == self._formation.epoch and fields.get("kind") == "tokens":
            self._take_tokens(fields)
        elif kind == "stage" and member:
            self._hear_stage(member, fields)
        elif kind == "submit":
            self._take_request(fields["request"])
        elif kind == "cancel":
            self._send_cancel(self._underway.cancel(fields["requests"]))
        elif kind == "take":
            fields["answer"].put(self._underway.give_away())
        elif kind == "pool" and fields["kind"] == "yield":
            self.notes += self._formation.give_back(fields["lease"])
        if kind in ("stage", "lease", "gone"):
            self._on_news(self)

    def _hear_stage(self, member: Member, said: dict[str, Any]) -> None:
        kind = said["said"]
        if kind == "need":
            member.send_content(self._source, said["number"], said["ranges"])
        elif kind == "broken" and said["epoch"] == self._formation.epoch:
            self._formation.hear_broken(member, said.get("error", ""))
        elif kind == "failed" and not self._up.is_set():
            raise ModelError(f"{self._source.name} could not be loaded on {member}: {said['text']}")
        elif kind == "failed" and member.layers is None:
            member.end_as(f"could not load its layers: {said['text']}")
        elif kind == "failed" and said["epoch"] == self._formation.epoch:
            self._take_failure(member, said)

    def _take_request(self, request: Request) -> None:
        if not len(self._underway):
            self._watch.begin()
        self._underway.add(request)
        if self._formation.is_linked:
            self._send_first([request])

    def _take_tokens(self, head: Head) -> None:
        self._rate.add(len(head["rows"]))
        # how long a prompt took says nothing of how long a step may take
        self._watch.progress(is_step=not self._underway.has_new(head["rows"]))
        self._send_cancel(self._underway.take_tokens(head))
        for member in self._formation.seated:
            self._crew.praise(member)

    def _take_failure(self, member: Member, said: dict[str, Any]) -> None:
        """Something went wrong in a stage that is still there: what it ran ends with that error, the rest goes on."""
        error = ModelError(f"{self._source.name} failed on {member}: {said['text']}")
        error.add_note(said["traceback"])
        # those that were run together; where it was none of them, nobody can tell whose fault it is
        self._underway.fail(error, said["rows"])
        self._fault = str(error)
        self._formation.is_linked = False

    def _go_on(self) -> None:
        """The first stage has nothing yet: it is sent all that is unfinished."""
        self._send_first(self._underway)
        self._on_news(self)

    def _send_first(self, requests: Iterable[Request]) -> None:
        begun = sequences(requests)
        for start in range(0, len(begun), SEQUENCES_AT_ONCE):
            some = begun[start : start + SEQUENCES_AT_ONCE]
            self._formation.first.send({"kind": "submit", "epoch": self._formation.epoch, "sequences": some})

    def _send_cancel(self, rows: list[int]) -> None:
        if rows and self._formation.is_linked:
            self._formation.first.send({"kind": "cancel", "epoch": self._formation.epoch, "rows": rows})

    def _keep_watch(self) -> None:
        """While something is under way: notice members that say nothing, and rings in which nothing moves."""
        if len(self._underway) and self._formation.is_linked and self._watch.is_overdue():
            members = self._formation.seated
            self._crew.ask_the_silent(self._watch, members)
            if self._watch.stands_still(members):
                self._formation.is_linked = False


def _unexpected(error: BaseException) -> ModelError:
    ours = ModelError(f"the model ended of an error of ours, {type(error).__name__}: {error}")
    ours.__cause__ = error
    return ours
