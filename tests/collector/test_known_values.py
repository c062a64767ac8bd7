"""The values that segments bring: how many, and how long their texts are, of one user."""

import gc
import tracemalloc

import pytest

from statsfs.collector import known_values
from statsfs.collector.known_values import KnownValues
from statsfs.exceptions import SegmentError
from statsfs.model.arrays import intern_array
from statsfs.model.values import Aggregate, Kind, Value

ONE, OTHER = 1000, 1001


def make_values(count: int, text: str = "") -> list[Value]:
    """So many sums."""
    return [Value(f"v{i}", aggregate=Aggregate.SUM, description=text) for i in range(count)]


def test_equal_files_share_what_they_get() -> None:
    """One mapping for all of one user, and the first description for all."""
    known = KnownValues()
    first = known.adopt(make_values(3, "first"), 0o644, ONE)
    assert known.adopt(make_values(3, "first"), 0o644, ONE) is first
    other = known.adopt(make_values(3, "other"), 0o644, OTHER)
    assert [*other.values()] == [*first.values()]
    assert {value.description for value in other.values()} == {"first"}


@pytest.mark.parametrize("what", ["descriptions", "bounds"])
def test_long_texts(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Of one user are refused in one line, before anything of the file is kept; others have all."""
    monkeypatch.setattr(known_values, "TEXT_MAX", 10_000)
    known = KnownValues()

    def make(name: str, length: int) -> Value:
        if what == "descriptions":
            return Value(name, description="x" * 40 * length)
        return Value(name, kind=Kind.HIST, bounds=list(range(length)))

    known.adopt([make("a", 100)], 0o644, ONE)
    with pytest.raises(SegmentError, match="with 10000 bytes of descriptions and bounds") as caught:
        known.adopt([make("b", 100), make("c", 100)], 0o644, ONE)
    assert "\n" not in str(caught.value)
    known.adopt([make("b", 2), make("a", 100)], 0o644, ONE)
    known.adopt([make("b", 100), make("c", 100)], 0o644, OTHER)


def test_new_descriptions_of_known_values_take_no_memory() -> None:
    """However many there are: what is remembered of files is bounded for each user."""
    known = KnownValues()
    values = make_values(400)
    known.adopt(values, 0o644, ONE)
    tracemalloc.start()
    try:
        for round in range(40):
            known.adopt(make_values(400, f"{round}" * 500), 0o644, ONE)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()


def test_values_that_come_again_and_again_use_up_no_numbers() -> None:
    """Their arrays are kept, and the numbers of their files with them."""
    known = KnownValues()
    histogram = Value("h", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
    values = [histogram, Value("h.sum", aggregate=Aggregate.SUM, mode=0o444)]
    serials = {
        intern_array(tuple(known.adopt(values, 0o644, ONE).values())).serial for _ in range(3)
    }
    assert len(serials) == 1
