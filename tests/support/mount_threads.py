"""Threads of a server that tests have count, or change the tree; called by `Server.call`."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.mount_calls import expect_losses, kvm_of
from tests.support.mount_server import World
from tests.support.trees import add_cpu, subordinate


class Counter:
    """A thread that counts."""

    def __init__(self) -> None:
        self.count = 0
        self._stop = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop:
            self.count += 1

    def stop(self) -> None:
        """End."""
        self._stop = True
        self._thread.join()


def start_counter(world: World) -> None:
    """Count from now on."""
    world.kept["counter"] = Counter()


def counted(world: World) -> int:
    """Return how far it counted."""
    count: int = world.kept["counter"].count
    return count


def stop_counter(world: World) -> None:
    """Stop counting."""
    world.kept.pop("counter").stop()


@dataclass
class Churn:
    """Threads that add and remove sources, and what they did."""

    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)
    rounds: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def start(self, kvm: Source, threads: int) -> None:
        """Begin."""
        for number in range(threads):
            thread = threading.Thread(target=self._work, args=(kvm, number), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _work(self, kvm: Source, number: int) -> None:
        try:
            while not self.stop.is_set():
                self._round(kvm, number)
                self.rounds += 1
                self.stop.wait(0.0005)  # a busy thread leaves little of the interpreter to others
        except BaseException as error:
            self.errors.append(error)

    def _round(self, kvm: Source, number: int) -> None:
        # A virtual machine comes with its CPUs, works, and goes; in different orders.
        vm = Source("vm%d", number)
        kvm.add_subordinate(vm)
        cpus = [add_cpu(vm, f"cpu{cpu}") for cpu in range(3)]
        for cpu in cpus:
            cpu.exits += 1
        first = subordinate(vm, "cpu0")
        first.revoke()
        vm.remove_subordinate(first)
        vm.add_subordinate(Source("exits"))
        kvm.remove_subordinate(vm)
        vm.put()

    def end(self) -> tuple[int, list[str]]:
        """End; return how often they went round, and what went wrong."""
        self.stop.set()
        for thread in self.threads:
            thread.join(DEADLINE)
        alive = [thread.name for thread in self.threads if thread.is_alive()]
        return self.rounds, [*map(repr, self.errors), *alive]


def start_churn(world: World, threads: int) -> None:
    """Have threads change the tree."""
    expect_losses(world)
    world.kept["churn"] = Churn()
    world.kept["churn"].start(kvm_of(world), threads)


def churned(world: World) -> int:
    """Return how often they went round until now."""
    rounds: int = world.kept["churn"].rounds
    return rounds


def end_churn(world: World) -> tuple[int, list[str]]:
    """End it."""
    result: tuple[int, list[str]] = world.kept.pop("churn").end()
    return result


@contextlib.contextmanager
def churning(world: World, threads: int) -> Iterator[None]:
    """Have threads change the tree during a block of the server itself."""
    start_churn(world, threads)
    try:
        yield
    finally:
        _, errors = end_churn(world)
        assert errors == []
