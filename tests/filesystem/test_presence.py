"""Mounts of which other mount namespaces have copies: what an unmount ends, and what is said."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from statsfs.filesystem import presence
from tests.support import mount_calls as calls
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import mount_here
from tests.support.mounts import (
    ROOT,
    Server,
    directory_for_a_mount,
    inside,
    is_mounted,
    run,
    serving,
    shell,
)

pytestmark = [pytest.mark.mount, pytest.mark.root]


@contextmanager
def copy_of(mountpoint: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process in a mount namespace of its own, which has copies of all mounts."""
    command = ("unshare", "--mount", "--propagation", "private", "sleep", "infinity")
    with subprocess.Popen(command) as holder:
        try:
            wait_until(lambda: os.readlink(f"/proc/{holder.pid}/exe").endswith("/sleep"))
            assert is_mounted(mountpoint, holder.pid)
            yield holder
        finally:
            holder.kill()


def asks(holder: "subprocess.Popen[bytes]", path: Path) -> str:
    """What a client in a holder's namespace is told of a path."""
    enter = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")
    done = run(*enter, "cat", path, status=None)
    return done.stdout + done.stderr


def ending(server: Server, who: str = r"the mount namespace of process \d+ \(.*") -> str:
    """What the line is like that a server logs when it ends; other tests make namespaces too."""
    return rf"{server.mountpoint}: unmounted; ending, though it is kept by {who}"


def wait_for_end(server: Server) -> None:
    """Wait until a server's mount is closed."""
    assert server.call(calls.wait, DEADLINE), server.stderr


def is_named(said: str, holder: str) -> bool:
    """Tell whether a server names a process that keeps its mount, or names enough others."""
    return holder in said or " more" in said


