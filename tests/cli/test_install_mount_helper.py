"""`statsfs install-mount-helper`: the link, and what it refuses to write over."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.mounts import NOBODY, run

pytestmark = pytest.mark.slow

STATSFS = Path(sys.executable).with_name("statsfs")
HELPER = STATSFS.with_name("mount.statsfs")


def install(directory: Path, *options: str, status: int = 0) -> str:
    """Run the command; return what it printed, on stderr too."""
    done = run(STATSFS, "install-mount-helper", "--directory", directory, *options, status=status)
    return done.stdout + done.stderr


def test_installing_and_removing(tmp_path: Path) -> None:
    """It links to this installation's program; twice does no harm, and it goes away again."""
    link = tmp_path / "mount.statsfs"
    assert f"statsfs: made {link}, a link to {HELPER}\n" in install(tmp_path)
    assert link.readlink() == (tmp_path / "mount.fuse.statsfs").readlink() == HELPER
    assert "Usage: mount.statsfs" in run(link, "--help").stdout
    assert f"{link} is already a link to" in install(tmp_path)
    assert install(tmp_path, "--remove") == f"statsfs: removed {link}\n"
    assert os.listdir(tmp_path) == []
    assert install(tmp_path, "--remove") == f"statsfs: there is no {link}\n"


def test_an_older_installation(tmp_path: Path) -> None:
    """It had one link, and gets the other."""
    (tmp_path / "mount.statsfs").symlink_to(HELPER)
    assert "made" in install(tmp_path)
    assert (tmp_path / "mount.fuse.statsfs").readlink() == HELPER


def test_an_installation_that_moved(tmp_path: Path) -> None:
    """A link to where we were before is ours."""
    link = tmp_path / "mount.statsfs"
    link.symlink_to("/not/there/any/more/mount.statsfs")
    assert "made" in install(tmp_path)
    assert link.readlink() == HELPER


@pytest.mark.parametrize("options", [(), ("--remove",)], ids=["install", "remove"])
@pytest.mark.parametrize("target", [None, "/usr/bin/true"], ids=["file", "link"])
@pytest.mark.parametrize("name", ["mount.statsfs", "mount.fuse.statsfs"])
def test_what_is_not_ours(
    name: str, target: str | None, options: tuple[str, ...], tmp_path: Path
) -> None:
    """Another's program of that name stays as it is, and nothing is made beside it."""
    link = tmp_path / name
    if target is None:
        link.write_text("#!/bin/sh\n")
    else:
        link.symlink_to(target)
    said = install(tmp_path, *options, status=1)
    assert said == f"statsfs: error: {link} is another program, not a link to a mount.statsfs\n"
    assert os.listdir(tmp_path) == [name]
    assert os.path.lexists(link)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """One line says so."""
    said = install(tmp_path / "no", status=1)
    assert said == f"statsfs: error: {tmp_path}/no/mount.statsfs: No such file or directory\n"


def test_without_rights() -> None:
    """Without permission to make the link, one line says so."""
    said = install(Path("/sys"), status=1)
    reason = "Permission denied" if os.geteuid() else "Operation not permitted"
    assert said == f"statsfs: error: /sys/mount.statsfs: {reason}\n"


@pytest.mark.root
def test_programs_that_others_can_change(tmp_path: Path) -> None:
    """A warning names what root will run and others can change."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "mount.statsfs").symlink_to(HELPER)
    (theirs / "statsfs").write_text(STATSFS.read_text())
    (theirs / "statsfs").chmod(0o755)
    os.chown(theirs, NOBODY, NOBODY)
    done = run(theirs / "statsfs", "install-mount-helper", "--directory", tmp_path)
    assert f"warning: others can change what root will run: {theirs}\n" in done.stderr
