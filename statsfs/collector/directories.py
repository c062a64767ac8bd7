"""Directories: those that a collector reads, and the lock that makes them its own.

Owns which directories are open: the collector's, and one level of directories in it, each of which
is left to its owner.

Threading: for the collector's thread alone, but for `refused`, which any may read.
"""

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from statsfs.collector.trusted_directory import (
    Location,
    TrustedDirectory,
    identify,
    may_be_directory,
    open_directory,
)
from statsfs.collector.watching import Watch
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.model.values import check_name
from statsfs.segments.locks import hold
from statsfs.segments.places import COLLECTOR, HOST_DIRECTORY, SUFFIX
from statsfs.tree.log_budget import LogBudget

__all__ = ["Directories", "default_directory"]

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """Return `/run/statsfs` for root and `$XDG_RUNTIME_DIR/statsfs` for others, if it is set."""
    if not os.geteuid():
        return HOST_DIRECTORY
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "statsfs")
    raise SegmentError("no directory for segments: name one, or set XDG_RUNTIME_DIR", None)


class Directories:
    """The directories of a collector, the first of which may be made if it is missing.

    If that one is refused, or has another collector, it is a SegmentError, else an OSError.

    Args:
        path: of the collector's directory.
        watch, budget: the collector's.
        make: whether to make the directory.
        lock: the descriptor of the lock, of which another process has a copy; or None.

    Attributes:
        by_prefix: those that are read.
        refused: by the name of each that is not read, its user and the line that was logged.
        came, left: those that are read since they were looked at, and no longer, until somebody
            takes note of them.
    """

    def __init__(
        self,
        path: str,
        watch: Watch,
        budget: LogBudget,
        make: bool = True,
        lock: int | None = None,
    ) -> None:
        self.path: Final = path
        self.came: Final[list[TrustedDirectory]] = []
        self.left: Final[list[TrustedDirectory]] = []
        self._watch = watch
        self._budget = budget
        self.refused: Final[dict[str, tuple[int, str]]] = {}
        if make:
            with contextlib.suppress(FileExistsError):
                _make(path)
        self.top: Final = open_directory(path)
        self.by_prefix: Final = {"": self.top}
        self._lock = -1
        try:
            self._lock = _lock(self.top) if lock is None else lock
            self._lock_identity = identify(os.fstat(self._lock))
            watch.add("", self.top.fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all, and drop the lock."""
        for prefix in list(self.by_prefix):
            self._leave(prefix)
        self.drop_lock()

    def drop_lock(self) -> None:
        """Close the file of the lock, which a forked child would keep."""
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

    @property
    def lock(self) -> int:
        """The descriptor of the lock."""
        return self._lock

    def sign(self) -> None:
        """Write the number of this process into the lock's file."""
        _sign(self._lock)

    def is_there(self) -> bool:
        """Tell whether the directory is where it was, with the collector's own lock in it."""
        try:
            here, lock = os.stat(self.path), os.stat(COLLECTOR, dir_fd=self.top.fd)
        except OSError:
            return False
        ours = identify(lock) == self._lock_identity
        return ours and identify(here) == self.top.identity

    def find_owner(self, name: str) -> tuple[int, int]:
        """Return the user and the group of a top-level name: those of its directory, if any."""
        return self.by_prefix.get(f"{name}/", self.top).owner

    def locate(self, key: str) -> Location | None:
        """Return the location of a file by its key, if its directory is read."""
        prefix, slash, name = key.rpartition("/")
        directory = self.by_prefix.get(prefix + slash)
        return None if directory is None else Location(directory, name)

    def look(self, name: str) -> TrustedDirectory | None:
        """Open, check or close a directory in the collector's; return one that is to be read."""
        prefix = f"{name}/"
        known = self.by_prefix.get(prefix)
        status = Location(self.top, name).find()
        if status is None or not may_be_directory(name, status):
            self.refused.pop(name, None)
            self._leave(prefix)
            return None
        try:
            check_name(name, "a directory's name")
            found = open_directory(name, self.top)
        except (StatsfsError, OSError) as error:
            # Its segments go on, but no file is admitted.
            if known is not None:
                known.users = frozenset()
            self.log_error(name, error, status.st_uid)
            return None
        if known is not None and known.identity == found.identity and known.owner == found.owner:
            trusted = bool(known.users)
            known.users = found.users
            found.close()
            return None if trusted else self._note(known)
        self._leave(prefix)
        try:
            self._watch.add(prefix, found.fd)
        except OSError as error:
            found.close()
            self.log_error(name, error, found.owner[0])
            return None
        self.refused.pop(name, None)
        self.by_prefix[prefix] = found
        return self._note(found)

    def _note(self, found: TrustedDirectory) -> TrustedDirectory:
        self.came.append(found)
        return found

    def log_error(self, name: str, error: Exception, user: int) -> None:
        """Log why a directory is not read, once until it is."""
        if name not in self.refused:
            why = error.strerror if isinstance(error, OSError) and error.errno else error
            reason = f"{self.path}/{ascii(name)[1:-1]} is not read: {why}"
            self.refused[name] = (user, reason)
            self._budget.log(user, log, "%s", reason)

    def _leave(self, prefix: str) -> None:
        directory = self.by_prefix.pop(prefix, None)
        if directory is not None:
            self._watch.remove(prefix)
            directory.close()
            self.left.append(directory)

    def look_around(self) -> None:
        """Look at all directories in the collector's."""
        try:
            names = {one.name for one in self.top.entries() if _may_be_read(one)}
        except OSError as error:
            self.log_error(".", error, self.top.owner[0])
            return
        for name in self.refused.keys() - names - {"."}:
            del self.refused[name]
        known = {prefix[:-1] for prefix in self.by_prefix if prefix}
        for name in names | known:
            self.look(name)


def _may_be_read(entry: "os.DirEntry[str]") -> bool:
    # As `may_be_directory`, of what the listing says.
    if entry.name.startswith("."):
        return False
    is_link = entry.is_symlink() and not entry.name.endswith(SUFFIX)
    return is_link or entry.is_dir(follow_symlinks=False)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o755)
    except FileNotFoundError as error:
        # Only the last directory of a path is made: the others may be mistaken.
        why = f"{path}: {error.strerror}; make {os.path.dirname(path)}"
        raise SegmentError(why, path, error.errno) from None
    log.info("made %s", path)
    # The umask may have taken bits. By now the name may be a link, if others may write beside it.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)


def _lock(directory: TrustedDirectory) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    # Its mode keeps others from opening it: a reader could lock it too, and so every collector out.
    fd = os.open(COLLECTOR, flags, 0o600, dir_fd=directory.fd)
    try:
        if not hold(fd):
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip()
            who = f"process {pid}" if pid.isdecimal() else "another process"
            raise SegmentError(f"{directory.path} has a collector already: {who}", directory.path)
        os.fchmod(fd, 0o600)
        _sign(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sign(lock: int) -> None:
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
