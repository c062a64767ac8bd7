"""Sources: names, values, parents, and every refusal with what it says."""

import gc
import mmap
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from statsfs.exceptions import (
    BaseMismatchError,
    DuplicateNameError,
    InvalidNameError,
    ReadOnlyValueError,
    ReleasedError,
    StatsfsError,
    TreeError,
    UnknownValueError,
)
from statsfs.model.fields import boolean, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.families import Family
from statsfs.tree.references import hold, unhold
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.strategies import property_base


class VmStats(Stats):
    """What a VM counts."""

    pages = u64(Aggregate.SUM)


class VcpuStats(Stats):
    """The example of docs/api.md."""

    exits = u64(Aggregate.SUM, description="VM exits of every kind")
    halt_wait_ns = u64(Aggregate.SUM, unit=Unit.SECONDS, exponent=-9)
    guest_mode = boolean(Aggregate.SUM, kind=Kind.INSTANT)


N = [Value("n", aggregate=Aggregate.SUM, description="test_sources")]


def counting(name: str, number: int) -> Source:
    """A source that counts `n`."""
    source = Source(name)
    source.add_values(N, {"n": number})
    return source


# The example of docs/api.md, without a mount and with values of the VM


def test_the_example_of_the_manual() -> None:
    """Create, add values, add subordinate, count, read above, remove."""
    registry = Registry()
    kvm = Source("kvm")
    registry.register(kvm)
    vm = Source("%d-%d", 1234, 11, label="vm")
    vm_stats = VmStats()
    vm.add_values(VmStats, vm_stats)
    kvm.add_subordinate(vm)
    vcpu_stats = VcpuStats()
    vcpu = Source("vcpu%d", 0, label="vcpu")
    vcpu.add_values(VcpuStats, vcpu_stats)
    vm.add_subordinate(vcpu)
    vcpu.put()

    vcpu_stats.exits += 1
    vm_stats.pages += 2
    assert vcpu.get_value("exits") == vm.get_value("exits") == kvm.get_value("exits") == 1
    assert kvm.names() == ["pages", "exits", "halt_wait_ns", "guest_mode"]
    assert vcpu.path == "kvm/1234-11/vcpu0"
    assert vcpu.refcount == 1

    kvm.remove_subordinate(vm)
    assert kvm.names() == []
    assert vm.get_value("exits") == 1
    vm.put()
    for source in (vm, vcpu):
        with pytest.raises(ReleasedError):
            source.names()


# Making one


def test_a_name_is_formatted_only_when_there_are_arguments() -> None:
    """A per cent sign alone is a per cent sign; a conversion alone is an argument forgotten."""
    assert Source("100%").name == "100%"
    with pytest.raises(InvalidNameError, match="'vm%d' lacks"):
        Source("vm%d")
    assert Source("%d%%", 100).name == "100%"
    assert Source("%s-%s", "a", "b").name == "a-b"


def test_what_a_new_source_is() -> None:
    """It has its creator's reference, no parent, nothing in it."""
    before = time.time_ns()
    source = Source("vm", label="vm", hidden=True)
    assert (source.name, source.label, source.hidden) == ("vm", "vm", True)
    assert (source.refcount, source.parent, source.path) == (1, None, "vm")
    assert (source.subordinates, source.names(), directory_of(source).place) == ((), [], 0)
    assert before <= directory_of(source).changed <= time.time_ns()
    assert Source("vm").label is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("",), "0 bytes"),
        (("a/b",), "control character"),
        ((".hidden",), 'starts with "."'),
        (("x" * 256,), "256 bytes"),
        (("%s", "a/b"), "control character"),
        (("%s", ""), "0 bytes"),
        (("%d", "x"), "'%d' % \\('x',\\)"),
        (("%d-%d", 1), "not enough arguments"),
        (("vm", 1), "not all arguments"),
        (("%z", 1), "unsupported format"),
        ((5,), "not int"),
        ((5, 1), "5 % \\(1,\\)"),
        ((None,), "not NoneType"),
        ((b"vm",), "not bytes"),
    ],
)
def test_names_of_sources_that_are_refused(arguments: Any, match: str) -> None:
    """What no directory can be called, and arguments that do not fit."""
    with pytest.raises(InvalidNameError, match=match) as caught:
        Source(*arguments)
    assert "a source's name" in str(caught.value)


