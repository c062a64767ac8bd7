"""The manual: what the commands say of themselves, and two pages of docs/, as pages for man(1).

    python packaging/man_pages.py DIRECTORY

statsfs(1) and, as with git, a page for each command: `man statsfs mount` finds statsfs-mount(1).
statsfs(5) is the tree as a reader sees it, and the format of segments. mount.statsfs(8) is for
mount(8).

Threading: none.
"""

import datetime
import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import roff

import statsfs
from statsfs.cli import mount_helper
from statsfs.cli.commands import cli

__all__ = ["list_pages"]

_DOCS: Final = Path(__file__).parent.parent / "docs"
_ALL_DOCS: Final = ("The manual is in", ".IR /usr/share/doc/statsfs/docs .")


def list_pages() -> Iterator[tuple[str, str]]:
    """Yield all pages: the name of its file, and its text."""
    root = click.Context(cli, info_name="statsfs")
    contexts = [
        click.Context(cli.commands[name], root, info_name=name) for name in cli.list_commands(root)
    ]
    yield "statsfs.1", _make_overview(root, contexts)
    for context in contexts:
        yield f"{_name(context)}.1", _make_command_page(context)
    yield "statsfs.5", _make_format_page()
    yield "mount.statsfs.8", _make_helper_page()


def _make_overview(root: click.Context, contexts: list[click.Context]) -> str:
    lines = [*_begin("statsfs", 1, cli.get_short_help_str(200)), ".SH SYNOPSIS"]
    lines += [".B statsfs", r"\fICOMMAND\fP [\fIOPTION\fP]... [\fIARGUMENT\fP]...", ".br"]
    lines += [r".B statsfs \-\-version", ".br", ".B statsfs", r"\fICOMMAND\fP \fB\-\-help\fP"]
    lines += [".SH DESCRIPTION", *_paragraphs(cli.help or ""), ".SH COMMANDS"]
    for context in contexts:
        lines += [".TP", f".BR {roff.escape(_name(context))} (1)"]
        lines += roff.fill(roff.escape(context.command.get_short_help_str(200)))
    lines += [".SH EXIT STATUS", *_status(cli)]
    return _end(lines, "statsfs(5)", "mount.statsfs(8)")


def _make_command_page(context: click.Context) -> str:
    command = context.command
    lines = [*_begin(_name(context), 1, command.get_short_help_str(200)), ".SH SYNOPSIS"]
    lines += [f".B {roff.escape(context.command_path)}"]
    lines += roff.fill(roff.escape(" ".join(command.collect_usage_pieces(context))))
    lines += [".SH DESCRIPTION", *_paragraphs(command.help or ""), ".SH OPTIONS"]
    for names, text in _options(context):
        lines += [".TP", f".B {roff.escape(names)}", *roff.fill(roff.escape(text))]
    lines += [".SH EXIT STATUS", *_status(command)]
    return _end(lines, "statsfs(1)", "statsfs(5)")


def _make_format_page() -> str:
    lines = _begin("statsfs", 5, "programs' statistics as files, and the format of segments")
    for name in ("tree", "segments"):
        lines += roff.from_markdown((_DOCS / f"{name}.md").read_text())
    return "'\\\" t\n" + _end(lines, "statsfs(1)", "statsfs-mount(1)")  # it has tables


def _make_helper_page() -> str:
    context = click.Context(cli.commands["mount"], info_name="mount")
    said = dict(_options(context))
    usage, rest = mount_helper._USAGE.split("\n\n", 1)
    lines = [*_begin("mount.statsfs", 8, "mount a statsfs, for mount(8) and fstab"), ".SH SYNOPSIS"]
    lines += [roff.escape(usage.removeprefix("Usage: ")), ".SH DESCRIPTION"]
    lines += _paragraphs(rest.partition(";")[0] + ".")  # the options are below
    lines += [".SH OPTIONS", "Each is an option of", ".BR statsfs\\-mount (1),", "by another name."]
    for name, option in sorted(mount_helper.list_options().items()):
        names, text = next(item for item in said.items() if option in re.split(r"[ ,/]+", item[0]))
        value = names.partition(" ")[2] if name.endswith("=") else ""
        lines += [".TP", f".B {roff.escape(name + value)}"]
        lines += roff.fill(roff.escape(f"{option}: {text}"))
    return _end(lines, "statsfs(1)", "mount(8)", "fstab(5)")


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _begin(name: str, section: int, summary: str) -> list[str]:
    # A build that can be repeated says which moment it has.
    now = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    day = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    title = roff.escape(name.upper())
    return [
        f'.TH {title} {section} {day} "statsfs {statsfs.__version__}"',
        *(".nh", ".ad l"),  # constants and file names are not to be divided, nor code spread
        ".SH NAME",
        f"{roff.escape(name)} \\- {roff.escape(summary.rstrip('.'))}",
    ]


def _end(lines: list[str], *pages: str) -> str:
    see = [f".BR {roff.escape(page).replace('(', ' (')}," for page in pages]
    see[-1] = see[-1].removesuffix(",")
    return "\n".join([*lines, ".SH SEE ALSO", *see, ".PP", *_ALL_DOCS, ""])


def _options(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # arguments have no help
            yield record[0].replace(" RANGE", ""), record[1]


def _status(command: click.Command) -> Iterator[str]:
    title, _, rest = inspect.cleandoc(command.epilog or cli.epilog or "").partition("Exit codes:\n")
    assert not title.strip("\b\n"), f"{command.name}: unknown epilog"
    yield from roff.keep(inspect.cleandoc(rest).splitlines())


def _paragraphs(text: str) -> Iterator[str]:
    # After "\b" click leaves lines as they are.
    for number, paragraph in enumerate(re.split(r"\n{2,}", inspect.cleandoc(text))):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from roff.keep(paragraph.splitlines()[1:])
        else:
            yield from roff.fill(roff.escape(paragraph))


def _main() -> None:
    if len(sys.argv) != 2:
        print(f"usage: python {sys.argv[0]} DIRECTORY", file=sys.stderr)
        sys.exit(2)
    try:
        directory = Path(sys.argv[1])
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in list_pages():
            (directory / name).write_text(text)
    except OSError as error:
        sys.exit(f"{sys.argv[0]}: error: {error}")


if __name__ == "__main__":
    _main()
