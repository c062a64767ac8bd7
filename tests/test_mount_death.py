"""Servers that are killed, and programs that fork: no dead mount, no client that waits for ever."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs import loop
from statsfs.mounting import mount
from statsfs.registry import Registry
from tests.deadlines import DEADLINE, wait_until
from tests.mount_server import World, mount_here
from tests.mounts import Server, detach, is_mounted, run, serving, shell
from tests.trees import add_cpu, make_kvm, subordinate

pytestmark = pytest.mark.mount


# What the server does


def build(world: World) -> None:
    """Make `kvm` with two CPUs."""
    make_kvm(world.registry)


def in_child(function: Callable[[], Any]) -> Any:
    """Fork, have the child do something, and return what came of it when the child has ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            result = function()
        except BaseException as error:
            result = repr(error)
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    wait_for_child(pid)
    with open(reading, "rb") as file:
        return pickle.load(file)


def wait_for_child(pid: int) -> int:
    """Wait for a child with a deadline; return its status."""
    status: list[int] = []

    def is_over() -> bool:
        found, code = os.waitpid(pid, os.WNOHANG)
        status.append(code)
        return bool(found)

    try:
        wait_until(is_over, "the child's end")
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return status[-1]


def what_a_child_has(world: World) -> Any:
    """Return what a forked child has of the mount: descriptors, pipes, what the mount says."""
    before = {number: kind for number, kind in descriptors() if not number.startswith("/")}

    def look() -> Any:
        lost = sorted(
            {kind for number, kind in before.items() if number not in dict(descriptors())}
        )
        return len(loop.find_descriptors()), lost, world.mount.closed, world.mount.wait(5)

    return in_child(look)


def descriptors() -> list[tuple[str, str]]:
    """Return the descriptors of the process and what kind of file each is."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append((number, os.readlink(f"/proc/self/fd/{number}").split(":")[0]))
        except FileNotFoundError:  # that of the listing
            continue
    return found


def change_in_a_child(world: World) -> list[str]:
    """Have a child take its copy of the tree apart, and close its copy of the mount."""

    def work() -> list[str]:
        kvm = world.registry.sources[0]
        kvm.remove_subordinate(subordinate(kvm, "cpu0"))
        add_cpu(kvm, "childs")
        kvm.revoke()
        world.registry.unregister(kvm)
        world.mount.close()
        with world.mount:
            pass
        return [source.name for source in kvm.subordinates]

    names: list[str] = in_child(work)
    return names


def exit_in_a_child(world: World) -> int:
    """Have a child run to the end of the program, and through all that is done there."""
    pid = os.fork()
    if not pid:
        sys.exit(7)  # which unwinds the server's own `with` statement
    return os.waitstatus_to_exitcode(wait_for_child(pid))


def use_multiprocessing(world: World) -> tuple[int | None, list[int]]:
    """Use the same in the clothes of multiprocessing."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=change, args=(world,))
    process.start()
    process.join(DEADLINE)
    with context.Pool(2) as pool:
        squares = pool.map(square, range(5))
    return process.exitcode, squares


def square(number: int) -> int:
    """Return a square."""
    return number * number


def change(world: World) -> None:
    """Change the tree."""
    kvm = world.registry.sources[0]
    kvm.remove_subordinate(subordinate(kvm, "cpu1"))
    world.mount.close()


