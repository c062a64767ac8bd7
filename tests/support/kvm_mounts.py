"""`statsfs mount` as a daemon that shows VMs, and what its files say."""

import errno
import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.commands import STATSFS, is_mounted, mounting
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT

__all__ = ["STATSFS", "has_counted", "mounted", "number", "shown", "wait_for"]


@contextmanager
def mounted(
    mountpoint: Path, *arguments: str | Path, statsfs: Sequence[str] = STATSFS
) -> Iterator[subprocess.Popen[str]]:
    """Run `statsfs mount`, and see that it ends well; or the test ends it.

    Args:
        mountpoint: where.
        arguments: of `statsfs mount`.
        statsfs: the command, where it is run in another way.
    """
    with mounting([*statsfs, "mount", mountpoint, *arguments], mountpoint, cwd=ROOT) as process:
        yield process
        process.terminate()
        assert process.wait(DEADLINE) == 0
        assert not is_mounted(mountpoint)


def shown(directory: Path) -> dict[str, Any]:
    """All values of one directory: integers, and of histograms a list."""
    view = json.loads((directory / ".stats.json").read_text())
    values: dict[str, Any] = view["values"]
    return values


def number(path: Path) -> int | str:
    """The integer in a file, or the name of the error."""
    try:
        return int(path.read_text())
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def has_counted(path: Path, least: int = 1000) -> bool:
    """Whether a file has an integer now, and at least this one."""
    found = number(path)
    return isinstance(found, int) and found >= least


def wait_for(path: Path) -> None:
    """Wait for a directory, or its end."""
    wait_until(path.is_dir, path.name)
