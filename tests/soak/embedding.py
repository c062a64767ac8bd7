"""One program that mounts, unmounts and mounts again, for as long as it runs."""

import json
import os
from pathlib import Path

import trio

from statsfs.filesystem.mounting import mount, mounted
from tests.soak.measures import check_use, serving_long, use_of
from tests.support import mount_calls as calls
from tests.support.deadlines import until
from tests.support.mount_server import World
from tests.support.mounts import Server, is_mounted

__all__ = ["remounting"]

CPUS = 300  # so many that views are rendered in threads, and long enough for libfuse's pipes
GROWTH = 6.0  # MiB
ROUNDS = 5  # mounts of each kind between two looks at the clock


# In the server


def _look(mountpoint: Path) -> None:
    assert os.listdir(mountpoint) == ["kvm"]
    for name in (".stats.json", ".stats.prom", ".schema.json", "kvm/.stats.bin"):
        assert (mountpoint / name).read_bytes()
    values = json.loads((mountpoint / "kvm/.stats.json").read_bytes())["values"]
    assert values["exits"] == int((mountpoint / "kvm/exits").read_bytes())


def _mount_often(world: World, mountpoint: Path, times: int) -> None:
    for _ in range(times):
        with mount(world.registry, mountpoint):
            _look(mountpoint)
        assert not is_mounted(mountpoint)


def _mount_often_in_trio(world: World, mountpoint: Path, times: int) -> None:
    async def main() -> None:
        for _ in range(times):
            async with mounted(world.registry, mountpoint):
                await trio.to_thread.run_sync(_look, mountpoint)
            assert not is_mounted(mountpoint)

    trio.run(main)


def remounting(seconds: float) -> str:
    """Mount and unmount, from a thread and in a trio program, and read views each time.

    No descriptor, no thread, no child process, and no more memory than after the first few times.
    """
    times = 0
    with serving_long(seconds, "later") as server:
        server.call(calls.build, cpus=CPUS)
        mount_often(server)
        before = use_of(server)
        for _ in until(seconds):
            mount_often(server)
            times += 2 * ROUNDS
        after = use_of(server)
        assert after.children == ""
        memory = check_use(before, after, GROWTH)
    return f"mounted {times} times; {memory}"


def mount_often(server: Server) -> None:
    """Mount a few times in each way."""
    server.call(_mount_often, server.mountpoint, ROUNDS)
    server.call(_mount_often_in_trio, server.mountpoint, ROUNDS)
