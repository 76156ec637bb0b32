"""Calls on another thread are few at a time, and their errors reach the caller."""

from threading import Event, Semaphore, Thread

import pytest

from jaxcircuits.ahead import Ahead, each_ahead


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


def test_each_is_made_in_order_and_few_ahead() -> None:
    taken, made = [], []

    def items():
        for n in range(9):
            taken.append(n)
            yield n

    for square in each_ahead(lambda n: n**2, items(), threads=2):
        made.append(square)
        assert len(taken) <= len(made) + 2
    assert made == [n**2 for n in range(9)]


def test_an_error_comes_in_its_turn_and_nothing_is_begun_after_it() -> None:
    begun, made = [], []

    def inverse(n: int) -> float:
        begun.append(n)
        return 1 / n

    with pytest.raises(ZeroDivisionError):
        made.extend(each_ahead(inverse, iter([2, 1, 0, *range(3, 99)]), threads=2))
    assert made == [0.5, 1.0]
    assert max(begun) < 9
