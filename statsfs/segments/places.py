"""The directories of segments: which one is meant, and whether one can be trusted.

Owns the choice of a directory where nobody names one, and what must be true of one. What lies in
it is the business of others. The environment is read when something is asked, never before.

For others: `find_directory()` is where a program publishes, `check_directory` raises for a
directory into which anybody but its owner could put files; `COLLECTOR` is the file that each
collector leaves in its directory for ever, and holds while it lives.

Threading: no state.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statsfs.exceptions import SegmentError

__all__ = [
    "COLLECTOR",
    "HOST_DIRECTORY",
    "SUFFIX",
    "check_directory",
    "check_path",
    "find_directory",
]

HOST_DIRECTORY: Final = Path("/run/statsfs")
COLLECTOR: Final = ".collector"
SUFFIX: Final = ".stats"


def find_directory() -> Path:
    """Return where this process publishes if nobody says where.

    That is `$STATSFS_DIR`, else `/run/statsfs` or its subdirectory named after the user, whichever
    is writable, else `$XDG_RUNTIME_DIR/statsfs`, which is made.

    Raises:
        SegmentError: there is none of them.
    """
    if named := os.environ.get("STATSFS_DIR"):
        return Path(named)
    for directory in _host_directories():
        if directory.is_dir() and os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            return directory
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        directory = Path(runtime, "statsfs")
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise SegmentError(f"cannot make {directory}: {error.strerror}", directory) from error
        return directory
    raise SegmentError(
        f"no directory for segments: {HOST_DIRECTORY} is not there, or not writable; "
        f"make {HOST_DIRECTORY}, or name one in STATSFS_DIR",
        HOST_DIRECTORY,
    )


def _host_directories() -> Iterator[Path]:
    yield HOST_DIRECTORY
    try:
        yield HOST_DIRECTORY / pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name has none
        return


def check_path(directory: Path, path: str) -> None:
    """Refuse a path that the host's collector would not take from one of its subdirectories.

    Raises:
        SegmentError: the directory is `/run/statsfs/NAME`, and the path not below NAME.
    """
    if directory.parent == HOST_DIRECTORY and not path.startswith(f"{directory.name}/"):
        raise SegmentError(
            f"segment {path!r}: paths in {directory} begin with {directory.name}/", path
        )


def check_directory(status: os.stat_result, path: object) -> None:
    """Refuse what is no directory, or one that others than its owner may write.

    Args:
        status: what `os.fstat` says of it, opened.
        path: its name, for the message.

    Raises:
        SegmentError: it is refused; the message is one line that says what to do.
    """
    if not stat.S_ISDIR(status.st_mode):
        raise SegmentError(f"{path} is no directory", path)
    # With an access control list these bits of the group are the most that the list grants.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SegmentError(f"others than its owner may write {path}: chmod go-w {path}", path)
