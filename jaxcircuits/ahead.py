"""Calls on other threads, while the caller goes on: one after the other, or a few at once."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Ahead:
    """Runs calls on one other thread, in order; no call waits while another runs, so that memory is bounded.

    >>> from jaxcircuits.ahead import Ahead
    >>> with Ahead() as ahead:
    ...     squares = [ahead.submit(pow, n, 2) for n in range(3)]
    >>> [square.result() for square in squares]
    [0, 1, 4]
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future:
        """Waits for the call before, raising its error, and starts this one."""
        self.wait()
        self._last = self._pool.submit(call, *args)
        return self._last

    def wait(self) -> None:
        """Waits for the last call and raises its error."""
        if self._last is not None:
            self._last.result()


THREADS = min(4, os.cpu_count() or 1)
"""That `each_ahead` takes by default: cores, as far as what they make has room."""


def each_ahead(call: Callable[[T], U], items: Iterable[T], threads: int = THREADS) -> Generator[U, None, None]:
    """What a call makes of each item, in their order, on other threads while earlier ones are used.

    Items are taken on the caller's thread, `threads` ahead of what it uses.

    >>> from jaxcircuits.ahead import each_ahead
    >>> list(each_ahead(lambda n: n**2, range(3)))
    [0, 1, 4]
    """
    with ThreadPoolExecutor(threads) as pool:
        made: deque[Future[U]] = deque()
        try:
            for item in items:
                made.append(pool.submit(call, item))
                if len(made) > threads:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for future in made:
                future.cancel()
