"""What may be mounted on: every refusal, in one line that says what to do."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from statsfs.exceptions import MountError
from statsfs.filesystem import mountpoints
from statsfs.filesystem.mountpoints import (
    find_device,
    find_mount,
    lock_mountpoint,
    make_mountpoint,
    prepare_mountpoint,
    remove_mountpoint,
    resolve_mountpoint,
    unmount,
)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has FUSE, whatever this one has; and a user who may use it."""
    exists, access = os.path.exists, os.access
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/fuse" or exists(path))
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/fuse" or access(path, mode))
    monkeypatch.setattr(shutil, "which", lambda command, path: f"/usr/bin/{command}")


def refusal(path: object, *, allow_other: bool = False) -> MountError:
    """Return why a directory is refused."""
    with pytest.raises(MountError) as caught:
        prepare_mountpoint(str(path), allow_other=allow_other)
    error = caught.value
    assert str(error).startswith(f"{path}: ")
    assert "\n" not in str(error)
    assert error.offender == str(path)
    return error


def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    """Have /proc/self/mountinfo hold these lines."""
    table = tmp_path / "mountinfo"
    table.write_text("".join(line + "\n" for line in lines))
    real = open

    def opened(path: object, *mode: str, **options: str) -> object:
        real_path = table if path == "/proc/self/mountinfo" else str(path)
        return real(real_path, *mode, **options)  # type: ignore[call-overload]  # as it is called

    monkeypatch.setattr(mountpoints, "open", opened, raising=False)


# What is mounted


