"""Mount points: what may be mounted on, and what is wrong with what may not.

Owns the checks before a mount. libfuse accepts a file, a directory that is not empty and an
existing mount as mount points, and prints to stderr about bad ones; so everything is checked first,
and every refusal, a MountError, is one line that says what to do.

Threading: as the caller's.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from statsfs.exceptions import MountError

__all__ = [
    "FILESYSTEM",
    "find_device",
    "find_mount",
    "find_mounts",
    "find_options",
    "find_user",
    "is_dead",
    "lock_mountpoint",
    "make_mountpoint",
    "prepare_mountpoint",
    "remove_mountpoint",
    "resolve_mountpoint",
    "unescape",
    "unmount",
]

FILESYSTEM: Final = "fuse.statsfs"
"""The type of ours in the table of mounts."""

_FUSE_CONF: Final = "/etc/fuse.conf"
_PROC: Final = "/proc"
_USUAL_PATH: Final = "/usr/bin:/bin:/usr/sbin:/sbin"
_NO_FUSERMOUNT: Final = "there is no fusermount3; apt install fuse3"
_PATIENCE: Final = 5.0  # seconds
_LINKS_MAX: Final = 40  # in a path, as in the kernel
_HOST_PIDS: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO: the kernel's first namespace of processes


class _Mounted(NamedTuple):
    id: bytes
    parent: bytes
    point: bytes
    type: str
    device: str
    root: bytes  # of the filesystem: the directory that is seen there
    options: bytes
    groups: dict[bytes, bytes]  # of peers, by what the mount is to them: shared, master


def _read_mounts(process: str = "self") -> Iterator[_Mounted]:
    # As bytes: a path may have what Python takes for a blank or for the end of a line.
    table = f"{_PROC}/{process}/mountinfo"
    try:
        with open(table, "rb") as mounts:
            lines = list(mounts)
    except FileNotFoundError as error:
        reason = "is not there; mount proc first: mount -t proc proc /proc"
        raise _refusal(table, reason, error.errno) from None
    for line in lines:
        # proc(5): (1) id (2) parent's id (3) device (4) root (5) mount point (6) options (7) groups
        # … "-" (9) type … options of the filesystem; blanks in paths are octal.
        fields = line.rstrip(b"\n").split(b" ")
        end = fields.index(b"-")
        pairs = [group.partition(b":") for group in fields[6:end]]
        yield _Mounted(
            fields[0],
            fields[1],
            unescape(fields[4]),
            fields[end + 1].decode(),
            fields[2].decode(),
            fields[3],
            fields[5] + b"," + fields[-1],
            {name: number for name, _, number in pairs},
        )


def unescape(field: bytes) -> bytes:
    """Return a field of a table of mounts, in which blanks and their like are octal."""
    return re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), field)


def _find_mounted(path: str) -> _Mounted | None:
    # The mount on top: nothing is mounted on it. One that was put beneath it may come later.
    point = os.fsencode(path)
    found = [one for one in _read_mounts() if one.point == point]
    covered = {one.parent for one in found}
    return next((one for one in reversed(found) if one.id not in covered), None)


def find_mount(path: str) -> str | None:
    """Return the type of the filesystem that is mounted on an absolute path, or None."""
    found = _find_mounted(path)
    return None if found is None else found.type


def find_mounts(kind: str) -> list[str]:
    """Return where filesystems of a type are mounted: each once, where it was mounted first."""
    tops = {mounted.point: mounted for mounted in _read_mounts()}  # the last is on top
    found = {one.device: one.point for one in reversed(tops.values()) if one.type == kind}
    return sorted(map(os.fsdecode, found.values()))


def find_device(path: str) -> str | None:
    """Return the device, as "major:minor", of what is mounted on a path, or None.

    No two filesystems have the same at a time, mounted or still in use.
    """
    found = _find_mounted(path)
    return None if found is None else found.device


def find_options(path: str) -> list[str]:
    """Return the options of what is mounted on a path, as mount(8) lists them."""
    found = _find_mounted(path)
    return [] if found is None else os.fsdecode(found.options).split(",")


def find_user(path: str) -> int | None:
    """Return the user who mounted the FUSE filesystem that is on an absolute path, or None."""
    found = _find_mounted(path)
    user = None if found is None else re.search(rb"\buser_id=(\d+)", found.options)
    return None if user is None else int(user[1])


def _is_debugfs(path: str) -> bool:
    # Its files are the kernel's own, and not lost when something is mounted over them: that is how
    # our tree gets where programs look for the kernel's.
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return ("debugfs", number) in ((mounted.type, mounted.device) for mounted in _read_mounts())


def _refusal(path: str, reason: str, number: int | None = None) -> MountError:
    return MountError(f"{path}: {reason}", path, number)


def resolve_mountpoint(path: str | bytes | os.PathLike[str]) -> str:
    """Return the absolute path, without symbolic links; raise MountError if it is not a path."""
    try:
        text = os.fsdecode(path)
        if not text:
            raise ValueError("it is empty")
        if "\0" in text:
            raise ValueError("it has a null byte")
        absolute = os.path.abspath(text)
        # The kernel's own paths are without symbolic links; and lstat(2) would wait for a server
        # that hangs.
        if ".." not in text.split("/") and find_mount(absolute) is not None:
            return absolute
        return _follow_links(text if os.path.isabs(text) else os.path.join(os.getcwd(), text))
    except (TypeError, ValueError) as error:
        raise MountError(f"{path!r} is not a path: {error}", path, errno.EINVAL) from None
    except FileNotFoundError as error:  # from getcwd(2)
        reason = "the current directory was deleted; change to another, or give an absolute path"
        raise _refusal(text, reason, error.errno) from None
    except MountError:
        raise
    except OSError as error:  # the table of mounts cannot be opened
        raise _refusal(text, str(error.strerror), error.errno) from None


def _follow_links(path: str) -> str:
    # As os.path.realpath, but looks at no mount point, which is never a link.
    left = path.split("/")[::-1]
    found, links = "/", 0
    while left:
        name = left.pop()
        if name == "..":
            found = os.path.dirname(found)
        elif name not in ("", "."):
            found = os.path.join(found, name)
            target = "" if find_mount(found) is not None else _read_link(found)
            if target:
                links += 1
                if links > _LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                found = "/" if target.startswith("/") else os.path.dirname(found)
                left += target.split("/")[::-1]
    return found


def _read_link(path: str) -> str:
    # Where it leads; "" if it is no link, or not there.
    try:
        return os.readlink(path)
    except OSError:
        return ""


@contextlib.contextmanager
def lock_mountpoint(path: str) -> Iterator[None]:
    """Keep watchers of dead mounts, and other servers, from mounting or unmounting at a path.

    It is a lock on the parent directory, waited for a few seconds and then done without: anyone who
    may read the directory can hold it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.005)
        yield


