"""Releases that mend the kind or unit of a value: the living are shown, not what the dead left."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import pytest

from statsfs.formats import openmetrics, prometheus
from statsfs.formats.binary import Number
from statsfs.model.histograms import make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, collecting, find, wait_for
from tests.support.deadlines import wait_until
from tests.support.exported import parse_openmetrics, parse_text

OLD = Value("requests", aggregate=Aggregate.SUM, description="Requests")
LEVEL = Value("requests", aggregate=Aggregate.SUM, kind=Kind.INSTANT)
HIST = Value("requests", aggregate=Aggregate.SUM, kind=Kind.HIST, bounds=[1, 2])
OTHER = Value("other", aggregate=Aggregate.SUM)


@pytest.fixture(autouse=True)
def new_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Know no array of earlier tests: where names meet, the oldest of the process wins."""
    monkeypatch.setattr("statsfs.model.arrays._arrays", WeakValueDictionary())
    monkeypatch.setattr("statsfs.model.arrays._by_identity", {})


def publish(directory: Path, path: str, *pairs: tuple[Value, Number]) -> HandMade:
    """Publish values and their numbers, and `other` of 1."""
    file = directory / f"{os.urandom(8).hex()}.stats"
    values, numbers = zip(*pairs, (OTHER, 1), strict=True)
    return HandMade.of(file, path, numbers, values)


def end(registry: Registry, segment: HandMade, path: str) -> None:
    """End a producer, and wait until nothing of it is in the tree."""
    segment.die()
    wait_until(lambda: not segment.file.exists() and find(registry, path) is None, "the fold")


def shown(registry: Registry, *paths: str) -> list[Number | None]:
    """What each directory shows as `requests`; None if there is no such file."""
    sources = [wait_for(registry, path) for path in paths]
    return [one.get_value("requests") if "requests" in one.names() else None for one in sources]


def exported(registry: Registry) -> Sequence[float]:
    """The numbers of `app`'s metric of requests, whatever it is; the same in both formats."""
    snapshot = registry.snapshot()
    text, strict = prometheus.render(snapshot), openmetrics.render(snapshot)
    found = [
        [
            number
            for family in families.values()
            for (name, _), number in family.samples.items()
            if name.startswith("app_requests") and not name.endswith("_bucket")
        ]
        for families in (parse_text(text), parse_openmetrics(strict))
    ]
    assert found[0] == found[1]
    return found[0]


MENDED: dict[str, tuple[Value, Number, Value, Number]] = {
    "a counter becomes a level": (OLD, 100, LEVEL, 5),
    "a counter becomes a peak": (
        OLD, 100, replace(OLD, kind=Kind.PEAK, aggregate=Aggregate.MAX), 5,
    ),
    "another unit": (OLD, 100, replace(OLD, unit=Unit.BYTES), 5),
    "another base": (replace(OLD, exponent=1), 100, replace(OLD, exponent=1, base=2), 5),
    "another type": (OLD, 100, replace(OLD, type=Type.U32), 5),
    "a peak becomes a counter": (
        replace(OLD, kind=Kind.PEAK, aggregate=Aggregate.MAX), 100, OLD, 5,
    ),
    "a histogram becomes a counter": (HIST, [1, 2, 3], OLD, 5),
    "a counter becomes a histogram": (OLD, 100, HIST, [1, 2, 3]),
    "other bounds": (HIST, [1, 2, 3], replace(HIST, bounds=[1, 5]), [4, 5, 6]),
    "more buckets": (HIST, [1, 2, 3], replace(HIST, bounds=[1, 2, 3], size=4), [4, 5, 6, 7]),
}  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("modes", [(0o600, 0o644), (0o644, 0o600)])
def test_what_is_retained_follows_a_release_that_lets_others_read(
    directory: Path, modes: tuple[int, int], restarted: bool
) -> None:
    """It means the same, so it counts: here, above and at the next start."""
    paths = ("app", "app/group")
    old, new = (replace(OLD, mode=mode) for mode in modes)
    with collecting(directory) as registry:
        before = publish(directory, "app/group/w1", (old, 100))
        wait_for(registry, "app/group/w1")
        publish(directory, "app/group/w2", (new, 5))
        wait_for(registry, "app/group/w2")
        assert shown(registry, *paths) == [100, 100]
        if not restarted:
            end(registry, before, "app/group/w1")
            wait_until(lambda: shown(registry, *paths) == [105, 105])
    if restarted:
        before.die()
    for _ in range(2):
        with collecting(directory) as registry:
            assert shown(registry, *paths) == [105, 105]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("old", "had", "new", "has"), MENDED.values(), ids=MENDED)
