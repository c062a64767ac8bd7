"""The QMP sockets of this host's VMs: which there are, and which of them may be used.

Owns patterns and the rights of directories. QMP is full control of a VM, and who can put a socket
into a directory can answer in a VM's place: so a socket counts only where nobody but root and this
process's user can put, rename or remove anything. What is spoken over a socket is the business of
`qmp`.

Threading: pure functions over the filesystem.
"""

import glob
import os
import stat
from collections.abc import Iterable
from typing import Final, NamedTuple

from statsfs.exceptions import QmpError

__all__ = [
    "FoundSocket",
    "check_directories",
    "check_path",
    "find_sockets",
    "find_vm",
    "is_pattern",
]

_KVM_VM: Final = "anon_inode:kvm-vm"
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class FoundSocket(NamedTuple):
    """A socket: its real path, and the device and inode that make it another than its successor."""

    path: str
    device: int
    inode: int


def is_pattern(path: str) -> bool:
    """Tell whether a path stands for others, by its `*`, `?` and `[]`; one that exists does not."""
    return glob.has_magic(path) and not os.path.lexists(path)


def find_sockets(patterns: Iterable[str]) -> set[FoundSocket]:
    """Return the sockets that there are, without symbolic links in their paths.

    Args:
        patterns: paths, or patterns as of a shell; `**` is any number of directories.
    """
    found = set()
    for pattern in patterns:
        for path in glob.iglob(pattern, recursive=True) if is_pattern(pattern) else (pattern,):
            real = os.path.realpath(path)
            try:
                state = os.lstat(real)
            except OSError:
                continue  # gone again, or not there yet
            if stat.S_ISSOCK(state.st_mode):
                found.add(FoundSocket(real, state.st_dev, state.st_ino))
    return found


def check_directories(path: str) -> str:
    """Return a socket's real path, once its directories are seen to be safe.

    The directory of the socket must be root's or this process's user's, and nobody else may write
    there, a sticky one as /tmp included. So must each directory above; there, a sticky one will do,
    as nobody can rename or remove in it what belongs to others. What does not exist yet is not
    looked at.

    Raises:
        QmpError: a directory in which others could put a socket of their own.
    """
    real = os.path.realpath(path)
    directory = os.path.dirname(real)
    nearest = True
    while True:
        try:
            state = os.lstat(directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise QmpError(f"{path}: refused: {directory}: {error.strerror}", path) from error
        else:
            _check_directory(path, directory, state, nearest)
        if directory == os.path.dirname(directory):
            return real
        directory, nearest = os.path.dirname(directory), False


def _check_directory(path: str, directory: str, state: os.stat_result, nearest: bool) -> None:
    sticky = bool(state.st_mode & stat.S_ISVTX) and not nearest
    if state.st_uid not in (0, os.geteuid()):
        raise QmpError(f"{path}: refused: {directory} belongs to user {state.st_uid}", path)
    if state.st_mode & _OTHERS and not sticky:
        raise QmpError(f"{path}: refused: others can write in {directory}", path)


def check_path(path: str) -> None:
    """Check that a path, which is no pattern, leads to a socket, or to nothing yet.

    Else whoever mistook a directory for its socket, or has no rights there, would wait for VMs that
    never come.

    Raises:
        QmpError: it leads to something else, or this process may not look; or others can write in
            the directory.
    """
    real = check_directories(path)
    try:
        state = os.lstat(real)
    except FileNotFoundError:
        return
    except OSError as error:
        raise QmpError(f"{path}: refused: {error.strerror}", path) from error
    if not stat.S_ISSOCK(state.st_mode):
        raise QmpError(f"{path or repr(path)}: refused: it is no socket", path)


def find_vm(pid: int) -> int:
    """Return the number that a process has for the VM that it made: debugfs's name ends in it.

    Args:
        pid: a VMM's; if it has made several VMs, it is the first.

    Raises:
        QmpError: it has none, or this process may not look.
    """
    where = f"/proc/{pid}/fd"
    try:
        fds = sorted(map(int, os.listdir(where)))
    except PermissionError as error:
        raise _no_rights(where, pid) from error
    except OSError as error:
        raise QmpError(f"process {pid} is not to be seen: {error.strerror}", pid) from error
    for fd in fds:
        try:
            if os.readlink(f"{where}/{fd}") == _KVM_VM:
                return fd
        except PermissionError as error:  # root without the capability may list them, no more
            raise _no_rights(where, pid) from error
        except OSError:
            pass  # closed meanwhile
    raise QmpError(f"process {pid} has no VM of KVM: -accel kvm?", pid)


def _no_rights(where: str, pid: int) -> QmpError:
    return QmpError(f"no rights to read {where}: CAP_SYS_PTRACE, or root, is needed", pid)
