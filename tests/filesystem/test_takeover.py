"""Programs that take over each other's mounts, on real mounts; and the system calls for that."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from statsfs.exceptions import MountError
from statsfs.filesystem import beneath, session, takeover
from statsfs.filesystem.known import Attributes
from statsfs.filesystem.mountpoints import find_device
from statsfs.filesystem.passing_on import OtherFileError, pass_on
from statsfs.filesystem.takeover import Predecessor
from statsfs.tree.source import Source
from tests.support import mount_calls as calls
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mount_server import World, mount_here, try_to_mount
from tests.support.mounts import Server, directory_for_a_mount, is_mounted, serving


def register(world: World, name: str) -> None:
    """Register a source."""
    world.registry.register(Source(name))


def is_replaced(world: World) -> tuple[bool, bool]:
    """Tell whether the mount was replaced, and whether it is closed."""
    return world.mount.replaced, world.mount.closed


def linger(world: World) -> None:
    """Serve what is open of a mount that is replaced until `linger_no_more`."""
    offer = world.mount._session._offer
    assert offer is not None
    end = offer._linger
    told = world.kept["told"] = threading.Event()

    def wait() -> None:
        told.wait(DEADLINE)
        end()

    vars(session)["LINGER"] = 0.0
    offer._linger = wait


def linger_no_more(world: World) -> None:
    """Let its time be over."""
    world.kept["told"].set()


def take_over(server: Server, mountpoint: Path) -> None:
    """Have a program take over a mount; it then shows `new`."""
    server.call(register, "new")
    server.call(mount_here, mountpoint, replace=True)


def expect_closed(server: Server) -> None:
    """Wait until a mount that was replaced is closed."""
    wait_until(lambda: server.call(is_replaced) == (True, True), "its end")


@pytest.mark.parametrize("modes", ["thread later", "trio later"])
@pytest.mark.mount
@pytest.mark.root
def test_a_program_takes_over(modes: str) -> None:
    """The path shows the new one's sources at once, and ends with the new one."""
    mode, other = modes.split()
    with serving(mode) as old:
        old.call(register, "old")
        with serving(other) as new:
            take_over(new, old.mountpoint)
            assert os.listdir(old.mountpoint) == ["new"]
            expect_closed(old)
            assert new.call(is_replaced) == (False, False)
            old.end_closed()
            new.call(calls.close)
        assert not is_mounted(old.mountpoint)


@pytest.mark.mount
@pytest.mark.root
def test_in_a_trio_program() -> None:
    """`mounted` takes over as well."""
    with serving() as old:
        old.call(register, "old")
        new = Server(old.mountpoint, "trio", options={"replace": True})
        try:
            expect_closed(old)
            new.call(register, "new")
            assert os.listdir(old.mountpoint) == ["new"]
            old.end_closed()
            new.end()
        finally:
            new.clean_up()


@pytest.mark.mount
@pytest.mark.root
def test_what_is_open_of_a_program() -> None:
    """Files and directories go on until they are closed, or for so long at most."""
    with serving() as old, serving("later") as new:
        old.call(register, "old")
        old.call(linger)
        directory = os.open(old.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            take_over(new, old.mountpoint)
            assert os.listdir(directory) == ["old"]
            assert os.listdir(old.mountpoint) == ["new"]
            old.call(linger_no_more)
            expect_closed(old)
            with pytest.raises(OSError, match="not connected"):
                os.listdir(directory)
        finally:
            os.close(directory)
        assert "files of the old mount are open" in old.stderr
        old.end_closed(".*files of the old mount are open")
        new.call(calls.close)


@pytest.mark.mount
@pytest.mark.root
def test_a_program_that_fails_to_take_over() -> None:
    """It is refused in one line, and the old one goes on."""
    with serving() as old, serving("later") as new:
        old.call(register, "old")
        for options, why in (
            ({"root": "nothing"}, "no source 'nothing' is registered"),
            ({"uid": -1}, "invalid uid -1"),
        ):
            said, _ = new.call(try_to_mount, old.mountpoint, replace=True, **options)
            assert why in said
        assert os.listdir(old.mountpoint) == ["old"]
        assert old.call(is_replaced) == (False, False)
        with directory_for_a_mount() as nothing:
            said, _ = new.call(try_to_mount, nothing, replace=True)
        assert said == f"{nothing}: nothing is mounted there to take over; mount without replace"


@pytest.mark.mount
@pytest.mark.root
def test_another_mount_on_top() -> None:
    """What somebody mounts there meanwhile is not detached."""
    with serving() as old:
        device = find_device(str(old.mountpoint))
        assert device is not None
        wait_until(lambda: any(takeover._find_names(device)), "its socket")
        predecessor = Predecessor(str(old.mountpoint))
        subprocess.run(["mount", "-t", "tmpfs", "none", old.mountpoint], check=True)
        try:
            with pytest.raises(MountError, match="something else was mounted there meanwhile"):
                predecessor.replace_by(None)  # type: ignore[arg-type]  # it does not get there
        finally:
            subprocess.run(["umount", old.mountpoint], check=True)
            predecessor.close()
        wait_until(lambda: "did not take over" in old.stderr, "its line")
        old.end_closed(".* did not take over")


@pytest.mark.mount
@pytest.mark.root
def test_a_successor_that_is_killed() -> None:
    """Between the two calls: the old one goes on, and the dead mount beneath goes with it."""
    with serving() as old:
        code = (
            "import os, signal, sys\n"
            "from statsfs.filesystem import beneath\n"
            "def die(path): os.kill(os.getpid(), signal.SIGKILL)\n"
            "import statsfs.filesystem.takeover as takeover\n"
            "takeover.detach = die\n"
            "from statsfs import Registry, mount\n"
            "mount(Registry(), sys.argv[1], replace=True)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, old.mountpoint], check=False)
        assert done.returncode == -signal.SIGKILL
        old.call(register, "old")
        assert os.listdir(old.mountpoint) == ["old"]
        wait_until(lambda: "did not take over" in old.stderr, "its line")
        # The dead one beneath is cleared when the old one ends.
        old.end_closed(".* did not take over")
        wait_until(lambda: not is_mounted(old.mountpoint), "the end of the dead mount")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EINVAL, "taking over needs Linux 6.5; this is "),
        (errno.ENOSYS, "taking over needs Linux 6.5; this is "),
        (errno.EPERM, "taking over needs the right to mount (CAP_SYS_ADMIN)"),
    ],
)
def test_systems_that_cannot(
    number: int, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An older kernel does not know the flag, or the call; both are refused before anything."""

    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath, "_call", refuse)
    found = beneath.find_obstacle()
    assert found is not None
    assert found.startswith(why)
    with pytest.raises(MountError) as refusal:
        Predecessor(str(tmp_path))
    assert str(refusal.value).startswith(f"{tmp_path}: {why}")


def test_passing_on(tmp_path: Path) -> None:
    """To a file with the same owner and mode, and to no other."""
    file = tmp_path / "file"
    file.write_text("5")
    status = file.stat()
    owner = (status.st_uid, status.st_gid)
    same = Attributes(1, status.st_mode, 1, 4096, 0, owner, False)
    pass_on(str(file), same, b"0")
    assert file.read_text() == "0"
    for other in (same._replace(mode=status.st_mode ^ 0o4), same._replace(owner=(1, 1))):
        with pytest.raises(OtherFileError, match="it is another file now"):
            pass_on(str(file), other, b"1")
    with pytest.raises(OtherFileError, match="No such file"):
        pass_on(f"{file}.not", same, b"1")
    assert file.read_text() == "0"
