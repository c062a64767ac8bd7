"""The tutorial, typed from its first line to its last."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import ROOT
from tests.support.pages import blocks_of, commands_in, type_page

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.mark.mount
@pytest.mark.tools
def test_the_tutorial(tmp_path: Path) -> None:
    """Each step works in a fresh directory, and prints what the page says."""
    type_page(PAGE, tmp_path)


@pytest.mark.slow
def test_the_tutorial_installs(tmp_path: Path) -> None:
    """In a fresh environment, from a checkout beside it; where pip reaches no index, it cannot."""
    (block,) = (one for one in blocks_of(PAGE) if "-m venv" in one.text)
    (tmp_path / "statsfs").symlink_to(ROOT)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    script = "\n".join(command.text for command in commands_in(block))
    done = subprocess.run(
        ["bash", "-ec", f"{script}\nwhich statsfs\nstatsfs --version\npython -c 'import pyfuse3'"],
        cwd=fresh,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution" in done.stderr or "Connection" in done.stderr:
        pytest.skip("pip reaches no index of packages")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{fresh}/env/bin/statsfs\nstatsfs")
