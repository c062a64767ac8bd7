"""What tests of the serving loop have a server do; see `mount_server`."""

import logging
import os
import sys
import threading
import time
from typing import Any

from tests.support.mount_server import World

__all__ = [
    "fork",
    "force_fallback",
    "hamper",
    "messages",
    "mount_many_times",
    "open_gate",
    "replaced",
    "session_tasks",
    "start_ticker",
    "switch_interval",
    "ticks",
    "waiting",
]


def force_fallback(world: World) -> None:
    """Have pyfuse3 lack a name that our loop needs; what is logged is kept."""
    from statsfs.filesystem import request_loop

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                world.kept["messages"].append(record.getMessage())

    world.kept["messages"] = []
    logging.getLogger(request_loop.__name__).addHandler(Keeping())
    patched: Any = request_loop
    patched._HOOKS = (*request_loop._HOOKS, "no_such_name")


def messages(world: World) -> list[str]:
    """Return what was logged since then."""
    found: list[str] = world.kept["messages"]
    return found


def hamper(world: World) -> None:
    """Have the handler for extended attributes wait in a thread, for a gate."""
    import trio

    from statsfs.filesystem import fuse_handlers, request_loop

    gate = world.kept["gate"] = threading.Event()
    world.kept["waiting"] = 0

    async def getxattr(self: object, inode: int, name: bytes, context: object) -> bytes:
        world.kept["waiting"] += 1
        await request_loop.run_in_thread(gate.wait, trio.CapacityLimiter(1))
        world.kept["waiting"] -= 1
        return b"at last"

    patched: Any = fuse_handlers.Handlers
    patched.getxattr = getxattr


def waiting(world: World) -> int:
    """Return how many handlers wait."""
    number: int = world.kept["waiting"]
    return number


def open_gate(world: World) -> None:
    """Let the handlers go on."""
    world.kept["gate"].set()


def session_tasks(world: World) -> int:
    """Return how many session tasks there are."""
    import gc

    from statsfs.filesystem import request_loop

    return sum(loop._tasks for loop in gc.get_objects() if isinstance(loop, request_loop.Loop))


def replaced(world: World) -> bool:
    """Tell whether pyfuse3 waits as we want, or as it did before."""
    import pyfuse3

    return hasattr(vars(pyfuse3)["_wait_fuse_readable"], "__self__")


def start_ticker(world: World) -> None:
    """Have a trio program tick each millisecond."""
    import trio

    world.kept["ticks"] = 0

    async def tick() -> None:
        while True:
            await trio.sleep(0.001)
            world.kept["ticks"] += 1

    trio.lowlevel.spawn_system_task(tick)


def ticks(world: World) -> int:
    """Return how often it has ticked."""
    number: int = world.kept["ticks"]
    return number


def switch_interval(world: World, seconds: float | None = None) -> float:
    """Return the interpreter's switch interval; set another."""
    before = sys.getswitchinterval()
    if seconds is not None:
        sys.setswitchinterval(seconds)
    return before


def fork(world: World) -> tuple[bool, float]:
    """Fork; return what a child finds: whether pyfuse3 waits as we want, and its interval."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, f"{replaced(world):d} {sys.getswitchinterval()}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as found:
        ours, interval = found.read().split()
    return ours == "1", float(interval)


def mount_many_times(world: World, mountpoint: str, times: int) -> list[tuple[int, int]]:
    """Mount, read and unmount; return descriptors and threads after each time."""
    from statsfs.filesystem.mounting import mount

    left = []
    for _ in range(times):
        with mount(world.registry, mountpoint):
            with open(f"{mountpoint}/kvm/exits") as file:
                assert file.read() == "0\n"
            assert replaced(world)
        assert not replaced(world)
        # The watcher's process ends when it is told to; the descriptors are ours.
        end = time.monotonic() + 5
        while threading.active_count() > 1 and time.monotonic() < end:
            time.sleep(0.001)
        left.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    return left
