"""Calls on another thread are few at a time, and their errors reach the caller."""

from threading import Event, Semaphore, Thread

import pytest

from jaxcircuits.ahead import Ahead


def test_none_waits_while_another_runs() -> None:
    go, submitted, seen = Event(), Semaphore(0), []

    def caller() -> None:
        with Ahead() as ahead:
            for n in range(2):
                ahead.submit(lambda n: (go.wait(), seen.append(n)), n)
                submitted.release()

    thread = Thread(target=caller)
    thread.start()
    assert submitted.acquire(timeout=10)
    assert not submitted.acquire(timeout=0.1)
    go.set()
    thread.join()
    assert seen == [0, 1]


def test_an_error_reaches_the_caller_before_the_next_call() -> None:
    seen = []

    def fails() -> None:
        raise ValueError("no room")

    def caller() -> None:
        with Ahead() as ahead:
            ahead.submit(fails)
            ahead.submit(seen.append, 1)

    with pytest.raises(ValueError, match="no room"):
        caller()
    assert seen == []
