"""The QMP sockets of this host's VMs: which there are, and which are safe.

Owns patterns and the rights of directories. Another user who can put a socket into a directory can
answer in a VM's place. So a socket counts only where nobody but root, this process's user and the
VM's user can create, rename or remove files. Threading: pure functions.
"""

import contextlib
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from statsfs.exceptions import QmpError
from statsfs.kvm.scanning import parse_link

__all__ = [
    "FoundSocket",
    "check_directories",
    "check_owners",
    "check_path",
    "find_manager",
    "find_sockets",
    "find_vm",
    "is_pattern",
]

# Directories of programs that connect to their VMs' sockets, some of them only now and then.
_MANAGERS: Final = {
    "/run/libvirt": "libvirt",
    "/var/lib/libvirt": "libvirt",
    "/run/qemu-server": "Proxmox VE",
}
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class FoundSocket(NamedTuple):
    """A socket: its real path, and device and inode, which tell it from its successor there."""

    path: str
    device: int
    inode: int


def is_pattern(path: str) -> bool:
    """Tell whether a path has `*`, `?` or `[]` and does not exist under that name."""
    return glob.has_magic(path) and not os.path.lexists(path)


def find_sockets(patterns: Iterable[str]) -> dict[FoundSocket, int]:
    """Return the existing sockets of paths, or of patterns as of a shell with `**`.

    The number is when each was made or changed, in nanoseconds: an inode may be used again.
    """
    found = {}
    for pattern in patterns:
        for path in glob.iglob(pattern, recursive=True) if is_pattern(pattern) else (pattern,):
            real = os.path.realpath(path)
            with contextlib.suppress(OSError):  # gone again, or not there yet
                state = os.lstat(real)
                if stat.S_ISSOCK(state.st_mode):
                    found[FoundSocket(real, state.st_dev, state.st_ino)] = state.st_ctime_ns
    return found


def find_manager(path: str) -> str | None:
    """Return the program in whose directories a path or the sockets of a pattern are, or None."""
    beginning = re.split(r"[*?[]", path)[0] if is_pattern(path) else path
    real = os.path.realpath(beginning)
    for directory, manager in _MANAGERS.items():
        if Path(real).is_relative_to(os.path.realpath(directory)):
            return manager
    return None


def check_directories(path: str) -> str:
    """Return a socket's real path if only owners can write in its directories; or raise QmpError.

    Above the socket's directory a sticky one, such as /tmp, is safe: there only a file's owner can
    rename or remove it. Missing directories are not checked.
    """
    real = Path(os.path.realpath(path))
    for directory, state in _find_directories(path):
        sticky = state.st_mode & stat.S_ISVTX and directory != real.parent
        if state.st_mode & _OTHERS and not sticky:
            raise QmpError(f"{path}: refused: others can write in {directory}", path)
    return str(real)


def check_owners(path: str, user: int) -> None:
    """Raise QmpError if a directory of a socket belongs to a user who is not permitted.

    Permitted are root, this process's user, and `user`, who runs the VM.
    """
    for directory, state in _find_directories(path):
        if state.st_uid not in (0, os.geteuid(), user):
            raise QmpError(f"{path}: refused: {directory} belongs to user {state.st_uid}", path)


def _find_directories(path: str) -> Iterator[tuple[Path, os.stat_result]]:
    for directory in Path(os.path.realpath(path)).parents:
        try:
            yield directory, directory.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise QmpError(f"{path}: refused: {directory}: {error.strerror}", path) from error


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
                if parse_link(os.readlink(f"{where}/{fd}")) == ("vm", 0):
                    return fd
    except PermissionError as error:  # root without the capability may list, and not read links
        text = f"no permission to read {where}: needs CAP_SYS_PTRACE, or root"
        raise QmpError(text, pid) from error
    except OSError as error:
        raise QmpError(f"cannot read {where}: {error.strerror}", pid) from error
    raise QmpError(f"process {pid} has no VM of KVM: -accel kvm?", pid)
