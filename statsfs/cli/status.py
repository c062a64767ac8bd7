"""`statsfs status`: the status of mounted filesystems, on one screen.

Owns the command and its words; `mount_status` reads. Threading: main thread only.
"""

import io
import json
import os
import pwd
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from statsfs.cli.mount_status import Status, ask_all, ask_mounts
from statsfs.cli.paths import PATH
from statsfs.cli.serving import EPILOG, complete_directory
from statsfs.model.counts import count_of

__all__ = ["status"]

_WIDE: Final = 100_000  # columns, where nothing wraps
_USER_COLUMNS: Final = {
    "segments": "segments",
    "segment_integers": "integers",
    "directory_numbers": "numbers in totals",
    "empty_directories": "empty directories",
    "refused_files": "refused",
}


@click.command(epilog=EPILOG)
@click.argument("mountpoint", required=False, type=PATH, shell_complete=complete_directory)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: without MOUNTPOINT a list.")
def status(mountpoint: str | None, as_json: bool) -> None:
    """Show the state of the statsfs at MOUNTPOINT: its start, its sources, and its refusals.

    Without MOUNTPOINT it is the one of this host; if there are several, there is a line for each.
    Any user who may read the mount can ask. Only the owner of a refused file and root see why.

    \b
    Example:
      statsfs status /run/stats
    """
    found = ask_all() if mountpoint is None else ask_mounts([os.path.abspath(mountpoint)])
    if as_json:
        click.echo(json.dumps(found if mountpoint is None else found[0], indent=2))
    elif len(found) == 1 and "error" not in found[0]:
        _print(_describe(found[0]))
    elif len(found) > 1:
        _print(_list_briefly(found))
    failures = [f"{_show(one['mountpoint'])}: {one['error']}" for one in found if "error" in one]
    if not found:
        raise click.ClickException("no statsfs is mounted here")
    if failures:
        raise click.ClickException("; ".join(failures))


def _print(parts: Iterator[RenderableType]) -> None:
    if sys.stdout.isatty():
        console = Console(highlight=False)
        for part in parts:
            console.print(part)
        return
    plain = Console(file=io.StringIO(), width=_WIDE, highlight=False, color_system=None)
    with plain.capture() as capture:
        for part in parts:
            plain.print(part)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def _list_briefly(found: list[Status]) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 2))
    for one in found:
        about = one["error"] if "error" in one else f"{_tell_age(one)}; sources: {_tell_size(one)}"
        grid.add_row(Text(_show(one["mountpoint"]), style="bold"), Text(about))
    yield grid


def _describe(one: Status) -> Iterator[RenderableType]:
    where = Text(_show(one["mountpoint"]), style="bold")
    yield where.append(f": {_tell_age(one)}", style="not bold")
    grid = Table.grid(Column(style="bold"), Column(), padding=(0, 2))
    for heading, text in _list_facts(one):
        grid.add_row(heading, Text(text))
    yield grid
    users: Mapping[str, Status] = one["users"] or {}
    if users:
        yield from ("", _list_users(users))
    reasons = [line for user in users.values() for line in user["refusal_reasons"] or ()]
    if reasons:
        yield from ("", Text("refused", style="bold"))
        yield from (Text(f"  {_show(line)}") for line in reasons)
    untold = [_name(user) for user, its in users.items() if _is_untold(its)]
    if untold:
        yield ""
        yield Text(f"refused, told to its owner and root alone: of {', '.join(untold)}")
    if one["vms"]:
        yield from ("", _list_vms(one["vms"]))


def _tell_age(one: Status) -> str:
    numbers = one["numbers"]
    if numbers is None:
        return "shows no numbers of its own"
    started = numbers.get("start_time", 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
    age = timedelta(seconds=max(0, round(time.time() - started)))
    return f"statsfs {one['version']}, process {one['pid']}, since {since} ({age})"


def _tell_size(one: Status) -> str:
    numbers = one["numbers"]
    tops = f"{len(one['sources']):,} at the top"
    return tops if numbers is None else f"{numbers['sources']:,}, {tops}"


def _list_facts(one: Status) -> Iterator[tuple[str, str]]:
    shown = ", ".join(f"{_show(name)} {count:,}" for name, count in one["sources"].items())
    yield "sources", f"{_tell_size(one)}{': ' * bool(shown)}{shown}"
    numbers: Mapping[str, Any] | None = one["numbers"]
    if numbers is None:
        return
    yield "memory", f"{numbers['resident_memory'] / 2**20:,.1f} MiB"
    yield "CPU time", f"{numbers['cpu_ns'] / 1e9:,.2f} s"
    if "opens" in numbers:
        views = f"{_count(numbers, 'views')}{_tell_mean(numbers, 'view_duration_ns')}"
        yield (
            "readers",
            (
                f"{_count(numbers, 'open_files', 'file')} open; {_count(numbers, 'opens')}, "
                f"{_count(numbers, 'reads')}, {views}, {_count(numbers, 'clears')}"
            ),
        )
        refused, failed = numbers["refused_requests"], numbers["failed_requests"]
        if refused or failed:
            yield "", f"{count_of(refused, 'request', ',')} refused, {failed:,} failed"
    if "scrapes" in numbers:
        mean = _tell_mean(numbers, "scrape_duration_ns")
        yield "scrapes", f"{numbers['scrapes']:,}{mean}, {numbers['failed_scrapes']:,} failed"


def _count(numbers: Mapping[str, Any], name: str, noun: str = "") -> str:
    return count_of(numbers[name], noun or name.removesuffix("s"), ",")


def _tell_mean(numbers: Mapping[str, Any], name: str) -> str:
    count = sum(numbers[name])
    return f" ({numbers[f'{name}.sum'] / count / 1e6:.1f} ms on average)" if count else ""


def _list_users(users: Mapping[str, Status]) -> Table:
    columns = (Column(title, justify="right") for title in _USER_COLUMNS.values())
    table = Table(Column("user", style="bold"), *columns, box=None, pad_edge=False)
    for user, numbers in users.items():
        table.add_row(_name(user), *(f"{numbers[column]:,}" for column in _USER_COLUMNS))
    return table


def _is_untold(user: Status) -> bool:
    return bool(user["refused_files"]) and user["refusal_reasons"] is None


def _list_vms(vms: Mapping[str, Status]) -> Table:
    table = Table(Column("VM", style="bold"), "name", "read by", box=None, pad_edge=False)
    for vm, its in vms.items():
        table.add_row(Text(_show(vm)), Text(_show(its["name"] or "")), Text(its["source"]))
    return table


def _name(user: str) -> str:
    try:
        return pwd.getpwuid(int(user)).pw_name
    except KeyError:
        return user


def _show(text: str) -> str:
    # Other users choose names: what a terminal would take for a command is escaped.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
