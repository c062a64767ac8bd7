"""Snapshots: what they hold, and what they leave out."""

import json
import logging
import time
from typing import Any

import pytest

from statsfs.model.fields import s8, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.snapshot import Snapshot
from statsfs.tree.source import Source, directory_of
from tests.support.strategies import Indexed, Plain, property_base


class VmStats(Stats):
    """What a VM counts."""

    pages = u64(Aggregate.SUM)


class VcpuStats(Stats):
    """What a vCPU counts."""

    exits = u64(Aggregate.SUM | Aggregate.MAX)
    depth = s8(Aggregate.MIN)


def make_tree() -> tuple[Source, Source, list[VcpuStats]]:
    """A VM of two vCPUs, one of them hidden, below kvm."""
    kvm, vm = Source("kvm"), Source("vm")
    kvm.add_subordinate(vm)
    vm_stats = VmStats()
    vm_stats.pages = 7
    vm.add_values(VmStats, vm_stats)
    stats = []
    for number in range(2):
        vcpu = Source("vcpu%d", number, hidden=number == 1)
        counters = VcpuStats()
        counters.exits, counters.depth = 10 + number, 200 * number
        vcpu.add_values(VcpuStats, counters)
        vm.add_subordinate(vcpu)
        stats.append(counters)
    return kvm, vm, stats


def test_a_snapshot_as_dictionaries() -> None:
    """Nested as the directories are, with what each of them shows; ready for JSON."""
    kvm, _, _ = make_tree()
    totals = {"exits": 21, "exits.max": 11, "depth": -56}
    found = kvm.snapshot().to_dict()
    assert found == {
        "values": {"pages": 7, **totals},
        "subordinates": {
            "vm": {
                "values": {"pages": 7, **totals},
                "subordinates": {
                    "vcpu0": {"values": {"exits": 10, "depth": 0}, "subordinates": {}}
                },
            }
        },
    }
    assert json.loads(json.dumps(found)) == found


def test_a_snapshot_by_arrays() -> None:
    """For each array its sources and their rows, converted, hidden ones too."""
    kvm, vm, _ = make_tree()
    snapshot = kvm.snapshot()
    assert set(snapshot.arrays) == {values_of(VmStats), values_of(VcpuStats)}
    samples = snapshot.arrays[values_of(VcpuStats)]
    assert samples.values == values_of(VcpuStats)
    assert samples.sources == list(vm.subordinates)
    assert samples.rows == [(10, 0), (11, -56)]
    assert [entry.source for entry in samples.entries] == samples.sources
    # An equal array, made elsewhere, finds the same.
    assert snapshot.arrays[tuple(values_of(VcpuStats))] is samples


def test_a_snapshot_tells_its_moment() -> None:
    """In nanoseconds since the epoch."""
    before = time.time_ns()
    moment = make_tree()[0].snapshot().moment
    assert before <= moment <= time.time_ns()


def test_a_snapshot_never_changes() -> None:
    """Not when the counters go on, nor when the tree does."""
    kvm, vm, stats = make_tree()
    snapshot = kvm.snapshot()
    stats[0].exits = 99
    kvm.remove_subordinate(vm)
    vm.put()
    assert snapshot.arrays[values_of(VcpuStats)].rows == [(10, 0), (11, -56)]
    assert snapshot.to_dict()["values"]["exits"] == 21
    assert kvm.snapshot().to_dict() == {"values": {}, "subordinates": {}}


def test_decoding_twice_is_decoding_once() -> None:
    """Rows are the same objects each time they are asked for."""
    samples = make_tree()[0].snapshot().arrays[values_of(VcpuStats)]
    assert samples.rows is samples.rows


def test_a_source_without_anything() -> None:
    """An empty directory has a snapshot too."""
    snapshot = Source("s").snapshot()
    assert isinstance(snapshot, Snapshot)
    assert snapshot.arrays == {}
    assert snapshot.to_dict() == {"values": {}, "subordinates": {}}


