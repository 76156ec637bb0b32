"""One thing after another on a second thread, while the caller goes on."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


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