def test_labels_that_are_refused() -> None:
    """A label is a name too."""
    for label in ("", "a/b", 5):
        with pytest.raises(InvalidNameError, match="a source's label"):
            Source("s", label=label)  # type: ignore[arg-type]  # that is the question


@pytest.mark.parametrize(
    "label", ["my-x", "é", "9p", "le", "__name__", 'a "b"', "a.b", "a:b", "n\n"]
)
def test_labels_that_prometheus_would_rewrite(label: str) -> None:
    """A query asks for the label that the program has: it is refused wherever it is given."""
    words = "a source's label .*" if "\n" in label else f"label {label!r}: Prometheus takes letters"
    top = Source("top")
    for give in (lambda: Source("s", label=label), lambda: Family(top, VmStats, "ok", label)):
        with pytest.raises(InvalidNameError, match=words) as caught:
            give()
        assert len(str(caught.value).splitlines()) == 1
    assert Source("s", label="_My_9").label == "_My_9"


def test_repr_has_path_and_references(registry: Registry) -> None:
    """For debuggers: where it is, and who keeps it."""
    top, vm = Source("top"), Source("vm")
    registry.register(top)
    top.add_subordinate(vm)
    assert repr(vm) == "<Source 'top/vm' references=2>"
    top.remove_subordinate(vm)
    vm.put()
    assert repr(vm) == "<Source 'vm' released>"


def test_a_source_as_a_context_manager() -> None:
    """It is put at the end, also where the block fails."""
    with Source("s") as source:
        source.add_values(N, {"n": 1})
    with pytest.raises(ReleasedError):
        source.names()
    other = Source("s")
    with pytest.raises(ZeroDivisionError), other:
        raise ZeroDivisionError
    with pytest.raises(ReleasedError):
        other.get()
    top = Source("top")
    with Source("kept") as kept:
        top.add_subordinate(kept)
    assert top.subordinates == (kept,)


@pytest.mark.parametrize("how", ["with", "put"])
def test_what_the_tree_alone_kept_is_released_at_once(how: str) -> None:
    """The memory of its numbers can be closed when the source was removed.

    That is without garbage collection. A source that lives as long as somebody has the object
    would keep its bases, in cycles, until the collector runs.
    """
    top, memory = Source("top"), mmap.mmap(-1, 4096)
    source = Source("worker")
    source.add_values([Value("n", aggregate=Aggregate.SUM, offset=0)], memory)
    top.add_subordinate(source)
    if how == "with":
        with source:
            pass
    else:
        source.put()
    assert (source.refcount, top.get_value("n")) == (1, 0)
    with pytest.raises(BufferError):
        memory.close()
    gc.disable()
    try:
        top.remove_subordinate(source)
        memory.close()
    finally:
        gc.enable()


def test_without_a_put_garbage_collection_does_it() -> None:
    """A source that was removed can be used and added again; then nothing is left of it."""
    top, counted = Source("top"), VmStats()
    source = Source("worker")
    source.add_values(VmStats, counted)
    for _ in range(2):
        top.add_subordinate(source)
        top.remove_subordinate(source)
    assert source.names() == list(VmStats.__slots__)
    seen = weakref.ref(source)
    del source
    gc.collect()
    assert seen() is None


def test_the_error_of_a_released_source_says_what_to_do() -> None:
    """In one line, whatever is asked of it: people met it after a `with`."""
    with Source("worker") as source:
        pass
    wanted = (
        "source 'worker' was released: put(), or the end of `with`, gave back the last reference; "
        "get() one before, to go on using it"
    )
    for use in (source.names, source.get, source.snapshot, lambda: Registry().register(source)):
        with pytest.raises(ReleasedError) as caught:
            use()
        assert str(caught.value) == wanted
        assert caught.value.offender is source


