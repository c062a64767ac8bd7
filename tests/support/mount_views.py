"""What the tests of views have a server do, called by `Server.call`."""

import threading
from typing import Any

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Value
from statsfs.tree.source import Source, directory_of
from tests.bench.stats import VcpuStats
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World
from tests.support.trees import Cpu, make_kvm, subordinate

SLOW = (Value("slow", aggregate=Aggregate.SUM),)


class Pair(Stats):
    """Two numbers that are counted one after the other."""

    a = u64(Aggregate.SUM)
    b = u64(Aggregate.SUM)


def build(world: World) -> None:
    """Make `kvm` with two CPUs, numbers in them, and a value that is not for all."""
    kvm = make_kvm(world.registry)
    for number, cpu in enumerate(kvm.subordinates):
        (entry,) = directory_of(cpu).entries.values()
        entry.base.exits, entry.base.wait = 100 + number, number
    kvm.add_values([Value("secret", mode=0o600)], {"secret": 424242})


def to_dict(world: World, path: str) -> dict[str, Any]:
    """What a view of a directory must show."""
    if not path:
        return world.registry.snapshot().to_dict()
    source = world.registry.by_name[path.split("/")[0]]
    for name in path.split("/")[1:]:
        source = subordinate(source, name)
    return source.snapshot().to_dict()


def add_pairs(world: World, groups: int, members: int) -> None:
    """Make `pairs`, with groups of sources below it."""
    top, bases = Source("pairs"), []
    for group in range(groups):
        parent = Source("group%d", group, label="group")
        for number in range(members):
            source, pair = Source("pair%d", number, label="pair"), Pair()
            source.add_values(Pair, pair)
            parent.add_subordinate(source)
            bases.append(pair)
        top.add_subordinate(parent)
    world.registry.register(top)
    world.kept["pairs"] = bases


def add_many(world: World, count: int) -> None:
    """Make `many`, with so many sources of 47 values below it."""
    many = Source("many")
    for number in range(count):
        source = Source("vcpu%d", number)
        source.add_values(VcpuStats, VcpuStats())
        many.add_subordinate(source)
    world.registry.register(many)


def _start(world: World, work: Any) -> None:
    stop = world.kept["stop"] = threading.Event()
    thread = world.kept["thread"] = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()


def stop(world: World) -> None:
    """Stop the thread that counts."""
    world.kept.pop("stop").set()
    world.kept.pop("thread").join(DEADLINE)


def count_in_step(world: World) -> None:
    """Have a thread count in all pairs: first one number, then the other, then the next pair."""
    bases = world.kept["pairs"]

    def work(stop: threading.Event) -> None:
        while not stop.is_set():
            for pair in bases:
                pair.a += 1
                pair.b += 1

    _start(world, work)


def flicker(world: World) -> None:
    """Have a thread let all numbers grow and shrink, so that every text has another length."""
    bases = world.kept["pairs"]

    def work(stop: threading.Event) -> None:
        turn = 0
        while not stop.wait(0.0002):
            turn += 1
            for pair in bases[turn % 7 :: 7]:
                pair.a = pair.b = 10 ** (turn * 5 % 17)

    _start(world, work)


class Waiting:
    """A base whose number is there only when the test says so."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.asked = threading.Event()

    @property
    def slow(self) -> int:
        """The number."""
        self.asked.set()
        self.go.wait(DEADLINE)
        return 7


def add_waiting(world: World) -> None:
    """Add `waiting` to `kvm`, and let it wait from now on."""
    base, source = Waiting(), Source("waiting")
    source.add_values(SLOW, base)
    world.registry.by_name["kvm"].add_subordinate(source)
    base.go.clear()
    base.asked.clear()
    world.kept["waiting"] = base


def is_asked(world: World) -> bool:
    """Tell whether somebody waits for that number."""
    return bool(world.kept["waiting"].asked.is_set())


def let_go(world: World) -> None:
    """Let it be there."""
    world.kept["waiting"].go.set()


class Failing:
    """A base that fails, once it is told to."""

    fails = False

    @property
    def slow(self) -> int:
        """The number."""
        if self.fails:
            raise RuntimeError("not now")
        return 5


def add_failing(world: World) -> None:
    """Add `failing` to `kvm`; from now on its base raises."""
    base, source = Failing(), Source("failing")
    source.add_values(SLOW, base)
    source.add_values(Cpu, Cpu())
    world.registry.by_name["kvm"].add_subordinate(source)
    base.fails = True


def open_files(world: World) -> int:
    """Return how many files are open."""
    return len(world.mount._session.vfs._handles.files)


def references(world: World, name: str) -> int:
    """Return how many references a CPU has that was removed, or 0 when it is gone."""
    source: Source = world.kept[f"source {name}"]
    return source.refcount


def remove(world: World, name: str) -> None:
    """Remove a CPU; remember it."""
    kvm = world.registry.by_name["kvm"]
    source = world.kept[f"source {name}"] = subordinate(kvm, name)
    kvm.remove_subordinate(source)
