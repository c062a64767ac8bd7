"""`statsfs top`: look at a tree on a terminal, or print it for scripts.

Owns the command and its options; what is shown is in the room `top`. Threading: main thread only,
but for the thread that reads.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import click
from rich.console import Console

from statsfs.cli import serving
from statsfs.cli.paths import PATH
from statsfs.cli.progress import Progress, needing
from statsfs.cli.signals import Stop
from statsfs.eyes.places import Place, Player, open_place
from statsfs.eyes.rates import Rates
from statsfs.filesystem.mountpoints import find_mounts
from statsfs.top.known import Known
from statsfs.top.plain import CSV_HEADER, format_csv, format_table, list_all

__all__ = ["top"]

EPILOG: Final = """\b
Exit codes:
  0  done, also when stopped by SIGTERM, SIGINT or SIGHUP
  1  failed: no statsfs or recording at PATH, no such server, textual is not installed, or for a
     recording pyarrow
  2  wrong usage
"""
_TURN: Final = 0.1  # seconds until it is seen whether to stop
_NO_TEXTUAL: Final = "statsfs top needs textual: pip install 'statsfs[top]'"


class _Pattern(click.ParamType[re.Pattern[str]]):
    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            self.fail(f"{value!r} is not a regular expression: {error}", param, ctx)


@click.command(epilog=EPILOG, context_settings={"show_default": True})
@click.argument("path", required=False, type=PATH, shell_complete=serving.complete_directory)
@click.option(
    "-i",
    "--interval",
    type=serving.Number(0.1, serving.LONGEST_INTERVAL),
    default=1.0,
    metavar="SECONDS",
    help="Read so often.",
)
@click.option(
    "-f",
    "--filter",
    "pattern",
    type=_Pattern(),
    metavar="REGEX",
    help="Only values whose path, as vm/vcpu0/exits, has it.",
)
@click.option("--once", is_flag=True, help="Print all values and their rates once, and end.")
@click.option(
    "--csv",
    "as_csv",
    is_flag=True,
    help="Print CSV at each interval: time, path, name, value, rate. Numbers are as counted.",
)
def top(
    path: str | None, interval: float, pattern: re.Pattern[str] | None, once: bool, as_csv: bool
) -> None:
    """Look at the numbers of PATH: values, rates, the last two minutes.

    PATH is a directory of a mounted statsfs, the http://HOST:PORT of a daemon with --listen, or a
    recording of `statsfs record`, which is played: --once is its end, --csv all of it. Without
    PATH, it is the current directory, or the only mount of a statsfs. The right to read is enough.
    F1 shows the keys.

    \b
    Examples:
      statsfs top /run/stats/kvm
      statsfs top http://host:9464
      statsfs top --once -f 'vcpu0/.*exits$'
      statsfs top stats.parquet
      statsfs top --csv -i 10 /run/stats > stats.csv
    """  # fmt: skip
    # Before the first look at PATH, which may hang: a signal is no failure then, either.
    stop = Stop() if once or as_csv else None
    place: Place | None = _ask(lambda: _open(_find_place() if path is None else path), stop)
    if place is None:
        return
    if stop is not None:
        if isinstance(place, Player):
            _print_recording(place, pattern, as_csv, stop)
        else:
            _print(place, interval, pattern, once, as_csv, stop)
        return
    try:
        from statsfs.top.app import TopApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise click.ClickException(_NO_TEXTUAL) from None
    _ask(place.read_sample)  # reports errors of PATH before the screen is taken
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("not a terminal; --once and --csv are for scripts")
    if Console().is_dumb_terminal:
        term = os.environ.get("TERM")
        raise click.ClickException(f"nothing can be drawn on a terminal of type {term}; try --once")
    TopApp(place, interval, pattern).run()


def _open(path: str) -> Place:
    # A file is a recording, if it is not one of a mount.
    if not os.path.isfile(path) or os.path.exists(
        os.path.join(os.path.dirname(path), ".stats.json")
    ):
        return open_place(path)
    with needing("top", "pyarrow", "numpy"):
        from statsfs.recordings.playing import Playback
    progress = Progress()
    try:
        place = Playback(path, progress.show)
        if place.mended:
            progress.say(f"{path}: its recorder was killed; the unfinished interval is cut off")
    finally:
        progress.clear()
    return place


def _find_place() -> str:
    if os.path.exists(".stats.json"):
        return "."
    mounts = find_mounts("fuse.statsfs")
    if len(mounts) == 1:
        return mounts[0]
    if not mounts:
        raise click.ClickException("no statsfs is mounted; give a PATH or http://HOST:PORT")
    raise click.ClickException(f"give one PATH; there are {', '.join(mounts)}")


def _print(
    place: Place,
    interval: float,
    pattern: re.Pattern[str] | None,
    once: bool,
    as_csv: bool,
    stop: Stop,
) -> None:
    # A rate takes two samples, so the first is printed after an interval.
    known, rates = Known(place), Rates()
    if _ask(partial(_read, place, known, rates), stop) is None:
        return
    if as_csv:
        click.echo(CSV_HEADER, nl=False)
    due = time.monotonic() + interval
    while not stop.wait(due - time.monotonic()):
        due = max(due + interval, time.monotonic())
        if not _ask(partial(_read, place, known, rates), stop):
            return
        assert rates.after is not None
        entries = list_all(rates, known.find, pattern)
        if any(entry.what is None for entry in entries) and _ask(
            partial(known.read, time.monotonic()), stop
        ):
            entries = list_all(rates, known.find, pattern)
        text = format_csv(rates.after.time, entries) if as_csv else format_table(entries)
        click.echo(text, nl=False)
        if once:
            return


def _print_recording(
    place: Player, pattern: re.Pattern[str] | None, as_csv: bool, stop: Stop
) -> None:
    known, rates = Known(place), Rates()
    known.read(time.monotonic())
    if as_csv:
        click.echo(CSV_HEADER, nl=False)
    for sample in place.replay(None if as_csv else 2):
        if stop.wait(0):
            return
        rates.add(sample)
        if as_csv:
            click.echo(format_csv(sample.time, list_all(rates, known.find, pattern)), nl=False)
    if not as_csv:
        click.echo(format_table(list_all(rates, known.find, pattern)), nl=False)


def _ask(question: Callable[[], Any], stop: Stop | None = None) -> Any:
    # Returns the answer, or None if told to stop. A thread waits for it: no signal ends a read from
    # a mount whose server hangs.
    answers: list[Any] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="statsfs-top-ask", daemon=True)
    thread.start()
    while thread.is_alive() and not (stop is not None and stop.wait(0)):
        thread.join(_TURN)
    for error in errors:
        raise error
    return answers[0] if answers else None


def _read(place: Place, known: Known, rates: Rates) -> bool:
    # Takes the next sample; tells whether there was one.
    sample = place.read_sample()
    if sample is None:
        return False
    rates.add(sample)
    known.read(time.monotonic())
    return True
