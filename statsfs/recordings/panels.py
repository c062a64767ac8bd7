"""The panels of a picture: rates of counters, levels, histograms over time.

Owns which sources are chosen, and what is added up. Threading: pure.
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Description
from statsfs.recordings.reading import Recorded, Recording, Series

__all__ = ["LINES_MAX", "Heat", "Line", "Panel", "list_values", "make_panels"]

LINES_MAX: Final = 8  # as many as there are colours to tell apart
_MOMENTS_MAX: Final = 2000  # a picture has fewer pixels

_Numbers = npt.NDArray[np.float64]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Line:
    """A number over time."""

    name: str
    numbers: _Numbers


@dataclass(frozen=True, slots=True)
class Heat:
    """How much was observed in a second, of a histogram: a row for each bucket."""

    name: str
    rates: _Numbers


@dataclass(slots=True)
class Panel:
    """One value.

    Attributes:
        value: its name.
        what: its description.
        rate: whether the lines are rates.
        times: of the numbers; of rates and heats, where each interval ends.
        begin: where the first interval begins.
        lines: the largest first.
        heats: those of a histogram, in place of lines.
        left_out: how many lines or heats there are besides.
    """

    value: str
    what: Description
    rate: bool
    times: _Numbers
    begin: float
    lines: list[Line] = field(default_factory=list)
    heats: list[Heat] = field(default_factory=list)
    left_out: int = 0


def list_values(recording: Recording, patterns: Sequence[str]) -> list[str]:
    """Return the names of the values that patterns match; of all without patterns.

    Raises:
        SampleError: a pattern matches none.
    """
    names = {name: None for source in recording.sources.values() for name in source.values}
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            known = ", ".join(list(names)[:20]) or "none"
            raise SampleError(f"{recording.name}: no value {pattern}; there are: {known}", pattern)
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    return chosen if patterns else list(names)


def make_panels(recording: Recording, values: Sequence[str], by: str, since: float) -> list[Panel]:
    """Return what is to be drawn of some values, as far as it moved.

    Args:
        recording: what was recorded.
        values: their names.
        by: "total" adds up all sources, "source" shows each by itself, a label each of its values.
        since: the seconds since 1970 from which on.

    Raises:
        SampleError: there is nothing to draw.
    """
    moments = recording.moments[recording.moments >= since]
    if len(moments) < 2:
        raise SampleError(f"{recording.name}: fewer than two samples in that time", recording.name)
    moments = moments[np.unique(np.linspace(0, len(moments) - 1, _MOMENTS_MAX).astype(np.int64))]
    groups = {value: _group(recording, value, by) for value in values}
    if not any(groups.values()):
        raise SampleError(f"{recording.name}: no source has the label {by}", by)
    wanted = {
        (source.name, value)
        for value, parts in groups.items()
        for sources in parts.values()
        for source in sources
    }
    found: dict[tuple[str, str], dict[int, Series]] = {}
    for (source, value, bucket), series in recording.read(wanted).items():
        found.setdefault((source, value), {})[bucket] = series.sample(moments)
    panels = []
    for value, parts in groups.items():
        shown = {
            key: [found[name] for one in sources if (name := (one.name, value)) in found]
            for key, sources in parts.items()
        }
        first = next((one for sources in parts.values() for one in sources), None)
        if first is not None:
            panels.append(_make_panel(recording, first, value, moments, shown))
    return [panel for panel in panels if panel.lines or panel.heats]


def _make_panel(
    recording: Recording,
    source: Recorded,
    value: str,
    moments: _Numbers,
    shown: dict[str, list[dict[int, Series]]],
) -> Panel:
    what = source.values[value]
    total = any(name.startswith(f"{source.name}/") for name in recording.sources)
    panel = Panel(value, what, what.counts(source.values, total), moments, moments[0])
    if what.histogram:
        panel.times = moments[1:]
        heats = [Heat(key, _make_heat(parts, what.size)) for key, parts in shown.items()]
        panel.heats, panel.left_out = _largest([h for h in heats if h.rates.any()], _heat_size)
    elif panel.rate:
        panel.times = moments[1:]
        elapsed = np.diff(moments)
        rates = {
            key: _add([part[-1].differences() / elapsed for part in parts if -1 in part])
            for key, parts in shown.items()
        }
        panel.lines, panel.left_out = _largest(_list_lines(rates), _line_size)
    else:
        levels = {
            key: _add([part[-1].numbers for part in parts if -1 in part])
            for key, parts in shown.items()
        }
        panel.lines, panel.left_out = _largest(_list_lines(levels), _line_size)
    return panel


def _list_lines(found: dict[str, _Numbers]) -> list[Line]:
    return [Line(key, numbers) for key, numbers in found.items() if np.nansum(abs(numbers)) > 0]


def _line_size(line: Line) -> float:
    return float(np.nansum(abs(line.numbers)))


def _heat_size(heat: Heat) -> float:
    return float(heat.rates.sum())


def _largest(items: list[_T], size: Callable[[_T], float]) -> tuple[list[_T], int]:
    kept = sorted(items, key=size, reverse=True)[:LINES_MAX]
    return kept, len(items) - len(kept)


def _add(parts: Sequence[_Numbers]) -> _Numbers:
    # What is not known of one is left out of the sum; of all, it is not known.
    if not parts:
        return np.zeros(0)
    stacked = np.stack(parts)
    return np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))


def _make_heat(parts: Iterable[dict[int, Series]], size: int) -> _Numbers:
    rows: list[_Numbers] = []
    for part in parts:
        for bucket, series in part.items():
            if bucket < 0:
                continue
            rates = np.nan_to_num(series.differences() / np.diff(series.times))
            while len(rows) <= max(bucket, size - 1):
                rows.append(np.zeros(len(rates)))
            rows[bucket] = rows[bucket] + rates
    return np.stack(rows) if rows else np.zeros((size, 0))


def _group(recording: Recording, value: str, by: str) -> dict[str, list[Recorded]]:
    # The sources to add up, by the name of the line.
    having = {name: one for name, one in recording.sources.items() if value in one.values}
    groups: dict[str, list[Recorded]] = {}
    if by == "total":
        chosen = [one for name, one in having.items() if not _find_above(name, having)]
        return {"": chosen} if chosen else {}
    if by == "source":
        above = {up for name in having for up in _find_above(name, having)}
        for name, one in having.items():
            if name not in above:
                groups[_shorten(recording, name)] = [one]
        return groups
    for name, one in having.items():
        if by in one.labels and not any(
            by in recording.sources[up].labels for up in _find_above(name, having)
        ):
            groups.setdefault(one.labels[by], []).append(one)
    return groups


def _find_above(name: str, known: dict[str, Recorded]) -> list[str]:
    found = []
    while "/" in name:
        name = name.rpartition("/")[0]
        if name in known:
            found.append(name)
    return found


def _shorten(recording: Recording, name: str) -> str:
    # Without the place, if there is only one.
    (place, *others) = recording.places
    return name if others else name.removeprefix(place).lstrip("/") or name
