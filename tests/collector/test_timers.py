"""Timers: each is called once, in order."""

import time
from functools import partial

import pytest

from statsfs.collector.timers import Timers


def test_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is called once, in order, when it is due."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timers, called = Timers(), []
    assert timers.seconds_left > 1000
    timers.run()
    timers.add(2, lambda: called.append("second"))
    timers.add(1, lambda: timers.add(0, lambda: called.append("first")))
    assert timers.seconds_left == 1
    timers.run()
    now = 101.5
    assert timers.seconds_left == 0
    timers.run()
    assert called == []
    timers.run()
    assert called == ["first"]
    now = 200.0
    timers.run()
    assert called == ["first", "second"]


def test_a_timer_that_raises() -> None:
    """What was due behind it still is."""
    timers, called = Timers(), []
    timers.add(-2, lambda: 1 // 0)
    timers.add(-1, lambda: called.append("second"))
    with pytest.raises(ZeroDivisionError):
        timers.run()
    assert timers.seconds_left == 0
    timers.run()
    assert called == ["second"]


def test_timers_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some milliseconds the rest stays for the next time."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timers = Timers()
    called: list[int] = []

    def work(number: int) -> None:
        nonlocal now
        called.append(number)
        now += 0.003

    for number in range(3):
        timers.add(-1, partial(work, number))
    timers.run()
    assert called == [0, 1]
    assert timers.seconds_left == 0
    timers.run()
    assert called == [0, 1, 2]