def test_what_a_release_mends(
    directory: Path,
    caplog: pytest.LogCaptureFixture,
    restarted: bool,
    old: Value,
    had: Number,
    new: Value,
    has: Number,
) -> None:
    """The old one has the name while it is alive, then the new; here, above and at the next start.

    What is retained of the old is dropped, with one line; what did not change goes on.
    """
    paths = ("app", "app/group")
    with collecting(directory) as registry:
        before = publish(directory, "app/group/w1", (old, had))
        wait_for(registry, "app/group/w1")
        after = publish(directory, "app/group/w2", (new, has))
        wait_for(registry, "app/group/w2")
        assert shown(registry, *paths) == [had, had]
        assert "is dropped" not in caplog.text
        if not restarted:
            end(registry, before, "app/group/w1")
            wait_until(lambda: shown(registry, *paths) == [has, has])
    if restarted:
        before.die()
    for _ in range(2):
        with collecting(directory) as registry:
            assert shown(registry, *paths) == [has, has]
            assert [wait_for(registry, path).get_value("other") for path in paths] == [2, 2]
            if not new.histogram:
                assert exported(registry) == [int(str(has)) * new.base**new.exponent]
            source = find(registry, "app")
            assert source is not None
            assert "100" not in str(source.retained)
    lines = [line for line in caplog.messages if "is dropped" in line]
    difference = old.describe_difference(new)
    assert lines == [f"app: what is retained of 'requests' is dropped: its {difference}"]
    after.die()


def test_there_is_nothing_else_of_that_name(directory: Path) -> None:
    """What is retained of the old stays: nobody who lives has another one, or it is the same."""
    same = replace(OLD, description="Another text", mode=0o444)
    for value, expected in ((OLD, 100), (same, 200), (LEVEL, None)):
        with collecting(directory) as registry:
            segment = publish(directory, "app/w1", (value, 100))
            wait_for(registry, "app/w1")
            end(registry, segment, "app/w1")
            wait_until(lambda: shown(registry, "app") == [expected])  # noqa: B023  # at once
            segment = publish(directory, "app/w1")
            wait_for(registry, "app/w1")
            assert shown(registry, "app") == [expected]
            end(registry, segment, "app/w1")


def test_all_died_while_no_collector_ran(directory: Path) -> None:
    """Both are retained, and the older has the name; until one lives that is not the same."""
    for value, path in ((OLD, "app/w1"), (replace(OLD, unit=Unit.BYTES), "app/w2")):
        publish(directory, path, (value, 100)).die()
    with collecting(directory) as registry:
        (before,) = shown(registry, "app")
        assert before == 100
        assert len(registry.by_name["app"].retained) == 3
        living = publish(directory, "app/w3", (LEVEL, 5))
        wait_for(registry, "app/w3")
        wait_until(lambda: shown(registry, "app") == [5])
        wait_until(lambda: len(registry.by_name["app"].retained) == 1)
        living.die()


def test_a_release_that_is_taken_back(directory: Path) -> None:
    """The same happens in the other direction, as often as it is done."""
    with collecting(directory) as registry:
        segment, path = publish(directory, "app/w0", (OLD, 7)), "app/w0"
        wait_for(registry, path)
        for number, value in enumerate([LEVEL, OLD] * 3, 1):
            before, old_path = segment, path
            segment, path = publish(directory, f"app/w{number}", (value, number)), f"app/w{number}"
            wait_for(registry, path)
            end(registry, before, old_path)
            wait_until(lambda: shown(registry, "app") == [number])  # noqa: B023
            assert exported(registry) == [number]
        segment.die()