def test_arrays_that_are_only_declared() -> None:
    """Their samples have no rows, and the directories above show 0."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    vm.add_values(VcpuStats, None)
    snapshot = top.snapshot()
    assert snapshot.arrays[values_of(VcpuStats)].rows == []
    zeros = {"exits": 0, "exits.max": 0, "depth": 0}
    assert snapshot.to_dict() == {
        "values": zeros,
        "subordinates": {"vm": {"values": zeros, "subordinates": {}}},
    }


def test_an_array_over_several_bases_of_one_source() -> None:
    """The source is there once for each base; only the visible one makes files."""
    source = Source("s")
    source.add_values(VmStats, {"pages": 1})
    source.add_values(VmStats, {"pages": 2}, hidden=True)
    snapshot = source.snapshot()
    samples = snapshot.arrays[values_of(VmStats)]
    assert samples.sources == [source, source]
    assert sorted(samples.rows) == [(1,), (2,)]
    assert snapshot.to_dict()["values"] == {"pages": 1}


NOTHING: dict[str, int] = {}
BROKEN: list[Any] = [None, "1", 0.5]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_broken_is_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture, broken: Any, lost: bool, dynamic: bool
) -> None:
    """The others are there, at one moment; the log names the source."""
    top = Source("top")
    held = [{"pages": number} for number in range(3)]
    for number, one in enumerate(held):
        source = Source("s%d", number)
        source.add_values(VmStats, property_base(one, True) if dynamic else Plain(one))
        top.add_subordinate(source)
    bad = top.subordinates[1]
    base = next(iter(directory_of(bad).entries.values())).base
    if dynamic:
        type(base).pages = property(lambda self: NOTHING["no"] if lost else broken)
    elif lost:
        del base.__dict__["pages"]
    else:
        base.__dict__["pages"] = broken
    for _ in range(3):
        samples = top.snapshot().arrays[values_of(VmStats)]
        assert samples.rows == [(0,), (2,)]
        assert [source.name for source in samples.sources] == ["s0", "s2"]
        assert top.snapshot().to_dict()["values"] == {"pages": 2}
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("top/s1: left out of snapshots")


class Undecided(int):
    """An integer that is neither true nor false."""

    def __bool__(self) -> bool:
        raise RuntimeError("no")


class Failing:
    """An integer of a foreign library, for a while."""

    sound = True

    def __index__(self) -> int:
        if not self.sound:
            raise ArithmeticError("no more")
        return 4


def test_integers_of_other_libraries_become_integers() -> None:
    """Rows hold ints of Python, converted as all others are."""
    source = Source("s")
    values = [Value("a", Type.U8), Value("b"), Value("c")]
    source.add_values(values, {"a": Indexed(300), "b": Undecided(5), "c": 6})
    (row,) = source.snapshot().arrays[tuple(values)].rows
    assert row == (44, 5, 6)
    assert {type(number) for number in row} == {int}


def test_integers_that_columns_do_not_take() -> None:
    """They are converted one by one."""
    source = Source("s")
    values = (Value("undecided", Type.BOOL),)
    source.add_values(values, {"undecided": Undecided(5)})
    assert source.snapshot().arrays[values].rows == [(1,)]


def test_an_integer_that_fails_is_left_out() -> None:
    """Whatever the error of its `__index__` is."""
    source, held = Source("s"), Failing()
    source.add_values(VmStats, {"pages": held})
    assert source.snapshot().arrays[values_of(VmStats)].rows == [(4,)]
    held.sound = False
    assert source.snapshot().arrays[values_of(VmStats)].rows == []


def test_buffers_and_properties_are_sampled_too() -> None:
    """Every sort of base has its row."""
    top = Source("top")
    slots = VcpuStats.from_buffer(bytearray(16))
    slots.exits, slots.depth = 3, -4
    for number, base in enumerate((slots, property_base({"exits": 5, "depth": 6}, True))):
        source = Source("s%d", number)
        source.add_values(VcpuStats, base)
        top.add_subordinate(source)
    placed = (Value("b", Type.S8, offset=1), Value("a", Type.U8, offset=0))
    top.add_values(placed, bytearray([9, 255]))
    snapshot = top.snapshot()
    assert sorted(snapshot.arrays[values_of(VcpuStats)].rows) == [(3, -4), (5, 6)]
    assert snapshot.arrays[placed].rows == [(-1, 9)]
