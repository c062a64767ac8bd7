"""The home of a collector: its directory, those in it, and the lock that makes them its own.

Owns which directories are read: the collector's, and one level of others in it, each of which is
left to its owner. What is in them is the business of others.

Threading: for the collector's thread alone.
"""

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statsfs.collector.journal_file import JournalFiles
from statsfs.collector.trusted_directory import SegmentDirectory, open_directory
from statsfs.collector.watching import Watch
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.model.values import check_name
from statsfs.segments.locks import hold
from statsfs.segments.places import COLLECTOR, HOST_DIRECTORY

__all__ = ["Home", "find_home"]

log = logging.getLogger(__name__)

_TOLD_MAX: Final = 1000


def find_home() -> Path:
    """Return where a collector looks if nobody says where; it is made if need be.

    That is `/run/statsfs` for root, and `$XDG_RUNTIME_DIR/statsfs` for others.

    Raises:
        SegmentError: there is none.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not os.geteuid():
        path = HOST_DIRECTORY
    elif runtime:
        path = Path(runtime, "statsfs")
    else:
        raise SegmentError("no directory for segments: name one, or set XDG_RUNTIME_DIR", None)
    return path


class Home:
    """The directories of a collector.

    Args:
        path: the collector's directory, which is made if there is none.
        watch: tells what happens in them, by their prefixes.

    Attributes:
        directories: by prefix, "" for the collector's own.
        records: what outlives a collector here.

    Raises:
        SegmentError: it is refused, or another collector has it; the message is one line.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, watch: Watch) -> None:
        self.path: Final = path
        self._watch = watch
        self._told: Final[set[str]] = set()
        with contextlib.suppress(FileExistsError):
            _make(path)
        self.top: Final = open_directory(path)
        self.directories: Final = {"": self.top}
        self._lock = -1
        try:
            self._lock = _lock(self.top)
            self.records: Final = JournalFiles(self.top)
            watch.add("", self.top.fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all, and give the lock back."""
        for prefix, directory in self.directories.items():
            self._watch.remove(prefix)
            directory.close()
        if hasattr(self, "records"):
            self.records.close()
        self.disown()

    def disown(self) -> None:
        """Let go of the lock in a forked child, which would keep it beyond the collector's end."""
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

    @property
    def is_there(self) -> bool:
        """Whether the directory is where it was, and the lock in it ours."""
        ours, found = os.fstat(self._lock), self.top.find(COLLECTOR)
        return (
            found is not None
            and (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
            and self.top.is_at(self.path)
        )

    def find_owner(self, name: str) -> tuple[int, int]:
        """Return the user and the group whose a top-level name is.

        A name that was left to somebody by a directory of that name is his, whoever uses it first.
        """
        return self.directories.get(f"{name}/", self.top).owner

    def look(self, name: str) -> SegmentDirectory | None:
        """Find out what is to be done about what may be a directory in the collector's.

        Returns:
            One that must be read, for it is new, or trusted again.
        """
        prefix = f"{name}/"
        known = self.directories.get(prefix)
        status = self.top.find(name)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._told.discard(name)
            self._leave(prefix)
            return None
        try:
            check_name(name, "a directory's name")
            found = open_directory(name, self.top)
        except (StatsfsError, OSError) as error:
            # What is in it already is looked after, but nothing new is let in.
            if known is not None:
                known.users = frozenset()
            self._tell(name, error)
            return None
        if known is not None and known.identity == found.identity and known.owner == found.owner:
            trusted = bool(known.users)
            known.users = found.users
            found.close()
            return None if trusted else known
        self._leave(prefix)
        try:
            self._watch.add(prefix, found.fd)
        except OSError as error:
            found.close()
            self._tell(name, error)
            return None
        self._told.discard(name)
        self.directories[prefix] = found
        return found

    def _tell(self, name: str, error: Exception) -> None:
        if name not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(name)
            why = error.strerror if isinstance(error, OSError) and error.errno else error
            log.warning("%s/%s is not read: %s", self.path, ascii(name)[1:-1], why)

    def _leave(self, prefix: str) -> None:
        directory = self.directories.pop(prefix, None)
        if directory is not None:
            self._watch.remove(prefix)
            directory.close()

    def look_around(self) -> None:
        """Find out which directories there are."""
        try:
            names = self.top.names()[1]
        except OSError as error:
            self._tell(".", error)
        else:
            for name in {*names, *(prefix[:-1] for prefix in self.directories if prefix)}:
                self.look(name)

    def scan(self) -> Iterator[tuple[SegmentDirectory, list[str]]]:
        """Yield each directory with what may be segments in it; those that can be read."""
        for directory in list(self.directories.values()):
            files = self.list_files(directory)
            if files is not None:
                yield directory, files
                directory.remove_unfinished()

    def list_files(self, directory: SegmentDirectory) -> list[str] | None:
        """Return the names of what may be segments; None if the directory cannot be read."""
        try:
            return directory.names()[0]
        except OSError as error:
            self._tell(directory.prefix, error)
            return None


def _make(path: str) -> None:
    os.mkdir(path, 0o755)
    # Whatever the umask; and whatever has its name by now, if others may write what it is in.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)


def _lock(directory: SegmentDirectory) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    # Whoever may read it could take a lock that keeps every collector out.
    fd = os.open(COLLECTOR, flags, 0o600, dir_fd=directory.fd)
    try:
        if not hold(fd):
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            who = f"process {pid}" if pid.isdecimal() else "another process"
            raise SegmentError(f"{directory.path} has a collector already: {who}", directory.path)
        os.fchmod(fd, 0o600)
        os.truncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
