"""Threads: one moment, no user code under the lock, changes beside readers, forks."""

import gc
import logging
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import StatsfsError, UnknownValueError
from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Value
from statsfs.tree.lock import apply_change, lock_tree
from statsfs.tree.references import hold, unhold
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.bare import bare_log_hist
from tests.support.deadlines import until, wait_until
from tests.support.forking import run_forking
from tests.support.strategies import Plain
from tests.support.trees import add_below

pytestmark = pytest.mark.slow


class Pair(Stats):
    """Two counters that are bumped one after the other."""

    a = u64(Aggregate.SUM)
    b = u64(Aggregate.SUM)


PLACED = (
    Value("a", aggregate=Aggregate.SUM, offset=0),
    Value("b", aggregate=Aggregate.SUM, offset=8),
)


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Rounds:
    """How often each of some threads went round, and what they raised."""

    def __init__(self, threads: int) -> None:
        self.made = [0] * threads
        self.errors: list[BaseException] = []

    def wait_for(self, count: int) -> None:
        """Wait until each has gone round so often, or one has failed."""
        wait_until(lambda: self.errors or min(self.made) >= count, "the rounds", deadline=100)


@contextmanager
def running(*loops: Callable[[], object]) -> Iterator[Rounds]:
    """Call functions over and over, each in a thread; what they raise is raised at the end."""
    stop = threading.Event()
    rounds = Rounds(len(loops))
    errors = rounds.errors

    def repeat(number: int, loop: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                loop()
                rounds.made[number] += 1
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=repeat, args=[number, loop], daemon=True)
        for number, loop in enumerate(loops)
    ]
    for thread in threads:
        thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def in_another_thread(operation: Callable[[], object], seconds: float = 20) -> bool:
    """Do something in a thread of its own; tell whether it was done in time."""
    thread = threading.Thread(target=operation, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


# One moment

COUNT = 1000  # of each sort of base


class Producers:
    """Thousands of bases of all sorts, bumped in an order that shows a torn sample.

    Bases are paired, one that is sampled early with one that is sampled late. First each early `a`
    is bumped and then its late `b`; when all are, each late `a` and its early `b`. So at every
    moment all the `a`s together are as many as all the `b`s, or one more; but among the early ones
    alone, or the late ones, they differ by thousands.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = [Plain({"a": 0, "b": 0}) for _ in range(COUNT)]
        self.stats = [Pair() for _ in range(COUNT)]
        self.slots = [Pair.from_buffer(bytearray(16)) for _ in range(COUNT)]
        self.dicts: list[dict[str, int]] = [{"a": 0, "b": 0} for _ in range(COUNT)]
        self.memories = [bytearray(16) for _ in range(COUNT)]
        self.views = [memoryview(memory).cast("Q") for memory in self.memories]

    def sources(self) -> Source:
        """One source for each base, below one."""
        top = Source("top")
        bases: list[list[Any]] = [self.objects, self.stats, self.slots, self.dicts]
        for sort, some in enumerate(bases):
            for number, base in enumerate(some):
                add_below(top, f"{sort}-{number}", Pair, base)
        for number, memory in enumerate(self.memories):
            add_below(top, f"memory-{number}", PLACED, memory)
        return top

    def bump_all(self) -> None:
        """One round over all bases."""
        early = self.slots[: COUNT // 2]
        late = self.slots[COUNT // 2 :]
        for obj, view in zip(self.objects, self.views, strict=True):
            obj.a += 1
            view[1] += 1
        for stats, held in zip(self.stats, self.dicts, strict=True):
            stats.a += 1
            held["b"] += 1
        for one, other in zip(early, late, strict=True):
            one.a += 1
            other.b += 1
        for obj, view in zip(self.objects, self.views, strict=True):
            view[0] += 1
            obj.b += 1
        for stats, held in zip(self.stats, self.dicts, strict=True):
            held["a"] += 1
            stats.b += 1
        for one, other in zip(early, late, strict=True):
            other.a += 1
            one.b += 1

    def sample_slowly(self) -> int:
        """What a loop in Python finds: how many more `a`s than `b`s."""
        found: list[tuple[int, int]] = [(one.a, one.b) for one in self.objects]
        found += [(one.a, one.b) for one in self.stats]
        found += [(one.a, one.b) for one in self.slots]
        found += [(one["a"], one["b"]) for one in self.dicts]
        found += [(view[0], view[1]) for view in self.views]
        return sum(a for a, _ in found) - sum(b for _, b in found)


def difference(top: Source) -> int:
    """How many more `a`s than `b`s one snapshot finds, and that it found them all."""
    rows = [row for samples in top.snapshot().arrays.values() for row in samples.rows]
    assert len(rows) == 5 * COUNT
    return int(sum(a for a, _ in rows) - sum(b for _, b in rows))


def test_a_snapshot_is_one_moment() -> None:
    """Thousands of bases of all plain sorts are sampled with no increment between them."""
    producers = Producers()
    top = producers.sources()
    with running(producers.bump_all):
        found = {difference(top) for _ in range(150)}
    assert found <= {0, 1}
    assert difference(top) == 0
    # The producer was at work: snapshots do not stop it but for their pass.
    assert producers.stats[-1].a > 10


def test_a_loop_in_python_is_no_moment() -> None:
    """The control: with the same producer, a sample by a loop in Python is torn."""
    producers = Producers()
    with running(producers.bump_all):
        torn = any(producers.sample_slowly() not in (0, 1) for _ in until(60))
    assert torn, "the test above shows nothing"


class Buckets(Stats):
    """Two histograms that count the same, one just after the other."""

    a = bare_log_hist(8)
    b = bare_log_hist(8)


def test_the_buckets_of_a_snapshot_are_of_one_moment() -> None:
    """Lists are copied in the same pass: no observation comes between the first and the last."""
    top = Source("top")
    objects = [Buckets() for _ in range(COUNT)]
    dicts: list[dict[str, list[int]]] = [{"a": [0] * 8, "b": [0] * 8} for _ in range(COUNT)]
    slots: list[Any] = [Buckets.from_buffer(bytearray(128)) for _ in range(COUNT)]
    bases: list[list[Any]] = [objects, dicts, slots]
    for sort, some in enumerate(bases):
        for number, base in enumerate(some):
            add_below(top, f"{sort}-{number}", Buckets, base)

    half = COUNT // 2

    def bump() -> None:
        # Each `a` and then a `b` elsewhere, in orders that show a torn sample.
        for one, held in zip(objects, dicts, strict=True):
            one.a.observe(7)
            held["b"][3] += 1
        for one, held in zip(objects, dicts, strict=True):
            held["a"][3] += 1
            one.b.observe(7)
        for early, late in zip(slots[:half], slots[half:], strict=True):
            early.a.observe(7)
            late.b.observe(7)
        for early, late in zip(slots[:half], slots[half:], strict=True):
            late.a.observe(7)
            early.b.observe(7)

    def differ() -> int:
        (samples,) = top.snapshot().arrays.values()
        assert len(samples.rows) == 3 * COUNT
        return sum(sum(a) - sum(b) for a, b in samples.rows)

    with running(bump):
        found = {differ() for _ in range(40)}
    assert found <= {0, 1}
    assert differ() == 0
    assert objects[-1].a[3] > 10


class Bumping:
    """Garbage that counts when it is collected: the first base's `a`, then the last one's `b`."""

    def __init__(self, first: Pair, last: Pair) -> None:
        self.cycle = self
        self.first, self.last = first, last

    def __del__(self) -> None:
        self.first.a += 1
        self.last.b += 1


@contextmanager
def eager_collection() -> Iterator[None]:
    """Collect garbage as soon as there is some."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(50)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


def test_finalizers_do_not_tear_a_snapshot() -> None:
    """Garbage is not collected in the middle of the pass, though it is about."""
    bases = [Pair() for _ in range(500)]
    top = Source("top")
    for number, base in enumerate(bases):
        add_below(top, str(number), Pair, base)
    with eager_collection():
        for _ in range(50):
            Bumping(bases[0], bases[-1])
            rows = top.snapshot().arrays[Pair._stats_values].rows
            assert sum(a for a, _ in rows) == sum(b for _, b in rows)
    gc.collect()
    assert bases[0].a == bases[-1].b == 50


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="collects garbage between bytecodes only")
def test_finalizers_tear_a_call_in_c() -> None:
    """The control: the same pass with collection on is torn, in Python 3.11."""
    bases = [Pair() for _ in range(500)]
    torn = 0
    with eager_collection():
        for _ in range(50):
            Bumping(bases[0], bases[-1])
            rows = list(map(attrgetter("a", "b"), bases))
            torn += sum(a for a, _ in rows) != sum(b for _, b in rows)
    assert torn


