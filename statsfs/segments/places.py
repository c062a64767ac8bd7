"""The directories of segments: the default one, and whether one can be trusted.

Owns the choice of the default, and the rules for any. The environment is read by the calls, never
at import. `COLLECTOR` is a file in each collector's directory, locked while the collector lives.

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
    """Return the default directory of this process.

    That is `$STATSFS_DIR`, else `/run/statsfs` or its subdirectory named after the user, whichever
    is writable, else `$XDG_RUNTIME_DIR/statsfs`, which is made; or a SegmentError.
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
            raise SegmentError(f"cannot make {directory}: {error.strerror}", directory) from None
        return directory
    raise SegmentError(
        f"no directory for segments: {HOST_DIRECTORY} is missing, or not writable; "
        f"make {HOST_DIRECTORY}, or name one in STATSFS_DIR",
        HOST_DIRECTORY,
    )


def _host_directories() -> Iterator[Path]:
    yield HOST_DIRECTORY
    try:
        yield HOST_DIRECTORY / pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # the user has no name
        return


def check_path(directory: Path, path: str) -> None:
    """Raise SegmentError for a directory `/run/statsfs/NAME` and a path that is not below NAME."""
    if directory.parent == HOST_DIRECTORY and not path.startswith(f"{directory.name}/"):
        raise SegmentError(
            f"segment {path!r}: paths in {directory} begin with {directory.name}/", path
        )


def check_directory(status: os.stat_result, path: object) -> None:
    """Raise SegmentError if `path` is not a directory, or others than its owner may write it."""
    if not stat.S_ISDIR(status.st_mode):
        raise SegmentError(f"{path} is not a directory", path)
    # With an access control list these bits of the group are the most that the list grants.
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SegmentError(f"others than its owner may write {path}: chmod go-w {path}", path)
