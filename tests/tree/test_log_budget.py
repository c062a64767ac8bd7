"""Log budgets: a user's lines, and how many were left out."""

import logging
import time

import pytest

from statsfs import Registry, Source
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.log_budget import LINES_MAX, LogBudget

log = logging.getLogger("tests.log_budget")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_user_has_so_many_lines_a_minute(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Then one line says how many more there were; others have their own."""
    budget = LogBudget()
    assert budget.report() is None
    for number in range(LINES_MAX + 3):
        budget.log(1000, log, "line %d", number)
    clock[0] += 20
    budget.log(1001, log, "another's")
    budget.log(None, log, "ours")
    assert caplog.messages == [*(f"line {i}" for i in range(LINES_MAX)), "another's", "ours"]
    assert budget.report() == 40
    caplog.clear()
    clock[0] += 40
    assert budget.report() is None
    assert caplog.messages == ["user 1000: 3 more lines were left out in a minute"]
    budget.log(1000, log, "a new minute")
    assert caplog.messages[1:] == ["a new minute"]


def test_the_line_comes_with_the_next_one_of_anybody(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody calls `report`; a user with no line left out is not mentioned."""
    budget = LogBudget()
    for _ in range(LINES_MAX + 1):
        budget.log(1000, log, "line")
    budget.log(1001, log, "line")
    caplog.clear()
    clock[0] += 61
    budget.log(None, log, "ours")
    assert caplog.messages == ["user 1000: 1 more lines were left out in a minute", "ours"]


def test_complaints_about_sources_are_their_owners(caplog: pytest.LogCaptureFixture) -> None:
    """Names that conflict, bases that refuse: an owner above counts; the program has no limit."""
    registry = Registry()
    for name, owner in (("web", (1000, 1000)), ("ours", None)):
        source = Source(name, owner=owner)
        registry.register(source)
        below = Source("below")
        source.add_subordinate(below)
        for number in range(LINES_MAX + 5):
            below._directory.complain(number, f"conflict {number}")
    said = [message.split(": ")[0] for message in caplog.messages]
    assert said.count("web/below") == LINES_MAX
    assert said.count("ours/below") == LINES_MAX + 5


def test_what_is_in_no_registry(caplog: pytest.LogCaptureFixture) -> None:
    """It is nobody's but the program's."""
    source = Source("web", owner=(1000, 1000))
    for number in range(LINES_MAX + 5):
        source._directory.complain(number, "conflict")
    assert len(caplog.messages) == LINES_MAX + 5


def test_a_user_who_clears_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    """What refuses to be cleared was logged each time."""
    array = [Value("peak", Type.U64, Aggregate.MAX, kind=Kind.PEAK)]
    registry, source = Registry(), Source("web", owner=(1000, 1000))
    registry.register(source)
    below = Source("w1")

    class Refusing:
        @property
        def peak(self) -> int:
            return 1

    below.add_values(array, Refusing())
    source.add_subordinate(below)
    for _ in range(3 * LINES_MAX):
        source.clear_value("peak")
    assert len([line for line in caplog.messages if "refused" in line]) == LINES_MAX
