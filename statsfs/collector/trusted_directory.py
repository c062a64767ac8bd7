"""The directories of a collector: which files in them may be trusted that far.

Owns one opened directory, whose files are let in, and how a file of a stranger is opened without
harm. What is in the file is the business of others.

Threading: no state that changes but being closed, by the collector; `open_for_writing` may come
from any thread before that.
"""

import contextlib
import os
import re
import stat
import time
from collections.abc import Collection, Iterable
from typing import Final

from statsfs.exceptions import SegmentError
from statsfs.segments.file_format import FILE_MAX
from statsfs.segments.locks import is_alive
from statsfs.segments.places import SUFFIX, check_directory

__all__ = ["SegmentDirectory", "open_directory"]

# Links are not followed, pipes not waited for, terminals not taken over.
_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# What `publishing` calls a file that it has not finished; that takes far less than a millisecond.
_UNFINISHED: Final = re.compile(r"\..*-[0-9a-f]{16}")
_UNFINISHED_AGE: Final = 60.0  # seconds


class SegmentDirectory:
    """One opened directory, and whose files it may have.

    Args:
        fd: its descriptor, which is closed with it.
        path: where it is, for messages.
        prefix: "" for the collector's own directory, "NAME/" for one of those in it, in which all
            paths begin so.
        users: whose files are let in, by number.

    Attributes:
        owner: the user and the group whose the directory is.
    """

    __slots__ = ("fd", "identity", "owner", "path", "prefix", "users")

    def __init__(self, fd: int, path: str, prefix: str, users: Collection[int]) -> None:
        status = os.fstat(fd)
        self.fd = fd
        self.path = path
        self.prefix = prefix
        self.users = frozenset(users)
        self.owner = (status.st_uid, status.st_gid)
        self.identity = (status.st_dev, status.st_ino)

    def close(self) -> None:
        """Close its descriptor; twice does no harm."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def is_at(self, path: str) -> bool:
        """Tell whether a path still leads to this directory."""
        try:
            status = os.stat(path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of what may be segments, and those of what may be directories.

        Raises:
            OSError: it cannot be read.
        """
        files, directories = [], []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
                elif entry.name.endswith(SUFFIX):
                    files.append(entry.name)
        return files, directories

    def remove_unfinished(self) -> None:
        """Remove what was begun by producers who died before it had a name."""
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = os.listdir(self.fd)
        for name in names:
            status = self.find(name) if _UNFINISHED.fullmatch(name) else None
            if status is None or time.time() - status.st_ctime < _UNFINISHED_AGE:
                continue
            with contextlib.suppress(OSError):
                fd, _ = self.open(name)
                try:
                    if not is_alive(fd):
                        os.unlink(name, dir_fd=self.fd)
                finally:
                    os.close(fd)

    def find(self, name: str) -> os.stat_result | None:
        """Return what a file is, itself and not what it links to; None if there is none."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None

    def in_order(self, files: Iterable[str]) -> list[str]:
        """Return the names of segments in the order in which they are to be let in.

        The dead come first: at the path of one who lives they would wait for his death, and what
        they counted with them. Of the living the one with the oldest file has the path, as it had
        it before; that is the one who was first, at least where files are in memory.
        """
        return sorted(files, key=self._rank)

    def _rank(self, name: str) -> tuple[bool, int, str]:
        alive, changed = True, 0
        # What cannot be opened is refused later, with a reason.
        with contextlib.suppress(SegmentError, OSError):
            fd, status = self._open(name, os.O_RDONLY)
            try:
                alive, changed = is_alive(fd), status.st_ctime_ns
            finally:
                os.close(fd)
        return alive, changed, name

    def open(self, name: str) -> tuple[int, os.stat_result]:
        """Open a file for reading that anybody may have put there.

        Returns:
            Its descriptor, and what it is.

        Raises:
            SegmentError: it is refused; the message is one line.
            OSError: it cannot be opened.
        """
        return self._open(name, os.O_RDONLY)

    def open_for_writing(self, name: str, identity: tuple[int, int]) -> int:
        """Open a file for writing, if it is the one that is meant; return its descriptor.

        Raises:
            SegmentError: it is another one by now, or refused.
            OSError: it cannot be opened.
        """
        fd, status = self._open(name, os.O_WRONLY)
        if (status.st_dev, status.st_ino) != identity:
            os.close(fd)
            raise SegmentError(f"{self.path}/{name} is another file by now", name)
        return fd

    def _open(self, name: str, how: int) -> tuple[int, os.stat_result]:
        seen = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        self._check(name, seen)
        fd = os.open(name, how | _FLAGS, dir_fd=self.fd)
        try:
            status = os.fstat(fd)
            # It may have been replaced in between.
            if (status.st_dev, status.st_ino) != (seen.st_dev, seen.st_ino):
                raise self._refuse(name, "another file took its place")
            self._check(name, status)
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def _check(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise self._refuse(name, "it is no regular file")
        if status.st_uid not in self.users:
            raise self._refuse(name, f"user {status.st_uid} may not publish here")
        if status.st_nlink > 1:
            raise self._refuse(name, f"it has {status.st_nlink} links")
        if status.st_dev != self.identity[0]:
            raise self._refuse(name, "it is on another device")
        if status.st_size > FILE_MAX:
            raise self._refuse(name, f"{status.st_size} bytes, not at most {FILE_MAX}")

    def _refuse(self, name: str, why: str) -> SegmentError:
        return SegmentError(why, f"{self.path}/{name}")


def open_directory(path: str, inside: SegmentDirectory | None = None) -> SegmentDirectory:
    """Open a directory into which nobody but its owner can put anything.

    Args:
        path: the collector's directory; or the name of one in `inside`, which is another owner's
            as a rule, and has his files alone.
        inside: the collector's directory.

    Raises:
        SegmentError: it is refused; the message is one line that says what to do.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if inside is None:
        fd, shown = os.open(path, flags), path
    else:
        shown = f"{inside.path}/{ascii(path)[1:-1]}"
        fd = os.open(path, flags | os.O_NOFOLLOW, dir_fd=inside.fd)
    try:
        status = os.fstat(fd)
        check_directory(status, shown)
        if inside is not None:
            if status.st_dev != inside.identity[0]:
                raise SegmentError(f"{shown} is on another device", path)
            return SegmentDirectory(fd, shown, f"{path}/", {status.st_uid})
        if status.st_uid not in (0, os.geteuid()):
            raise SegmentError(
                f"{shown} is user {status.st_uid}'s, neither root's nor ours: chown it", path
            )
        return SegmentDirectory(fd, shown, "", {status.st_uid, os.geteuid()})
    except BaseException:
        os.close(fd)
        raise
