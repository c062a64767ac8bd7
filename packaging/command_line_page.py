"""The page docs/command_line.md, made from what the commands say of themselves.

    python packaging/command_line_page.py >docs/command_line.md

Threading: none.
"""

import inspect
import sys

import click
from click.testing import CliRunner

from statsfs.cli import mount_helper
from statsfs.cli.commands import cli

__all__ = ["command_line_page"]

_HEAD = """\
# The command line

This page is what the commands print; `packaging/command_line_page.py` makes it.
[Operations](operations.md) has more on each, with examples. `python -m statsfs` is the same
command as `statsfs`.
"""
_WIDTH = 98  # of a terminal of 100 columns


def command_line_page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name in ("", *cli.list_commands(click.Context(cli))):
        said = CliRunner().invoke(
            cli, [*name.split(), "--help"], prog_name="statsfs", terminal_width=_WIDTH
        )
        parts.append(_part(f"statsfs {name}".rstrip(), said.output))
    parts.append(_part("mount.statsfs", inspect.cleandoc(mount_helper._USAGE)))
    return "\n".join(parts)


def _part(command: str, text: str) -> str:
    shown = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## `{command}`\n\n```console\n$ {command} --help\n{shown}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(command_line_page())