# The tree


def test_subordinates_are_in_the_order_they_were_added() -> None:
    """Hidden ones are there too."""
    top = Source("top")
    made = [Source("s%d", number, hidden=number == 1) for number in (3, 1, 2)]
    for source in made:
        top.add_subordinate(source)
    assert top.subordinates == tuple(made)
    assert directory_of(top).visible == 2
    top.remove_subordinate(made[1])
    top.add_subordinate(made[1])
    assert top.subordinates == (made[0], made[2], made[1])
    assert [top.find(name) for name in ("s1", "s2", "s4")] == [made[1], made[2], None]
    assert [directory_of(top).shows_directory(name) for name in ("s1", "s2", "s4")] == [
        False,
        True,
        False,
    ]
    assert made[0].find("s1") is None


def test_places_are_new_each_time_and_never_used_again(registry: Registry) -> None:
    """A source that moves, and all below it, are somewhere else; what stays is where it was."""
    top, vm, vcpu, other = Source("top"), Source("vm"), Source("vcpu"), Source("other")
    vm.add_subordinate(vcpu)
    assert (directory_of(vm).place, directory_of(top).place) == (0, 0)
    assert directory_of(vcpu).place > 0
    seen = {directory_of(vcpu).place}
    registry.register(top)
    top.add_subordinate(other)
    stays = directory_of(top).place, directory_of(other).place
    seen.update(stays)
    for _ in range(3):
        top.add_subordinate(vm)
        assert directory_of(vm).place not in seen
        assert directory_of(vcpu).place not in seen
        seen |= {directory_of(vm).place, directory_of(vcpu).place}
        top.remove_subordinate(vm)
        assert directory_of(vm).place == 0
    assert (directory_of(top).place, directory_of(other).place) == stays


def test_a_directory_notes_when_it_changed() -> None:
    """Where names came or went, and nowhere else."""
    top, vm, other = Source("top"), Source("vm"), Source("other")

    def changed_by(operation: Callable[[], object]) -> list[Source]:
        before = [directory_of(source).changed for source in (top, vm, other)]
        time.sleep(0.001)
        operation()
        now = [directory_of(source).changed for source in (top, vm, other)]
        return [s for s, b, n in zip((top, vm, other), before, now, strict=True) if n > b]

    assert changed_by(lambda: top.add_subordinate(vm)) == [top]
    assert changed_by(lambda: vm.add_values(N, {"n": 1})) == [top, vm]
    assert changed_by(lambda: vm.add_values(N, {"n": 2}, hidden=True)) == [vm]
    assert changed_by(lambda: top.add_subordinate(other)) == [top]
    assert changed_by(lambda: vm.get_value("n")) == []
    assert changed_by(lambda: vm.clear_value("n")) == []
    assert changed_by(lambda: top.remove_subordinate(other)) == [top]
    hidden = Source("hidden", hidden=True)
    assert changed_by(lambda: top.add_subordinate(hidden)) == []
    hidden.add_values(values_of(VmStats), {"pages": 1})
    assert changed_by(lambda: top.remove_subordinate(hidden)) == [top]


def test_a_deep_tree_needs_no_recursion() -> None:
    """More levels than Python has frames are placed, sampled, moved and released."""
    top = source = Source("s0")
    sources = [top]
    for number in range(1, 1100):
        below = Source("s%d", number)
        source.add_subordinate(below)
        below.put()
        source = below
        sources.append(below)
    source.add_values(N, {"n": 3})
    assert top.get_value("n") == 3
    assert source.path.count("/") == 1099
    snapshot = top.snapshot()
    assert len(snapshot.arrays[tuple(N)].rows) == 1
    assert snapshot.to_dict()["values"] == {"n": 3}
    registry = Registry()
    registry.register(top)
    registry.unregister(top)
    top.put()
    assert all(repr(source).endswith("released>") for source in sources)


# Values


