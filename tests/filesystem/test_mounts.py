"""The rules of this suite: where a mount can be tested it is, and nothing is left behind."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.mounts import ROOT, Server, is_mounted, run, sweep_dead_mounts

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
def test_a_mount_test_that_is_skipped_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a /dev/fuse, as here; others may be skipped."""
    # On CI pytest says each reason twice.
    monkeypatch.delenv("CI", raising=False)
    (tmp_path / "test_skips.py").write_text(TESTS)
    # Else pytest looks at what is beside it too, as the mounts of other tests.
    here = f"--rootdir={tmp_path}"
    options = ("-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-o", "addopts=", here)
    done = run(sys.executable, "-m", "pytest", *options, tmp_path, status=1, cwd=ROOT)
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in done.stdout
    assert done.stdout.count("skipped, though there is a /dev/fuse") == 2


@pytest.mark.mount
def test_what_a_killed_run_left_is_swept(mountpoint: Path) -> None:
    """Its mounts and directories; but not those of a run that is under way."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    left = Path(tempfile.mkdtemp(prefix=f"statsfs-test-{process.pid}-"))
    servers = [Server(path) for path in (left, mountpoint)]
    try:
        for server in servers:
            server.wait_until_mounted()
        sweep_dead_mounts()
        assert not is_mounted(left)
        assert not left.exists()
        assert is_mounted(mountpoint)
        servers[1].end()
        # To the other server this was a lazy unmount.
        servers[0].end()
    finally:
        for server in servers:
            server.clean_up()