@pytest.fixture(params=["thread", "trio"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server in either mode."""
    with serving(request.param) as server:
        server.call(calls.build)
        yield server


@pytest.mark.parametrize("command", [("umount",), ("umount", "-l"), ("fusermount3", "-u")])
def test_an_unmount_ends_it(command: tuple[str, ...]) -> None:
    """Though a namespace has a copy: that answers ENOTCONN from then on."""
    with serving() as server, copy_of(server.mountpoint) as holder:
        server.call(calls.build)
        assert asks(holder, server / "kvm/exits") == "0\n"
        run(*command, server.mountpoint)
        wait_for_end(server)
        assert "not connected" in asks(holder, server / "kvm/exits")
        assert is_named(server.stderr, f"process {holder.pid} (sleep)")
        server.end_closed(ending(server))


def test_in_a_trio_program() -> None:
    """The block goes on, with a mount that is closed."""
    with serving("trio") as server, copy_of(server.mountpoint) as holder:
        server.call(calls.build)
        run("umount", server.mountpoint)
        wait_until(lambda: server.call(calls.state)[1], "its end")
        assert "not connected" in asks(holder, server / "kvm/exits")
        server.call(calls.add, "late")
        assert is_named(server.stderr, f"process {holder.pid} (sleep)")
        server.end_closed(ending(server))


def test_open_files_do_not_keep_it() -> None:
    """Where a copy is: files that are open here answer ENOTCONN, as after `close`."""
    with serving() as server, copy_of(server.mountpoint) as holder:
        server.call(calls.build)
        with open(server / "kvm/exits", "rb", buffering=0) as file:
            assert file.read() == b"0\n"
            run("umount", "-l", server.mountpoint)
            wait_for_end(server)
            with pytest.raises(OSError, match="not connected"):
                os.pread(file.fileno(), 9, 0)
        assert is_named(server.stderr, f"process {holder.pid} (sleep)")
        server.end_closed(ending(server))


def test_open_files_keep_a_lazy_unmount() -> None:
    """Where no namespace has a copy, until the last is closed; that is no word in the log."""
    with serving(wrapper=("unshare", "--mount", "--propagation", "private")) as server:
        server.call(calls.build)
        path = f"/proc/{server.pid}/root{server.mountpoint}/kvm/exits"
        with open(path, "rb", buffering=0) as file:
            inside(server, "umount", "-l", str(server.mountpoint))
            assert not server.call(calls.wait, 2.5)
            assert os.pread(file.fileno(), 9, 0) == b"0\n"
        wait_for_end(server)
        server.end_closed()


def test_who_stands_in_it(server: Server) -> None:
    """After a lazy unmount, with no file open, a process in a directory does not keep it."""
    with subprocess.Popen(["sleep", "infinity"], cwd=server / "kvm") as standing:
        try:
            run("umount", "-l", server.mountpoint)
            wait_until(lambda: server.call(calls.state)[1], "its end")
            server.end_closed(
                ending(server, "(a process that stands in it|the mount namespace of).*")
            )
        finally:
            standing.kill()


def test_many_copies() -> None:
    """Three are named, one process of each namespace; it can be mounted again at once."""
    with serving("later") as server, contextlib.ExitStack() as stack:
        server.call(mount_here, server.mountpoint)
        for _ in range(4):
            stack.enter_context(copy_of(server.mountpoint))
        run("umount", server.mountpoint)
        wait_for_end(server)
        server.call(mount_here, server.mountpoint)
        assert is_mounted(server.mountpoint)
        server.call(calls.close)
        one = r"process \d+ \(.*?\)"
        server.end_closed(
            ending(server, rf"the mount namespace of {one}, {one}, {one} and \d+ more")
        )


def test_where_it_is_mounted_here_still(server: Server) -> None:
    """Moved, covered or bound elsewhere in this namespace, it is served on until all is gone."""
    elsewhere = Path(tempfile.mkdtemp())
    script = 'mount --bind "$1" "$2"; umount "$1"; mount --bind "$2" "$1"; umount "$2"'
    with copy_of(server.mountpoint) as holder:
        shell(f"set -e; {script}", server.mountpoint, elsewhere)
        assert (server / "kvm/exits").read_text() == "0\n"
        shell('mount -t tmpfs none "$1"; umount "$1"', server.mountpoint)
        assert (server / "kvm/exits").read_text() == "0\n"
        assert asks(holder, server / "kvm/exits") == "0\n"
        assert server.stderr == ""
        run("umount", server.mountpoint)
        wait_until(lambda: server.call(calls.state)[1], "its end")
        assert is_named(server.stderr, f"process {holder.pid} (sleep)")
        server.end_closed(ending(server))
    elsewhere.rmdir()


def test_changes_of_other_mounts(server: Server) -> None:
    """It looks at the table, and goes on."""
    elsewhere = Path(tempfile.mkdtemp())
    with copy_of(server.mountpoint):
        for _ in range(20):
            shell('mount -t tmpfs none "$1"; umount "$1"', elsewhere)
        assert (server / "kvm/exits").read_text() == "0\n"
    assert server.stderr == ""
    elsewhere.rmdir()


def test_a_namespace_of_its_own() -> None:
    """A server whose mount the test does not see: an unmount there ends it."""
    wrapper = ("unshare", "--mount", "--propagation", "private")
    with serving(wrapper=wrapper) as server:
        server.call(calls.build)
        assert not is_mounted(server.mountpoint)
        nested = ("unshare", "--mount", "--propagation", "private", "sleep", "infinity")
        enter = ("nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "--")
        with subprocess.Popen([*enter, *nested]) as holder:
            try:
                wait_until(lambda: os.readlink(f"/proc/{holder.pid}/exe").endswith("/sleep"))
                inside(server, "umount", str(server.mountpoint))
                wait_for_end(server)
                assert is_named(server.stderr, f"process {holder.pid} (sleep)")
                server.end_closed(ending(server))
            finally:
                holder.kill()


def test_the_name_of_a_process(tmp_path: Path) -> None:
    """Whatever it calls itself, the log has one line."""
    odd = tmp_path / "a\nb\x1b\udcff"
    shutil.copy("/bin/sleep", odd)
    with serving() as server:
        isolated = ("unshare", "--mount", "--propagation", "private", odd, "infinity")
        with subprocess.Popen(isolated) as holder:
            try:
                wait_until(lambda: is_odd(holder.pid))
                run("umount", server.mountpoint)
                wait_for_end(server)
            finally:
                holder.kill()
        assert is_named(server.stderr, " (a?b?\N{REPLACEMENT CHARACTER})")
        server.end_closed(ending(server))


def is_odd(pid: int) -> bool:
    """Whether a process has its odd name."""
    return Path(f"/proc/{pid}/comm").read_bytes().startswith(b"a\nb")


def test_a_program_with_no_thread_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again later, and the mount goes on."""
    monkeypatch.setattr(presence, "_AGAIN", 0.01)
    (device,) = {line.split()[2] for line in mounts() if str(server.mountpoint) in line}
    failures = [OSError("no descriptor"), RuntimeError("no thread")]
    watched = presence.Presence(device)
    look = watched._look

    def fail() -> bool:
        if failures:
            raise failures.pop()
        return look()

    monkeypatch.setattr(watched, "_look", fail)

    async def wait() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.gone)
            await trio.to_thread.run_sync(run, "umount", server.mountpoint)

    trio.run(wait)
    watched.close()
    assert failures == []
    wait_until(lambda: server.call(calls.state)[1], "its end")


def mounts() -> list[str]:
    """The table of mounts."""
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_a_collector_can_be_started_again(tmp_path: Path) -> None:
    """The daemon ends with status 0, and the next one has its directory of segments."""
    command = (sys.executable, "-m", "statsfs", "mount", "--segments", tmp_path / "segments")
    with directory_for_a_mount() as mountpoint:
        for _ in range(2):
            with subprocess.Popen(
                [*command, mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                cwd=ROOT,
            ) as daemon:  # fmt: skip
                wait_until(lambda: is_mounted(mountpoint), "the mount")
                with copy_of(mountpoint) as holder:
                    run("umount", mountpoint)
                    told, failed = daemon.communicate(timeout=DEADLINE)
                assert daemon.returncode == 0, failed
                assert told.endswith(f"unmounted {mountpoint}\n")
                assert is_named(failed, f"process {holder.pid} (sleep)")
