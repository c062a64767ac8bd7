"""Memory: what is released is freed, and nothing grows with what came and went."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import pytest

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.references import hold, unhold
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

pytestmark = pytest.mark.slow


class VcpuStats(Stats):
    """A few values, and an instance that a weak reference may point to."""

    __slots__ = ("__weakref__",)
    exits = u64(Aggregate.SUM | Aggregate.MAX)
    halts = u64(Aggregate.SUM)


class Held(dict[str, int]):
    """A dictionary that a weak reference may point to."""


PLACED = [Value("exits", aggregate=Aggregate.SUM, offset=0)]


class Watched:
    """A tree of which every source and base is watched, but held by the tree alone."""

    def __init__(self) -> None:
        self.top = Source("top")
        self.buffer = bytearray(8)
        self.watched: dict[str, weakref.ref[Any]] = {}
        vm = Source("vm")
        self.top.add_subordinate(vm)
        stats, held = VcpuStats(), Held(exits=1, halts=2)
        for name, base in (("stats", stats), ("held", held)):
            vcpu = Source(name)
            vcpu.add_values(VcpuStats, base)
            vm.add_subordinate(vcpu)
            vcpu.put()
            self.watched[f"source {name}"] = weakref.ref(vcpu)
            self.watched[f"base {name}"] = weakref.ref(base)
        vm.add_values(PLACED, self.buffer)
        self.watched["source vm"] = weakref.ref(vm)
        vm.put()

    @property
    def vm(self) -> Source:
        """The one subordinate."""
        return self.top.subordinates[0]

    def alive(self) -> set[str]:
        """What is not freed."""
        gc.collect()
        return {name for name, reference in self.watched.items() if reference() is not None}

    def buffer_is_free(self) -> bool:
        """Whether nobody holds the buffer, without any garbage being collected."""
        gc.disable()
        try:
            self.buffer.append(0)
        except BufferError:
            return False
        finally:
            gc.enable()
        return True


def test_the_tree_alone_keeps_what_is_in_it() -> None:
    """Nothing is freed too early."""
    tree = Watched()
    assert tree.alive() == set(tree.watched)
    assert not tree.buffer_is_free()
    assert tree.top.get_value("exits") == 1


def test_what_is_removed_is_freed() -> None:
    """A removed source to which nobody refers goes with all that is below, at once."""
    tree = Watched()
    tree.top.remove_subordinate(tree.vm)
    assert tree.buffer_is_free()
    assert tree.alive() == set()


def test_what_is_unregistered_is_freed(registry: Registry) -> None:
    """The same from the registry, in which a listener heard of it."""
    changes: list[object] = []
    registry.add_listener(changes.append)
    tree = Watched()
    registry.register(tree.top)
    tree.top.put()
    registry.unregister(tree.top)
    assert tree.buffer_is_free()
    assert tree.alive() == set()
    assert changes


def test_what_is_put_is_freed() -> None:
    """The last reference of the creator frees a tree that is nowhere."""
    tree = Watched()
    tree.top.put()
    assert tree.buffer_is_free()
    assert tree.alive() == set()


def test_an_open_file_keeps_its_source_until_it_is_closed() -> None:
    """A hold keeps the source and all that is below; the last `unhold` frees it."""
    tree = Watched()
    vm = tree.vm
    hold(vm)
    tree.top.remove_subordinate(vm)
    assert tree.alive() == set(tree.watched)
    unhold(vm)
    assert tree.buffer_is_free()
    del vm
    assert tree.alive() == set()


def test_an_open_file_below_keeps_only_its_own_source() -> None:
    """What is above and beside it is freed."""
    tree = Watched()
    vcpu = tree.vm.subordinates[0]
    hold(vcpu)
    tree.top.remove_subordinate(tree.vm)
    assert tree.buffer_is_free()
    assert tree.alive() == {"source stats", "base stats"}
    unhold(vcpu)
    del vcpu
    assert tree.alive() == set()


def test_revoking_frees_the_bases_and_no_source() -> None:
    """Of this source alone."""
    tree = Watched()
    tree.vm.revoke()
    assert tree.buffer_is_free()
    assert tree.alive() == set(tree.watched)
    for vcpu in tree.vm.subordinates:
        vcpu.revoke()
    del vcpu
    assert tree.alive() == {"source stats", "source held", "source vm"}


def test_a_released_source_that_is_still_referred_to_has_dropped_its_bases() -> None:
    """A variable somewhere keeps an empty shell."""
    tree = Watched()
    vm = tree.vm
    tree.top.remove_subordinate(vm)
    assert tree.buffer_is_free()
    assert tree.alive() == {"source vm"}


def test_a_snapshot_that_is_kept_keeps_no_base() -> None:
    """It holds numbers and sources; the producers' memory is theirs again."""
    tree = Watched()
    snapshot = tree.top.snapshot()
    tree.top.remove_subordinate(tree.vm)
    assert tree.buffer_is_free()
    assert {name for name in tree.alive() if name.startswith("base")} == set()
    assert snapshot.to_dict()["values"] == {"exits": 1, "exits.max": 1, "halts": 2}
    del snapshot
    assert tree.alive() == set()


