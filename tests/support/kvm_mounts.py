"""`statsfs mount` as a daemon that shows VMs, and what its files say."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import ROOT, is_mounted

__all__ = ["STATSFS", "mounted", "number", "shown", "wait_for"]

STATSFS = [sys.executable, "-m", "statsfs"]


@contextmanager
def mounted(mountpoint: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run `statsfs mount`, and see that it ends well; or the test ends it."""
    with subprocess.Popen(
        [*STATSFS, "mount", mountpoint, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: is_mounted(mountpoint) or process.poll() is not None, "the mount")
            yield process
            process.terminate()
            assert process.wait(DEADLINE) == 0
            assert not is_mounted(mountpoint)
        finally:
            process.kill()
            if is_mounted(mountpoint):
                subprocess.run(["fusermount3", "-uz", mountpoint], check=False)


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


def wait_for(path: Path) -> None:
    """Wait for a directory, or its end."""
    wait_until(path.is_dir, path.name)
