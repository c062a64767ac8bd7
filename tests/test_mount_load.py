"""A tree that many threads change while many clients look at it, on a real mount."""

import logging
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from statsfs.sources import Source
from tests.deadlines import DEADLINE, wait_until
from tests.mount_server import World
from tests.mounts import Server, run, serving, shell
from tests.trees import Cpu, add_cpu, make_kvm, subordinate

pytestmark = pytest.mark.mount

STABLE = 5  # CPUs that stay
SECONDS = 2.0  # that a test hammers for


# What the server does


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

    @staticmethod
    def _round(kvm: Source, number: int) -> None:
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
        """End; return how often each thread went round, and what went wrong."""
        self.stop.set()
        for thread in self.threads:
            thread.join(DEADLINE)
        alive = [thread.name for thread in self.threads if thread.is_alive()]
        return self.rounds, [*map(repr, self.errors), *alive]


def build(world: World) -> None:
    """Make `kvm` with CPUs that stay."""
    kvm = make_kvm(world.registry, cpus=0)
    world.kept["cpus"] = [add_cpu(kvm, f"stable{number}") for number in range(STABLE)]
    for cpu in world.kept["cpus"]:
        cpu.exits = 1


def start_churn(world: World, threads: int) -> None:
    """Have threads change the tree."""
    logging.getLogger("statsfs.directories").setLevel(logging.ERROR)
    world.kept["churn"] = Churn()
    world.kept["churn"].start(world.registry.sources[0], threads)


def end_churn(world: World) -> tuple[int, list[str]]:
    """End it."""
    result: tuple[int, list[str]] = world.kept.pop("churn").end()
    return result


def known_inodes(world: World) -> int:
    """Return how many inodes the filesystem believes that the kernel knows."""
    return len(world.mount._session._vfs._inodes)


# What the clients see


@pytest.fixture(params=["thread", "trio"])
def kvm(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Path]]:
    """A server with CPUs that stay, and its directory."""
    with serving(request.param) as server:
        server.call(build)
        yield server, server / "kvm"


def check_end(server: Server, rounds: int) -> None:
    """See that the threads worked, and that all is as before."""
    done, errors = server.call(end_churn)
    assert errors == []
    assert done >= rounds
    kvm = server / "kvm"
    names = {f"stable{number}" for number in range(STABLE)}
    assert set(os.listdir(kvm)) == names | {"exits", "busy", "wait.min", "wait.max", "wait.avg"}
    assert (kvm / "exits").read_text() == f"{STABLE}\n"
    assert os.stat(kvm).st_nlink == 2 + STABLE


def until(seconds: float) -> Iterator[None]:
    """Go round for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def test_grep_while_the_tree_changes(kvm: tuple[Server, Path]) -> None:
    """It meets no error but that of a name that has just gone; what stays is there each time."""
    server, directory = kvm
    server.call(start_churn, 3)
    turns = 0
    for _ in until(SECONDS):
        done = run("grep", "-r", ".", directory, status=None)
        assert all("No such file or directory" in line for line in done.stderr.splitlines())
        assert done.returncode == (2 if done.stderr else 0)
        stable = [line for line in done.stdout.splitlines() if "/stable" in line]
        assert len(stable) == STABLE * 3
        turns += 1
    assert turns > 1
    check_end(server, rounds=20)


def test_listing_while_the_tree_changes(kvm: tuple[Server, Path]) -> None:
    """No name twice, none that stays missed; totals are of some moment."""
    server, directory = kvm
    server.call(start_churn, 3)
    stable = {f"stable{number}" for number in range(STABLE)}
    for _ in until(SECONDS):
        names = os.listdir(directory)
        assert len(names) == len(set(names))
        assert stable <= set(names)
        assert STABLE <= int((directory / "exits").read_text()) <= STABLE + 9
        assert 2 + STABLE <= os.stat(directory).st_nlink <= 5 + STABLE
    check_end(server, rounds=20)


def test_many_clients_of_all_kinds(kvm: tuple[Server, Path]) -> None:
    """Reading, listing, writing, standing in what goes away, dying: all at once."""
    server, directory = kvm
    scripts = [
        'while :; do grep -r . "$1"; done',
        'while :; do ls -lR "$1"; done',
        'while :; do find "$1" -newer "$1"/exits; done',
        'while :; do for f in "$1"/*/exits; do echo 0 >"$f"; done; done',
        'while :; do for d in "$1"/vm*; do cd "$d" && cat exits && ls; cd "$1"; done; done',
        'while :; do cat "$1"/vm*/cpu*/*; done',
    ]
    server.call(start_churn, 3)
    clients = [
        subprocess.Popen(
            ["sh", "-c", script, "sh", directory],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for script in scripts
    ]
    try:
        choice = random.Random(1)
        for _ in until(SECONDS):
            assert (directory / f"stable{choice.randrange(STABLE)}" / "wait").read_text() == "0\n"
    finally:
        for process in clients:
            os.killpg(process.pid, 9)
            process.wait()
    server.call(set_exits)
    check_end(server, rounds=5)


def set_exits(world: World) -> None:
    """Have the CPUs that stay hold what they held at first."""
    for cpu in world.kept["cpus"]:
        assert isinstance(cpu, Cpu)
        cpu.exits = 1


@pytest.mark.root
def test_nothing_is_leaked_under_load(kvm: tuple[Server, Path]) -> None:
    """When all is quiet and the kernel has forgotten, nothing but the root is known."""
    server, directory = kvm
    server.call(start_churn, 3)
    for _ in until(SECONDS / 2):
        run("grep", "-r", ".", directory, status=None)
        shell("echo 2 >/proc/sys/vm/drop_caches")
    server.call(end_churn)

    def is_clean() -> bool:
        shell("echo 2 >/proc/sys/vm/drop_caches")
        return server.call(known_inodes) == 0

    wait_until(is_clean, "the kernel's forgetting")


def test_a_mount_that_ends_under_load(kvm: tuple[Server, Path]) -> None:
    """While threads change the tree and clients look at it, the end comes at once, and is clean."""
    server, directory = kvm
    server.call(start_churn, 3)
    looking = subprocess.Popen(
        ["sh", "-c", 'while ls -lR "$1"; do cat "$1"/*/*; done', "sh", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in until(0.3):
            os.listdir(directory)
        begun = time.monotonic()
        server.end()
        assert time.monotonic() - begun < 5
    finally:
        os.killpg(looking.pid, 9)
        looking.wait()
