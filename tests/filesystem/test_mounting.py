"""`mount` as a program uses it: what it returns, how it ends, what it leaves, what it refuses."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import mount_calls as calls
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import mount_here, try_to_mount
from tests.support.mounts import RemoteError, Server, detach, is_mounted, run, serving

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def program() -> Iterator[Server]:
    """A program that mounts and closes again and again."""
    with serving("later") as server:
        server.call(calls.build)
        yield server


@pytest.fixture
def later(program: Server) -> Iterator[Server]:
    """The program, which has not mounted yet; a test that fails may leave it mounted."""
    yield program
    program.call(calls.close_all)


# A mount and its end


def test_what_a_mount_says_of_itself(later: Server) -> None:
    """Where it is, and whether it is closed."""
    path = str(later.mountpoint)
    later.call(mount_here, later.mountpoint)
    assert later.call(calls.state) == (path, False, f"<Mount {path!r}>")
    assert is_mounted(path)
    later.call(calls.close)
    assert later.call(calls.state) == (path, True, f"<Mount {path!r} closed>")
    assert not is_mounted(path)


def test_closing_twice(later: Server) -> None:
    """The second time does nothing, not even to another mount."""
    later.call(mount_here, later.mountpoint)
    assert later.call(calls.close, times=3)
    later.call(mount_here, later.mountpoint)
    assert later.call(calls.close_older)
    assert os.listdir(later.mountpoint) == ["kvm"]
    later.call(calls.close)


def test_closing_from_many_threads(later: Server) -> None:
    """All return when it is unmounted."""
    for _ in range(5):
        later.call(mount_here, later.mountpoint)
        os.listdir(later.mountpoint)
        assert later.call(calls.close_in_threads, 8) == [True] * 8


@pytest.mark.parametrize("method", [calls.cycle, calls.cycle_in_haste])
def test_nothing_is_left_of_a_mount(later: Server, method: Any) -> None:
    """No descriptor, no thread, no process; thirty times."""
    later.call(method, later.mountpoint, 2)
    before = later.call(calls.resources)
    later.call(method, later.mountpoint, 30)
    assert later.call(calls.resources) == before
    assert before[2] == ""


@contextlib.contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold a file open; when the mount has gone meanwhile, closing says so too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_files_that_clients_hold_open(later: Server) -> None:
    """They answer ENOTCONN when the mount is closed, and hold nothing in the program."""
    later.call(mount_here, later.mountpoint)
    with held(later / "kvm/exits") as file:
        assert later.call(calls.refcount) == 3
        assert later.call(calls.close)
        with pytest.raises(OSError, match="not connected"):
            os.read(file, 99)
        assert later.call(calls.refcount) == 2


def test_unmounted_by_somebody_else(later: Server) -> None:
    """The program learns of it, may change its tree, and may mount again."""
    later.call(mount_here, later.mountpoint)
    assert not later.call(calls.wait, 0)
    run("fusermount3", "-u", later.mountpoint)
    assert later.call(calls.wait, DEADLINE)
    assert later.call(calls.state)[1]
    later.call(calls.add, "cpu2")
    later.call(calls.remove, "cpu2")
    later.call(calls.close)
    later.call(mount_here, later.mountpoint)
    assert os.listdir(later.mountpoint) == ["kvm"]
    later.call(calls.close)


def test_a_busy_mount_is_not_unmounted_by_others(later: Server) -> None:
    """A lazy unmount takes its name away, and ends it when the last file is closed."""
    later.call(mount_here, later.mountpoint)
    with held(later / "kvm/exits") as file:
        assert "busy" in run("fusermount3", "-u", later.mountpoint, status=1).stderr
        run("fusermount3", "-uz", later.mountpoint)
        assert os.listdir(later.mountpoint) == []
        assert os.read(file, 99) == b"0\n"
        assert not later.call(calls.wait, 0)
    assert later.call(calls.wait, DEADLINE)


def test_closing_what_was_lazily_unmounted(later: Server) -> None:
    """It does not wait for clients that hold files open, and does not complain."""
    later.call(mount_here, later.mountpoint)
    with held(later / "kvm/exits") as file:
        run("fusermount3", "-uz", later.mountpoint)
        assert later.call(calls.close)
        with pytest.raises(OSError, match="not connected"):
            os.read(file, 99)


def test_closing_where_another_program_mounted_meanwhile(later: Server) -> None:
    """A mount that is not ours any more is not ours to unmount."""
    later.call(mount_here, later.mountpoint)
    with held(later / "kvm/exits"):
        run("fusermount3", "-uz", later.mountpoint)
        other = Server(later.mountpoint)
        try:
            other.wait_until_mounted()
            assert later.call(calls.close)
            assert is_mounted(other.mountpoint)
            assert os.listdir(other.mountpoint) == []
            other.end()
        finally:
            other.clean_up()


@pytest.mark.root
def test_an_aborted_connection(later: Server, tmp_path: Path) -> None:
    """As an administrator may do: the program learns of it, and no dead mount is left."""
    later.call(mount_here, later.mountpoint)
    device = os.minor(os.stat(later.mountpoint).st_dev)
    run("mount", "-t", "fusectl", "none", tmp_path)
    try:
        (tmp_path / str(device) / "abort").write_text("1")
    finally:
        run("umount", tmp_path)
    assert later.call(calls.wait, DEADLINE)
    assert not is_mounted(later.mountpoint)


# Where it is mounted


def test_paths(later: Server, tmp_path: Path) -> None:
    """A str or a path, relative or with links in it: the mount says where it is at last."""
    real = later.mountpoint
    link = tmp_path / "link"
    link.symlink_to(real)
    for path in (
        str(real),
        link,
        f"{real}/",
        os.path.relpath(real),
    ):
        later.call(mount_here, path)
        assert later.call(calls.state)[0] == str(real)
        assert os.listdir(link) == ["kvm"]
        message, _ = later.call(try_to_mount, link)
        assert "has a mount already" in message
        later.call(calls.close)


def test_odd_paths(later: Server, tmp_path: Path) -> None:
    """Blanks, newlines, a dash, umlauts: the watcher and the mount table cope."""
    for name in ("a b", "-v", "ü\\n", "tab\there", "new\nline", "'\"$(x)`"):
        path = tmp_path / name
        later.call(mount_here, path, create=True)
        assert os.listdir(path) == ["kvm"]
        message, _ = later.call(try_to_mount, path)
        assert "has a mount already" in message
        later.call(calls.close)
        assert not path.exists()


def test_create(later: Server, tmp_path: Path) -> None:
    """What was not there is made, and removed afterwards; what was there stays."""
    path = tmp_path / "one" / "two"
    for _ in range(2):
        later.call(mount_here, path, create=True)
        assert os.listdir(path) == ["kvm"]
        later.call(calls.close)
        assert os.listdir(tmp_path) == []
    later.call(mount_here, path, create=True)
    run("fusermount3", "-u", path)
    assert later.call(calls.wait, DEADLINE)
    wait_until(lambda: os.listdir(tmp_path) == [], "the removal")
    path.parent.mkdir()
    later.call(mount_here, path, create=True)
    later.call(calls.close)
    assert os.listdir(tmp_path) == ["one"]
    (path.parent / "file").touch()
    later.call(try_to_mount, path.parent, create=True)
    assert os.listdir(path.parent) == ["file"]


# Refusals


def refused(server: Server, mountpoint: Path, **options: Any) -> str:
    """Return why a mount is refused: one line that begins with the place."""
    before = server.call(calls.resources)
    message, _ = server.call(try_to_mount, mountpoint, **options)
    assert server.call(calls.resources) == before
    assert "\n" not in message
    place, _, reason = message.partition(": ")
    assert place == str(mountpoint)
    return reason


def test_bad_mount_points(later: Server, tmp_path: Path) -> None:
    """No directory, a file, not empty; and afterwards a good one is fine."""
    (tmp_path / "file").touch()
    assert (
        refused(later, tmp_path / "no")
        == "no such directory; make it (mkdir), or mount with create=True (--create)"
    )
    assert refused(later, tmp_path / "file") == "not a directory"
    assert refused(later, tmp_path) == "the directory is not empty; choose another"
    assert refused(later, tmp_path / "file/x", create=True).startswith("cannot be made: ")
    assert refused(later, tmp_path / "file", create=True) == "not a directory"
    later.call(mount_here, later.mountpoint)
    later.call(calls.close)


def test_already_mounted(later: Server, server: Server) -> None:
    """By another program of ours, whatever its tree holds; or anything else.

    A program's second worker process is told what several processes do.
    """
    for _ in range(2):
        reason = refused(later, server.mountpoint)
        assert reason.startswith(
            "something is mounted there already (fuse.statsfs); unmount it first"
        )
        assert reason.endswith("several processes: use publish()")
        server.call(calls.clear)
    assert refused(later, Path("/proc")).endswith(
        "already (proc); unmount it first, or choose another directory"
    )
    assert os.listdir(server.mountpoint) == ["kvm"]


def test_a_second_mount_in_one_process(server: Server, mountpoint: Path) -> None:
    """It says where the first one is; and that goes on."""
    reason = refused(server, mountpoint)
    assert reason.startswith(f"this process has a mount already, at {server.mountpoint}; close it")
    assert os.listdir(server.mountpoint) == []
    assert not is_mounted(mountpoint)


def test_a_dead_mount_of_another_program(later: Server, mountpoint: Path) -> None:
    """It is not ours to clear; the message says how to."""
    program = (
        "import os, pyfuse3, sys\n"
        "pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {'fsname=x', 'subtype=other'})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, mountpoint], check=False)
    try:
        reason = refused(later, mountpoint)
        assert reason == (
            "a dead mount (fuse.other) of another program is there; "
            f"unmount it first: fusermount3 -uz {mountpoint}"
        )
        assert is_mounted(mountpoint)
    finally:
        detach(mountpoint)


@pytest.mark.parametrize("module", ["pyfuse3", "trio"])
def test_pyfuse3_is_not_installed(module: str) -> None:
    """The packages and the extra that are needed, in one line."""
    with serving("later") as server:
        server.call(calls.block_import, module)
        message, _ = server.call(try_to_mount, server.mountpoint)
    assert "apt install fuse3 libfuse3-dev pkg-config gcc python3-dev" in message
    assert "pip install 'statsfs[fuse]'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("pyfuse3", "libfuse3.so.4: cannot open shared object file: No such file or directory"),
        ("trio", "No module named 'outcome'"),
    ],
)
def test_pyfuse3_cannot_be_imported(module: str, text: str) -> None:
    """The cause, and not that it should be installed, which it is."""
    with serving("later") as server:
        server.call(calls.break_import, module, f"{text}\n")
        message, _ = server.call(try_to_mount, server.mountpoint)
    assert message == f"{server.mountpoint}: pyfuse3 cannot be imported: {text}"


def test_a_broken_path() -> None:
    """Programs are looked for where a system has them, too; the watcher does so as well."""
    with serving("later", env={"PATH": "/nonexistent"}) as server:
        path = server.mountpoint
        server.call(calls.build)
        server.call(calls.cycle, path, 1)
        server.call(mount_here, path)
        server.kill()
        wait_until(lambda: not is_mounted(path), "the watcher clears the mount")


@pytest.mark.root
def test_there_is_no_device() -> None:
    """As in many containers."""
    wrapper = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /dev; exec "$@"', "sh")
    with serving("later", wrapper=wrapper) as server:
        assert refused(server, server.mountpoint).startswith("there is no /dev/fuse; ")


def test_what_mounting_needs_of_the_system(later: Server) -> None:
    """Threads and an event loop; without them nothing is left mounted, and later it works."""
    path = later.mountpoint
    later.call(calls.cycle, path, 1)
    before = later.call(calls.resources)
    message, _ = later.call(calls.try_without_threads, path)
    assert message == f"{path}: no thread can be started: can't start new thread"
    message, _ = later.call(calls.try_without_trio, path)
    assert message == f"{path}: cannot serve: [Errno {errno.EMFILE}] Too many open files"
    assert not is_mounted(path)
    assert later.call(calls.resources) == before
    later.call(calls.cycle, path, 1)


def test_mounting_with_few_descriptors(later: Server) -> None:
    """However few there are: it is refused in one line or it works, and nothing is left."""
    path = later.mountpoint
    later.call(calls.cycle, path, 1)
    before = later.call(calls.resources)
    messages = []
    for spare in range(20):
        message = later.call(calls.try_with_descriptors, path, spare)
        assert not is_mounted(path)
        assert later.call(calls.resources) == before
        assert "\n" not in message
        messages.append(message)
    assert messages[0].startswith(f"{path}: ")
    assert messages[-1] == ""


def test_closing_without_descriptors(later: Server) -> None:
    """A program that ran out of them can unmount."""
    later.call(mount_here, later.mountpoint)
    assert os.listdir(later.mountpoint) == ["kvm"]
    assert later.call(calls.close_without_descriptors)
    assert not is_mounted(later.mountpoint)
    later.call(calls.cycle, later.mountpoint, 1)


def test_a_device_that_cannot_be_read(later: Server) -> None:
    """The mount ends, and is not left without anybody who serves it."""
    assert later.call(calls.serve_badly, later.mountpoint)
    assert not is_mounted(later.mountpoint)
    later.call(calls.cycle, later.mountpoint, 1)


def test_mounting_what_is_no_registry(later: Server) -> None:
    """It is a mistake of the program, and nothing is mounted."""
    with pytest.raises(RemoteError, match="TypeError: registry is not a Registry: 'registry'"):
        later.call(calls.mount_no_registry, later.mountpoint)
    assert not is_mounted(later.mountpoint)


def test_mounted_is_for_trio(later: Server) -> None:
    """In another program it says what to use; `mount` wants a registry."""
    message = later.call(calls.try_outside_of_trio, later.mountpoint)
    assert message.startswith(f"{later.mountpoint}: mounted() is for trio programs; use mount()")
    assert not is_mounted(later.mountpoint)


def test_a_call_that_fails_is_told(later: Server) -> None:
    """The tests would see an error in the program."""
    with pytest.raises(RemoteError, match="AssertionError"):
        later.call(calls.remove, "nothing")
