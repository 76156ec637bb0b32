"""One thing after another on a second thread, while the caller goes on."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Ahead:
    """Runs calls on one other thread, in order. Those that wait when an error ends the block are not run.

    Args:
        waiting: How many calls may wait while one runs; few, so that memory is bounded.

    >>> from jaxcircuits.ahead import Ahead
    >>> with Ahead() as ahead:
    ...     squares = [ahead.submit(pow, n, 2) for n in range(3)]
    >>> [square.result() for square in squares]
    [0, 1, 4]
    """

    def __init__(self, waiting: int = 0) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting = waiting
        self._calls: deque[Future] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.wait()

    def submit(self, call: Callable[..., Any], *args: Any) -> Future:
        """Starts a call, or lets it wait where there is room; raises the error of one before that has ended."""
        while len(self._calls) > self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(call, *args))
        return self._calls[-1]

    def wait(self) -> None:
        """Waits for all calls and raises the first error."""
        while self._calls:
            self._calls.popleft().result()


def each_ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The items, each made on another thread while the one before is used.

    >>> from jaxcircuits.ahead import each_ahead
    >>> list(each_ahead(n**2 for n in range(3)))
    [0, 1, 4]
    """
    end = object()
    rest = iter(items)
    with Ahead() as ahead:
        item = ahead.submit(next, rest, end).result()
        while item is not end:
            following = ahead.submit(next, rest, end)
            yield item
            item = following.result()
