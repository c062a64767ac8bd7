"""What a server uses, and what it must give back when nobody asks anything any more."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import wait_until
from tests.support.mount_server import World
from tests.support.mounts import Server, forget, serving

__all__ = [
    "Use",
    "check_use",
    "expect_counting",
    "expect_quiet",
    "serving_long",
    "use_of",
    "warm_up",
]

_MIB = 1 << 20


@contextlib.contextmanager
def serving_long(seconds: float, mode: str = "thread") -> Iterator[Server]:
    """Run a server for as long as a scenario takes; coverage, which slows it, is off."""
    with serving(mode, measured=False, lifetime=seconds + 100) as server:
        yield server


class Use(NamedTuple):
    """Descriptors, threads, children, and memory in bytes."""

    descriptors: list[str]
    threads: list[str]
    children: str
    memory: int


def warm_up(server: Server) -> None:
    """Have a server do all that it does once in its life; its tree is an empty `kvm` then."""
    # libfuse makes its pipe for the first long reply, trio its threads for the first long view.
    server.call(calls.build, cpus=300)
    assert len((server / "kvm/.stats.json").read_bytes()) > 1 << 14
    server.call(calls.clear)


def use_of(server: Server) -> Use:
    """Return what a server uses."""
    return Use(*server.call(calls.resources), server.call(calls.memory))


def check_use(before: Use, after: Use, growth: float) -> str:
    """See that nothing was leaked; return how much the memory grew.

    Args:
        before: after the warm-up.
        after: at the end.
        growth: how much more memory there may be, in MiB.
    """
    assert after[:3] == before[:3], (before, after)
    grown = (after.memory - before.memory) / _MIB
    assert grown <= growth, f"memory grew by {grown:.1f} MiB, from {before.memory / _MIB:.1f}"
    return f"memory {before.memory / _MIB:.1f} MiB {grown:+.1f}"


def expect_counting(server: Server) -> None:
    """See that a thread of the server that counts goes on to count."""
    counted = server.call(threads.counted)
    wait_until(lambda: server.call(threads.counted) > counted + 1000, "counting")


def _open_handles(world: World) -> tuple[int, int]:
    handles = world.mount._session.vfs._handles
    return len(handles.files), len(handles.directories)


def expect_quiet(server: Server, inodes: int = 0) -> None:
    """See that nothing is open, and that with the kernel the server forgets everything.

    Args:
        server: with no clients any more.
        inodes: how many the kernel may still know.
    """
    wait_until(lambda: server.call(_open_handles) == (0, 0), "closing what was open")
    if os.geteuid() == 0:

        def is_forgotten() -> bool:
            # Again and again: a client that was killed may just end what it was about.
            forget(server)
            return server.call(calls.known_inodes) <= inodes

        wait_until(is_forgotten, "the kernel's forgetting")