def test_values_are_converted_when_they_are_read() -> None:
    """The base keeps what the producer wrote; the file shows what C would."""
    source, base = Source("s"), {"u": 256 + 7, "s": 200, "b": -3, "wide": -1}
    source.add_values(
        [
            Value("u", Type.U8),
            Value("s", Type.S8),
            Value("b", Type.BOOL),
            Value("wide", Type.U64),
        ],
        base,
    )
    assert [source.get_value(name) for name in source.names()] == [7, -56, 1, (1 << 64) - 1]
    assert base["u"] == 263


def test_several_kinds_of_aggregate_at_once() -> None:
    """All of them above, under their names; the own value alone below."""
    kinds = Aggregate.SUM | Aggregate.MIN | Aggregate.MAX | Aggregate.AVG
    counts = Aggregate.COUNT_ZERO | Aggregate.COUNT_NONZERO
    top = Source("top")
    for number in (0, 5, -8):
        source = Source("s%d", number)
        source.add_values([Value("n", Type.S32, kinds | counts)], {"n": number})
        top.add_subordinate(source)
        assert source.names() == ["n"]
    assert {name: top.get_value(name) for name in top.names()} == {
        "n": -3, "n.min": -8, "n.max": 5, "n.avg": -1, "n.count_zero": 1, "n.count_nonzero": 2,
    }  # fmt: skip


def test_an_aggregate_covers_the_sources_own_base() -> None:
    """Where a source counts itself and has subordinates that count, the total is of all."""
    top, vm = Source("top"), Source("vm")
    values = [Value("n", aggregate=Aggregate.SUM, hidden=True)]
    top.add_values(values, {"n": 1})
    vm.add_values(values, {"n": 10})
    top.add_subordinate(vm)
    assert vm.names() == []
    assert top.names() == ["n"]
    assert top.get_value("n") == 11
    assert vm.get_value("n") == 10


def test_aggregates_that_are_declared_before_anybody_counts() -> None:
    """With base None the files are there and read 0, here and above; others are left out."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    values = [Value("n", aggregate=Aggregate.SUM | Aggregate.MAX), Value("alone")]
    vm.add_values(values, None)
    for source in (top, vm):
        assert source.names() == ["n", "n.max"]
        assert source.get_value("n.max") == 0
        source.clear_value("n")
    vcpu = Source("vcpu")
    vcpu.add_values(list(values), {"n": 4, "alone": 1})
    vm.add_subordinate(vcpu)
    assert vcpu.names() == ["n", "alone"]
    for source in (top, vm):
        assert source.names() == ["n", "n.max"]
        assert source.get_value("n") == 4
    vm.remove_subordinate(vcpu)
    assert vm.names() == ["n", "n.max"]
    assert vm.get_value("n") == 0


def test_hidden_sources_count_above_and_show_nothing() -> None:
    """One per thread gives a program one visible total; what is below one is hidden as well."""
    top = Source("top")
    threads = [Source("thread%d", number, hidden=True) for number in range(3)]
    for number, source in enumerate(threads):
        source.add_values(N, {"n": number})
        below = counting("below", 10)
        source.add_subordinate(below)
        top.add_subordinate(source)
    assert top.names() == ["n"]
    assert top.get_value("n") == 33
    assert top.snapshot().to_dict() == {"values": {"n": 33}, "subordinates": {}}
    top.clear_value("n")
    assert threads[2].get_value("n") == 0


def test_hidden_values_are_found_after_the_names() -> None:
    """`get_value` and `clear_value` find what is shown first, then what is hidden here."""
    source, below = Source("s"), Source("below")
    held = {"n": 1, "own": 2, "secret": 3}
    values = [Value("n"), Value("secret", hidden=True), Value("own", hidden=True)]
    source.add_values(values, held)
    extra = {"n": 7}
    source.add_values(N, extra, hidden=True)
    below.add_values([Value("elsewhere", hidden=True)], {"elsewhere": 1})
    source.add_subordinate(below)
    assert source.names() == ["n"]
    assert source.get_value("n") == 1
    assert source.get_value("secret") == 3
    source.clear_value("secret")
    assert held == {"n": 1, "own": 2, "secret": 0}
    with pytest.raises(UnknownValueError):
        source.get_value("elsewhere")
    source.revoke()
    with pytest.raises(UnknownValueError):
        source.get_value("secret")


def test_clearing_an_aggregate_clears_all_that_it_covers() -> None:
    """Bases of every depth and sort, hidden ones too, and no other value."""
    top, vm = Source("top"), Source("vm")
    other = [Value("n", aggregate=Aggregate.SUM, unit=Unit.BYTES)]
    bases: list[Any] = [{"n": 1, "m": 5}, property_base({"n": 2, "m": 5}, True)]
    values = [Value("n", aggregate=Aggregate.SUM | Aggregate.MIN), Value("m")]
    vm.add_values(values, bases[0])
    vm.add_values(values, bases[1], hidden=True)
    top.add_subordinate(vm)
    apart = Source("apart")
    apart.add_values(other, {"n": 9})
    top.add_subordinate(apart)
    top.clear_value("n.min")
    assert top.get_value("n") == 0
    assert bases[0] == {"n": 0, "m": 5}
    assert bases[1].n == 0
    assert bases[1].m == 5
    assert apart.get_value("n") == 9


def test_clearing_one_own_value() -> None:
    """Nobody else's is cleared, though the array is the same."""
    top = Source("top")
    made = [counting(f"s{number}", number + 1) for number in range(3)]
    for source in made:
        top.add_subordinate(source)
    made[1].clear_value("n")
    assert [source.get_value("n") for source in made] == [1, 0, 3]


