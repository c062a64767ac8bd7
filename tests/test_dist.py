"""What is distributed: the wheel and the sdist, and the manual that the Debian package has."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from statsfs.cli import mount_helper
from statsfs.cli.commands import cli
from tests.support.mounts import ROOT

STATSFS = Path(sys.executable).with_name("statsfs")


def run(*command: object, **env: str) -> str:
    answer = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.timeout(300)
def test_dist(tmp_path: Path) -> None:
    """A wheel that is made of the sdist is whole: it installs elsewhere, with command and header.

    `make dist` installs the sdist too.
    """
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path)
    wheel, _sdist = sorted(tmp_path.iterdir(), key=lambda path: path.suffix == ".gz")
    # What it needs is taken from here: no network.
    env = {"PYTHON": sys.executable, "PYTHONPATH": sysconfig.get_path("purelib")}
    said = run("tests/support/install_dist.sh", wheel, "--no-deps", "--no-index", **env)
    assert said == run(sys.executable, "-m", "statsfs", "--version")


def test_manual(tmp_path: Path) -> None:
    """Each command and each option has its place in the manual, as have the options of mount(8)."""
    run(sys.executable, "packaging/man_pages.py", tmp_path)
    page = (tmp_path / "statsfs.1").read_text()
    for name, command in cli.commands.items():
        section = page.partition(f".SS statsfs {name}\n".replace("-", "\\-"))[2]
        section = section.partition("\n.S")[0]
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert not option.startswith("-") or option.replace("-", "\\-") in section
    page = (tmp_path / "mount.statsfs.8").read_text()
    for option in mount_helper.list_options():
        assert f"\n.B {option}" in page


def test_completion() -> None:
    """The shell completes a command, and a mount point as a directory: it completed nothing."""
    for words, completed in {"mou": "plain,mount", "umount ./s": "dir,./s"}.items():
        env = {"_STATSFS_COMPLETE": "bash_complete", "COMP_WORDS": f"statsfs {words}"}
        position = str(len(words.split()))
        assert run(STATSFS, COMP_CWORD=position, **env) == f"{completed}\n"