def test_find_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last one of a path, with its optional fields and its octal characters."""
    mounts(
        monkeypatch,
        tmp_path,
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        "30 22 0:40 / /mnt/a\\040b\\134c rw shared:2 master:3 - fuse.statsfs statsfs rw",
        "31 22 0:41 / /mnt/two rw - tmpfs none rw",
        "32 31 0:42 / /mnt/two rw - fuse.statsfs statsfs rw",
        "33 22 0:43 / /mnt/ü rw - proc proc rw",
        "34 22 0:44 / /mnt/\u2028\r\x0c\xa0 rw - sysfs sysfs rw",
    )
    assert find_mount("/mnt/\u2028\r\x0c\xa0") == "sysfs"
    assert find_device("/mnt/two") == "0:42"
    assert find_device("/mnt") is None
    assert find_mount("/") == "ext4"
    assert find_mount("/mnt/a b\\c") == "fuse.statsfs"
    assert find_mount("/mnt/two") == "fuse.statsfs"
    assert find_mount("/mnt/ü") == "proc"
    assert find_mount("/mnt") is None


def test_find_mount_on_this_system() -> None:
    """/proc is a mount here, and its subdirectories are not."""
    assert find_mount("/proc") == "proc"
    assert find_mount("/proc/self") is None


# Making and removing


def test_making_and_removing(tmp_path: Path) -> None:
    """What was not there is made, and only that is removed again, the innermost first."""
    path = tmp_path / "one" / "two" / "three"
    (tmp_path / "one").mkdir()
    made = make_mountpoint(str(path))
    assert made == [str(path), str(path.parent)]
    assert path.is_dir()
    assert make_mountpoint(str(path)) == []
    remove_mountpoint(made)
    assert os.listdir(tmp_path / "one") == []


def test_removing_leaves_what_is_in_use(tmp_path: Path) -> None:
    """A directory that somebody put something into stays, and so do those above it."""
    made = make_mountpoint(str(tmp_path / "one" / "two"))
    (tmp_path / "one" / "file").touch()
    remove_mountpoint(made)
    assert os.listdir(tmp_path / "one") == ["file"]


def test_making_below_a_file(tmp_path: Path) -> None:
    """It is refused, and what was made on the way is gone again."""
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="cannot be made: Not a directory") as caught:
        make_mountpoint(str(tmp_path / "file" / "one" / "two"))
    assert caught.value.errno == errno.ENOTDIR
    assert caught.value.offender == str(tmp_path / "file" / "one")


def test_making_stops_at_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that somebody else makes meanwhile is not ours; one that fails undoes ours."""
    mkdir = os.mkdir

    def fail(path: str) -> None:
        if path.endswith("theirs"):
            mkdir(path)
            raise FileExistsError
        if path.endswith("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path)

    monkeypatch.setattr(os, "mkdir", fail)
    path = tmp_path / "ours" / "theirs" / "more"
    assert make_mountpoint(str(path)) == [str(path), str(tmp_path / "ours")]
    with pytest.raises(MountError, match="full: cannot be made: No space left on device"):
        make_mountpoint(str(tmp_path / "first" / "second" / "full"))
    assert not (tmp_path / "first").exists()


# Refusals


def test_a_directory_that_will_do(tmp_path: Path) -> None:
    """An empty directory is fine."""
    prepare_mountpoint(str(tmp_path), allow_other=os.geteuid() == 0)


def test_bad_directories(tmp_path: Path) -> None:
    """No directory, a file, one with something in it, one below a file, a loop."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, code, words in [
        (
            "nothing",
            errno.ENOENT,
            "no such directory; make it (mkdir), or mount with create=True (--create)",
        ),
        ("file", errno.ENOTDIR, "not a directory"),
        ("", errno.ENOTEMPTY, "the directory is not empty; choose another"),
        ("file/below", errno.ENOTDIR, "Not a directory"),
        ("loop", errno.ELOOP, "Too many levels of symbolic links"),
    ]:
        error = refusal(tmp_path / name)
        assert str(error) == f"{tmp_path / name}: {words}"
        assert error.errno == code


@pytest.mark.mount
def test_a_directory_of_debugfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have files, which are the kernel's; other kernel filesystems may not."""
    (tmp_path / "exits").touch()
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    line = f"24 22 {number} / /sys/kernel/debug rw - %s debugfs rw"
    mounts(monkeypatch, tmp_path, line % "tracefs", "25 22 0:0 / /debug rw - debugfs none rw")
    assert refusal(tmp_path).errno == errno.ENOTEMPTY
    mounts(monkeypatch, tmp_path, line % "debugfs")
    prepare_mountpoint(os.fspath(tmp_path), allow_other=False)


def test_something_mounted_already() -> None:
    """It says what."""
    error = refusal("/proc")
    assert "something is mounted there already (proc)" in str(error)
    assert error.errno == errno.EBUSY


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without FUSE, or a container without the device."""
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    error = refusal(tmp_path)
    assert "no /dev/fuse; load the module (modprobe fuse)" in str(error)
    assert error.errno == errno.ENODEV


def test_no_permission_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whom to be, or what to change."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    error = refusal(tmp_path)
    assert "no permission to use /dev/fuse; run as root" in str(error)
    assert error.errno == errno.EACCES


def test_no_permission_for_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who is not root mounts on directories that he may write."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/fuse")
    error = refusal(tmp_path)
    assert "no permission; choose a directory that you may write" in str(error)
    assert error.errno == errno.EACCES


@pytest.mark.parametrize(
    ("conf", "allowed"),
    [
        (None, False),
        ("", False),
        ("#user_allow_other\n", False),
        ("mount_max = 5\n  user_allow_other  \n", True),
        ("user_allow_other # the monitoring's user looks\n", True),
        ("user_allow_other#\n", True),
        ("mount_max = 5 # user_allow_other\n", False),
        ("user_allow_others\n", False),
    ],
)
def test_letting_others_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conf: str | None, allowed: bool
) -> None:
    """Root may; others need a line in fuse.conf, which must stand there and not in a comment."""
    path = tmp_path / "fuse.conf"
    if conf is not None:
        path.write_text(conf)
    (tmp_path / "dir").mkdir()
    monkeypatch.setattr(mountpoints, "_FUSE_CONF", str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    prepare_mountpoint(str(tmp_path / "dir"), allow_other=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    prepare_mountpoint(str(tmp_path / "dir"), allow_other=False)
    if allowed:
        prepare_mountpoint(str(tmp_path / "dir"), allow_other=True)
    else:
        error = refusal(tmp_path / "dir", allow_other=True)
        assert "letting other users in needs root, or the line user_allow_other" in str(error)
        assert error.errno == errno.EPERM


# A system that lacks something


def test_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is said, whatever is asked."""
    monkeypatch.setattr(mountpoints, "_PROC", str(tmp_path))
    for ask in (find_mount, find_device, lambda path: prepare_mountpoint(path, allow_other=False)):
        with pytest.raises(MountError, match="is not there; mount proc first: mount -t proc"):
            ask(str(tmp_path))


def test_no_current_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative path is nowhere; an absolute one is where it is."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MountError, match=r"^x: the current directory was deleted; change to an"):
        resolve_mountpoint("x")
    assert resolve_mountpoint(tmp_path) == str(tmp_path)


def test_no_fusermount3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root does without it; for others there is no other way."""
    directory = tmp_path / "dir"
    directory.mkdir()
    found = {"umount": "/usr/bin/umount"}
    monkeypatch.setattr(shutil, "which", lambda command, path: found.get(command))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    kinds = iter(["fuse.statsfs"])
    with monkeypatch.context() as dying:
        dying.setattr(mountpoints, "find_mount", lambda path: next(kinds, None))
        commands = dead(dying, directory, errno.ENOTCONN, 1)
        prepare_mountpoint(str(directory), allow_other=False)
    assert commands == [["/usr/bin/umount", "-il", "--", str(directory)]]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "there is no fusermount3; apt install fuse3" in str(refusal(directory))
    with pytest.raises(MountError, match="there is no fusermount3"):
        unmount(str(directory))


# Dead mounts


def dead(monkeypatch: pytest.MonkeyPatch, path: Path, code: int, times: int) -> list[list[str]]:
    """Have statvfs fail on a path some times; return the commands that are run meanwhile."""
    commands: list[list[str]] = []
    left, statvfs = [None] * times, os.statvfs

    def ask(asked: str) -> object:
        if asked == str(path) and left:
            raise OSError(code, "dead")
        return statvfs(asked)

    def run(command: list[str], **options: object) -> object:
        commands.append(command)
        left.pop()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(os, "statvfs", ask)
    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.ECONNABORTED])
@pytest.mark.parametrize("times", [1, 3])
def test_dead_mounts_of_ours_are_cleared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, times: int
) -> None:
    """However many are on top of each other."""
    directory = tmp_path / "dir"
    directory.mkdir()
    kinds = iter(["fuse.statsfs"] * times)
    monkeypatch.setattr(mountpoints, "find_mount", lambda path: next(kinds, None))
    commands = dead(monkeypatch, directory, code, times)
    prepare_mountpoint(str(directory), allow_other=False)
    assert commands == [["/usr/bin/fusermount3", "-uz", "--", str(directory)]] * times


@pytest.mark.parametrize("kind", ["fuse.sshfs", "fuse", None])
def test_a_dead_mount_of_another_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str | None
) -> None:
    """It is left alone, and the way to clear it is said."""
    monkeypatch.setattr(mountpoints, "find_mount", lambda path: kind)
    commands = dead(monkeypatch, tmp_path, errno.ENOTCONN, 1)
    error = refusal(tmp_path)
    assert f"a dead mount ({kind}) of another program" in str(error)
    assert f"fusermount3 -uz {tmp_path}" in str(error)
    assert error.errno == errno.ENOTCONN
    assert commands == []


def test_making_a_mount_point_where_a_dead_mount_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is there, though nothing can look at it."""
    path = tmp_path / "dir"
    dead(monkeypatch, path, errno.ENOTCONN, 1)
    assert make_mountpoint(str(path)) == []


@pytest.mark.mount
def test_unmounting_what_is_not_mounted(tmp_path: Path) -> None:
    """What fusermount3 says, in one line."""
    with pytest.raises(MountError, match="cannot be unmounted: /usr/bin/fusermount3: ") as caught:
        unmount(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("said", "reason"), [("a\n b\n", "a b"), ("", "fusermount3 ended with 9")])
def test_an_unmount_that_fails(
    monkeypatch: pytest.MonkeyPatch, said: str, reason: str, tmp_path: Path
) -> None:
    """However much or little fusermount3 says."""
    done = SimpleNamespace(returncode=9, stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: done)
    with pytest.raises(MountError) as caught:
        unmount(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: cannot be unmounted: {reason}"


# Paths and locks


def test_resolving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links, dots, relative paths, bytes: one absolute path; what is no path is refused."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    real = os.path.realpath(tmp_path / "real")
    for path in (
        tmp_path / "link",
        "link",
        "./real/../link/",
        b"real",
        os.fsencode(tmp_path / "link"),
    ):
        assert resolve_mountpoint(path) == real
    for bad in ("", b"", None, 5, "nul\0"):
        with pytest.raises(MountError, match="is not a path") as caught:
            resolve_mountpoint(bad)  # type: ignore[arg-type]  # that is what is tested
        assert caught.value.errno == errno.EINVAL
        assert caught.value.offender == bad


def locks(path: Path) -> bool:
    """Tell whether the lock on a directory is to be had."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_the_lock(tmp_path: Path) -> None:
    """It is on the parent, for the length of the block."""
    before = os.listdir("/proc/self/fd")
    with lock_mountpoint(str(tmp_path / "point")):
        assert not locks(tmp_path)
    assert locks(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_a_lock_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, but not for ever; where there is no parent it is done without."""
    with open_directory(tmp_path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        timer = threading.Timer(0.05, fcntl.flock, (descriptor, fcntl.LOCK_UN))
        timer.start()
        with lock_mountpoint(str(tmp_path / "point")):
            assert not locks(tmp_path)
        timer.join()
        monkeypatch.setattr(mountpoints, "_PATIENCE", 0.02)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with lock_mountpoint(str(tmp_path / "point")):
            assert not locks(tmp_path)
    with lock_mountpoint(str(tmp_path / "no" / "point")):
        assert locks(tmp_path)


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Hold a directory open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    """They are refused, as by the kernel."""
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with pytest.raises(MountError, match="Too many levels of symbolic links"):
        resolve_mountpoint(tmp_path / "one")