# Revoking


def test_revoking_keeps_the_names_of_aggregates_and_reads_0() -> None:
    """Here and above; nothing else changes for whoever holds references."""
    top, vm, vcpu = Source("top"), Source("vm"), counting("vcpu", 5)
    base = {"n": 3, "alone": 1}
    values = [Value("n", aggregate=Aggregate.SUM, unit=Unit.BYTES), Value("alone")]
    vm.add_values(values, base)
    vm.add_subordinate(vcpu)
    top.add_subordinate(vm)
    names, references = top.names(), vm.refcount
    vm.revoke()
    assert top.names() == names
    assert vm.names() == ["n"]
    assert vm.get_value("n") == 0
    assert vm.refcount == references
    assert vcpu.get_value("n") == 5
    base["n"] = 99
    assert vm.get_value("n") == 0
    vm.clear_value("n")
    assert base["n"] == 99


def test_an_array_may_be_added_again_after_revoking() -> None:
    """Over a new base or the same, and as often as is needed."""
    top, vm = Source("top"), counting("vm", 1)
    top.add_subordinate(vm)
    base = {"n": 2}
    for _ in range(3):
        vm.revoke()
        vm.add_values(list(N), base)
        assert vm.get_value("n") == top.get_value("n") == 2
        assert len(directory_of(vm).entries) == 1
    vm.revoke()
    vm.add_values(N, None)
    with pytest.raises(DuplicateNameError):
        vm.add_values(N, None)


def test_a_hidden_base_does_not_take_the_place_of_what_was_shown() -> None:
    """After revoking, the files stay until the array is shown again."""
    vm = counting("vm", 1)
    vm.revoke()
    vm.add_values(N, {"n": 4}, hidden=True)
    assert vm.names() == ["n"]
    assert vm.get_value("n") == 4
    vm.add_values(N, {"n": 2})
    assert vm.get_value("n") == 2


def test_revoking_hidden_bases_shows_nothing_new() -> None:
    """A hidden array that is revoked is hidden still; above, its names remain."""
    top, vm = Source("top"), Source("vm")
    vm.add_values(N, {"n": 1}, hidden=True)
    top.add_subordinate(vm)
    vm.revoke()
    assert vm.names() == []
    assert top.names() == ["n"]
    assert top.get_value("n") == 0


# Refusals, all of which change nothing


