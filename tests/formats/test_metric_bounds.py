"""How much of one user a text has, and how it says what is missing."""

import os
from typing import Any

import pytest

from statsfs.formats import metric_families, openmetrics, prometheus
from statsfs.formats.metric_families import complain, make_families
from statsfs.model.histograms import make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.formats.test_metric_families import lines
from tests.support.exported import parse_openmetrics

WEB, OTHER = (1001, 1001), (1002, 1002)
GAUGE: dict[str, Any] = {"kind": Kind.INSTANT}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have ten lines."""
    monkeypatch.setattr(metric_families, "LINES_MAX", 10)


def fill(top: Source, values: list[Value], sources: int, number: int = 1) -> None:
    """Add sources with values to another one, each value in an array of its own, as a collector."""
    for index in range(sources):
        made = Source("s%d", index)
        for value in values:
            made.add_values([value], {value.name: number})
        top.add_subordinate(made)
        made.put()


def make_top(registry: Registry, name: str, owner: tuple[int, int] | None) -> Source:
    """Register a source."""
    top = Source(name, owner=owner)
    registry.register(top)
    return top


def names(registry: Registry) -> set[str]:
    """What the samples are called."""
    return {line.partition("{")[0] for line in lines(registry)}


LEFT_OUT = "statsfs_left_out_metrics"
# Each value of this file is new, so that they are as old as they look.
VALUES = [Value(name, **GAUGE, description="of bounds") for name in "abcd"]


@pytest.mark.usefixtures("few")
def test_a_user_has_so_many_lines(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest metrics are there whole, as long as their series are; others are not affected."""
    web, other = make_top(registry, "web", WEB), make_top(registry, "other", OTHER)
    fill(web, VALUES, 2)
    fill(other, VALUES[1:3], 2)
    for number in (1, 1 << 40):
        for source in web.subordinates:
            for value in VALUES:
                source.add_values([value], {value.name: number}, hidden=True)
        assert names(registry) == {"web_a", "web_b", "other_b", "other_c", LEFT_OUT}
        assert lines(registry)[-1] == f'{LEFT_OUT}{{reason="size",source="web",user="1001"}} 2'
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("web: metric web_*: some are left out: user 1001 may have 10 lines ")
    text = openmetrics.render(registry.snapshot())
    assert list(parse_openmetrics(text))[-1] == LEFT_OUT
    assert text == openmetrics.render(registry.snapshot())


@pytest.mark.usefixtures("few")
def test_what_fits_is_there(registry: Registry) -> None:
    """A large metric makes no room for itself, and takes none from younger ones."""
    web = make_top(registry, "web", WEB)
    first, second = Value("first", **GAUGE), Value("second", **GAUGE)
    fill(web, [first], 9)
    web.add_values([second], {"second": 2})
    assert lines(registry) == [
        "web_second 2",
        f'{LEFT_OUT}{{reason="size",source="web",user="1001"}} 1',
    ]


@pytest.mark.usefixtures("few")
def test_sources_of_one_user_count_together(registry: Registry) -> None:
    """A user with several top-level sources has not more."""
    for name in ("x", "y", "z"):
        make_top(registry, name, WEB).add_values([VALUES[0]], {"a": 1})
    assert len(names(registry)) == 3
    assert f'{LEFT_OUT}{{reason="size",source="z",user="1001"}} 1' in lines(registry)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("uid", [None, 0, os.geteuid()])
def test_who_has_no_bound(registry: Registry, uid: int | None) -> None:
    """A program's own sources, root's, and those of the user whose the process is."""
    fill(make_top(registry, "web", None if uid is None else (uid, 7)), VALUES, 5)
    assert names(registry) == {"web_a", "web_b", "web_c", "web_d"}


