"""Arguments of all commands: paths that are none, and options that lack their argument."""

import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from statsfs.cli.commands import cli
from statsfs.cli.commands import run as run_command
from statsfs.cli.paths import DIRECTORY, PATH
from tests.support.commands import assert_error, run, run_here

# Parameters that are texts and no paths.
TEXTS = {"by", "gid", "listen", "load", "root", "uid", "values"}


def list_parameters() -> Iterator[tuple[str, click.Parameter]]:
    return ((name, param) for name, command in cli.commands.items() for param in command.params)


def take_value(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and not param.is_flag and not param.count


def is_path(param: click.Parameter) -> bool:
    return param.type in (DIRECTORY, PATH)


PATHS = [(name, param) for name, param in list_parameters() if is_path(param)]
OPTIONS = [
    (name, text) for name, param in list_parameters() if take_value(param) for text in param.opts
]


def test_each_text_is_a_path_or_known_not_to_be() -> None:
    """A new option that is a path has the type of paths."""
    texts = {param.name for _, param in list_parameters() if param.type is click.STRING}
    assert texts <= TEXTS
    assert {param.name for _, param in PATHS} >= {
        "directory", "log", "mountpoint", "path", "qmp", "segments",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "a\0b"], ids=["empty", "NUL"])
@pytest.mark.parametrize(
    ("name", "param"), PATHS, ids=[f"{name}-{param.name}" for name, param in PATHS]
)
def test_what_cannot_be_a_path(
    name: str, param: click.Parameter, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and status 2: the empty text was the current directory to some commands."""
    is_option = isinstance(param, click.Option)
    shown = param.opts[0] if is_option else str(param.name).upper()
    assert run_command([name, param.opts[0], text] if is_option else [name, text]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    why = "it has a NUL character" if text else "it is empty"
    assert f"{shown}" in said.err
    assert f": {text!r} is not a {param.type.name}: {why} (see statsfs {name} --help)" in said.err


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids="".join)
def test_an_option_without_its_argument(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the help of its command, not that of `statsfs`."""
    assert run_command([name, option]) == 2
    said = capsys.readouterr()
    expected = f"Option '{option}' requires an argument. (see statsfs {name} --help)"
    assert (said.out, said.err) == ("", f"statsfs: error: {expected}\n")


# Paths that lead to something else, by what is there; and the reason why not.
WRONG = {
    "file": "ot a directory",
    "file/below": "ot a directory",
    "missing/below/it": "o such ",
    "loop": "oo many levels of symbolic links",
    f"{'long' * 64}": "ile name too long",
    "\udcff/not/UTF-8": "o such ",
    "two\nlines/below/it": "o such ",
}
# What a command says in place of the reason: in all cases, or in one.
OTHERS: dict[str | tuple[str, str], str] = {
    "status": "not a mounted statsfs",
    "umount": "not a mounted statsfs",
    ("umount", "loop"): WRONG["loop"],
    ("top", "file"): "not a recording",
}
COMMANDS = [
    ["top"],
    ["umount"],
    ["status"],
    ["mount"],
    ["mount", "stats", "--create", "--segments"],
    ["mount", "stats", "--create", "--background", "--log"],
    ["install-mount-helper", "--directory"],
]


@pytest.mark.slow
@pytest.mark.parametrize("path", WRONG, ids=["".join(filter(str.isalnum, one)) for one in WRONG])
def test_paths_that_lead_elsewhere(path: str, tmp_path: Path) -> None:
    """Each command says so on one line, with status 1, and leaves nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(os.listdir(tmp_path))
    for command in COMMANDS:
        # A log is a file; it may not be a directory.
        is_log = command[-1] == "--log"
        tried = run if command[0] == "mount" else run_here
        done = tried(*command, f"{path}/log" if is_log else path, cwd=tmp_path)
        assert_error(done, 1, OTHERS.get((command[0], path)) or OTHERS.get(command[0], WRONG[path]))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_log_that_is_a_directory(tmp_path: Path) -> None:
    """As an option that is a file."""
    command = ("mount", "stats", "--create", "--background", "--log", ".")
    assert_error(run(*command, cwd=tmp_path), 1, "--log: .: Is a directory")
