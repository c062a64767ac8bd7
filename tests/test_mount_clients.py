"""Clients that are killed, stopped or simply many: nobody else notices, and nothing is leaked."""

import contextlib
import gc
import logging
import os
import random
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from statsfs import loop
from statsfs.sources import Source
from tests.deadlines import DEADLINE, wait_until
from tests.mount_server import World
from tests.mounts import Server, run, shell
from tests.trees import add_cpu, make_kvm, subordinate

pytestmark = pytest.mark.mount


# What the server does


def build(world: World, cpus: int = 20) -> None:
    """Make `kvm` with some CPUs."""
    make_kvm(world.registry, cpus)


class Counter:
    """A thread of the embedding program that counts, and how long it stood still at most."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._stop = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        last = time.perf_counter()
        while not self._stop:
            self.count += 1
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now

    def stop(self) -> float:
        """End; return the longest pause, in seconds."""
        self._stop = True
        self._thread.join()
        return self.longest


def start_counter(world: World) -> None:
    """Count from now on."""
    world.kept["counter"] = Counter()


def counted(world: World) -> int:
    """Return how far it counted."""
    count: int = world.kept["counter"].count
    return count


def stop_counter(world: World) -> float:
    """Stop counting; return the longest pause, in seconds."""
    longest: float = world.kept.pop("counter").stop()
    return longest


def count_restarts(world: World) -> None:
    """Count how often a request was taken back."""

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.kept["restarts"] += 1

    world.kept["restarts"] = 0
    logger = logging.getLogger("statsfs.loop")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(Counting())


def restarts(world: World) -> int:
    """Return how often that was."""
    count: int = world.kept["restarts"]
    return count


def wake_for_nothing(world: World, times: int) -> None:
    """Have pyfuse3 read the device when there is nothing to read, as after a client's death.

    It goes on until so many reads found nothing: a request may come in the last moment.
    """
    original, end = trio.lowlevel.wait_readable, world.kept["restarts"] + times

    async def wait_readable(descriptor: Any) -> None:
        await trio.lowlevel.checkpoint()
        if world.kept["restarts"] >= end or select.select([descriptor], [], [], 0)[0]:
            await original(descriptor)

    monkeypatched: Any = trio.lowlevel
    monkeypatched.wait_readable = wait_readable


def is_blocking(world: World) -> list[bool]:
    """Return whether the descriptors on the device block."""
    return [os.get_blocking(descriptor) for descriptor in loop.find_descriptors()]


def resources(world: World) -> tuple[int, int, int]:
    """Return how many descriptors, threads and children there are."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(children)


def memory(world: World) -> int:
    """Return how much memory is resident, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def known_inodes(world: World) -> int:
    """Return how many inodes the filesystem believes that the kernel knows."""
    return len(world.mount._session._vfs._inodes)


def sources_alive(world: World) -> int:
    """Return how many sources there are in the process, in the tree or not."""
    gc.collect()
    return sum(type(found) is Source for found in gc.get_objects())


def churn(world: World, rounds: int) -> None:
    """Add and remove CPUs, so many times."""
    kvm = world.registry.sources[0]
    for number in range(rounds):
        add_cpu(kvm, f"passing{number % 10}")
        kvm.remove_subordinate(subordinate(kvm, f"passing{number % 10}"))


def add_many(world: World, count: int) -> None:
    """Add CPUs."""
    for number in range(count):
        add_cpu(world.registry.sources[0], f"many{number}")


def remove_many(world: World, count: int) -> None:
    """Remove them."""
    kvm = world.registry.sources[0]
    for number in range(count):
        kvm.remove_subordinate(subordinate(kvm, f"many{number}"))


# What the clients do


@contextlib.contextmanager
def client(*command: str | os.PathLike[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a client, with whatever it starts in one process group, until the end of the block."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_the_descriptor_does_not_block(server: Server) -> None:
    """A read without a request, which holds the interpreter, returns at once."""
    wait_until(lambda: server.call(is_blocking) == [False], "the descriptor")


@pytest.mark.parametrize("times", [1, 100])
def test_a_request_that_is_taken_back(server: Server, times: int) -> None:
    """The read finds nothing; serving goes on, and so does the program's counting."""
    server.call(build)
    server.call(count_restarts)
    server.call(start_counter)
    server.call(wake_for_nothing, times)
    # The first request ends a wait that was begun before.
    assert run("cat", server / "kvm/exits").stdout == "0\n"
    wait_until(lambda: server.call(restarts) == times, "so many reads for nothing")
    assert run("cat", server / "kvm/exits").stdout == "0\n"
    before = server.call(counted)
    wait_until(lambda: server.call(counted) > before + 1000, "counting")
    assert server.call(stop_counter) < 1


