"""Locks that tell whether a producer is alive: held, probed, and not to be faked."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.segments.locks import hold, is_alive


def opened(path: Path, flags: int = os.O_RDWR) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[list[int]]:
    """A file opened three times: to hold, to hold, and to ask."""
    path = tmp_path / "file"
    fds = [opened(path), opened(path), opened(path, os.O_RDONLY)]
    yield fds
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_one_holds_and_others_see_it(fds: list[int]) -> None:
    """The second is refused, and a reader sees the lock until it is dropped."""
    first, second, reader = fds
    assert not is_alive(reader)
    assert hold(first)
    assert hold(first)
    assert not hold(second)
    assert is_alive(reader)
    assert is_alive(second)
    assert not is_alive(first), "nobody else does"
    os.close(first)
    assert not is_alive(reader)
    assert hold(second)


def test_a_duplicate_keeps_it(fds: list[int]) -> None:
    """The lock belongs to what was opened: closing one of its descriptors is not its end."""
    first, _, reader = fds
    assert hold(first)
    kept = os.dup(first)
    os.close(first)
    assert is_alive(reader)
    os.close(kept)
    assert not is_alive(reader)


def test_who_may_only_read_cannot_fake_it(fds: list[int]) -> None:
    """Neither a lock of flock(2) nor a read lock keeps anything alive; a write lock is refused."""
    first, _, reader = fds
    fcntl.flock(reader, fcntl.LOCK_EX)
    fcntl.fcntl(reader, 37, bytes(32))  # F_OFD_SETLK: zeros are a read lock of everything
    assert not is_alive(first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        hold(reader)


def test_locks_of_processes_count_too(tmp_path: Path) -> None:
    """A write lock of the old kind, of another process, counts as well."""
    path = tmp_path / "file"
    fd = opened(path)
    program = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.lockf(fd, fcntl.LOCK_EX)\n"
        "print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_alive(fd)
        assert not hold(fd)
    assert not is_alive(fd)
    os.close(fd)


def test_what_is_no_file_is_an_error() -> None:
    """Not a dead segment, nor a living one."""
    for ask in (hold, is_alive):
        with pytest.raises(OSError, match="Bad file descriptor"):
            ask(999_999)
