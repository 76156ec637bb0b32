"""Calls on another thread are few at a time, and their errors reach the caller."""

from threading import Event, Semaphore, Thread

import pytest

from jaxcircuits.ahead import Ahead


@pytest.mark.parametrize("waiting", [0, 2])
def test_as_many_wait_as_may(waiting: int) -> None:
    go, submitted, seen = Event(), Semaphore(0), []

    def caller() -> None:
        with Ahead(waiting) as ahead:
            for n in range(waiting + 2):
                ahead.submit(lambda n: (go.wait(), seen.append(n)), n)
                submitted.release()

    thread = Thread(target=caller)
    thread.start()
    for _ in range(waiting + 1):  # one runs, the others wait
        assert submitted.acquire(timeout=10)
    assert not submitted.acquire(timeout=0.1)
    go.set()
    thread.join()
    assert seen == list(range(waiting + 2))


@pytest.mark.parametrize("waiting", [0, 2])
def test_an_error_reaches_the_caller_and_ends_it(waiting: int) -> None:
    seen = []

    def fails() -> None:
        raise ValueError("no room")

    def caller() -> None:
        with Ahead(waiting) as ahead:
            for n in range(waiting + 1):
                ahead.submit(seen.append, n)
            ahead.submit(fails)
            for n in range(100):
                ahead.submit(seen.append, n)

    with pytest.raises(ValueError, match="no room"):
        caller()
    assert len(seen) < 2 * waiting + 2