def test_shared_memory_can_be_closed_once_its_source_is_released() -> None:
    """Closing what is still exported is an error of Python; after the last put it is not."""
    memory = SharedMemory(create=True, size=64)
    try:
        source = Source("s")
        source.add_values(PLACED, memory)
        assert memory.buf is not None
        slots = Source("slots")
        slots.add_values(VcpuStats, VcpuStats.from_buffer(memory.buf, 8))
        source.add_subordinate(slots)
        slots.put()
        snapshot = source.snapshot()
        with pytest.raises(BufferError):
            memory.close()
        source.put()
        memory.close()
        assert len(snapshot.arrays) == 2
    finally:
        memory.unlink()


def test_what_was_read_cleared_and_refused_leaves_nothing_behind() -> None:
    """Errors keep their offender only as long as somebody keeps the error."""
    tree = Watched()
    for source in (tree.top, tree.vm, *tree.vm.subordinates):
        for name in source.names():
            source.get_value(name)
            source.clear_value(name)
        with pytest.raises(ValueError):  # noqa: PT011  # whichever of them: what is left counts
            source.add_subordinate(tree.top)
    del source
    tree.top.remove_subordinate(tree.vm)
    assert tree.alive() == set()


def test_a_broken_base_leaves_nothing_behind_where_it_was_complained_of() -> None:
    """What an ancestor logged of it does not keep it."""
    tree = Watched()
    (held,) = [
        next(iter(directory_of(vcpu).entries.values())).base
        for vcpu in tree.vm.subordinates
        if vcpu.name == "held"
    ]
    held["exits"] = None
    assert tree.top.get_value("exits") == 0
    assert tree.vm.get_value("halts") == 2
    tree.top.snapshot().to_dict()
    del held
    tree.top.remove_subordinate(tree.vm)
    assert tree.alive() == set()


def test_a_registry_that_is_dropped_is_freed_with_its_tree() -> None:
    """Nobody needs to unregister at the end of a program, or of a test."""
    registry, tree = Registry(), Watched()
    registry.register(tree.top)
    reference = weakref.ref(registry)
    watched = tree.watched
    del registry, tree
    gc.collect()
    assert reference() is None
    assert {name for name, found in watched.items() if found() is not None} == set()


def come_and_go(top: Source, number: int) -> None:
    """A VM with a vCPU, of a new name each time."""
    vm, vcpu = Source("vm%d", number), Source("vcpu0")
    vcpu.add_values(VcpuStats, VcpuStats())
    vm.add_subordinate(vcpu)
    vcpu.put()
    top.add_subordinate(vm)
    top.get_value("exits")
    top.names()
    vm.names()
    top.snapshot().to_dict()
    top.remove_subordinate(vm)
    vm.put()


def fill_and_revoke(top: Source, number: int) -> None:
    """The same array, over and over."""
    top.revoke()
    top.add_values(VcpuStats, VcpuStats())
    top.names()


def take_and_give(top: Source, number: int) -> None:
    """References that are taken and given back."""
    hold(top.get())
    top.put()
    unhold(top)


@pytest.mark.parametrize("work", [come_and_go, fill_and_revoke, take_and_give])
def test_memory_does_not_grow_with_what_came_and_went(
    registry: Registry, work: Callable[[Source, int], None]
) -> None:
    """A thousand rounds more cost no more than a few bytes each."""
    top = Source("top")
    registry.register(top)
    top.add_values([Value("always")], {"always": 1})
    for number in range(50):
        work(top, number)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50, 1050):
            work(top, number)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000


def test_arrays_stay_for_good_but_their_classes_of_bases_do_not() -> None:
    """An array remembers which classes are plain, and keeps none of them."""
    values = [Value("n", Type.U8, description="test_memory")]

    def use() -> weakref.ref[type]:
        cls = type("Passing", (), {"n": 1})
        source = Source("s")
        source.add_values(values, cls())
        source.put()
        return weakref.ref(cls)

    reference = use()
    gc.collect()
    assert reference() is None
