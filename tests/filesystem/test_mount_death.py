"""Servers that are killed, and programs that fork: no dead mount, no client that waits for ever."""

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mount_calls as calls
from tests.support import mount_forks as forks
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import mount_here
from tests.support.mounts import Server, detach, is_mounted, run, serving, shell

pytestmark = pytest.mark.mount


# What the test sees


@pytest.fixture
def serving_kvm(server: Server) -> Server:
    """A server with a small tree that the kernel knows."""
    server.call(calls.build)
    assert len(run("grep", "-r", ".", server / "kvm").stdout.splitlines()) == 2 * 3 + 5
    return server


@pytest.fixture
def doomed() -> Iterator[Server]:
    """A server that does not survive the test."""
    with serving() as server:
        server.call(calls.build)
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
        again.call(calls.build)
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
            again.call(calls.build)
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
        server.call(calls.build)
        server.call(mount_here, doomed.mountpoint, create=True)
        assert os.listdir(doomed.mountpoint) == ["kvm"]
        server.call(calls.close)
        assert doomed.mountpoint.exists()


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
    """No device, pipe to the watcher, socket for a successor, nor table of mounts; it is closed."""
    table = f"/proc/{serving_kvm.pid}/mountinfo"
    lost = ["/dev/fuse", table, "anon_inode", "pipe", "socket"]
    assert serving_kvm.call(forks.what_a_child_has) == (0, lost, True, True)


def test_a_child_changes_its_copy(serving_kvm: Server) -> None:
    """The parent's tree and mount are as they were."""
    assert serving_kvm.call(forks.change_in_a_child) == ["cpu1", "childs"]
    assert sorted(os.listdir(serving_kvm / "kvm"))[:4] == ["busy", "cpu0", "cpu1", "exits"]
    assert (serving_kvm / "kvm/cpu0/exits").read_text() == "0\n"


def test_a_child_that_ends_as_a_program_does(serving_kvm: Server) -> None:
    """With its `with` statements and atexit: it does not unmount what is its parent's."""
    assert serving_kvm.call(forks.exit_in_a_child) == 7
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


def test_multiprocessing(serving_kvm: Server) -> None:
    """Processes and pools that fork."""
    assert serving_kvm.call(forks.use_multiprocessing) == (0, [0, 1, 4, 9, 16])
    assert (serving_kvm / "kvm/cpu1/exits").read_text() == "0\n"


def test_forks_while_threads_change_the_tree() -> None:
    """No child waits for a lock of a thread that it has not.

    It is not measured: coverage has a lock of its own, for which a child would wait.
    """
    with serving(measured=False) as server:
        server.call(calls.build)
        with subprocess.Popen(
            ["sh", "-c", 'while :; do ls -lR "$1"; done', "sh", server / "kvm"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:
            try:
                assert server.call(forks.fork_under_load, 30) == [True] * 30
            finally:
                client.kill()
        assert (server / "kvm/exits").read_text() == "0\n"


def test_a_child_mounts_for_itself(serving_kvm: Server, mountpoint: Path) -> None:
    """It is a process of its own, with a mount of its own."""
    assert serving_kvm.call(forks.mount_in_a_child, mountpoint) == ["kvm"]
    assert not is_mounted(mountpoint)
    assert (serving_kvm / "kvm/exits").read_text() == "0\n"


@pytest.mark.parametrize("watched", [True, False])
def test_a_child_does_not_keep_a_dead_mount_alive(doomed: Server, watched: bool) -> None:
    """With its parent killed the watcher sees it, and without one clients get ENOTCONN."""
    child = doomed.call(forks.fork_and_stay)
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
