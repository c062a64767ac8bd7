"""What is distributed: the wheel and the sdist, and the manual that the Debian package has."""

import os
import re
import shutil
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


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, in the directories in which man(1) looks for them."""
    made = tmp_path_factory.mktemp("made")
    run(sys.executable, "packaging/man_pages.py", made)
    root = tmp_path_factory.mktemp("man")
    for page in made.iterdir():
        directory = root / f"man{page.suffix[1:]}"
        directory.mkdir(exist_ok=True)
        page.rename(directory / page.name)
    return root


def test_manual(manual: Path) -> None:
    """Each command has a page with each option, and the options of mount(8) have one."""
    overview = (manual / "man1/statsfs.1").read_text()
    for name, command in cli.commands.items():
        escaped = f"statsfs-{name}".replace("-", "\\-")
        assert f"\n.BR {escaped} (1)\n" in overview
        page = (manual / f"man1/statsfs-{name}.1").read_text()
        assert f"\n{escaped} \\- " in page
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert not option.startswith("-") or option.replace("-", "\\-") in page
    page = (manual / "man8/mount.statsfs.8").read_text()
    for option in mount_helper.list_options():
        assert f"\n.B {option}" in page


def test_the_page_of_formats(manual: Path) -> None:
    """statsfs(5) has every word of the two pages of docs/, once man(1) has made text of it."""
    command = ["man", "--local-file", str(manual / "man5/statsfs.5")]
    if shutil.which(command[0]) is None:
        pytest.skip("there is no man")
    shown = run(*command, MANWIDTH="10000", LC_ALL="C.UTF-8").lower()
    for name in ("tree", "segments"):
        text = (ROOT / f"docs/{name}.md").read_text()
        text = re.sub(r"\]\([^)]*\)|^```\w*|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
        for word in re.findall(r"\w+", text.lower()):
            assert word in shown, word


@pytest.mark.parametrize(
    "command",
    [
        ["man", "--warnings", "--ditroff", "--local-file"],
        ["mandoc", "-T", "lint", "-W", "warning"],
    ],
    ids=lambda command: command[0],
)
def test_nothing_warns_of_the_manual(manual: Path, command: list[str]) -> None:
    """No program that shows the pages has anything to say of their markup."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    for page in manual.glob("*/*"):
        done = subprocess.run([*command, page], capture_output=True, text=True, errors="replace")
        assert (done.returncode, done.stderr) == (0, "")
        assert command[0] == "man" or done.stdout == ""


def test_markdown_in_the_manual() -> None:
    """All that is known of Markdown is shown; what is not known is an error, and not left out."""
    program = "import roff, sys; print(*roff.from_markdown(sys.stdin.read()), sep='\\n')"

    def convert(text: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT / "packaging",
            input=text,
            capture_output=True,
            text=True,
        )

    text = """\
# It's `a-b`

.one **two
three** *four*
[here](page.md) [there](https://a.b/) <https://c.d/>

<!-- left out -->

- five
  1. six

     seven

| x | `y` |
|---|---|
| 8 \\| 9 | .10 |

```
'11'  -\\
```
"""
    assert convert(text).stdout.splitlines() == [
        ".SH IT\\(aqS \\fBa\\-b\\fP",
        "\\&.one \\fBtwo three\\fP \\fIfour\\fP here there <https://a.b/> https://c.d/",
        *(".IP \\(bu 4", "five", ".RS 4", ".IP 1. 4", "six", ".RS 4", ".PP", "seven", ".RE", ".RE"),
        *(".PP", ".TS", "lB lBx", "l lx."),
        *("x\tT{", "\\fBy\\fP", "T}", "8 | 9\tT{", "\\&.10", "T}", ".TE"),
        *(".PP", ".RS 4", ".nf", "\\(aq11\\(aq  \\-\\e", ".fi", ".RE"),
    ]
    for unknown in ("> quoted", "a ![picture](x.png)", "<b>HTML</b>", "---"):
        done = convert(unknown)
        assert done.returncode == 1
        assert "ValueError: unknown Markdown: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "usage: python packaging/man_pages.py DIRECTORY\n"),
        (["a", "b"], 2, "usage: python packaging/man_pages.py DIRECTORY\n"),
        (["pyproject.toml"], 1, "packaging/man_pages.py: error: [Errno 17] "),
    ],
)
def test_wrong_usage_of_the_manual(arguments: list[str], status: int, says: str) -> None:
    """It is one line: it was a traceback."""
    done = subprocess.run(
        [sys.executable, "packaging/man_pages.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_completion() -> None:
    """The shell completes a command, and a mount point as a directory: it completed nothing."""
    for words, completed in {"mou": "plain,mount", "umount ./s": "dir,./s"}.items():
        env = {"_STATSFS_COMPLETE": "bash_complete", "COMP_WORDS": f"statsfs {words}"}
        position = str(len(words.split()))
        assert run(STATSFS, COMP_CWORD=position, **env) == f"{completed}\n"