# No user code under the lock

N = [Value("n", aggregate=Aggregate.SUM)]


def change_elsewhere() -> None:
    """What needs the lock, in another thread; the caller waits for it."""
    done = in_another_thread(lambda: apply_change(lambda operation: None))
    assert done, "the tree's lock is held while the user's code runs"
    assert gc.isenabled(), "collection is off while the user's code runs"


class Meddling:
    """A base whose every use waits for another thread that changes the tree."""

    uses = 0

    def used(self) -> int:
        """Return 1, after a while."""
        type(self).uses += 1
        change_elsewhere()
        return 1

    def __del__(self) -> None:
        self.used()


class ByProperty(Meddling):
    """By a property."""

    n = property(lambda self: self.used(), lambda self, number: self.used())


class ByGetattr(Meddling):
    """By `__getattr__` and `__setattr__`."""

    def __getattr__(self, name: str) -> int:
        if name != "n":
            raise AttributeError(name)
        return self.used()

    def __setattr__(self, name: str, number: int) -> None:
        self.used()


class ByGetattribute(Meddling):
    """By `__getattribute__`."""

    def __getattribute__(self, name: str) -> Any:
        return self.used() if name == "n" else object.__getattribute__(self, name)

    def __setattr__(self, name: str, number: int) -> None:
        self.used()