def fork_under_load(world: World, times: int) -> list[object]:
    """Fork again and again while threads change the tree; the children change theirs."""
    stop = threading.Event()
    kvm = world.registry.sources[0]

    def churn(number: int) -> None:
        while not stop.is_set():
            add_cpu(kvm, f"passing{number}")
            kvm.remove_subordinate(subordinate(kvm, f"passing{number}"))

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()

    def work() -> bool:
        add_cpu(kvm, "childs")
        kvm.snapshot()
        world.registry.unregister(kvm)
        return world.mount.closed

    try:
        return [in_child(work) for _ in range(times)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def mount_in_a_child(world: World, mountpoint: Path) -> Any:
    """Have a child mount a tree of its own."""

    def work() -> list[str]:
        registry = Registry()
        make_kvm(registry, cpus=0)
        with mount(registry, mountpoint):
            return os.listdir(mountpoint)

    return in_child(work)


def fork_and_stay(world: World) -> int:
    """Fork a child that does nothing, for a long time; return its pid."""
    pid = os.fork()
    if not pid:
        for descriptor in range(3, 100):
            if descriptor not in loop.find_descriptors():
                os.closerange(descriptor, descriptor + 1)
        time.sleep(60)
        os._exit(0)
    return pid


# What the test sees


@pytest.fixture
def serving_kvm(server: Server) -> Server:
    """A server with a small tree that the kernel knows."""
    server.call(build)
    assert len(run("grep", "-r", ".", server / "kvm").stdout.splitlines()) == 2 * 3 + 5
    return server


@pytest.fixture
def doomed() -> Iterator[Server]:
    """A server that does not survive the test."""
    with serving() as server:
        server.call(build)
        run("grep", "-r", ".", server / "kvm")
        try:
            yield server
        finally:
            server.ended = True
            server.process.kill()
            server.process.wait()
            detach(server.mountpoint)


def watcher_of(server: Server) -> int:
    """Return the pid of a server's watcher."""
    tasks = Path(f"/proc/{server.pid}/task")
    pids = [int(p) for t in tasks.iterdir() for p in (t / "children").read_text().split()]
    (watcher,) = (p for p in pids if b"statsfs-watcher" in Path(f"/proc/{p}/cmdline").read_bytes())
    return watcher


def kill_watcher(server: Server) -> None:
    """Kill a server's watcher; a server that lives may wait for it."""
    pid = watcher_of(server)
    os.kill(pid, signal.SIGKILL)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "Z", "the watcher's end")


def is_dead(path: Path) -> bool:
    """Tell whether a mount answers that nobody serves it."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def test_a_killed_server_leaves_no_mount(doomed: Server) -> None:
    """The watcher clears it; the name can be mounted on again at once."""
    watcher = watcher_of(doomed)
    doomed.kill()
    wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher", deadline=5)
    wait_until(lambda: not Path(f"/proc/{watcher}").exists(), "the watcher's own end")
    assert os.listdir(doomed.mountpoint) == []
    again = Server(doomed.mountpoint)
    try:
        again.wait_until_mounted()
        again.call(build)
        assert (again / "kvm/exits").read_text() == "0\n"
        again.end()
    finally:
        again.clean_up()


def test_a_group_that_is_killed(doomed: Server) -> None:
    """All of the server's process group, as a terminal or a service manager kills it."""
    doomed.ended = True
    os.killpg(doomed.pid, signal.SIGKILL)
    wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher")


def test_clients_of_a_killed_server(doomed: Server) -> None:
    """Those that hold files get an error, and none hangs."""
    reading = 'cd "$1"; while cat kvm/exits >/dev/null; do :; done; cat kvm/exits'
    with subprocess.Popen(
        ["sh", "-c", reading, "sh", doomed.mountpoint], stderr=subprocess.PIPE, text=True
    ) as client:
        file = os.open(doomed / "kvm/exits", os.O_RDONLY)
        doomed.kill()
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.read(file, 99)
        with contextlib.suppress(OSError):
            os.close(file)
        _, errors = client.communicate(timeout=DEADLINE)
        assert client.returncode == 1
        assert "cat: kvm/exits: " in errors
    wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher")


def test_a_stale_mount_is_cleared_and_replaced(doomed: Server) -> None:
    """Without a watcher the mount stays, dead; the next server clears it, again and again."""
    kill_watcher(doomed)
    doomed.kill()
    for _ in range(2):
        assert is_mounted(doomed.mountpoint)
        wait_until(lambda: is_dead(doomed.mountpoint), "ENOTCONN")
        again = Server(doomed.mountpoint)
        try:
            again.call(build)
            assert (again / "kvm/exits").read_text() == "0\n"
            assert Path("/proc/mounts").read_text().count(str(doomed.mountpoint)) == 1
            kill_watcher(again)
            again.kill()
        finally:
            again.clean_up()
    detach(doomed.mountpoint)


