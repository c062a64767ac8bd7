"""The rule of this suite: where a mount can be tested, it is."""

import sys
from pathlib import Path

import pytest

from tests.mounts import ROOT, run

TESTS = """
import pytest

@pytest.mark.mount
def test_skipped():
    pytest.skip("no reason")

@pytest.mark.mount
@pytest.mark.skip
def test_skipped_from_outside():
    pass

@pytest.mark.mount
@pytest.mark.xfail
def test_expected_to_fail():
    assert False

def test_without_a_mount():
    pytest.skip("may be")
"""


@pytest.mark.mount
def test_a_mount_test_that_is_skipped_fails(tmp_path: Path) -> None:
    """Where there is a /dev/fuse, as here; others may be skipped."""
    (tmp_path / "test_skips.py").write_text(TESTS)
    options = ("-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-o", "addopts=")
    done = run(sys.executable, "-m", "pytest", *options, tmp_path, status=1, cwd=ROOT)
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in done.stdout
    assert done.stdout.count("skipped, though there is a /dev/fuse") == 2