class ByItem(dict[str, int], Meddling):
    """By the look-up of a dictionary."""

    def __getitem__(self, key: str) -> int:
        return self.used()

    def __setitem__(self, key: str, number: int) -> None:
        self.used()


class ByMissing(dict[str, int], Meddling):
    """By what a dictionary lacks."""

    def __missing__(self, key: str) -> int:
        return self.used()

    def __setitem__(self, key: str, number: int) -> None:
        self.used()


class Number(Meddling):
    """An integer that is asked."""

    def __index__(self) -> int:
        return self.used()


class ByIndex(Meddling):
    """By the integer that it holds."""

    def __init__(self) -> None:
        self.n = Number()

    def __setattr__(self, name: str, number: Any) -> None:
        object.__setattr__(self, name, number)
        self.used()


class OnClass(Meddling):
    """By a descriptor on a class that is the base itself."""

    def __get__(self, instance: object, owner: object) -> int:
        return self.used()


def class_base() -> object:
    """A class as a base, one attribute of which is answered by Python code."""
    return type("ClassBase", (), {"n": OnClass()})


MEDDLING: list[Callable[[], Any]] = [
    ByProperty, ByGetattr, ByGetattribute, ByItem, ByMissing, ByIndex, class_base,
]  # fmt: skip


@pytest.mark.parametrize("make", MEDDLING)
def test_no_code_of_a_base_runs_under_the_lock(registry: Registry, make: Any) -> None:
    """Adding, reading, clearing, sampling and dropping may each wait for another thread."""
    top, vm = Source("top"), Source("vm")
    registry.register(top)
    vm.add_values(N, make())
    top.add_subordinate(vm)
    assert vm.get_value("n") == top.get_value("n") == 1
    for source in (vm, top):
        assert source.snapshot().to_dict()["values"] == {"n": 1}
    for source in (vm, top):
        source.clear_value("n")
    vm.revoke()
    vm.add_values(N, make())
    top.remove_subordinate(vm)
    vm.put()
    gc.collect()