def test_bytes_count(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names, labels and descriptions; in a user's own directory it is the same."""
    monkeypatch.setattr(metric_families, "BYTES_MAX", 2000)
    web = make_top(registry, "web", WEB)
    long = Value("long", **GAUGE, description="é" * 1000)
    fill(web, [Value("n" * 200, **GAUGE), long], 3)
    for shown in (registry, web):
        text = prometheus.render(shown.snapshot()).decode()
        assert "web_nnn" in text
        assert "web_long" not in text
        assert f'{LEFT_OUT}{{reason="size"' in text
    # A label that nobody reads is as long as one that somebody does.
    (deep,) = [source for source in web.subordinates if source.name == "s0"]
    for _ in range(7):
        deeper = Source("ü" * 120)
        deep.add_subordinate(deeper)
        deep = deeper
    deep.add_values([Value("m", **GAUGE)], {"m": 1})
    assert "web_m" not in names(registry)


def test_nothing_is_larger_than_it_counts(registry: Registry) -> None:
    """What is counted of each metric is as much as its text can be."""
    web = make_top(registry, "web", WEB)
    largest = (1 << 64) - 1
    sums: dict[str, Any] = {"aggregate": Aggregate.SUM}
    linear = Value("linear", kind=Kind.LINEAR_HIST, size=300, bucket_size=(1 << 32) - 1, **sums)
    log = Value("log", kind=Kind.LOG_HIST, size=65, unit=Unit.SECONDS, exponent=-9, **sums)
    bare = Value("bare", kind=Kind.HIST, bounds=[1, 10**15], unit=Unit.BYTES, exponent=-3, **sums)
    few: list[tuple[tuple[Value, ...], Any]] = [
        ((Value("plain"),), largest),
        ((Value("low", Type.S64, **GAUGE),), -(1 << 63)),
        ((Value("small", unit=Unit.SECONDS, exponent=-18, description="x" * 99),), largest - 1),
        ((linear, make_sum(linear)), [largest // 300] * 300),
        ((log, make_sum(log)), [largest // 65] * 65),
        ((bare,), [1, 2, 3]),
    ]
    for index in range(3):
        made = Source("s%d", index, label="u" * 9)
        for values, number in few:
            base = dict.fromkeys((value.name for value in values), largest)
            made.add_values(values, {**base, values[0].name: number})
        web.add_subordinate(made)
    for family in make_families(registry.snapshot()):
        count, size = family.weigh()
        for module in (prometheus, openmetrics):
            name = family.metric.sample
            where: prometheus.Where = {}
            text = module.render(registry.snapshot(), where=where)[slice(*where[name])]
            assert text.count(b"\n") <= count
            assert len(text) <= size <= 2 * len(text)
            assert text


@pytest.mark.slow
def test_ten_thousand_segments_have_room(registry: Registry) -> None:
    """A user with as many segments as may be, of 47 values each, loses nothing."""
    values = [Value(f"a_rather_long_name_{index}_seconds_total") for index in range(47)]
    base = {value.name: 1 << 63 for value in values}
    web = make_top(registry, "web", WEB)
    for index in range(10_000):
        made = Source("worker-%d", index, label="worker")
        made.add_values(values, base)
        web.add_subordinate(made)
    families = make_families(registry.snapshot())
    assert len(families) == 47
    assert sum(len(family.texts) for family in families) == 470_000


def test_one_users_complaints_take_no_others_room(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user has as many lines of the log, however many another one has used."""
    monkeypatch.setattr(metric_families, "_COMPLAINTS", 5)
    web = make_top(registry, "web", WEB)
    child = Source("child")
    web.add_subordinate(child)
    for index in range(8):
        web.add_values([Value(f"n{index}", **GAUGE)], {f"n{index}": 1})
        child.add_values([Value(f"n{index}")], {f"n{index}": 1})
    for _ in range(3):
        lines(registry)
    assert len(caplog.records) == 5
    other = make_top(registry, "other", OTHER)
    other.add_values([Value("m", Type.S8)], {"m": -1})
    for _ in range(3):
        lines(registry)
    assert [record.getMessage() for record in caplog.records][5:] == [
        "other: metric other_m: negative counts are left out"
    ]
    mine = make_top(registry, "mine", None)
    for top in (mine, web):
        complain(top, "m", "is wrong")
    assert [record.getMessage() for record in caplog.records][6:] == ["mine: metric m: is wrong"]


def test_many_arrays_of_one_metric(registry: Registry) -> None:
    """What each has is compared with all before it at once, not with each of them."""
    web = make_top(registry, "web", WEB)
    signs = [f"a{sign}b{other}c" for sign in "-:,;=+" for other in "-:,;=+"]
    for index, name in enumerate(signs):
        made = Source("s%d", index)
        made.add_values([Value(name, **GAUGE)], {name: index})
        web.add_subordinate(made)
        if index:
            made.add_values([Value(signs[0], **GAUGE)], {signs[0]: 999})
    (family,) = make_families(registry.snapshot())
    assert len(family.parts) == len(signs)
    assert len(lines(registry)) == len(signs)
    assert sum(line.endswith(" 999") for line in lines(registry)) == len(signs) - 1