def state(*sources: Source) -> list[Any]:
    """All that can be told of some sources."""
    found: list[Any] = []
    for source in sources:
        found.append(
            (
                source.name,
                source.refcount,
                source.parent,
                directory_of(source).place,
                directory_of(source).placed,
            )
        )
        found.append((directory_of(source).changed, directory_of(source).visible, source.path))
        if "released" not in repr(source):
            found.append((source.subordinates, source.names(), source.snapshot().to_dict()))
            found.append([source.get_value(name) for name in source.names()])
    return found


class World:
    """A tree in which something is to be refused."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.kvm, self.vm, self.vcpu = Source("kvm"), counting("vm", 3), counting("vcpu", 4)
        self.registry.register(self.kvm)
        self.kvm.add_subordinate(self.vm)
        self.vm.add_subordinate(self.vcpu)
        self.alone = counting("alone", 1)
        self.twin = counting("vcpu", 1)
        self.gone = Source("gone")
        self.gone.put()
        self.fixed = [Value("fixed", Type.U8, Aggregate.SUM, 0o444, description="World")]
        self.vcpu.add_values(self.fixed, {"fixed": 5})
        self.base = {"n": 9}
        self.alone.add_values(N, self.base, hidden=True)
        self.all = [self.kvm, self.vm, self.vcpu, self.alone, self.twin, self.gone]


TWICE = [Value("twice"), Value("twice", Type.U8)]
PLACED = [Value("wide", offset=0), Value("flag", Type.BOOL, offset=8)]

REFUSALS: dict[str, tuple[type[StatsfsError], Callable[[World], Any], Callable[[World], Any]]] = {
    # name: (the error, what is refused, its offender)
    "a second parent": (
        TreeError, lambda w: w.kvm.add_subordinate(w.vcpu), lambda w: w.vcpu),
    "the same parent again": (
        TreeError, lambda w: w.vm.add_subordinate(w.vcpu), lambda w: w.vcpu),
    "a cycle": (
        TreeError, lambda w: w.twin.add_subordinate(w.twin), lambda w: w.twin),
    "a registered source below another": (
        TreeError, lambda w: w.alone.add_subordinate(w.kvm), lambda w: w.kvm),
    "an ancestor": (
        TreeError, lambda w: w.vcpu.add_subordinate(w.kvm), lambda w: w.kvm),
    "registering a subordinate": (
        TreeError, lambda w: w.registry.register(w.vm), lambda w: w.vm),
    "registering twice": (
        TreeError, lambda w: w.registry.register(w.kvm), lambda w: w.kvm),
    "removing what is not below": (
        TreeError, lambda w: w.kvm.remove_subordinate(w.alone), lambda w: w.alone),
    "removing a grandchild": (
        TreeError, lambda w: w.kvm.remove_subordinate(w.vcpu), lambda w: w.vcpu),
    "removing from a leaf": (
        TreeError, lambda w: w.vcpu.remove_subordinate(w.vm), lambda w: w.vm),
    "removing a namesake": (
        TreeError, lambda w: w.vm.remove_subordinate(w.twin), lambda w: w.twin),
    "unregistering what is not registered": (
        TreeError, lambda w: w.registry.unregister(w.vm), lambda w: w.vm),
    "unregistering elsewhere": (
        TreeError, lambda w: Registry().unregister(w.kvm), lambda w: w.kvm),
    "a sibling's name": (
        DuplicateNameError, lambda w: w.vm.add_subordinate(w.twin), lambda w: "vcpu"),
    "an array twice": (
        DuplicateNameError, lambda w: w.vm.add_values(N, {"n": 1}), lambda w: tuple(N)),
    "an array twice over one base": (
        DuplicateNameError, lambda w: w.alone.add_values(N, w.base, hidden=True),
        lambda w: tuple(N)),
    "a value twice in an array": (
        DuplicateNameError, lambda w: w.vm.add_values(TWICE, {"twice": 1}), lambda w: "twice"),
    "a base without a value": (
        BaseMismatchError, lambda w: w.vcpu.add_values(VcpuStats, {"exits": 1}),
        lambda w: {"exits": 1}),
    "a base with something else": (
        BaseMismatchError, lambda w: w.vcpu.add_values(VmStats, {"pages": 0.5}),
        lambda w: {"pages": 0.5}),
    "a raw buffer without offsets": (
        BaseMismatchError, lambda w: w.vcpu.add_values(VmStats, bytearray(8)),
        lambda w: bytearray(8)),
    "a buffer too small": (
        BaseMismatchError, lambda w: w.vcpu.add_values(PLACED, bytearray(8)),
        lambda w: bytearray(8)),
    "a read-only buffer": (
        BaseMismatchError, lambda w: w.vcpu.add_values(PLACED, bytes(9)), lambda w: bytes(9)),
    "no buffer for offsets": (
        BaseMismatchError, lambda w: w.vcpu.add_values(PLACED, {"wide": 1, "flag": 1}),
        lambda w: {"wide": 1, "flag": 1}),
    "mixed offsets": (
        BaseMismatchError, lambda w: w.vcpu.add_values([*PLACED, Value("bare")], bytearray(64)),
        lambda w: "bare"),
    "a misaligned offset": (
        BaseMismatchError,
        lambda w: w.vcpu.add_values([Value("askew", offset=4)], bytearray(64)),
        lambda w: Value("askew", offset=4)),
    "overlapping offsets": (
        BaseMismatchError,
        lambda w: w.vcpu.add_values([*PLACED, Value("over", Type.U8, offset=7)], bytearray(64)),
        lambda w: Value("over", Type.U8, offset=7)),
    "an unknown value": (
        UnknownValueError, lambda w: w.vm.get_value("no"), lambda w: "no"),
    "clearing an unknown value": (
        UnknownValueError, lambda w: w.vm.clear_value("no"), lambda w: "no"),
    "clearing a value of mode 0444": (
        ReadOnlyValueError, lambda w: w.vcpu.clear_value("fixed"), lambda w: "fixed"),
    "clearing an aggregate of mode 0444": (
        ReadOnlyValueError, lambda w: w.kvm.clear_value("fixed"), lambda w: "fixed"),
    "use after release": (
        ReleasedError, lambda w: w.gone.names(), lambda w: w.gone),
    "values for a released source": (
        ReleasedError, lambda w: w.gone.add_values(N, {"n": 1}), lambda w: w.gone),
    "placing a released source": (
        ReleasedError, lambda w: w.kvm.add_subordinate(w.gone), lambda w: w.gone),
    "placing below a released source": (
        ReleasedError, lambda w: w.gone.add_subordinate(w.alone), lambda w: w.gone),
    "removing a released source": (
        ReleasedError, lambda w: w.kvm.remove_subordinate(w.gone), lambda w: w.gone),
    "registering a released source": (
        ReleasedError, lambda w: w.registry.register(w.gone), lambda w: w.gone),
    "unregistering a released source": (
        ReleasedError, lambda w: w.registry.unregister(w.gone), lambda w: w.gone),
    "a put after release": (
        ReleasedError, lambda w: w.gone.put(), lambda w: w.gone),
}  # fmt: skip

# What the message must name, besides the offender where that is a source or a name.
NAMED = {
    "a second parent": ["kvm/vm/vcpu"],
    "the same parent again": ["kvm/vm/vcpu"],
    "an ancestor": ["kvm"],
    "a sibling's name": ["kvm/vm", "vcpu"],
    "removing a grandchild": ["kvm/vm/vcpu", "kvm"],
    "removing what is not below": ["alone", "kvm"],
    "an array twice": ["kvm/vm", "'n'"],
    "an array twice over one base": ["alone", "'n'", "the same base"],
    "a value twice in an array": ["kvm/vm", "'twice'"],
    "a base without a value": ["kvm/vm/vcpu", "'halt_wait_ns'"],
    "a base with something else": ["kvm/vm/vcpu", "'pages'"],
    "a raw buffer without offsets": ["kvm/vm/vcpu", "'pages'"],
    "a buffer too small": ["kvm/vm/vcpu", "'flag'"],
    "a read-only buffer": ["kvm/vm/vcpu", "'flag'"],
    "no buffer for offsets": ["kvm/vm/vcpu", "'flag'"],
    "mixed offsets": ["kvm/vm/vcpu", "'bare'"],
    "a misaligned offset": ["kvm/vm/vcpu", "'askew'"],
    "overlapping offsets": ["kvm/vm/vcpu", "'over'", "'wide'"],
    "an unknown value": ["kvm/vm", "'no'"],
    "clearing an unknown value": ["kvm/vm", "'no'"],
    "clearing a value of mode 0444": ["kvm/vm/vcpu", "'fixed'"],
    "clearing an aggregate of mode 0444": ["kvm", "'fixed'"],
    "use after release": ["'gone'"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_says_why_and_changes_nothing(case: str) -> None:
    """The error, its offender, the path and the value in its message, and the tree untouched."""
    error, operation, offender = REFUSALS[case]
    world = World()
    before = state(*world.all), world.registry.sources
    with pytest.raises(error) as caught:
        operation(world)
    assert (state(*world.all), world.registry.sources) == before
    assert caught.value.offender == offender(world)
    for text in NAMED.get(case, []):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (lambda w: w.kvm.add_subordinate("vm"), TypeError),
        (lambda w: w.kvm.add_subordinate(None), TypeError),
        (lambda w: w.kvm.remove_subordinate("vm"), TypeError),
        (lambda w: w.registry.register("vm"), TypeError),
        (lambda w: w.registry.unregister(None), TypeError),
        (lambda w: w.vm.add_values(["n"], {"n": 1}), TypeError),
        (lambda w: w.vm.add_values("n", {"n": 1}), TypeError),
        (lambda w: w.vm.add_values(None, {"n": 1}), TypeError),
        (lambda w: w.vm.add_values(dict, {"n": 1}), TypeError),
        (lambda w: w.vm.add_values(VmStats(), VmStats()), TypeError),
        (lambda w: w.vm.add_values([], {}), ValueError),
    ],
)
def test_things_of_another_type_change_nothing(
    operation: Callable[[World], Any], error: type[Exception]
) -> None:
    """A name in a source's place, a class that is none of values: a programmer's mistakes."""
    world = World()
    before = state(*world.all), world.registry.sources
    with pytest.raises(error):
        operation(world)
    assert (state(*world.all), world.registry.sources) == before


def test_a_put_too_many_leaves_the_trees_reference() -> None:
    """The tree's references and those of open files are not the caller's to give back."""
    top, vm = Source("top"), counting("vm", 1)
    top.add_subordinate(vm)
    hold(vm)
    vm.put()
    assert vm.refcount == 2
    with pytest.raises(ReleasedError, match="'top/vm': one put") as caught:
        vm.put()
    assert caught.value.offender is vm
    assert vm.refcount == 2
    assert top.get_value("n") == 1


def test_a_source_that_is_released_while_values_are_added() -> None:
    """A property that puts the last reference: the values are refused, the base is let go of."""
    source = Source("s")

    class Putting:
        @property
        def n(self) -> int:
            source.put()
            return 1

    with pytest.raises(ReleasedError):
        source.add_values(N, Putting())


def test_an_array_shown_in_one_source_over_one_base_and_declared_besides() -> None:
    """Declaring what is shown anyway changes no name."""
    vm = counting("vm", 1)
    vm.add_values(N, None)
    assert vm.names() == ["n"]
    assert vm.get_value("n") == 1
    vm.revoke()
    assert vm.get_value("n") == 0


def test_open_files_keep_a_source_that_left() -> None:
    """A hold is a reference; what is below stays with it, and all is gone with the last."""
    top, vm, vcpu = Source("top"), counting("vm", 1), counting("vcpu", 2)
    vm.add_subordinate(vcpu)
    top.add_subordinate(vm)
    for source in (vm, vcpu):
        source.put()
    hold(vm)
    top.remove_subordinate(vm)
    assert vm.get_value("n") == 1
    assert vcpu.refcount == 1
    unhold(vm)
    for source in (vm, vcpu):
        with pytest.raises(ReleasedError):
            source.get_value("n")
    assert vcpu.parent is None