def test_the_code_of_bases_was_run() -> None:
    """Each operation of the test above asked the base at least once, or else it shows nothing."""
    ByProperty.uses = 0
    source = Source("s")
    source.add_values(N, ByProperty())
    operations: list[Callable[[], object]] = [
        lambda: source.get_value("n"),
        source.snapshot,
        lambda: source.clear_value("n"),
        source.revoke,
    ]
    for operation in operations:
        before = ByProperty.uses
        operation()
        gc.collect()
        assert ByProperty.uses > before


class DroppedObject(Meddling):
    """A base that is an object."""

    n = 1


class DroppedHolder(Meddling):
    """A base that has a buffer, as `SharedMemory` does."""

    def __init__(self) -> None:
        self.buf = bytearray(8)


@pytest.mark.parametrize("how", ["revoke", "release", "release above"])
@pytest.mark.parametrize("dropped", [DroppedObject, DroppedHolder])
def test_no_finalizer_of_a_base_runs_under_the_lock(dropped: type[Meddling], how: str) -> None:
    """Bases are let go of after the change, and before it returns."""
    top, vm = Source("top"), Source("vm")
    dropped.uses = 0
    vm.add_values([Value("n", offset=0 if dropped is DroppedHolder else None)], dropped())
    top.add_subordinate(vm)
    vm.put()
    match how:
        case "revoke":
            vm.revoke()
        case "release":
            top.remove_subordinate(vm)
        case "release above":
            top.put()
    assert dropped.uses == 1


def test_no_listener_runs_under_the_lock(registry: Registry) -> None:
    """A listener may wait for another thread that changes the tree."""
    told = []

    def listener(change: object) -> None:
        change_elsewhere()
        told.append(change)

    registry.add_listener(listener)
    top, vm = Source("top"), Source("vm")
    registry.register(top)
    top.add_subordinate(vm)
    vm.add_values(N, {"n": 1})
    vm.revoke()
    registry.unregister(top)
    assert len(told) == 5


def test_reading_takes_no_lock() -> None:
    """While one thread holds the tree still, another reads and clears; a snapshot waits."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    base = {"n": 5}
    vm.add_values(N, base)
    seen: list[Any] = []

    def read() -> None:
        seen.append((top.names(), vm.get_value("n"), top.get_value("n")))
        top.clear_value("n")

    def meanwhile() -> None:
        assert in_another_thread(read)
        assert not in_another_thread(lambda: seen.append(top.snapshot()), 0.2)
        assert seen == [(["n"], 5, 5)]

    lock_tree(meanwhile)
    assert base == {"n": 0}
    wait_until(lambda: len(seen) == 2)


# Changes beside readers


def count_shown(found: dict[str, Any]) -> int:
    """How many sources of a snapshot count something themselves; each of them counts 1."""
    below = sum(map(count_shown, found["subordinates"].values()))
    return below + int("own" in found["values"])


COUNTED = [Value("n", aggregate=Aggregate.SUM), Value("own")]


def test_trees_change_in_several_threads_while_others_read(registry: Registry) -> None:
    """Nothing fails but what is refused, and each snapshot is a tree as it stood."""
    tops = [Source("top%d", number) for number in range(2)]
    for top in tops:
        registry.register(top)
    shared: list[Source] = []

    def churn(seed: int) -> Callable[[], None]:
        random = Random(seed)

        def loop() -> None:
            top = random.choice(tops)
            middle = Source("m%d", random.randrange(4))
            for number in range(random.randrange(4)):
                leaf = Source("l%d", number)
                leaf.add_values(COUNTED, {"n": 1, "own": 1})
                middle.add_subordinate(leaf)
                leaf.put()
            try:
                top.add_subordinate(middle)
            except StatsfsError:
                return
            late = Source("late")
            middle.add_subordinate(late)
            late.add_values(COUNTED, {"n": 1, "own": 1})
            shared[:] = [middle, late]
            if random.random() < 0.5:
                late.revoke()
                late.add_values(COUNTED, {"n": 1, "own": 1})
            top.remove_subordinate(middle)
            late.put()
            middle.put()

        return loop

    def read() -> None:
        for source in (*tops, *shared):
            try:
                for name in source.names():
                    assert 0 <= source.get_value(name) < 100
                source.clear_value("nothing")
            except StatsfsError:
                pass  # released, or gone between its name and its number

    def sample() -> None:
        for top in tops:
            found = top.snapshot().to_dict()
            assert found["values"].get("n", 0) == count_shown(found)

    with running(churn(1), churn(2), churn(3), read, sample) as rounds:
        rounds.wait_for(1000)
    for top in tops:
        assert top.subordinates == ()
        assert top.names() == []
        assert top.refcount == 2


def test_files_are_worked_out_while_ways_of_reading_come_and_go() -> None:
    """Each array is read in one way, or in two, at any moment: by key, and by attribute."""
    top = Source("top")
    arrays = [[Value(f"v{number}", aggregate=Aggregate.SUM)] for number in range(3)]

    def churn(number: int) -> Callable[[], None]:
        def go_round() -> None:
            source = Source(f"s{number}")
            for array in arrays:
                name = array[0].name
                source.add_values(array, {name: 1} if number else SimpleNamespace(**{name: 1}))
            top.add_subordinate(source)
            top.remove_subordinate(source)
            source.put()

        return go_round

    def read() -> None:
        directory_of(top).cached = None
        top.names()

    with running(churn(0), churn(1), read, read) as rounds:
        rounds.wait_for(1000)
    assert top.names() == []


class Yielding:
    """Garbage whose finalizer lets other threads run."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        time.sleep(0)


