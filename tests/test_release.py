"""`make release`: what can be released, and what is refused; with stand-ins for what builds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mounts import ROOT, run

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("git") is None,
    reason="there is no make, or no git",
)


# Builds what Python's build does, of the version that is asked for.
BUILD = """
case $2 in
build)
    mkdir -p dist
    touch "dist/statsfs-$VERSION-py3-none-any.whl" "dist/statsfs-$VERSION.tar.gz"
    ;;
esac
"""


def script(path: Path, text: str) -> None:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A clone of a version that can be released, in which all is installed."""
    tree = tmp_path
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    script(tree / ".venv/bin/python", BUILD)
    (tree / ".venv/.installed").touch()
    script(tree / ".venv/bin/sphinx-build", '[ ! "$WRONG_DOCS" ]')
    script(tree / "tests/support/install_dist.sh", '[ ! "$WRONG_DIST" ]')
    script(tree / "packaging/check_release.sh", (ROOT / "packaging/check_release.sh").read_text())
    (tree / "statsfs").mkdir()
    (tree / "statsfs/__init__.py").write_text('"""It."""\n\n__version__ = "1.2.3"\n')
    (tree / "CHANGELOG.md").write_text("# Changelog\n\nText.\n\n## [1.2.3] - 2026-01-02\n")
    (tree / ".gitignore").write_text("/.venv/\n/dist/\n/.cache/\n")
    (tree / "docs").mkdir()
    (tree / "docs/index.md").touch()
    for command in ("init", "add .", "commit -m all"):
        git(tree, *command.split())
    return tree


def git(tree: Path, *arguments: str) -> str:
    """Run git in a clone; return what it prints."""
    options = (f"{name}=a" for name in ("user.name", "user.email", "init.defaultBranch"))
    return run(
        "git", "-C", tree, *(word for one in options for word in ("-c", one)), *arguments
    ).stdout


def change(path: Path, old: str, new: str) -> None:
    """Change a file, and commit that."""
    path.write_text(path.read_text().replace(old, new))
    root = path.parent if (path.parent / ".git").exists() else path.parent.parent
    git(root, "commit", "-a", "-m", "a change")


def make_release(tree: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `make release`."""
    options = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "VERSION": "1.2.3", **env}
    command = ["make", "--no-print-directory", "-C", str(tree), f"PYTHON={sys.executable}"]
    return subprocess.run([*command, "release"], env=options, capture_output=True, text=True)


def released(tree: Path) -> bool:
    """Tell whether `make release` says that the version can be released, and what is next."""
    said = make_release(tree).stdout
    return "statsfs 1.2.3 can be released." in said and "git tag --annotate v1.2.3" in said


def refused(tree: Path, **env: str) -> str:
    """Return what a refused `make release` says on stderr, but for make itself."""
    done = make_release(tree, **env)
    assert done.returncode != 0
    assert "can be released" not in done.stdout
    return "".join(line for line in done.stderr.splitlines(True) if not line.startswith("make"))


def test_release(release: Path) -> None:
    """Of a version that can be released it is said what is to be done; nothing is done."""
    before = git(release, "show-ref")
    assert released(release)
    assert git(release, "show-ref") == before
    assert git(release, "status", "--porcelain") == ""


def test_a_release_is_refused_before_it_is_built(release: Path) -> None:
    """With another version in the changelog, without a date, with changes, twice: one line each."""
    changelog, init = release / "CHANGELOG.md", release / "statsfs/__init__.py"
    for heading in ("## [Unreleased]", "## [1.2.2] - 2026-01-02", "## [1.2.3]", "## 1.2.3"):
        old = changelog.read_text().splitlines()[-1]
        change(changelog, old, heading)
        assert refused(release) == (
            f"no release: the first heading of CHANGELOG.md is '{heading}', "
            "not '## [1.2.3] - YEAR-MONTH-DAY'\n"
        )
    change(changelog, "## 1.2.3", "## [1.2.3] - 2026-01-02")
    (release / "new file").touch()
    init.write_text(init.read_text() + "# changed\n")
    assert refused(release) == 'no release: not committed: statsfs/__init__.py "new file"\n'
    (release / "new file").unlink()
    change(init, "# changed", "# committed")
    git(release, "tag", "v1.2.3")
    assert refused(release) == "no release: there is a tag v1.2.3 already\n"
    git(release, "tag", "-d", "v1.2.3")
    change(init, "__version__", "version")
    assert refused(release) == "no release: statsfs/__init__.py has no version\n"
    assert not (release / "dist").exists()
    change(init, "version", "__version__")
    assert released(release)


def test_a_release_that_does_not_build(release: Path) -> None:
    """Packages of another version or that do not install, and a manual with a warning, end it."""
    assert "no release: dist/ has statsfs-1.2.4-py3-none-any.whl" in refused(
        release, VERSION="1.2.4"
    )
    refused(release, WRONG_DIST="1")
    refused(release, WRONG_DOCS="1")
    assert released(release)


def test_a_release_needs_the_repository(release: Path) -> None:
    """What is in no commit is not released."""
    shutil.rmtree(release / ".git")
    said = refused(release, GIT_CEILING_DIRECTORIES=str(release.parent))
    assert said.splitlines()[-1] == "no release: this is not a clone of the repository"
