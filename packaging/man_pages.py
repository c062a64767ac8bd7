"""The manual: statsfs(1) and mount.statsfs(8), made from what the commands say of themselves.

    python packaging/man_pages.py DIRECTORY

Threading: none.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import statsfs
from statsfs.cli import mount_helper
from statsfs.cli.commands import cli

__all__ = ["mount_helper_page", "statsfs_page"]


def statsfs_page() -> str:
    """Return statsfs(1): the command, and each of its commands."""
    root = click.Context(cli, info_name="statsfs")
    lines = [*_begin("statsfs", 1, cli.get_short_help_str(200)), ".SH SYNOPSIS"]
    contexts = [
        click.Context(cli.commands[name], root, info_name=name) for name in cli.list_commands(root)
    ]
    for context in contexts:
        usage = context.command.collect_usage_pieces(context)
        lines += [f".B {_escape(context.command_path)}", _escape(" ".join(usage)), ".br"]
    lines += [".B statsfs \\-\\-version", ".SH DESCRIPTION", *_paragraphs(cli.help or "")]
    lines.append(".SH COMMANDS")
    for context in contexts:
        lines.append(f".SS {_escape(context.command_path)}")
        lines += _paragraphs(context.command.help or "")
        for names, text in _options(context):
            lines += [".TP", f".B {_escape(names)}", _escape(text)]
        if context.command.epilog != cli.epilog:
            lines += [".PP", *_paragraphs(context.command.epilog or "")]
    lines += [".SH EXIT STATUS", *_paragraphs(cli.epilog or "")]
    return _end(lines, ".BR mount.statsfs (8)")


def mount_helper_page() -> str:
    """Return mount.statsfs(8): how it is called, and the options after `-o`."""
    context = click.Context(cli.commands["mount"], info_name="mount")
    said = dict(_options(context))
    usage, rest = mount_helper._USAGE.split("\n\n", 1)
    lines = [*_begin("mount.statsfs", 8, "mount a statsfs, for mount(8) and fstab"), ".SH SYNOPSIS"]
    lines += [_escape(usage.removeprefix("Usage: ")), ".SH DESCRIPTION", *_paragraphs(rest)]
    lines += [".SH OPTIONS", "Each is an option of", '.BR "statsfs mount" ,', "by another name."]
    for name, option in sorted(mount_helper.list_options().items()):
        names, text = next(item for item in said.items() if option in re.split(r"[ ,/]+", item[0]))
        value = names.partition(" ")[2] if name.endswith("=") else ""
        lines += [".TP", f".B {_escape(name + value)}", _escape(f"{option}: {text}")]
    return _end(lines, ".BR statsfs (1),\n.BR mount (8),\n.BR fstab (5)")


def _begin(name: str, section: int, summary: str) -> list[str]:
    title = f'.TH {name} {section} "" "statsfs {statsfs.__version__}"'
    return [title, ".SH NAME", f"{_escape(name)} \\- {_escape(summary.rstrip('.'))}"]


def _end(lines: list[str], see: str) -> str:
    return "\n".join([*lines, ".SH SEE ALSO", see, ""])


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # arguments have no help
            yield record[0].replace(" RANGE", ""), record[1]


def _paragraphs(text: str) -> Iterator[str]:
    # After "\b" click leaves lines as they are.
    for number, paragraph in enumerate(re.split(r"\n{2,}", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(_escape, paragraph.splitlines()[1:]), ".fi")
        else:
            yield _escape(paragraph)


def _escape(text: str) -> str:
    for character, name in {"\\": "e", "-": "-", "'": "(aq", "`": "(ga"}.items():
        text = text.replace(character, f"\\{name}")
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in text.splitlines())


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / "statsfs.1").write_text(statsfs_page())
    (directory / "mount.statsfs.8").write_text(mount_helper_page())