@pytest.mark.parametrize("broken", [False, True])
def test_totals_are_read_and_cleared_while_garbage_lets_others_in(broken: bool) -> None:
    """Python 3.11 collects garbage in the middle of copying a dictionary's items."""
    top = Source("top")
    stable = Source("stable")
    top.add_subordinate(stable)
    # More than the tuples of two that Python keeps in stock: the others are new.
    for number in range(4000):
        add_below(stable, str(number), N, {"n": 0})
    bad = {"n": 0}
    add_below(stable, "bad", N, bad)
    if broken:
        bad["n"] = None  # type: ignore[assignment]  # read one by one from now on

    def churn() -> None:
        come = Source("come%d", threading.get_ident())
        come.add_values(N, {"n": 0})
        top.add_subordinate(come)
        top.remove_subordinate(come)
        come.put()

    def work() -> None:
        for _ in range(10):
            Yielding()
        assert top.get_value("n") == 0
        assert top.names() == ["n"]
        if not broken:
            top.clear_value("n")

    with running(churn, churn):
        for _ in range(60):
            work()


def test_bases_that_break_and_mend_while_they_are_sampled(caplog: Any) -> None:
    """They cost their own rows at most, and never an error, also where the second try meets one."""
    top = Source("top")
    held = [{"n": 1} for _ in range(30)]
    for number, one in enumerate(held):
        add_below(top, str(number), N, one)

    def flicker() -> None:
        for one in held:
            one.clear()
            one["n"] = 1

    caplog.set_level(logging.DEBUG, "statsfs.tree.snapshot")

    def have_met_one() -> bool:
        return any("one by one" in record.message for record in caplog.records)

    with running(flicker):
        for _ in until(60):
            rows = top.snapshot().arrays[tuple(N)].rows
            assert len(rows) <= 30
            assert set(rows) <= {(1,)}
            if have_met_one():
                break
    assert have_met_one()
    assert len(top.snapshot().arrays[tuple(N)].rows) == 30


def test_references_are_counted_exactly() -> None:
    """Of many threads that take and give back, none loses a reference of another."""
    source = Source("s")

    def loop() -> None:
        for _ in range(50):
            source.get()
            hold(source)
            source.put()
            unhold(source)

    with running(loop, loop, loop, loop) as rounds:
        rounds.wait_for(80)
    assert source.refcount == 1


