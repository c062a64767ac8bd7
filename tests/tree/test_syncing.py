"""Subordinates that are made those of a mapping."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.exceptions import (
    BaseMismatchError,
    DuplicateNameError,
    InvalidNameError,
    ReadOnlyValueError,
    ReleasedError,
    UnavailableError,
    UnknownValueError,
)
from statsfs.formats import json, openmetrics, prometheus
from statsfs.model.fields import boolean, counter, gauge, log_hist, peak, s64, u8
from statsfs.model.histograms import Histogram
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree import index
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.deadlines import DEADLINE
from tests.support.interrupts import interrupted_everywhere


class ProcStats(Stats):
    """What is known of a process."""

    cpu: int = counter("Time on a CPU")
    rss: int = gauge("Memory")


class Wide(Stats):
    """Values of all sorts."""

    count: int = counter()
    level: int = gauge()
    most: int = peak()
    sizes: Histogram = log_hist(3)


@pytest.fixture
def procs(registry: Registry) -> Source:
    """A registered source that retains, with a series for each subordinate."""
    procs = Source("procs", retain=True, collapse=False)
    registry.register(procs)
    return procs


@pytest.fixture
def notices(registry: Registry) -> list[ChangeNotice]:
    """What listeners are told."""
    notices: list[ChangeNotice] = []
    registry.add_listener(notices.append)
    return notices


def shown(source: Source) -> dict[str, dict[str, Any]]:
    """The numbers of a source and its subordinates, in the snapshot and by file alike."""
    found = source.snapshot().to_dict()
    below = {one.name: one for one in source.subordinates if not one.hidden}
    assert list(below) == list(found["subordinates"])
    for name, one in {"": source, **below}.items():
        values = found["subordinates"][name]["values"] if name else found["values"]
        for file in one.names():
            if file in values:
                assert one.get_value(file) == values[file]
            else:
                with pytest.raises(UnavailableError):
                    one.get_value(file)
    tree = {name: one["values"] for name, one in found["subordinates"].items()}
    return {"": found["values"], **tree}


def exported(registry: Registry) -> list[str]:
    """The lines of samples."""
    lines = prometheus.render(registry.snapshot()).decode().splitlines()
    return [line for line in lines if line[0] != "#"]


def test_subordinates_come_change_and_go_in_one_change(
    registry: Registry, procs: Source, notices: list[ChangeNotice]
) -> None:
    """Each sync is one change; what one that left has counted stays."""
    procs.sync({"1": {"cpu": 5, "rss": 10}, "2": {"cpu": 7, "rss": 20}}, values=ProcStats)
    place = directory_of(procs).place
    assert [notice.touched[place] for notice in notices] == [{"1", "2"}]
    first, second = procs.subordinates
    assert [one.refcount for one in procs.subordinates] == [1, 1]
    assert shown(procs) == {
        "": {"cpu": 12, "rss": 30},
        "1": {"cpu": 5, "rss": 10},
        "2": {"cpu": 7, "rss": 20},
    }
    procs.sync({"2": {"cpu": 8, "rss": 25}, "3": {"cpu": 1, "rss": 1}}, values=ProcStats)
    assert procs.subordinates[0] is second
    with pytest.raises(ReleasedError):
        first.names()
    assert len(notices) == 2
    assert notices[1].touched[place] == {"1", "3"}
    assert len(notices[1].left) == 1
    assert shown(procs) == {
        "": {"cpu": 14, "rss": 26},
        "2": {"cpu": 8, "rss": 25},
        "3": {"cpu": 1, "rss": 1},
    }
    procs.sync({"2": {"cpu": 9, "rss": 24}, "3": {"cpu": 1, "rss": 1}}, values=ProcStats)
    assert len(notices) == 2  # nothing came or went
    procs.sync({}, ProcStats)
    assert shown(procs) == {"": {"cpu": 15}}
    assert exported(registry) == []


def test_any_text_is_a_name(registry: Registry, procs: Source) -> None:
    """The directory's is what `safe_name` makes of it, the label's value the text itself."""
    names = ("a/b", "..", "", "%d", "x" * 300, "\n", "cpu")
    procs.sync({name: {"cpu": 1} for name in names}, values=ProcStats, label="what")
    found = [one.name for one in procs.subordinates]
    assert found[:4] == ["a%2Fb", "%2E.", "%", "%25d"]
    assert [one.label_value for one in procs.subordinates] == [*names[:5], r"\n", "cpu"]
    assert exported(registry)[0] == 'procs_cpu_total{what="a/b"} 1'
    assert len(exported(registry)) == len(names)
    # A subdirectory has its name before a total.
    assert procs.names() == []


def test_a_number_that_is_missing(registry: Registry, procs: Source) -> None:
    """One that was never there has no file; one that was is unavailable, and counts above."""
    procs.sync({"1": {"cpu": 5}, "2": {"cpu": 1, "rss": 20}}, ProcStats, label="pid")
    one, two = procs.subordinates
    assert (one.names(), two.names()) == (["cpu"], ["cpu", "rss"])
    assert shown(procs)[""] == {"cpu": 6, "rss": 20}
    procs.sync({"1": {"rss": 3}, "2": {"cpu": 2}}, ProcStats, label="pid")
    assert procs.subordinates == (one, two)
    assert shown(procs) == {"": {"cpu": 7, "rss": 23}, "1": {"rss": 3}, "2": {"cpu": 2}}
    with pytest.raises(UnavailableError) as raised:
        one.get_value("cpu")
    assert str(raised.value) == "procs/1: 'cpu' is unavailable: the last sync() lacks it"
    with pytest.raises(UnavailableError):
        one.clear_value("cpu")
    assert exported(registry) == ['procs_cpu_total{pid="2"} 2', 'procs_rss{pid="1"} 3']
    assert b'"1"' not in openmetrics.render(registry.snapshot()).split(b"procs_rss")[0]
    assert b'"cpu"' not in json.render(one.snapshot())
    procs.sync({"1": {"cpu": 6, "rss": 3}, "2": {"cpu": 2, "rss": 1}}, ProcStats, label="pid")
    assert shown(procs)[""] == {"cpu": 8, "rss": 4}
    procs.sync({"1": {"rss": 3}}, ProcStats, label="pid")
    procs.sync({}, ProcStats, label="pid")
    assert shown(procs) == {"": {"cpu": 8}}


def test_a_file_that_is_open_while_its_number_is_missing(procs: Source) -> None:
    """It says so, too, and goes on afterwards."""
    procs.sync({"1": {"cpu": 5}}, ProcStats)
    directory = directory_of(procs.subordinates[0])
    file = directory.files["cpu"]
    entry = directory.entry_of(file)
    procs.sync({"1": {}}, ProcStats)
    with pytest.raises(UnavailableError):
        directory.read(file, entry)
    procs.sync({"1": {"cpu": 6}}, ProcStats)
    assert directory.read(file, entry) == 6


def test_a_number_that_falls_is_of_another_one(procs: Source, notices: list[ChangeNotice]) -> None:
    """Of a process that has the number of one that ended: the total does not fall."""
    procs.sync({"1": {"cpu": 100, "rss": 9}}, ProcStats)
    (old,) = procs.subordinates
    procs.sync({"1": {"cpu": 3, "rss": 1}}, ProcStats)
    (new,) = procs.subordinates
    assert (new is old, old.parent) == (False, None)
    assert shown(procs) == {"": {"cpu": 103, "rss": 1}, "1": {"cpu": 3, "rss": 1}}
    assert notices[1].touched[directory_of(procs).place] == {"1"}
    assert len(notices[1].left) == 1


def test_numbers_that_may_fall(registry: Registry) -> None:
    """What is of the moment, a peak, and a sum with a sign do so in the same source."""

    class Signed(Stats):
        """What may fall."""

        level = gauge()
        most = peak()
        balance = s64()

    top = Source("top", retain=True)
    registry.register(top)
    top.sync({"a": {"level": 5, "most": 6, "balance": 7}}, Signed)
    before = top.subordinates
    top.sync({"a": {"level": -5, "most": 1, "balance": -7}}, Signed)
    assert top.subordinates == before
    assert shown(top)["a"] == {"level": -5, "most": 1, "balance": -7}


def test_a_clear_subtracts(procs: Source) -> None:
    """What was counted before the clear stays subtracted, as long as it is the same process."""
    procs.sync({"1": {"cpu": 5}, "2": {"cpu": 7}}, ProcStats)
    one, _ = procs.subordinates
    one.clear_value("cpu")
    assert shown(procs) == {"": {"cpu": 7}, "1": {"cpu": 0}, "2": {"cpu": 7}}
    procs.sync({"1": {"cpu": 6}, "2": {"cpu": 7}}, ProcStats)
    assert shown(procs)["1"] == {"cpu": 1}
    procs.sync({"1": {"rss": 3}}, ProcStats)
    procs.clear_value("cpu")
    assert shown(procs)[""] == {"cpu": 0, "rss": 3}
    procs.sync({"1": {"cpu": 10}}, ProcStats)
    assert shown(procs)["1"] == {"cpu": 4}
    procs.sync({"1": {"cpu": 3}}, ProcStats)
    assert shown(procs)["1"] == {"cpu": 3}


def test_what_cannot_be_cleared(procs: Source) -> None:
    """A peak is kept where it is counted."""
    procs.sync({"1": {"most": 5}}, Wide)
    with pytest.raises(ReadOnlyValueError, match="kept where it is counted"):
        procs.subordinates[0].clear_value("most")


def test_histograms(procs: Source) -> None:
    """Buckets and their sum come together, and fall as any counter."""
    procs.sync({"1": {"sizes": [1, 0, 2], "sizes.sum": 9}}, Wide)
    procs.sync({"1": {"sizes": (2, 0, 2), "sizes.sum": 10}}, Wide)
    assert shown(procs)["1"] == {"sizes": [2, 0, 2], "sizes.sum": 10}
    procs.clear_value("sizes")
    procs.sync({"1": {"sizes": [2, 1, 2], "sizes.sum": 12}}, Wide)
    assert shown(procs)["1"] == {"sizes": [0, 1, 0], "sizes.sum": 2}
    procs.sync({"1": {"sizes": [2, 0, 9], "sizes.sum": 99}}, Wide)
    assert shown(procs) == {
        "": {"sizes": [2, 1, 9], "sizes.sum": 101},
        "1": {"sizes": [2, 0, 9], "sizes.sum": 99},
    }


def test_types(procs: Source) -> None:
    """Whatever is an integer is one."""

    class Small(Stats):
        """Narrow ones."""

        level = u8()
        busy = boolean(kind=Kind.INSTANT)

    class Index(int):
        """An integer of a class of its own."""

    procs.sync({"1": {"level": Index(255), "busy": True}}, Small)
    assert shown(procs)["1"] == {"level": 255, "busy": 1}
    assert {type(one) for one in shown(procs)["1"].values()} == {int}


SUM = Aggregate.SUM

BAD: list[tuple[Any, Any, type[Exception], str]] = [
    ({"1": {"cpu": 1, "cup": 1}}, ProcStats, UnknownValueError, "procs/1: no value 'cup'"),
    ({"1": {"cpu": -1}}, ProcStats, ValueError, "procs/1: 'cpu': -1 does not fit into u64"),
    ({"1": {"cpu": 1 << 64}}, ProcStats, ValueError, "does not fit into u64"),
    ({"1": {"rss": 1 << 63}}, ProcStats, ValueError, "does not fit into s64"),
    ({"a/b": {"cpu": 0.5}}, ProcStats, BaseMismatchError, "procs/a%2Fb: 'cpu' holds no integer"),
    ({"1": {"cpu": None}}, ProcStats, BaseMismatchError, "integer, but NoneType"),
    ({"1": {"cpu": [1]}}, ProcStats, BaseMismatchError, "integer, but list"),
    ({"1": {"sizes": 3, "sizes.sum": 1}}, Wide, BaseMismatchError, "list of 3 integers, but int"),
    ({"1": {"sizes": [1], "sizes.sum": 1}}, Wide, BaseMismatchError, "list of 3 integers"),
    ({"1": {"sizes": [1, 1, -1], "sizes.sum": 1}}, Wide, ValueError, "'sizes': -1 does not fit"),
    ({"1": {"sizes": [1, 1, 1]}}, Wide, BaseMismatchError, "'sizes.sum' is missing"),
    ({"1": {"sizes.sum": 1}}, Wide, BaseMismatchError, "'sizes' is missing"),
    ({"1": 5}, ProcStats, TypeError, "procs: '1' has no mapping of numbers, but int"),
    ({1: {"cpu": 5}}, ProcStats, TypeError, "procs: the name of a subordinate must be a str: 1"),
    (["1"], ProcStats, TypeError, "procs: subordinates are a mapping of mappings, not list"),
    ({}, [3], TypeError, "an array has Values"),
    ({}, [Value("a"), Value("a")], DuplicateNameError, "procs: value 'a' is twice"),
    ({}, [Value("a", offset=0)], BaseMismatchError, "procs: values of mappings have no offsets"),
    ({"other": {"cpu": 1}}, ProcStats, DuplicateNameError, "procs: there is a 'other' already"),
]  # fmt: skip


@pytest.mark.parametrize(("mapping", "values", "error", "text"), BAD)
def test_what_is_refused_changes_nothing(
    procs: Source,
    notices: list[ChangeNotice],
    mapping: Any,
    values: Any,
    error: type[Exception],
    text: str,
) -> None:
    """The error has one line, and names the subordinate and the value."""
    procs.add_subordinate(Source("other"))
    procs.sync({"1": {"cpu": 5, "rss": 1}, "2": {"cpu": 6}}, ProcStats)
    before, told = shown(procs), len(notices)
    if isinstance(mapping, dict):
        mapping = {"2": {}, "3": {}, **mapping}
    with pytest.raises(error) as raised:
        procs.sync(mapping, values)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)
    assert (shown(procs), len(notices)) == (before, told)


@pytest.mark.parametrize("label", ["a/b", "my-pid", "le"])
def test_a_label_that_is_no_name(procs: Source, label: str) -> None:
    """It is refused before anything is made, whatever is in the mapping."""
    with pytest.raises(InvalidNameError, match="a source's label"):
        procs.sync({}, ProcStats, label=label)


def test_a_released_source(procs: Source) -> None:
    """It has no subordinates."""
    source = Source("x")
    source.sync({"1": {"cpu": 1}}, ProcStats)
    source.put()
    with pytest.raises(ReleasedError):
        source.sync({}, ProcStats)


def test_others_are_left_alone(procs: Source) -> None:
    """Also those that have the same values, and a value that a program added to one of its own."""
    mine = Source("other")
    mine.add_values(ProcStats, ProcStats(cpu=100))
    procs.add_subordinate(mine)
    procs.add_values(ProcStats, None)
    procs.sync({"1": {"cpu": 5}}, ProcStats)
    (_, one) = procs.subordinates
    one.add_values([Value("mine", aggregate=SUM)], {"mine": 3})
    below = Source("below")
    below.add_values(ProcStats, ProcStats(rss=4))
    one.add_subordinate(below)
    assert shown(procs)[""] == {"cpu": 105, "rss": 4, "mine": 3}
    procs.sync({"1": {"cpu": 6, "rss": 1}}, ProcStats)
    assert shown(procs)[""] == {"cpu": 106, "rss": 5, "mine": 3}
    assert one.subordinates == (below,)
    procs.sync({}, ProcStats)
    assert procs.subordinates == (mine,)
    assert shown(procs)[""] == {"cpu": 106, "rss": 0, "mine": 3}


def test_a_value_that_the_program_has_added_already(procs: Source) -> None:
    """Then its name is taken, and nothing changes."""
    procs.sync({"1": {"cpu": 5}}, ProcStats)
    (one,) = procs.subordinates
    rss = [value for value in values_of(ProcStats) if value.name == "rss"]
    one.add_values(rss, {"rss": 1})
    with pytest.raises(DuplicateNameError, match="procs/1: the array of 'rss' is there already"):
        procs.sync({"1": {"cpu": 6, "rss": 2}}, ProcStats)
    assert shown(procs)["1"] == {"cpu": 5, "rss": 1}


def test_what_a_program_took_away_is_made_anew(procs: Source) -> None:
    """Whether it removed a subordinate, or its bases."""
    procs.sync({"1": {"rss": 5}, "2": {"rss": 6}}, ProcStats)
    one, two = procs.subordinates
    one.get()
    procs.remove_subordinate(one)
    two.revoke()
    other = Source("other")
    other.add_subordinate(one)
    procs.sync({"1": {"rss": 7}, "2": {"rss": 8}}, ProcStats)
    assert shown(procs) == {"": {"rss": 15}, "1": {"rss": 7}, "2": {"rss": 8}}
    assert {one, two}.isdisjoint(procs.subordinates)
    assert other.subordinates == (one,)
    assert one.get_value("rss") == 5


def test_other_values_or_another_label(registry: Registry, procs: Source) -> None:
    """Make other subordinates, in the same change; equal values are the same."""
    procs.sync({"1": {"cpu": 5}}, ProcStats)
    (one,) = procs.subordinates
    procs.sync({"1": {"cpu": 5}}, list(values_of(ProcStats)), label=None)
    assert procs.subordinates == (one,)
    procs.sync({"1": {"cpu": 6}}, ProcStats, label="pid")
    assert shown(procs) == {"": {"cpu": 11}, "1": {"cpu": 6}}
    assert exported(registry) == ['procs_cpu_total{pid="1"} 6']
    procs.sync({"1": {"count": 7}}, Wide, label="pid")
    assert shown(procs) == {"": {"cpu": 11, "count": 7}, "1": {"count": 7}}


def test_what_is_read_outside_of_the_lock(procs: Source) -> None:
    """A property of a base that leaves with a subordinate is retained, too."""

    class Asked:
        """It is asked."""

        @property
        def mine(self) -> int:
            """Some number."""
            return 40

    procs.sync({"1": {"cpu": 5}, "2": {"cpu": 1}}, ProcStats)
    one, two = procs.subordinates
    for source in (one, two):
        source.add_values([Value("mine", aggregate=SUM)], Asked())
    procs.sync({"1": {"cpu": 1, "rss": 2}}, ProcStats)
    assert shown(procs) == {"": {"cpu": 7, "rss": 2, "mine": 80}, "1": {"cpu": 1, "rss": 2}}


def test_what_is_retained_below_those_that_leave(procs: Source) -> None:
    """Two leave at once, and a worker that has moved between them counts once above."""
    procs.sync({"1": {"cpu": 5}, "2": {"cpu": 6}}, ProcStats)
    pools = [Source("pool", retain=True) for _ in range(2)]
    for one, pool in zip(procs.subordinates, pools, strict=True):
        one.add_values([Value("later", aggregate=SUM)], None)
        one.add_subordinate(pool)
    workers = [Source("w%d", number) for number in range(2)]
    for worker, cpu in zip(workers, (100, 1000), strict=True):
        worker.add_values(ProcStats, ProcStats(cpu=cpu))
        for pool in pools:
            pool.add_subordinate(worker)
            assert procs.get_value("cpu") == 11 + (100 if cpu == 100 else 1100)
            pool.remove_subordinate(worker)
    assert [pool.get_value("cpu") for pool in pools] == [1100, 1100]
    assert shown(procs)[""] == {"cpu": 1111, "rss": 0, "later": 0}
    procs.sync({"3": {"cpu": 1}}, ProcStats)
    assert shown(procs) == {"": {"cpu": 1112, "rss": 0}, "3": {"cpu": 1}}


def test_nothing_is_retained_where_nothing_retains(registry: Registry) -> None:
    """As of any source that leaves."""
    top = Source("top")
    registry.register(top)
    top.sync({"1": {"cpu": 5}, "2": {"cpu": 6}}, ProcStats)
    top.sync({"2": {"cpu": 7}}, ProcStats)
    assert shown(top) == {"": {"cpu": 7}, "2": {"cpu": 7}}
    top.sync({}, ProcStats)
    assert shown(top) == {"": {}}


def test_the_totals_above(registry: Registry) -> None:
    """All directories above have the totals, and retain where they do."""
    host, middle = Source("host", retain=True), Source("middle")
    registry.register(host)
    host.add_subordinate(middle)
    middle.sync({"1": {"cpu": 5}, "2": {"cpu": 6}}, ProcStats)
    middle.sync({"2": {"cpu": 7, "rss": 1}}, ProcStats)
    assert (registry["host/middle/cpu"], registry["host/cpu"], registry["host/rss"]) == (7, 12, 1)
    assert host.retained[values_named("cpu")] == (5,)


def values_named(name: str) -> tuple[Value, ...]:
    return tuple(value for value in values_of(ProcStats) if value.name == name)


def test_a_refresh_may_sync(registry: Registry) -> None:
    """Whatever is read, the subordinates are those of that moment; nothing waits for itself."""
    asked = [1]

    def poll() -> None:
        asked.append(asked[-1] + 1)
        procs.sync({str(n): {"cpu": asked[-1]} for n in range(asked[-1])}, ProcStats)
        assert procs.get_value("cpu") == asked[-1] ** 2

    procs = Source("procs", refresh=poll)
    procs.add_values(ProcStats, None)
    registry.register(procs)
    assert registry["procs/cpu"] == 4
    assert len(registry.snapshot().to_dict()["subordinates"]["procs"]["subordinates"]) == 3
    assert registry["procs/0/cpu"] == 4
    inline = Source(
        "inline", refresh=lambda: inline.sync({"a": {"cpu": 1}}, ProcStats), blocking=False
    )
    registry.register(inline)
    assert inline.snapshot().to_dict()["values"] == {"cpu": 1}


def test_readers_see_all_of_a_sync_or_nothing(registry: Registry) -> None:
    """Two that sync, and one that reads: a hundred in all at each moment, in any number of them."""
    top = Source("top")
    registry.register(top)
    few = {str(n): {"rss": 4} for n in range(25)}
    many = {str(n): {"rss": 1} for n in range(100)}
    top.sync(few, ProcStats)
    failures: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                top.sync(many, ProcStats)
                top.sync(few, ProcStats)
        except BaseException as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    seen = set()
    try:
        for _ in range(150):
            assert top.get_value("rss") == 100
            found = top.snapshot().to_dict()
            numbers = [one["values"]["rss"] for one in found["subordinates"].values()]
            assert found["values"] == {"rss": sum(numbers)} == {"rss": 100}
            seen.add(len(numbers))
    finally:
        ended.set()
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join(DEADLINE)
    assert not failures
    assert seen <= {25, 100}


@pytest.mark.parametrize("name", ["cpu", "rss"])
def test_a_sync_in_the_middle_of_a_total(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After its bases are listed, and before they are read."""
    top = Source("top")
    registry.register(top)
    few = {str(n): {name: 4} for n in range(25)}
    many = {str(n): {name: 5 if n < 25 else 1} for n in range(100)}
    top.sync(few, ProcStats)
    bases = index._bases

    def sync_then_read(parts: Sequence[index.Part]) -> Iterator[Any]:
        for one in list(bases(parts)):
            top.sync(many, ProcStats)
            yield one

    monkeypatch.setattr(index, "_bases", sync_then_read)
    assert top.get_value(name) == 200


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["read", "sync", "clear", "remove"])
def test_a_signal_handler_at_any_moment(registry: Registry, inner: str) -> None:
    """What it reads is of before or after; what it changes is changed whole."""
    top = Source("top", retain=True)
    registry.register(top)
    top.sync({"1": {"cpu": 100}, "2": {"cpu": 1}}, ProcStats)
    seen: list[tuple[int, int]] = []

    def handler() -> None:
        match inner:
            case "read":
                number = top.get_value("cpu")
                seen.append((number, top.snapshot().to_dict()["values"]["cpu"]))
            case "sync":
                top.sync({"9": {"cpu": 7}}, ProcStats)
            case "clear":
                top.clear_value("cpu")
            case _:
                for source in top.subordinates:
                    top.remove_subordinate(source)

    with interrupted_everywhere(handler) as where:
        top.sync({"1": {"cpu": 101}, "3": {"cpu": 1000, "rss": 1}}, ProcStats)
        top.sync({"1": {"cpu": 50, "rss": 5}, "3": {"rss": 2}}, ProcStats)
    assert {"sync", "_sync", "exchange", "_read_row"} <= set(where)
    assert {number for pair in seen for number in pair} <= {101, 1102, 1152}
    found = shown(top)
    if inner == "read":
        assert found[""] == {"cpu": 1152, "rss": 7}
        assert found["1"] == {"cpu": 50, "rss": 5}
    top.sync({}, ProcStats)
    assert list(shown(top)) == [""]


