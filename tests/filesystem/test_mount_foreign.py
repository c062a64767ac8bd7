"""Mounts of programs whose own code raises what is no `Exception`: it costs a number, no mount."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import foreign
from tests.support.deadlines import DEADLINE
from tests.support.mounts import ROOT, is_mounted

pytestmark = pytest.mark.mount

BROKEN = ["Input/output"] * 5
# What a file says of each error: own values, `show`, refreshes, clears, rmdir; the total and the
# views have what is fine.
LINE = " ".join([*BROKEN, "No", "No", "Permission", "Input/output", "Input/output", "5 True True"])


def run(program: Callable[[str], object], mountpoint: Path) -> tuple[list[str], str]:
    """Run a program to its end, which is a good one; return what it printed, and on stderr."""
    code = f"from tests.support import foreign; foreign.{program.__name__}({str(mountpoint)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done
    assert not is_mounted(mountpoint)
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("program", [foreign.served_by_a_thread, foreign.served_by_trio])
def test_errors_of_foreign_code(program: Callable[[str], object], mountpoint: Path) -> None:
    """`sys.exit()` in a `show` ended the mount without a word: now EIO, and it goes on."""
    lines, errors = run(program, mountpoint)
    assert lines == [LINE] * len(foreign.ERRORS)
    for name in foreign.ERRORS:
        assert errors.count(f"{name}/property: left out of aggregates") == 1
        assert errors.count(f"{name}/show: 'b': show(1) failed") == 1
        assert errors.count(f"{name}/refresh: unavailable") == 1
        assert errors.count(f"{name}/asked: unavailable") == 1


def test_ctrl_c_in_foreign_code(mountpoint: Path) -> None:
    """It is the program's, and arrives; the reader has its number."""
    assert run(foreign.interrupted, mountpoint) == (["7", "interrupted False"], "")
