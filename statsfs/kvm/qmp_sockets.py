"""The QMP sockets of this host's VMs: which there are, and which are safe.

Owns patterns and the rights of directories. Another user who can put a socket into a directory can
answer in a VM's place. So a socket counts only where nobody but root and this process's user can
create, rename or remove files. Threading: pure functions.
"""

import contextlib
import glob
import os
import stat
from collections.abc import Iterable
from pathlib import Path
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
    """A socket: its real path, and device and inode, which tell it from its successor there."""

    path: str
    device: int
    inode: int


def is_pattern(path: str) -> bool:
    """Tell whether a path has `*`, `?` or `[]` and does not exist under that name."""
    return glob.has_magic(path) and not os.path.lexists(path)


def find_sockets(patterns: Iterable[str]) -> set[FoundSocket]:
    """Return the existing sockets of paths, or of patterns as of a shell with `**`."""
    found = set()
    for pattern in patterns:
        for path in glob.iglob(pattern, recursive=True) if is_pattern(pattern) else (pattern,):
            real = os.path.realpath(path)
            with contextlib.suppress(OSError):  # gone again, or not there yet
                state = os.lstat(real)
                if stat.S_ISSOCK(state.st_mode):
                    found.add(FoundSocket(real, state.st_dev, state.st_ino))
    return found


def check_directories(path: str) -> str:
    """Return a socket's real path if its directories are safe; else raise QmpError.

    Above the socket's directory a sticky one, such as /tmp, is safe: there only a file's owner can
    rename or remove it. Missing directories are not checked.
    """
    real = Path(os.path.realpath(path))
    for directory in real.parents:
        try:
            state = directory.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise QmpError(f"{path}: refused: {directory}: {error.strerror}", path) from error
        if state.st_uid not in (0, os.geteuid()):
            raise QmpError(f"{path}: refused: {directory} belongs to user {state.st_uid}", path)
        sticky = state.st_mode & stat.S_ISVTX and directory != real.parent
        if state.st_mode & _OTHERS and not sticky:
            raise QmpError(f"{path}: refused: others can write in {directory}", path)
    return str(real)


def check_path(path: str) -> None:
    """Raise QmpError if a path leads to something else than a safe socket, a pattern or nothing."""
    if is_pattern(path):
        return
    real = check_directories(path)
    try:
        mode = os.lstat(real).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise QmpError(f"{path}: refused: {error.strerror}", path) from error
    if not stat.S_ISSOCK(mode):
        raise QmpError(f"{path or repr(path)}: refused: not a socket", path)


def find_vm(pid: int) -> int:
    """Return a process's descriptor of its first VM, in which debugfs's name ends; or QmpError."""
    where = f"/proc/{pid}/fd"
    try:
        for fd in sorted(map(int, os.listdir(where))):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(f"{where}/{fd}") == _KVM_VM:
                    return fd
    except PermissionError as error:  # root without the capability may list, and not read links
        text = f"no permission to read {where}: needs CAP_SYS_PTRACE, or root"
        raise QmpError(text, pid) from error
    except OSError as error:
        raise QmpError(f"cannot read {where}: {error.strerror}", pid) from error
    raise QmpError(f"process {pid} has no VM of KVM: -accel kvm?", pid)
