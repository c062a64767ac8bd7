"""Trusted directories: which files of which users are opened, and how.

Owns one open directory, and how a file that anybody may have written is opened without harm.

Threading: for the collector's thread, but for `open_for_writing`, which changes nothing.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from statsfs.collector.file_ids import find_id
from statsfs.exceptions import FormatError, SegmentError
from statsfs.segments.file_format import FILE_MAX, decode
from statsfs.segments.locks import is_alive
from statsfs.segments.places import SUFFIX, check_directory

__all__ = [
    "Location",
    "Look",
    "TrustedDirectory",
    "identify",
    "may_be_directory",
    "open_directory",
]

# Does not follow links, wait for pipes or take a terminal over.
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# The name in `publishing` of an unfinished file; to finish it takes far less than a millisecond.
_UNFINISHED: Final = re.compile(r"\..*-[0-9a-f]{16}")
_UNFINISHED_AGE: Final = 60.0  # seconds

_PRIVATE: Final = "private"  # systemd's, in /run


def identify(status: os.stat_result) -> tuple[int, int]:
    """Return the device and the inode, which no other file has while this one is open."""
    return status.st_dev, status.st_ino


class Look(NamedTuple):
    """Whether a segment's producer lives, when its file last changed, in ns, its id and path."""

    alive: bool
    changed: int
    id: str
    path: str


