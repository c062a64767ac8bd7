"""The first look at a fresh mount, by a user who is not root, while the tree changes."""

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import trio

from statsfs.filesystem.mounting import mount, mounted
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import World
from tests.support.mounts import NOBODY, serving

pytestmark = pytest.mark.mount

MOUNTS = 30
# Looks until it is told to end; then it says how often each error number came, 0 for none. It gives
# up its rights itself: another user may not start a Python that is root's own.
LOOK = """
import collections, json, os, select, sys
if not os.geteuid():
    os.setgroups([])
    os.setresgid(*[int(sys.argv[2])] * 3)
    os.setresuid(*[int(sys.argv[2])] * 3)
seen = collections.Counter()
print("looking", flush=True)
while not select.select([0], [], [], 0)[0]:
    try:
        os.stat(sys.argv[1])
        seen[0] += 1
    except OSError as error:
        seen[error.errno] += 1
print(json.dumps(seen))
"""


def change_while(world: World, work: Callable[[Callable[[], None]], None]) -> None:
    """Change the top level all the time, while work is done that may wait for some changes."""
    changes, ended = 0, threading.Event()

    def change() -> None:
        nonlocal changes
        for _ in iter(ended.is_set, True):
            source = Source("app")
            world.registry.register(source)
            world.registry.unregister(source)
            source.put()
            changes += 1

    def wait() -> None:
        end = changes + 20
        wait_until(lambda: changes > end, "some changes")

    thread = threading.Thread(target=change)
    thread.start()
    try:
        work(wait)
    finally:
        ended.set()
        thread.join()


def mount_often(world: World, mountpoint: str) -> None:
    """Mount, change and unmount, over and over."""

    def work(wait: Callable[[], None]) -> None:
        for _ in range(MOUNTS):
            with mount(world.registry, mountpoint):
                wait()

    change_while(world, work)


def mount_often_in_trio(world: World, mountpoint: str) -> None:
    """Do the same in trio programs."""

    async def main(wait: Callable[[], None]) -> None:
        for _ in range(MOUNTS):
            async with mounted(world.registry, mountpoint):
                await trio.to_thread.run_sync(wait)

    change_while(world, lambda wait: trio.run(main, wait))


@pytest.mark.parametrize("often", [mount_often, mount_often_in_trio])
def test_nobody_is_refused(often: Callable[[World, str], None]) -> None:
    """Changes of the top level discarded the root's first attributes: "Permission denied"."""
    with (
        serving("later") as server,
        subprocess.Popen(
            [sys.executable, "-SEc", LOOK, server / "app", str(NOBODY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client,
    ):
        assert client.stdout is not None
        assert client.stdout.readline() == "looking\n"
        server.call(often, str(server.mountpoint))
        seen = json.loads(client.communicate("\n", DEADLINE)[0])
    assert str(errno.EACCES) not in seen
    assert {"0", str(errno.ENOENT)} <= seen.keys()