def test_others_above_have_the_old_one(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was counted there is left to the directory above, whose total never falls."""
    paths = ("app", "app/a", "app/b")
    with collecting(directory) as registry:
        first = publish(directory, "app/a/w1", (OLD, 100))
        other = publish(directory, "app/b/w1", (OLD, 1000))
        for path in ("app/a/w1", "app/b/w1"):
            wait_for(registry, path)
        mended = publish(directory, "app/a/w2", (LEVEL, 5))
        wait_for(registry, "app/a/w2")
        end(registry, first, "app/a/w1")
        wait_until(lambda: shown(registry, *paths) == [1100, 5, 1000])
        assert exported(registry) == [1100]
    text = "app/a: what is retained of 'requests' is left to app: its kind is instant, not cumul"
    with collecting(directory) as registry:
        assert shown(registry, *paths) == [1100, 5, 1000]
        assert caplog.text.count(text) == 1
        also = publish(directory, "app/b/w2", (LEVEL, 7))
        wait_for(registry, "app/b/w2")
        end(registry, other, "app/b/w1")
        wait_until(lambda: shown(registry, *paths) == [12, 5, 7])
        assert exported(registry) == [12]
        wait_until(lambda: caplog.text.count("is dropped") == 1)
    mended.die()
    also.die()


def test_what_an_empty_directory_retains_of_the_old(directory: Path) -> None:
    """It hides nothing either, above it; a directory that retains nothing else leaves."""
    with collecting(directory) as registry:
        for path, pairs in (("app/a/w1", [(OLD, 100)]), ("app/b/c/w1", [(OLD, 10)])):
            segment = publish(directory, path, *pairs)
            wait_for(registry, path)
            end(registry, segment, path)
        only = HandMade.of(directory / "x.stats", "app/only/w1", [1000], [OLD], alive=False)
        wait_until(lambda: not only.file.exists() and find(registry, "app/only/w1") is None)
        assert shown(registry, "app", "app/only") == [1110, 1000]
        living = publish(directory, "app/d/w1", (LEVEL, 5))
        wait_for(registry, "app/d/w1")
        wait_until(lambda: shown(registry, "app") == [5])
        assert shown(registry, "app/a", "app/b", "app/b/c", "app/d") == [None, None, None, 5]
        wait_until(lambda: find(registry, "app/only") is None)
        assert wait_for(registry, "app/b/c").get_value("other") == 1
    with collecting(directory) as registry:
        assert shown(registry, "app", "app/b") == [5, None]
        assert find(registry, "app/only") is None
    living.die()


def test_the_sum_goes_with_its_histogram(directory: Path) -> None:
    """Of other bounds the sum has the same meaning; but it is that of what is in the buckets."""
    new = replace(HIST, bounds=[1, 7])
    with collecting(directory) as registry:
        segment = publish(directory, "app/w1", (HIST, [1, 1, 1]), (make_sum(HIST), 50))
        wait_for(registry, "app/w1")
        living = publish(directory, "app/w2", (new, [2, 0, 0]), (make_sum(new), 2))
        wait_for(registry, "app/w2")
        end(registry, segment, "app/w1")
        wait_until(lambda: shown(registry, "app") == [[2, 0, 0]])
        assert registry.by_name["app"].get_value("requests.sum") == 2
        assert exported(registry) == [2, 2]
    living.die()


def test_a_name_of_an_aggregate(directory: Path) -> None:
    """Is a name as any other: `requests.max` of the old, and a value that is called so."""
    old = replace(OLD, kind=Kind.PEAK, aggregate=Aggregate.MAX | Aggregate.MIN)
    new = replace(LEVEL, name="requests.max")
    with collecting(directory) as registry:
        segment = publish(directory, "app/w1", (old, 100))
        wait_for(registry, "app/w1")
        living = publish(directory, "app/w2", (new, 5))
        wait_for(registry, "app/w2")
        assert registry.by_name["app"].get_value("requests.max") == 100
        end(registry, segment, "app/w1")
        wait_until(lambda: registry.by_name["app"].get_value("requests.max") == 5)
    living.die()


def test_it_is_not_written_before_all_were_looked_at(directory: Path) -> None:
    """At a start a new one may be admitted before the old that lives: nothing is dropped."""
    with collecting(directory) as registry:
        segment = publish(directory, "app/w1", (OLD, 100))
        wait_for(registry, "app/w1")
        end(registry, segment, "app/w1")
    values, numbers = [LEVEL, OTHER], [5, 1]
    new = HandMade.of(directory / "a.stats", "app/new", numbers, values)
    old = HandMade.of(directory / "b.stats", "app/old", numbers, [OLD, OTHER])
    with collecting(directory) as registry:
        assert shown(registry, "app", "app/new", "app/old") == [105, 5, 5]
    new.die()
    old.die()
