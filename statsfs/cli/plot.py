"""`statsfs plot`: pictures of a recording.

Owns the command and its options. Threading: main thread only.
"""

import math
import os
import re
from datetime import UTC, datetime
from typing import Any, Final

import click

from statsfs.cli.paths import PATH
from statsfs.cli.progress import Progress, needing

__all__ = ["plot"]

EPILOG: Final = """\b
Exit codes:
  0  done
  1  failed: FILE is not a recording, has no such value, or cannot be written; matplotlib or
     pyarrow is not installed
  2  wrong usage
"""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PANELS_MAX: Final = 24
_FORMATS: Final = ("png", "svg", "html")


class _Since(click.ParamType[float]):
    # Seconds before the end of the recording, as a negative number; or since 1970.
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value):
            return -float(match[1]) * _UNITS[match[2] or "s"]
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is neither 90s, 10m, 2h, 1d nor 2026-01-31T12:00", param, ctx)
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


@click.command(epilog=EPILOG, context_settings={"show_default": True})
@click.argument("file", type=PATH)
@click.option(
    "--value",
    "values",
    multiple=True,
    metavar="NAME",
    help="Only this value; may be given several times, and have * and ?.",
)
@click.option(
    "--by",
    default="total",
    metavar="total|source|LABEL",
    help="One line for all, for each source, or for each value of a label; the 8 largest.",
)
@click.option(
    "--since",
    type=_Since(),
    metavar="TIME",
    help="Only numbers since then: 90s, 10m, 2h before the end of FILE, or 2026-01-31T12:00 (UTC).",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="Write there: .png, .svg or .html, one page that needs nothing else.  [default: FILE.png]",
)
def plot(
    file: str, values: tuple[str, ...], by: str, since: float | None, output: str | None
) -> None:
    """Draw FILE, which `statsfs record` wrote: rates of counters, levels, heat maps of histograms.

    Of a recorder that was killed, the unfinished interval is cut off.

    \b
    Examples:
      statsfs plot stats.parquet
      statsfs plot stats.parquet --value exits --by vm --since 10m -o exits.svg
      statsfs plot stats.parquet -o stats.html
    """
    output = output or f"{os.path.splitext(file)[0]}.png"
    form = os.path.splitext(output)[1].lower().removeprefix(".")
    if form not in _FORMATS:
        raise click.UsageError(f"-o {output}: its name must end in .png, .svg or .html")
    with needing("plot", "pyarrow", "numpy", "matplotlib"):
        from statsfs.recordings.panels import list_values, make_panels
        from statsfs.recordings.pictures import draw
        from statsfs.recordings.reading import open_recording
    progress = Progress()
    try:
        recording, mended = open_recording(file, progress.show)
        names = list_values(recording, values)
        begin = -math.inf if since is None else since
        if since is not None and since < 0 and len(recording.moments):
            begin = recording.moments[-1] + since
        panels = make_panels(recording, names, by, begin)
        if mended:
            progress.say(f"{file}: its recorder was killed; the unfinished interval is cut off")
        if not panels:
            raise click.ClickException(f"{file}: nothing moved in that time")
        # A page has room for all.
        drawn = panels if form == "html" else panels[:_PANELS_MAX]
        picture = draw(drawn, form, os.path.basename(file))
    finally:
        progress.clear()
    try:
        with open(output, "wb") as target:
            target.write(picture)
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from None
    click.echo(f"statsfs: drew {output}")
    if left := ", ".join(panel.value for panel in panels[len(drawn) :]):
        progress.say(f"of {len(panels)} values the first {len(drawn)}; --value draws: {left}")