class Location(NamedTuple):
    """Where a file is, or was."""

    directory: "TrustedDirectory"
    name: str

    def __str__(self) -> str:
        return f"{self.directory.path}/{ascii(self.name)[1:-1]}"

    @property
    def key(self) -> str:
        """The name, after "NAME/" if it is in a directory in the collector's."""
        return self.directory.prefix + self.name

    def find(self) -> os.stat_result | None:
        """Return the status of a file, not following a link; None if there is no file."""
        try:
            return os.stat(self.name, dir_fd=self.directory.fd, follow_symlinks=False)
        except OSError:
            return None

    def look(self) -> "Look | None":
        """Look into a file; return None if it is not a segment."""
        try:
            fd, status = self.directory.open(self.name)
            with open(fd, "rb", 0):
                metadata = decode(os.pread(fd, status.st_size, 0))
                id, path = find_id(metadata, fd), metadata.path
                return Look(is_alive(fd), status.st_ctime_ns, id, path)
        except (FormatError, OSError):  # logged later, when the file is refused
            return None

    def remove(self) -> str:
        """Remove the file; return why it is still there, or "" if it is gone."""
        try:
            os.unlink(self.name, dir_fd=self.directory.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            return os.strerror(error.errno or 0)
        return ""


class TrustedDirectory:
    """One open directory.

    Args:
        fd: its descriptor, which is closed with it.
        path: for messages.
        prefix: "" for the collector's own directory; "NAME/" for a directory in it, where all paths
            of segments begin so.
        users: only files of theirs are opened.
    """

    def __init__(self, fd: int, path: str, prefix: str, users: Collection[int]) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.path = path
        self.prefix = prefix
        self.users = frozenset(users)
        self.owner = (status.st_uid, status.st_gid)
        self.identity = identify(status)

    def close(self) -> None:
        """Close its descriptor, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def entries(self) -> Iterator["os.DirEntry[str]"]:
        """Return all that is in it, in pieces; if it cannot be read, that is an OSError."""
        # An open file of its own: another listing has another position in it.
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def remove_unfinished(self, name: str) -> None:
        """Remove the file of that name if its producer died while it published."""
        if _UNFINISHED.fullmatch(name):
            with contextlib.suppress(OSError):
                alive, status = self.probe(name)
                if not alive and time.time() - status.st_ctime > _UNFINISHED_AGE:
                    os.unlink(name, dir_fd=self.fd)

    def probe(self, name: str) -> tuple[bool, os.stat_result]:
        """Tell whether a file's producer lives; return its status too. The errors are `open`'s."""
        fd, status = self.open(name)
        with open(fd, "rb", 0):
            return is_alive(fd), status

    def open_for_writing(self, name: str, identity: tuple[int, int]) -> int:
        """Open the file of this name and identity for writing, as `open` does."""
        fd, status = self.open(name, os.O_WRONLY)
        if identify(status) != identity:
            os.close(fd)
            raise SegmentError(f"{self.path}/{name} is another file now", name)
        return fd

    def open(self, name: str, how: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """Open a file, which any user may have created; return its descriptor and its status.

        If it is refused, that is a SegmentError with a message of one line; else an OSError.
        """
        seen = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        self._check(name, seen)
        fd = os.open(name, how | _FLAGS, dir_fd=self.fd)
        try:
            status = os.fstat(fd)
            if identify(status) != identify(seen):
                raise SegmentError("another file took its place", f"{self.path}/{name}")
            self._check(name, status)
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def check_user(self, name: str, status: os.stat_result) -> None:
        """Raise SegmentError if the user of a file may not publish here."""
        if status.st_uid not in self.users:
            why = f"user {status.st_uid} may not publish here"
            raise SegmentError(why, f"{self.path}/{name}")

    def _check(self, name: str, status: os.stat_result) -> None:
        self.check_user(name, status)
        reasons = {
            "not a regular file": not stat.S_ISREG(status.st_mode),
            "it is on another device": status.st_dev != self.identity[0],
            f"{status.st_size} bytes, not at most {FILE_MAX}": status.st_size > FILE_MAX,
        }
        for why, refused in reasons.items():
            if refused:
                raise SegmentError(why, f"{self.path}/{name}")


def may_be_directory(name: str, status: os.stat_result) -> bool:
    """Tell whether a file is a directory, or a link, which `open_directory` follows or refuses."""
    is_link = stat.S_ISLNK(status.st_mode) and not name.endswith(SUFFIX)
    return is_link or stat.S_ISDIR(status.st_mode)


def open_directory(path: str, inside: TrustedDirectory | None = None) -> TrustedDirectory:
    """Open the collector's directory, or one `inside` it by its name.

    Only its owner may be able to put files there; the collector's user is trusted as well, in its
    own directory. If it is refused, that is a SegmentError with a message of one line that says
    what to do; else an OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if inside is None:
        fd, shown = os.open(path, flags), path
    else:
        shown = f"{inside.path}/{ascii(path)[1:-1]}"
        fd = _open_inside(path, shown, inside)
    try:
        status = os.fstat(fd)
        check_directory(status, shown)
        if inside is not None:
            if status.st_dev != inside.identity[0]:
                raise SegmentError(f"{shown} is on another device", path)
            return TrustedDirectory(fd, shown, f"{path}/", {status.st_uid})
        if status.st_uid not in (0, os.geteuid()):
            raise SegmentError(
                f"{shown} is user {status.st_uid}'s, neither root's nor ours: chown it", path
            )
        return TrustedDirectory(fd, shown, "", {status.st_uid, os.geteuid()})
    except BaseException:
        os.close(fd)
        raise


def _open_inside(name: str, shown: str, inside: TrustedDirectory) -> int:
    # With systemd.exec(5)'s DynamicUser=yes the name is a link of root's. It leads to a directory
    # in `private` beside ours, which only root may enter.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    status = os.stat(name, dir_fd=inside.fd, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        return os.open(name, flags, dir_fd=inside.fd)
    way = ("..", _PRIVATE, os.path.basename(inside.path))
    wanted = os.path.join(*way, name)
    if status.st_uid or os.readlink(name, dir_fd=inside.fd) != wanted:
        raise SegmentError(f"{shown} is a link, and not root's to {wanted} (DynamicUser=yes)", name)
    with contextlib.ExitStack() as stack:
        fd = inside.fd
        for part in way:
            fd = os.open(part, flags, dir_fd=fd)
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            check_directory(status, f"{shown} is a link through {part}:")
            if status.st_uid:
                raise SegmentError(f"{shown} is a link through {part}, which is not root's", name)
        return os.open(name, flags, dir_fd=fd)