def test_create_where_a_stale_mount_is(doomed: Server) -> None:
    """A directory that a dead server made is used, and stays."""
    kill_watcher(doomed)
    doomed.kill()
    with serving("later") as server:
        server.call(build)
        server.call(mount_here, doomed.mountpoint, create=True)
        assert os.listdir(doomed.mountpoint) == ["kvm"]
        server.call(close)
        assert doomed.mountpoint.exists()


def close(world: World) -> None:
    """Close the mount."""
    world.mount.close()


def test_a_watcher_that_was_killed(serving_kvm: Server) -> None:
    """The server serves on, and ends well."""
    kill_watcher(serving_kvm)
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


def test_a_watcher_does_not_heed_signals(doomed: Server) -> None:
    """Those that a terminal or a shutdown sends it; it has its work to do."""
    pid = watcher_of(doomed)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    doomed.kill()
    wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher")


def test_a_killed_server_whose_mount_is_busy(doomed: Server, tmp_path: Path) -> None:
    """A shell that stands in it does not keep the mount."""
    with subprocess.Popen(
        ["sh", "-c", 'cd "$1"; echo there; read -r line; cd /', "sh", doomed / "kvm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "there\n"
        doomed.kill()
        wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher")
        client.communicate("go\n", timeout=DEADLINE)


# Forks


def test_what_a_child_has_of_the_mount(serving_kvm: Server) -> None:
    """No device, no pipe to the watcher; and its copy of the mount says that it is closed."""
    assert serving_kvm.call(what_a_child_has) == (0, ["/dev/fuse", "pipe"], True, True)


def test_a_child_changes_its_copy(serving_kvm: Server) -> None:
    """The parent's tree and mount are as they were."""
    assert serving_kvm.call(change_in_a_child) == ["cpu1", "childs"]
    assert sorted(os.listdir(serving_kvm / "kvm"))[:4] == ["busy", "cpu0", "cpu1", "exits"]
    assert (serving_kvm / "kvm/cpu0/exits").read_text() == "0\n"


def test_a_child_that_ends_as_a_program_does(serving_kvm: Server) -> None:
    """With its `with` statements and atexit: it does not unmount what is its parent's."""
    assert serving_kvm.call(exit_in_a_child) == 7
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


def test_multiprocessing(serving_kvm: Server) -> None:
    """Processes and pools that fork."""
    assert serving_kvm.call(use_multiprocessing) == (0, [0, 1, 4, 9, 16])
    assert (serving_kvm / "kvm/cpu1/exits").read_text() == "0\n"


def test_forks_while_threads_change_the_tree(serving_kvm: Server) -> None:
    """No child waits for a lock of a thread that it has not."""
    with subprocess.Popen(
        ["sh", "-c", 'while :; do ls -lR "$1"; done', "sh", serving_kvm / "kvm"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as client:
        try:
            assert serving_kvm.call(fork_under_load, 30) == [True] * 30
        finally:
            client.kill()
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


def test_a_child_mounts_for_itself(serving_kvm: Server, mountpoint: Path) -> None:
    """It is a process of its own, with a mount of its own."""
    assert serving_kvm.call(mount_in_a_child, mountpoint) == ["kvm"]
    assert not is_mounted(mountpoint)
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


@pytest.mark.parametrize("watched", [True, False])
def test_a_child_does_not_keep_a_dead_mount_alive(doomed: Server, watched: bool) -> None:
    """With its parent killed the watcher sees it, and without one clients get ENOTCONN."""
    child = doomed.call(fork_and_stay)
    try:
        if not watched:
            kill_watcher(doomed)
        doomed.kill()
        if watched:
            wait_until(lambda: not is_mounted(doomed.mountpoint), "the watcher", deadline=5)
        else:
            wait_until(lambda: is_dead(doomed.mountpoint), "ENOTCONN", deadline=5)
            assert "not connected" in shell('cat "$1"', doomed / "kvm/exits", status=1)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
