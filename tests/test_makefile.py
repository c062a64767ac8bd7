"""The Makefile: what is made anew, and what is fetched once; with stand-ins for what it calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import ROOT, run

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

# What apt knows where promtool is a package of its own, and where it is not.
SEARCH = """
for name in %s; do
    echo $name | grep -qE "$3" && echo "$name - a program"
done
:
"""
SEARCHES = {"apart": SEARCH % "promtool victoria-metrics", "inside": SEARCH % ""}
APT_GET = 'for name; do case $name in [pv]*) touch "$name.deb"; echo "$name" >>../asked; esac; done'
DPKG_DEB = """
mkdir -p usr/bin
name=${2%.deb}
[ "$name" != prometheus ] || [ "$APART" ] || touch usr/bin/promtool
touch "usr/bin/$name"
chmod +x usr/bin/*
tar -c ./usr/bin
"""


def script(path: Path, text: str) -> None:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which all is installed."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    script(tmp_path / ".venv/bin/python", "exit 0")
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def make(tree: Path, *arguments: str, **env: str) -> str:
    """Return what make prints."""
    path = f"{tree / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
    options = [f"{name}={value}" for name, value in {"PATH": path, **env}.items()]
    command = ("make", "--no-print-directory", "-C", tree, f"PYTHON={sys.executable}")
    return run("env", *options, *command, *arguments).stdout


def test_another_python(tree: Path) -> None:
    """`make demo` said "No module named 'statsfs'" after an upgrade of the system's Python."""
    assert "-m venv" not in make(tree, "-n", "demo")
    script(tree / ".venv/bin/python", "exit 1")
    for target in ("demo", "quick", "test"):
        assert f"{sys.executable} -m venv --clear .venv" in make(tree, "-n", target)
    os.remove(tree / ".venv/bin/python")
    assert f"{sys.executable} -m venv --clear .venv" in make(tree, "-n", "demo")


@pytest.mark.skipif(shutil.which("prometheus") is not None, reason="there is nothing to fetch")
@pytest.mark.parametrize("apart", SEARCHES)
def test_tools_are_fetched_once(tree: Path, apart: str) -> None:
    """Where promtool is a package of its own, all were fetched each time, and it never."""
    script(tree / "bin/apt-cache", SEARCHES[apart])
    script(tree / "bin/apt-get", APT_GET)
    script(tree / "bin/dpkg-deb", DPKG_DEB)
    env = {"APART": "1" if apart == "apart" else ""}
    said = make(tree, "tools", **env)
    assert said.startswith("unpacking Debian packages")
    asked = (tree / ".venv/asked").read_text().split()
    packages = ["prometheus", "prometheus-node-exporter", "promtool", "victoria-metrics"]
    assert sorted(asked) == (packages if apart == "apart" else packages[:2])
    found = sorted(os.listdir(tree / ".venv/debian/usr/bin"))
    assert found == (packages if apart == "apart" else packages[:3])
    assert make(tree, "tools", **env) == ""


@pytest.mark.parametrize(
    ("user", "known", "installs", "fails"),
    [
        ("0", True, True, False),
        ("0", True, False, True),
        ("0", False, False, False),
        ("1000", True, False, False),
    ],
)
def test_root_gets_a_browser(
    tree: Path, user: str, known: bool, installs: bool, fails: bool
) -> None:
    """If root cannot install a browser that its system has, that is an error, and no skip."""
    # Nothing but these: there may be a chromium on this machine.
    for name in ("fusermount3", "pkg-config", "gcc", "getfattr"):
        script(tree / "bin" / name, "exit 0")
    for name in ("make", "sh"):
        (tree / "bin" / name).symlink_to(str(shutil.which(name)))
    script(tree / "bin/id", f"echo {user}")
    script(tree / "bin/env", 'shift; "$@"')
    script(tree / "bin/sudo", '"$@"')
    script(tree / "bin/apt-cache", f"exit {0 if known else 100}")
    script(tree / "bin/apt-get", f"exit {0 if installs else 100}")
    command = ["make", "-C", str(tree), f"PYTHON={sys.executable}", "chromium"]
    done = subprocess.run(
        command, env={"PATH": str(tree / "bin")}, capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == fails
    skipped = "there is no chromium: tests of the page are skipped\n"
    assert done.stderr.endswith(skipped) == (not fails and not installs)


def test_check_builds_the_manual(tree: Path) -> None:
    """A warning is an error there, each time, as is a link that leads nowhere."""
    (command,) = (line for line in make(tree, "-n", "check").splitlines() if "sphinx" in line)
    assert {"-E", "-W", "-n"} <= set(command.split())