def make_mountpoint(path: str) -> list[str]:
    """Make a directory and its parents; return those that were not there, the innermost first."""
    missing = []
    while not os.path.lexists(path) and not is_dead(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    for directory in reversed(missing):
        try:
            os.mkdir(directory)
        except FileExistsError:
            continue
        except OSError as error:
            remove_mountpoint(made)
            reason = f"cannot be made: {error.strerror}"
            raise _refusal(directory, reason, error.errno) from None
        made.insert(0, directory)
    return made


def remove_mountpoint(made: list[str]) -> None:
    """Remove the directories that `make_mountpoint` returned, where they are empty."""
    for directory in made:
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount a FUSE filesystem; raise MountError if it is busy, not there, or another user's.

    A lazy unmount detaches it at once, even if it is busy.
    """
    command = _find_command(path, lazy)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = (
            " ".join(done.stderr.split())
            or f"{os.path.basename(command[0])} ended with {done.returncode}"
        )
        raise _refusal(path, f"cannot be unmounted: {reason}")


def prepare_mountpoint(path: str, *, allow_other: bool) -> None:
    """Check that an absolute path can be mounted on; clear the mount of a dead server of ours."""
    _check_system(path, allow_other)
    while is_dead(path):
        kind = find_mount(path)
        if kind != FILESYSTEM:
            raise _refusal(
                path,
                f"a dead mount ({kind}) of another program is there; "
                f"unmount it first: fusermount3 -uz {path}",
                errno.ENOTCONN,
            )
        unmount(path, lazy=True)
    _check_directory(path)


def is_dead(path: str) -> bool:
    """Ask the filesystem that is mounted on a path; tell whether its server has ended."""
    if _is_autofs(path):
        return False
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _find_command(path: str, lazy: bool) -> list[str]:
    # What unmounts; -i, as mount(8) could call a helper that is this program.
    fusermount = _find_program("fusermount3")
    if fusermount is not None:
        return [fusermount, "-uz" if lazy else "-u", "--", path]
    umount = None if os.geteuid() else _find_program("umount")
    if umount is None:
        raise _refusal(path, _NO_FUSERMOUNT, errno.ENOENT)
    return [umount, "-il" if lazy else "-i", "--", path]


def _find_program(name: str) -> str | None:
    # libfuse, too, looks where Debian has it before it looks in PATH.
    return shutil.which(name, path=os.pathsep.join((_USUAL_PATH, os.environ.get("PATH", ""))))


def _is_autofs(path: str) -> bool:
    # A look into it has something mounted there: we are to mount, and would wait for ourselves.
    mounted = _find_mounted(path)
    return mounted is not None and mounted.type == "autofs"


def _check_system(path: str, allow_other: bool) -> None:
    if not os.path.exists("/dev/fuse"):
        raise _refusal(
            path,
            "there is no /dev/fuse; load the module (modprobe fuse), "
            "or give the container the device (--device /dev/fuse)",
            errno.ENODEV,
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        reason = "no permission to use /dev/fuse; run as root, or chmod 666 /dev/fuse"
        raise _refusal(path, reason, errno.EACCES)
    if os.geteuid() and _find_program("fusermount3") is None:
        raise _refusal(path, _NO_FUSERMOUNT, errno.ENOENT)
    if allow_other and os.geteuid() and not _others_allowed():
        reason = f"letting other users in needs root, or the line user_allow_other in {_FUSE_CONF}"
        raise _refusal(path, reason, errno.EPERM)


def _others_allowed() -> bool:
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as conf:
            return any(line.partition("#")[0].strip() == "user_allow_other" for line in conf)
    except OSError:
        return False


def _check_directory(path: str) -> None:
    try:
        problem, number = _find_problem(path)
    except MountError:
        raise
    except FileNotFoundError as error:
        reason = "no such directory; make it (mkdir), or mount with create=True (--create)"
        raise _refusal(path, reason, error.errno) from None
    except OSError as error:
        raise _refusal(path, str(error.strerror), error.errno) from None
    if problem:
        raise _refusal(path, problem, number)


def _find_problem(path: str) -> tuple[str, int]:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        return "not a directory", errno.ENOTDIR
    mounted = _find_mounted(path)
    if mounted is not None and not _is_for_mounts(mounted):
        kind = mounted.type
        # The worker processes of one program all come here but the first.
        workers = "; several processes: use publish()" if kind == FILESYSTEM else ""
        return (
            f"something is mounted there already ({kind}); "
            f"unmount it first, or choose another directory{workers}",
            errno.EBUSY,
        )
    if os.geteuid() and not os.access(path, os.W_OK):
        return "no permission; choose a directory that you may write", errno.EACCES
    if _is_hidden(path):
        return (
            "the host would not see the mount: this process has a mount namespace of its own; take "
            "ProtectSystem= and its like out of the unit, or mount --make-private the filesystem "
            "there to mount for this namespace alone",
            errno.EINVAL,
        )
    if not _is_autofs(path) and os.listdir(path) and not _is_debugfs(path):
        return "the directory is not empty; choose another", errno.ENOTEMPTY
    return "", 0


def _is_for_mounts(mounted: _Mounted) -> bool:
    # An automount point (automount(8), systemd.automount(5)), or a bind mount: its filesystem is
    # mounted elsewhere too. Whether it is empty is checked later.
    if mounted.type == FILESYSTEM:
        return False
    devices = [other.device for other in _read_mounts()]
    is_bound = mounted.root != b"/" or devices.count(mounted.device) > 1
    return mounted.type == "autofs" or is_bound


def _is_hidden(path: str) -> bool:
    # Whether the host has this directory, but not what is mounted there: its mounts come here, and
    # ours do not go there. So it is with systemd's ProtectSystem=, which makes a namespace in which
    # mounts are slaves of the host's, and shared with each other.
    fd = os.open(path, os.O_PATH)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            id = next(line.split()[1] for line in info if line.startswith(b"mnt_id:"))
    finally:
        os.close(fd)
    groups = next((one.groups for one in _read_mounts() if one.id == id), {})
    if b"master" not in groups:
        return False
    try:
        if os.readlink("/proc/1/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False  # a container: its first process is in the same namespace
        host = [one.groups.get(b"shared") for one in _read_mounts("1")]
    except OSError:  # only root may look
        in_container = os.stat("/proc/self/ns/pid").st_ino != _HOST_PIDS
        return b"shared" not in groups and not in_container
    return b"shared" not in groups or groups[b"master"] in host
