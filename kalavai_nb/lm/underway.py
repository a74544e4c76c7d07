"""The requests of a ring that are not over yet, in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kalavai_nb.errors import ModelError
from kalavai_nb.frames import Head
from kalavai_nb.lm.request import Request

# row, the tokens it has, how many of them were generated, and how to choose the next
Sequence = tuple[int, list[int], int, dict[str, Any]]


class Underway:
    """Requests by row. For the thread of the ring; their number may be looked at from any."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def add(self, request: Request) -> None:
        self._requests[request.row] = request

    def cancel(self, requests: Iterable[Request]) -> list[int]:
        """End these; the rows of those that were under way."""
        known = [request for request in requests if self._requests.pop(request.row, None)]
        for request in known:
            request.end("cancelled")
        return [request.row for request in known]

    def has_new(self, rows: Iterable[int]) -> bool:
        """Whether one of these has no token yet."""
        return any(row in self._requests and not self._requests[row].made for row in rows)

    def take_tokens(self, head: Head) -> list[int]:
        """Tokens that came home; the rows that the stages have to be told of, since a stop string has ended them."""
        stopped = []
        for row, token, done, logprobs in zip(
            head["rows"], head["tokens"], head["done"], head["logprobs"], strict=True
        ):
            request = self._requests.get(row)
            if request is None:
                continue
            try:
                if request.take(token, logprobs, done):
                    stopped.append(row)
            except Exception as error:  # of a tokenizer: it is this request's, and nobody else's
                request.fail(ModelError(f"the tokens of a request could not be made text: {error!r}"))
                stopped.append(row)
            if request.is_over:
                del self._requests[row]
        return stopped

    def fail(self, error: BaseException, rows: Iterable[int] = ()) -> None:
        """These end of an error; all of them, where none are named."""
        for row in list(rows) or list(self._requests):
            if request := self._requests.pop(row, None):
                request.fail(error)

    def give_away(self) -> list[Request]:
        """All of them, for somebody else to go on with."""
        requests, self._requests = list(self._requests.values()), {}
        return requests


def sequences(requests: Iterable[Request]) -> list[Sequence]:
    """What the first stage needs to begin with these, or to go on."""
    return [
        (request.row, [*request.ids, *request.made], len(request.made), request.sampling.to_dict())
        for request in requests
    ]
