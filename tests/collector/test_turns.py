"""Turns: each key's work goes on for a moment, then the next one's."""

import time
from collections.abc import Iterator
from functools import partial

import pytest

from statsfs.collector.turns import Turns

PIECE = 1 / 1024  # seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which goes on at each piece of work; a turn is two pieces."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("statsfs.collector.turns._TURN", 2 * PIECE)
    return now


def work(clock: list[float], done: list[str], name: str, pieces: int) -> Iterator[None]:
    """Some pieces of work."""
    for _ in range(pieces):
        clock[0] += PIECE
        done.append(name)
        yield


def test_much_work_does_not_hold_little_work(clock: list[float]) -> None:
    """Each has a turn, and then it is another one's turn; what is done is dropped."""
    turns = Turns()
    done: list[str] = []
    turns.add("a", partial(work, clock, done, "a", 1000))
    turns.add("b", partial(work, clock, done, "b", 3))
    turns.add("b", partial(work, clock, done, "again", 3))
    turns.run(8 * PIECE)
    assert "".join(done) == "aabbaabaa"
    assert "b" not in turns
    assert "a" in turns
    turns.add("c", partial(work, clock, done, "c", 1))
    turns.run(4 * PIECE)
    assert "".join(done[9:]) == "aacaa"
    turns.clear()
    assert not turns
    turns.run(1)


def test_work_that_raises(clock: list[float]) -> None:
    """It ends; the rest goes on at the next run."""
    turns = Turns()
    done: list[str] = []

    def fail() -> Iterator[None]:
        yield
        raise ZeroDivisionError

    turns.add("a", fail)
    turns.add("b", partial(work, clock, done, "b", 1))
    with pytest.raises(ZeroDivisionError):
        turns.run(1)
    turns.run(1)
    assert done == ["b"]
    assert not turns


def test_work_that_drops_all_work(clock: list[float]) -> None:
    """It is dropped with the rest, or replaced."""
    turns = Turns()
    done: list[str] = []

    def drop() -> Iterator[None]:
        turns.clear()
        turns.add("a", partial(work, clock, done, "a", 1))
        clock[0] += 1
        yield

    turns.add("a", drop)
    turns.add("b", partial(work, clock, done, "b", 1))
    turns.run(0.5)
    assert done == []
    turns.run(0.5)
    assert done == ["a"]
    assert not turns
