"""Values that belong together: one total, in whichever arrays they are."""

import logging
from typing import Any

import pytest

from statsfs.formats import json, prometheus
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot_directories import make_directory
from statsfs.tree.source import Source
from tests.support.trees import add_below


class Base(Stats):
    """What every worker counts."""

    requests = u64(Aggregate.SUM, description="Requests")


class Special(Base):
    """What some count besides."""

    extra = u64(Aggregate.SUM)


class Mended(Stats):
    """A later release: another description, and more aggregates."""

    requests = u64(Aggregate.SUM | Aggregate.MAX | Aggregate.AVG, description="Requests answered")


def add(parent: Source, name: str, stats: Stats, **options: Any) -> Source:
    """Put a source with a base below another; the tree has the only reference."""
    source = Source(name, **options)
    source.add_values(type(stats), stats)
    parent.add_subordinate(source)
    source.put()
    return source


def counted(cls: type[Any], requests: int) -> Any:
    """An object that has counted."""
    stats = cls()
    stats.requests = requests
    return stats


@pytest.fixture
def top(registry: Registry) -> Source:
    """A top-level source."""
    top = Source("top")
    registry.register(top)
    return top


def read(source: Source) -> dict[str, Any]:
    """All files, by single reads and in both kinds of view, which must agree."""
    files = {name: source.get_value(name) for name in source.names()}
    assert source.snapshot().to_dict()["values"] == files
    assert {f.name: n for f, n in make_directory(source.snapshot()).files()} == files
    return files


def test_classes_that_inherit_share_a_total(top: Source) -> None:
    """One `Base` and two of a subclass, each 10: 30, and cleared together."""
    stats = [counted(cls, 10) for cls in (Base, Special, Special)]
    for number, one in enumerate(stats):
        add(top, f"s{number}", one)
    assert read(top) == {"requests": 30, "extra": 0}
    top.clear_value("requests")
    assert [one.requests for one in stats] == [0, 0, 0]


def test_a_mended_description_and_another_aggregate(top: Source) -> None:
    """An aggregate that one of them declares covers all."""
    for number, cls in enumerate((Base, Special, Mended)):
        add(top, f"s{number}", counted(cls, 10 * (number + 1)))
    assert read(top) == {"requests": 60, "requests.max": 30, "requests.avg": 20, "extra": 0}
    assert b'"requests": 60, "requests.max": 30' in json.render(top.snapshot())


def test_what_left_stays_in_the_shared_total(registry: Registry) -> None:
    """Whatever array it was of; and the exported series is the same number."""
    app = Source("app", retain=True)
    registry.register(app)
    for number, cls in enumerate((Base, Special, Mended)):
        add(app, f"s{number}", counted(cls, 10))
    for left in (30, 30, 30):
        assert app.get_value("requests") == left
        assert f"\napp_requests_total {left}\n" in prometheus.render(registry.snapshot()).decode()
        app.remove_subordinate(app.subordinates[0])
    assert read(app)["requests"] == 30


def test_hidden_sources_of_both_arrays_are_one_series(top: Source, registry: Registry) -> None:
    """What they count is summed at the nearest visible source."""
    for number, cls in enumerate((Base, Special)):
        add(top, f"thread{number}", counted(cls, 10), hidden=True)
    assert "top_requests_total 20\n" in prometheus.render(registry.snapshot()).decode()
    assert top.get_value("requests") == 20


def test_a_source_of_its_own_is_covered_above(top: Source) -> None:
    """Its hidden base counts with what is below it."""
    pool = add(top, "pool", counted(Base, 1))
    pool.add_values(Mended, counted(Mended, 2), hidden=True)
    add(pool, "worker", counted(Special, 4))
    assert read(top)["requests"] == 7


DIFFERENT = {
    "type": Value("requests", Type.U32, Aggregate.SUM),
    "kind": Value("requests", aggregate=Aggregate.SUM, kind=Kind.INSTANT),
    "unit": Value("requests", aggregate=Aggregate.SUM, unit=Unit.BYTES),
    "exponent": Value("requests", aggregate=Aggregate.SUM, exponent=3),
    "mode": Value("requests", aggregate=Aggregate.SUM, mode=0o600),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_differs_does_not_belong(
    top: Source, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The older has the name; the log says that its total leaves the other out, and why."""
    add(top, "old", counted(Base, 5))
    other = Source("new")
    other.add_values([DIFFERENT[what]], {"requests": 7})
    top.add_subordinate(other)
    with caplog.at_level(logging.WARNING):
        assert read(top) == {"requests": 5}
        assert read(top) == {"requests": 5}
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("top: the total 'requests' does not cover another value of that name")
    assert f"its {what} is " in message


def test_a_shared_total_of_nothing_is_0(top: Source) -> None:
    """The arrays are there, but nothing is that counts."""
    for number, cls in enumerate((Base, Mended)):
        source = Source("s%d", number)
        source.add_values(cls, None)
        top.add_subordinate(source)
    assert read(top) == {"requests": 0, "requests.max": 0, "requests.avg": 0}


def test_the_sum_of_peaks_of_different_arrays_is_modulo_2_64() -> None:
    """In the file of the total and in a snapshot alike."""
    top = Source("top")
    for number, extra in enumerate(((), (Value("extra"),))):
        peak = Value("peak", kind=Kind.PEAK, aggregate=Aggregate.SUM)
        base = {"peak": (1 << 63) + number, "extra": 0}
        add_below(top, f"s{number}", (peak, *extra), base)
    assert top.get_value("peak") == 1
    assert top.snapshot().to_dict()["values"]["peak"] == 1
