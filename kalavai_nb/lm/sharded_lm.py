"""A model over several devices, as a notebook holds it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from kalavai_nb.errors import ModelLost
from kalavai_nb.failure import interrupted
from kalavai_nb.lm.generation import Generation, Options, Prompt, Sampling, check_names, read_sampling
from kalavai_nb.lm.loaded_plan import LoadedPlan, PlannedStage
from kalavai_nb.lm.request import Request, Sink
from kalavai_nb.lm.rings import Rings
from kalavai_nb.lm.settings import StageFacts
from kalavai_nb.lm.text import encode, is_one
from kalavai_nb.snapshot import ModelState

if TYPE_CHECKING:
    from kalavai_nb.lm.batch.run import MapRun
    from kalavai_nb.lm.serve.server import ModelServer


class ShardedLM:
    """What `pool.load` gives: generate, stream, chat, many requests at once, whatever devices come and go.

    Attributes
    ----------
    name : str
    tokenizer : transformers.PreTrainedTokenizerBase
    max_len : int
        Tokens of a prompt and of what is generated from it, at most.
    """

    def __init__(self, run: str, tokenizer: Any, eos: tuple[int, ...], vocabulary: int, rings: Rings) -> None:
        self._run = run
        self.name, self.tokenizer, self.max_len = rings.name, tokenizer, rings.settings.max_len
        self._eos, self._vocabulary, self._rings = eos, vocabulary, rings
        self._servers: list[ModelServer] = []
        self._rows = itertools.count(1)

    # using it

    # a text is a sequence of texts, too, but meant as one
    @overload
    def generate(self, prompt: Prompt, *, details: Literal[False] = ..., **sampling: Unpack[Options]) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def generate(self, prompt: Prompt, *, details: Literal[True], **sampling: Unpack[Options]) -> Generation: ...  # type: ignore[overload-overlap]

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, details: Literal[False] = ..., **sampling: Unpack[Options]
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, details: Literal[True], **sampling: Unpack[Options]
    ) -> list[Generation]: ...

    def generate(self, prompt: Any, *, details: bool = False, **sampling: Unpack[Options]) -> Any:
        """Generate from a prompt, or from each of a list of prompts, all at once.

        Parameters
        ----------
        prompt : str, list of dict, list of int, or a list of these
            A text, a conversation (messages with ``role`` and ``content``, by the model's chat template), or token ids.
        details : bool
            Give `Generation` objects instead of texts.
        **sampling
            ``max_new_tokens=None`` (256, or as many as ``max_len`` leaves), ``temperature=0.0`` (greedy), ``top_p=1.0,
            top_k=0, seed=None, stop=None`` (a text or several), ``logprobs=None`` (how many of the likeliest tokens of
            each place to tell of; 0: the chosen one).

        Returns
        -------
        str or Generation, or a list of them for a list

        Raises
        ------
        OptionError
            The prompt or an option cannot be meant.
        ModelError
            The prompt is too long, or the model cannot do it. ModelLost, with ``partial``, where devices are gone and
            nothing took their place in time.
        """
        one, chosen = is_one(prompt), self._sampling(sampling, "details")
        prompts = [prompt] if one else list(prompt)
        requests = [self._request(each, chosen.of_row(index)) for index, each in enumerate(prompts)]
        done = self._results(requests)
        values = done if details else [generation.text for generation in done]
        return values[0] if one else values

    def stream(self, prompt: Prompt, **sampling: Unpack[Options]) -> Iterator[str]:
        """The text of one prompt as it comes; options as in `generate`. Leaving the loop ends the generation."""
        request = self.submit(prompt, **sampling)
        try:
            for delta in request:
                if delta.text:
                    yield delta.text
        finally:
            self.cancel([request])

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **sampling: Unpack[Options]) -> str:
        """The reply to a message, or to a conversation of messages with ``role`` and ``content``."""
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        return self.generate(conversation, **sampling)

    def submit(self, prompt: Any, sink: Sink | None = None, **sampling: Any) -> Request:
        """Begin to generate and return at once. The request is iterated for its deltas, or ``sink`` gets them."""
        request = self._request(prompt, self._sampling(sampling), sink)
        self._rings.submit(request)
        return request

    def cancel(self, requests: Sequence[Request]) -> None:
        """These are not wanted any more. Those that are over are left as they are."""
        self._rings.cancel([request for request in requests if not request.is_over])

    def map(
        self,
        dataset: Any,
        prompt: Any = None,
        *,
        out: str | Path,
        resume: bool = True,
        replicas: int | str = "auto",
        show: bool = True,
        **sampling: Any,
    ) -> MapRun:
        """Generate for every row of a dataset, in order, and go on after any crash. Returns at once; `wait()` waits.

        Parameters
        ----------
        dataset : iterable, DataFrame, str or Path
            Texts, dicts, messages or token ids, read lazily; a pandas DataFrame; a .jsonl, .csv, .tsv or .parquet file.
        prompt : str or callable, optional
            A template such as ``"Summarise: {text}"``, the name of a column, or a function of a row that gives a text,
            messages or token ids. Else the column prompt, messages, text or token_ids; a row that is a text has "text".
        out : str or Path
            A folder: ``output.jsonl`` has the row's columns and ``output``, in the order of the rows. See `MapRun`.
        resume : bool
            Go on with what is there, if it is the same job. With False, begin anew; the old output is kept once.
        replicas : int or "auto"
            Copies of the model while it runs; "auto" is one on each free device, where the model takes only one.
        **sampling
            As in `generate`. The seed of a row depends on its number, so rows get what a list for `generate` would get
            (in 16 bits, as far as rounding in batches of other shapes allows).

        Raises
        ------
        OptionError
            Something cannot be meant, is another job than the one in ``out``, or another run writes there.
        """
        from kalavai_nb.lm.batch.start import start_map

        return start_map(
            self,
            self._rings,
            self._rings.all[0].digest,
            dataset,
            prompt,
            out=out,
            resume=resume,
            replicas=replicas,
            show=show,
            sampling=sampling,
        )

    def serve(
        self, port: int = 0, *, host: str = "127.0.0.1", key: str | None = None, name: str | None = None
    ) -> ModelServer:
        """Answer OpenAI's chat and completions API, for agents and apps; the official client works with it unchanged.

        Parameters
        ----------
        port : int
            0 is any that is free.
        host : str
            Where to listen; others than loopback let other machines in, in the clear.
        key : str, optional
            What clients have to send (``api_key``); one is made if none is given.
        name : str, optional
            What clients call the model; its own name if none is given.

        Returns
        -------
        ModelServer
            With ``url`` (``base_url``), ``key`` and ``close()``; it answers while cells run.

        Raises
        ------
        OptionError
            The port is taken, or an option cannot be meant.
        MissingExtra
            ``pip install 'kalavai-nb[serve]'``
        """
        from kalavai_nb.lm.serve.server import serve

        server = serve(self, port, host, key, name)
        self._servers.append(server)
        return server

    def encode(self, prompt: Any) -> list[int]:
        """The token ids of a prompt of any kind. Raises OptionError or ModelError for what is none."""
        return encode(self.tokenizer, prompt, self._vocabulary)

    # seeing it

    @property
    def plan(self) -> LoadedPlan:
        """Where its stages are, what they take, and how fast it should be."""
        ring = self._rings.running()
        split = ring.split
        assert split is not None
        stages = tuple(
            PlannedStage(
                str(place.member),
                place.member.device.name,
                *place.layers,
                place.planned.weights_bytes,
                place.planned.kv_bytes,
                place.member.free_bytes,
                place.member.seconds_per_layer,
            )
            for place in ring.places
        )
        seconds = split.seconds_per_token
        spares = tuple(str(spare) for spare in ring.spares)
        bits = f" ({split.quant.bits:.3g} bits per weight)" if self._rings.settings.quant else ""
        expected = 1 / seconds if seconds else None
        return LoadedPlan(self.name, f"{split.quant.name}{bits}", stages, spares, expected)

    @property
    def stages(self) -> list[StageFacts]:
        """The stages as they are now: ``device pid layers memory_bytes kv_bytes step_seconds``."""
        return [stage for ring in self._rings.all if ring.error is None for stage in ring.stages]

    @property
    def spares(self) -> list[str]:
        """Devices that are kept ready to take a lost one's place."""
        return [str(spare) for ring in self._rings.all for spare in ring.spares]

    @property
    def notes(self) -> list[str]:
        """What happened to its devices, and what was done about it."""
        return [note for ring in self._rings.all for note in ring.notes]

    @property
    def error(self) -> BaseException | None:
        """What it has ended of, where no copy of it is left."""
        errors = [ring.error for ring in self._rings.all]
        return errors[0] if errors and None not in errors else None

    def look(self, owner: str) -> ModelState | None:
        """What others see of it; None once it is closed."""
        rings = self._rings.all
        if self.is_closed or not rings:
            return None
        places = [place for ring in rings if ring.error is None for place in ring.places]
        return ModelState(
            f"{owner}/{self._run}",
            owner,
            self.name,
            ", ".join(dict.fromkeys(ring.state for ring in rings))[:200],
            tuple((place.member.device.id, place.layers) for place in places),
            tuple(spare.device.id for ring in rings if ring.error is None for spare in ring.spares),
            round(sum(ring.tokens_per_second for ring in rings), 1),
            sum(ring.load for ring in rings),
        )

    def check(self) -> None:
        """Raise what is wrong, if it is: a token is generated to find out."""
        self.generate([next(iter(self._eos), 0)], max_new_tokens=1)

    def grow(self, copies: int) -> int:
        """Add copies on devices that are free at this moment, at most so many; returns how many it were."""
        return self._rings.grow(copies)

    def shrink(self, copies: int) -> None:
        """Give copies back until there are only so many. What they still generate goes on elsewhere."""
        self._rings.shrink(copies)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._rings.is_closed

    def close(self) -> None:
        """End it, and its servers, and give its devices back. Idempotent."""
        for server in self._servers:
            server.close()
        self._rings.close()

    def __enter__(self) -> ShardedLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a model lives in the notebook that loaded it and cannot be sent to a rank")

    def __repr__(self) -> str:
        return f"<ShardedLM {self.name}: {', '.join(ring.state for ring in self._rings.all)}>\n{self.plan!r}"

    # inside

    def _sampling(self, given: Mapping[str, Any], *others: str) -> Sampling:
        self._rings.check()
        check_names(given, others)
        return read_sampling(**given, eos=self._eos)

    def _request(self, prompt: Any, sampling: Sampling, sink: Sink | None = None) -> Request:
        ids = self.encode(prompt)
        return Request(next(self._rows), ids, sampling.fitted(len(ids), self.max_len), self.tokenizer, sink)

    def _results(self, requests: list[Request]) -> list[Generation]:
        """Submit these, and wait for all."""
        try:
            for request in requests:
                self._rings.submit(request)
            return [request.result() for request in requests]
        except ModelLost as lost:
            raise ModelLost(str(lost), [request.so_far() for request in requests]) from None
        except KeyboardInterrupt as stop:
            raise interrupted(stop, "what was being generated was stopped; the model goes on.") from None
        finally:
            self.cancel(requests)
