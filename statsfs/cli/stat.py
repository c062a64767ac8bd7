"""`statsfs stat`: what moved while a command ran, as `perf stat` has it of the processor.

Owns the command, its options and its report. Threading: main thread only.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

import click

from statsfs.cli.measured import Command, find_places, path_option
from statsfs.cli.paths import PATH
from statsfs.exceptions import SampleError
from statsfs.eyes.moved import Moved, Repeated, find_totals, list_moved, measure, repeat
from statsfs.eyes.numbers import format_number, format_percentiles, format_rate
from statsfs.eyes.places import Place
from statsfs.eyes.samples import Sample

__all__ = ["stat"]

EPILOG: Final = """\b
Exit codes:
  that of COMMAND; 128 and the number of the signal that ended it
  1    failed: no statsfs at PATH, no such server
  2    wrong usage
  126  COMMAND cannot be run
  127  there is no COMMAND
"""
_WIDTH: Final = 18


@click.command(
    epilog=EPILOG,
    context_settings={"show_default": True, "allow_interspersed_args": False},
)
@path_option
@click.option("--per-source", is_flag=True, help="Each source by itself, not their totals.")
@click.option(
    "-r",
    "--repeat",
    "runs",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Run COMMAND so many times; print the mean and the standard deviation of a run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object of JSON.")
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Print there, and not on stderr.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def stat(
    paths: tuple[str, ...],
    per_source: bool,
    runs: int,
    as_json: bool,
    output: str | None,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND and print what moved meanwhile: differences and rates, on stderr.

    The report has the totals of the outermost sources. A level (a gauge) has its change and its
    present number; a histogram has the percentiles of the observations meanwhile. A counter of a
    new source counts from 0; the difference of a cleared counter is unknown. As with `perf stat`,
    SIGINT ends COMMAND, and the report comes nevertheless.

    \b
    Examples:
      statsfs stat -- sleep 1
      statsfs stat -p /run/stats/kvm -r 5 -- ./benchmark
      statsfs stat --per-source --json -o moved.json -- make
    """
    places = find_places(paths)
    before = [_sample(place) for place in places]
    try:
        stream = sys.stderr if output is None else open(output, "w")  # noqa: SIM115 - to the end
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from None
    program = Command(command)
    moved: list[list[tuple[float, list[Moved]]]] = []
    times: list[float] = []
    status = 0
    while len(moved) < runs and program.told is None:
        status, took = program.run()
        times.append(took)
        after = [_sample(place) for place in places]
        moved.append(
            [
                (new.moment - old.moment, _compare(place, old, new, per_source))
                for place, old, new in zip(places, before, after, strict=True)
            ]
        )
        before = after
    rows = [
        (place, one)
        for index, place in enumerate(places)
        for one in repeat([run[index] for run in moved])
    ]
    try:
        if as_json:
            _print_json(stream, command, times, status, rows)
        else:
            _print_table(stream, command, times, rows)
        stream.flush()
    except OSError as error:
        if output is not None:
            raise click.ClickException(f"{output}: {error.strerror}") from None
    return program.end(status)


def _sample(place: Place) -> Sample:
    sample = place.read_sample()
    assert sample is not None, "it is not a recording"
    return sample


def _compare(place: Place, before: Sample, after: Sample, per_source: bool) -> list[Moved]:
    try:
        schema = place.read_schema()
    except SampleError as error:
        raise click.ClickException(str(error)) from None
    sources = None if per_source else find_totals(after)
    return list(list_moved(before, after, schema, sources=sources))


def _print_table(
    stream: TextIO,
    command: Sequence[str],
    times: Sequence[float],
    rows: Sequence[tuple[Place, Repeated]],
) -> None:
    many = f" ({len(times)} runs)" if len(times) > 1 else ""
    last = None
    for place, row in rows:
        if place is not last:
            stream.write(f"\n What moved in {place.name} during {' '.join(command)!r}{many}:\n\n")
            last = place
        stream.write(_format(row, len(times)) + "\n")
    if not rows:
        stream.write(f"\n Nothing moved during {' '.join(command)!r}{many}\n")
    spread = _format_spread(*measure(times)) if len(times) > 1 else ""
    stream.write(f"\n{measure(times)[0]:>{_WIDTH},.6f}  seconds elapsed{spread}\n\n")


def _format(row: Repeated, runs: int) -> str:
    one, what = row.last, row.last.what
    name = "/".join((*one.source, what.name))
    if not row.counts:
        return f"{'<cleared>':>{_WIDTH}}  {name}"
    number: float = row.mean if runs > 1 else row.counts[0]
    shown = f"{number:,.6g}" if what.histogram and runs > 1 else ""
    shown = shown or (f"{number:,}" if what.histogram else format_number(number, what))
    if not one.counter and number > 0:
        shown = f"+{shown}"
    text = f"{shown:>{_WIDTH}}  {name:<32}"
    return (text + "  # " + "  ".join(_list_details(row, runs))).rstrip("# ")


def _list_details(row: Repeated, runs: int) -> Iterator[str]:
    one, what = row.last, row.last.what
    if row.rate is not None:
        yield format_rate(row.rate, what)
    if not one.counter and isinstance(one.after, int):
        yield f"now {format_number(one.after, what)}"
    if what.histogram and isinstance(one.difference, list):
        yield format_percentiles(one.difference, what)
    if one.before is None:
        yield "new"
    if runs > 1:
        yield _format_spread(row.mean, row.deviation).strip()


def _format_spread(mean: float, deviation: float) -> str:
    return f"  ( +- {abs(deviation / mean):.2%} )" if mean else ""


def _print_json(
    stream: TextIO,
    command: Sequence[str],
    times: Sequence[float],
    status: int,
    rows: Sequence[tuple[Place, Repeated]],
) -> None:
    mean, deviation = measure(times)
    report: dict[str, Any] = {
        "command": list(command),
        "status": status,
        "elapsed": mean,
        "values": [_report(place, row, len(times)) for place, row in rows],
    }
    if len(times) > 1:
        report |= {"runs": list(times), "deviation": deviation}
    stream.write(json.dumps(report, indent=1) + "\n")


def _report(place: Place, row: Repeated, runs: int) -> dict[str, Any]:
    one, what = row.last, row.last.what
    report = {
        "path": place.name,
        "source": "/".join(one.source),
        "value": what.name,
        "kind": what.kind,
        "unit": what.unit,
        "base": what.base,
        "exponent": what.exponent,
        "difference": one.difference,
        "rate": row.rate,
        "now": one.after,
        "new": one.before is None,
    }
    if runs > 1:
        known = bool(row.counts)
        report |= {
            "runs": list(row.counts),
            "mean": row.mean if known else None,
            "deviation": row.deviation if known else None,
        }
    return report