def test_killed_clients_stop_nobody(server: Server) -> None:
    """Killed at random moments in the middle of reading, many of them, one after the other."""
    server.call(build)
    server.call(count_restarts)
    server.call(start_counter)
    moment = random.Random(5)
    reading = 'while :; do cat "$1"/*/exits; grep -r . "$1"; done >/dev/null 2>&1'
    for _ in range(25):
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(client("sh", "-c", reading, "sh", server / "kvm"))
            time.sleep(moment.uniform(0.005, 0.05))
        # Nobody asks anything now: a server that was blocked would stay so.
        before = server.call(counted)
        wait_until(lambda before=before: server.call(counted) > before, "counting")  # type: ignore[misc]
    assert server.call(stop_counter) < 1
    assert run("cat", server / "kvm/exits").stdout == "0\n"


def test_a_client_that_is_stopped_holding_files(server: Server) -> None:
    """Neither new clients, nor changes, nor the end of the mount wait for it."""
    server.call(build)
    holding = (
        'exec 3<"$1/cpu0/exits"; cd "$1/cpu1"; read -r line <&3; echo ready; kill -STOP $$; cat <&3'
    )
    with client("sh", "-c", holding, "sh", server / "kvm", stderr=subprocess.STDOUT) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "ready\n"
        state = Path(f"/proc/{held.pid}/stat")
        wait_until(lambda: state.read_text().split()[2] == "T", "the stop")
        server.call(churn, 200)
        assert len(run("grep", "-r", ".", server / "kvm").stdout.splitlines()) == 20 * 3 + 5
        server.end()
        held.send_signal(signal.SIGCONT)
        assert "Transport endpoint is not connected" in held.communicate(timeout=DEADLINE)[0]


def test_descriptors_threads_and_children(server: Server) -> None:
    """However many clients there were, killed or not, the server has what it had."""
    server.call(build)
    run("grep", "-r", ".", server / "kvm")
    before = server.call(resources)
    for _ in range(3):
        with client("sh", "-c", 'while :; do ls -lR "$1"; done', "sh", server / "kvm"):
            run("grep", "-r", ".", server / "kvm")
    server.call(churn, 100)
    assert server.call(resources) == before


@pytest.mark.root
def test_memory_is_free_after_forget(server: Server) -> None:
    """What was looked at and then removed leaves neither inodes nor sources nor memory."""
    server.call(build)
    look = 'grep -r . "$1" >/dev/null; ls -lR "$1" >/dev/null'
    forget = "sync; echo 2 >/proc/sys/vm/drop_caches"
    used = []
    for _ in range(4):
        server.call(add_many, 200)
        shell(look, server / "kvm")
        assert server.call(known_inodes) >= 200 * 4
        server.call(remove_many, 200)
        shell(forget)
        wait_until(lambda: server.call(known_inodes) < 200, "the kernel's forgetting")
        assert server.call(sources_alive) == 21
        used.append(server.call(memory))
    assert used[-1] - used[1] < 1 << 20


@pytest.mark.root
def test_a_file_that_is_held_keeps_its_source(server: Server) -> None:
    """Until it is closed; and with the last name that the kernel knows, all is forgotten."""
    server.call(build, cpus=1)
    with open(server / "kvm/cpu0/exits", "rb", buffering=0) as file:
        server.call(remove_cpu0)
        shell("echo 2 >/proc/sys/vm/drop_caches")
        assert file.read() == b"0\n"
        assert server.call(sources_alive) == 2
    shell("echo 2 >/proc/sys/vm/drop_caches")
    wait_until(lambda: server.call(sources_alive) == 1, "the release")


def remove_cpu0(world: World) -> None:
    """Remove a CPU."""
    kvm = world.registry.sources[0]
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))


def test_what_a_request_costs_that_is_taken_back(server: Server) -> None:
    """A page: pyfuse3 does not free the buffer that it read nothing into."""
    server.call(build)
    server.call(count_restarts)
    used = []
    for turn in range(1, 4):
        server.call(wake_for_nothing, 1000)
        run("cat", server / "kvm/exits")
        wait_until(lambda turn=turn: server.call(restarts) == 1000 * turn)  # type: ignore[misc]
        used.append(server.call(memory))
    assert used[-1] - used[0] < 2000 * 6000