# Against a model

NAMES = ("a", "b", "c/d")
number = st.integers(0, 9)
rows = st.fixed_dictionaries(
    {},
    optional={"count": number, "level": st.integers(-9, 9), "most": number},
)
histograms: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.tuples(st.lists(number, min_size=3, max_size=3), number).map(
        lambda pair: {"sizes": pair[0], "sizes.sum": pair[1]}
    ),
)
mappings = st.dictionaries(
    st.sampled_from(NAMES), st.tuples(rows, histograms).map(lambda p: {**p[0], **p[1]})
)
steps = st.lists(st.one_of(mappings, st.sampled_from(["count", "sizes"])), max_size=12)

COUNTED = ("count", "sizes", "sizes.sum")


def each(function: Callable[..., int], *numbers: Any) -> Any:
    """Call a function with numbers, or bucket by bucket."""
    if isinstance(numbers[0], list):
        return [function(*some) for some in zip(*numbers, strict=True)]
    return function(*numbers)


@dataclass
class Model:
    """What subordinates a sync has left, in plain Python.

    Attributes:
        numbers: of each subordinate, the last numbers, less what was cleared.
        cleared: what was cleared.
        there: which of them the last mapping had.
        kept: what those that left have counted.
    """

    retain: bool
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    cleared: dict[str, dict[str, Any]] = field(default_factory=dict)
    there: dict[str, set[str]] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def sync(self, mapping: dict[str, dict[str, Any]]) -> None:
        """Do what sync does."""
        for name in list(self.numbers):
            if name not in mapping or self.has_fallen(name, mapping[name]):
                self.remove(name)
        for name, row in mapping.items():
            cleared = self.cleared.setdefault(name, {})
            for value, found in row.items():
                less = each(int.__sub__, found, cleared[value]) if value in cleared else found
                self.numbers.setdefault(name, {})[value] = less
            self.numbers.setdefault(name, {})
        self.there = {name: set(row) for name, row in mapping.items()}

    def has_fallen(self, name: str, row: dict[str, Any]) -> bool:
        for value in COUNTED:
            if value in row and value in self.numbers[name]:
                raw = self.raw(name, value)
                less = each(int.__lt__, row[value], raw)
                if any(less) if isinstance(less, list) else less:
                    return True
        return False

    def raw(self, name: str, value: str) -> Any:
        number, cleared = self.numbers[name][value], self.cleared[name].get(value)
        return number if cleared is None else each(int.__add__, number, cleared)

    def remove(self, name: str) -> None:
        """A subordinate leaves."""
        gone = self.numbers.pop(name)
        del self.cleared[name]
        for value, left in gone.items() if self.retain else ():
            if value in COUNTED:
                self.kept[value] = self.add(value, [left], self.kept.get(value))
            elif value == "most":
                self.kept[value] = max(left, self.kept.get(value, 0))

    def add(self, value: str, numbers: list[Any], total: Any = None) -> Any:
        for one in numbers:
            total = one if total is None else each(int.__add__, total, one)
        return total

    def clear(self, value: str) -> None:
        """Clear a total."""
        for one in (value, "sizes.sum") if value == "sizes" else (value,):
            for name, row in self.numbers.items():
                if one in row:
                    self.cleared[name][one] = self.raw(name, one)
                    row[one] = each(int.__mul__, row[one], [0] * 3 if one == "sizes" else 0)
            if one in self.kept:
                self.kept[one] = each(int.__mul__, self.kept[one], [0] * 3 if one == "sizes" else 0)

    def shown(self) -> dict[str, dict[str, Any]]:
        """What `shown` returns."""
        totals = dict(self.kept)
        for row in self.numbers.values():
            for value, found in row.items():
                if value == "most":
                    totals[value] = max(totals.get(value, 0), found)
                else:
                    totals[value] = self.add(value, [found], totals.get(value))
        below = {
            name.replace("/", "%2F"): {v: row[v] for v in row if v in self.there[name]}
            for name, row in self.numbers.items()
        }
        return {"": totals, **below}


@given(steps, st.booleans())
def test_any_syncs(steps: list[Any], retain: bool) -> None:
    """The tree is what the mapping was; no total falls of what only grows, but by a clear."""
    top, model = Source("top", retain=retain), Model(retain)
    for step in steps:
        before = shown(top)[""] if top.names() else {}
        if isinstance(step, dict):
            top.sync(step, Wide, label="name")
            model.sync(step)
        elif step in top.names():
            top.clear_value(step)
            model.clear(step)
        found = shown(top)
        assert found == model.shown()
        for value in COUNTED if retain and isinstance(step, dict) else ():
            if value in before:
                grown = each(int.__ge__, found[""][value], before[value])
                assert all(grown) if isinstance(grown, list) else grown