def test_only_one_of_many_threads_may_place_a_source() -> None:
    """The others are refused, whatever their moment."""
    for _ in range(30):
        source, tops = Source("s"), [Source("t%d", number) for number in range(4)]
        barrier = threading.Barrier(4)
        refused: list[str] = []

        def place(
            top: Source, source: Source = source, barrier: Any = barrier, refused: Any = refused
        ) -> None:
            barrier.wait()
            try:
                top.add_subordinate(source)
            except StatsfsError as error:
                refused.append(type(error).__name__)

        threads = [threading.Thread(target=place, args=[top]) for top in tops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused == ["TreeError"] * 3
        assert [top for top in tops if top.subordinates] == [source.parent]


def test_get_value_of_a_name_that_goes_is_unknown() -> None:
    """Between `names` and `get_value` a name may go; that is the only error."""
    top = Source("top")
    outcomes: set[str] = set()

    def churn() -> None:
        come = Source("come")
        come.add_values(N, {"n": 1})
        top.add_subordinate(come)
        top.remove_subordinate(come)

    with running(churn):
        for _ in until(60):
            try:
                assert top.get_value("n") in (0, 1)
                outcomes.add("read")
            except UnknownValueError:
                outcomes.add("unknown")
            if len(outcomes) == 2:
                break
    assert outcomes == {"read", "unknown"}


# Forks

FORKING = """
import os, signal, sys, threading
from statsfs import Aggregate, Registry, Source, Value
N = [Value("n", aggregate=Aggregate.SUM)]
sys.setswitchinterval(1e-6)
registry = Registry()
top = Source("top")
registry.register(top)
stop = False
def churn(name):
    number = 0
    while not stop:
        number += 1
        source = Source(name)
        source.add_values(N, {"n": 1})
        source.add_values([Value(f"{name}{number % 500}")], {f"{name}{number % 500}": 1})
        top.add_subordinate(source)
        top.snapshot().to_dict()
        top.remove_subordinate(source)
        source.put()
threads = [threading.Thread(target=churn, args=[name]) for name in "ab"]
for thread in threads:
    thread.start()
for attempt in range(60):
    child = os.fork()
    if not child:
        signal.alarm(20)
        before = top.get_value("n") if "n" in top.names() else 0
        mine = Source("mine")
        mine.add_values(N, {"n": 100})
        top.add_subordinate(mine)
        found = top.snapshot().to_dict()["values"]
        import gc
        os._exit(0 if found == {"n": 100 + before} and gc.isenabled() else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child {attempt} ended with {status}"
stop = True
for thread in threads:
    thread.join()
assert top.subordinates == ()
"""


def test_a_fork_while_other_threads_change_the_tree() -> None:
    """The child has a whole tree, and may change and sample it."""
    assert run_forking(FORKING) == (0, "")


# Memory that is not written under the interpreter's lock

WIDE = (1 << 64) - 1
WRITING = """
import ctypes, mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 16)
integer = getattr(ctypes, sys.argv[2])
numbers = (integer * (16 // ctypes.sizeof(integer))).from_buffer(memory)
everywhere = range(len(numbers))
while True:
    for text in 0, -1:
        for place in everywhere:
            numbers[place] = text
"""


@contextmanager
def written_elsewhere(path: Path, integer: str) -> Iterator[Callable[[], set[int]]]:
    """Let another process write 0 and all ones; yield a function that reads what is there now."""
    path.write_bytes(bytes(16))
    source = Source("s")
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 16) as memory:
        source.add_values(PLACED, memory)

        def read() -> set[int]:
            ((a, b),) = source.snapshot().arrays[PLACED].rows
            return {a, b, source.get_value("a"), source.get_value("b")}

        with subprocess.Popen([sys.executable, "-c", WRITING, path, integer]) as process:
            try:
                yield read
                assert process.poll() is None
            finally:
                process.kill()
        source.put()


def test_memory_that_another_process_writes_is_read_whole(tmp_path: Path) -> None:
    """Each buffer is copied in one piece: no 64-bit number is seen half written."""
    with written_elsewhere(tmp_path / "memory", "c_uint64") as read:
        wait_until(lambda: read() == {0, WIDE}, "the writer")
        for _ in range(3000):
            assert read() <= {0, WIDE}


def test_numbers_that_are_written_in_halves_are_torn(tmp_path: Path) -> None:
    """The control: what is half written when it is read is seen."""
    with written_elsewhere(tmp_path / "memory", "c_uint32") as read:
        wait_until(lambda: not read() <= {0, WIDE}, "a torn number", deadline=60)
