"""`statsfs record`: the numbers of a tree over time, into a file.

Owns the command, its options and the course of time. Threading: main thread only.
"""

import contextlib
import math
import sys
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import click

from statsfs.cli import serving
from statsfs.cli.measured import Command, find_places, path_option
from statsfs.cli.paths import PATH
from statsfs.cli.progress import needing
from statsfs.cli.signals import Stop
from statsfs.eyes.descriptions import Description
from statsfs.eyes.numbers import format_number
from statsfs.eyes.places import Place
from statsfs.model.counts import count_of
from statsfs.recordings.openmetrics_file import MetricsRecorder

if TYPE_CHECKING:
    from statsfs.recordings.recorder import Recorder

__all__ = ["record"]

EPILOG: Final = """\b
Exit codes:
  that of COMMAND; without one:
  0  done, also when stopped by SIGTERM or SIGINT
  1  failed: no statsfs at PATH, FILE exists or cannot be written, pyarrow is not installed
  2  wrong usage
"""
_LONGEST: Final = 1e9  # seconds of a recording; 31 years
_BYTES: Final = Description("size", unit="bytes")


@click.command(
    epilog=EPILOG,
    context_settings={"show_default": True, "allow_interspersed_args": False},
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    metavar="FILE",
    help="Write there; it must not exist.",
)
@click.option(
    "-i",
    "--interval",
    type=serving.Number(0.05, serving.LONGEST_INTERVAL),
    default=1.0,
    metavar="SECONDS",
    help="Read so often.",
)
@path_option
@click.option(
    "--for",
    "duration",
    type=serving.Number(0, _LONGEST),
    metavar="SECONDS",
    help="End by itself; without it, at SIGINT (Ctrl-C) or SIGTERM, or with COMMAND.",
)
@click.option(
    "--openmetrics",
    is_flag=True,
    help="Write OpenMetrics text, for `promtool tsdb create-blocks-from openmetrics`.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    output: str,
    interval: float,
    paths: tuple[str, ...],
    duration: float | None,
    openmetrics: bool,
    command: tuple[str, ...],
) -> int:
    """Record all numbers into FILE, until the end or while COMMAND runs.

    FILE is one Parquet file, for `statsfs plot`, pandas, polars and DuckDB. It can be read at any
    moment; a recorder that is killed loses the last interval.

    \b
    Examples:
      statsfs record -o stats.parquet
      statsfs record -o build.parquet -i 0.1 -p /run/stats/app -- make
      statsfs record -o stats.om --openmetrics --for 3600
    """
    if command and duration is not None:
        raise click.UsageError("--for and COMMAND: give one of them")
    places = find_places(paths)
    for place in places:
        place.read_sample()  # raises errors before the file is made
    if openmetrics:
        recorder: Recorder | MetricsRecorder = MetricsRecorder(output, [p.name for p in places])
    else:
        recorder = _make_recorder(output, places, interval)
    with contextlib.closing(_Course(recorder, interval)) as course:
        if not command:
            _run(course, duration)
            return 0
        program = Command(command)
        status, _ = program.run(course.tick)
        course.record()
    return program.end(status)


def _make_recorder(output: str, places: list[Place], interval: float) -> "Recorder":
    with needing("record", "pyarrow", "numpy"):
        from statsfs.recordings.recorder import Recorder
    return Recorder(output, places, interval)


def _run(course: "_Course", duration: float | None) -> None:
    stop = Stop()
    end = math.inf if duration is None else time.monotonic() + duration
    while (left := end - time.monotonic()) > 0:
        if stop.wait(min(course.tick(), left)):
            break
    course.record()


class _Course:
    # The times of the samples, and what is said of them.

    def __init__(self, recorder: "Recorder | MetricsRecorder", interval: float) -> None:
        self._recorder = recorder
        self._interval = interval
        self._due = time.monotonic()
        # Times follow that clock: it is never set, and suspends do not stop it.
        self._offset = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        self._failing: Collection[str] = ()
        self._failed = False
        self._shown = sys.stderr.isatty()

    def tick(self) -> float:
        """Record if it is time to; return the seconds until the next time."""
        now = time.monotonic()
        if now >= self._due:
            self.record()
            # Missed samples are left out.
            now = time.monotonic()
            self._due += self._interval * (1 + max(0, now - self._due) // self._interval)
        return max(0.0, self._due - now)

    def record(self) -> None:
        """Record the numbers of now."""
        moment = self._offset + time.clock_gettime(time.CLOCK_BOOTTIME)
        self._failed = True  # if this raises: then the error is all that is said
        failing = self._recorder.record(moment)
        self._failed = False
        # Once a place, until it has numbers again: as it goes, its reasons may change.
        for name in sorted(failing.keys() - self._failing):
            self._say(f"statsfs: {failing[name]}; the recording goes on")
        self._failing = failing.keys()
        if self._shown:
            self._write(f"\r\033[K{self._describe()}", end="")

    def close(self) -> None:
        """Finish the recording, and print its samples, numbers and size."""
        self._recorder.close()
        if not self._failed:
            self._say(f"statsfs: recorded {self._describe()}")

    def _say(self, text: str) -> None:
        self._write(f"\r\033[K{text}" if self._shown else text)

    def _write(self, text: str, *, end: str = "\n") -> None:
        with contextlib.suppress(OSError):  # stderr has no reader
            click.echo(f"{text}{end}", nl=False, err=True)

    def _describe(self) -> str:
        size = format_number(self._recorder.size, _BYTES)
        samples = count_of(self._recorder.intervals, "sample", ",")
        return f"{samples}, {count_of(self._recorder.rows, 'number', ',')}, {size}"
