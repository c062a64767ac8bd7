"""Panels as pictures: PNG and SVG by matplotlib, or one page of HTML with SVG in it.

Threading: one thread's.
"""

import html
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import matplotlib
import numpy as np
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from statsfs.eyes.numbers import find_edges, format_number, format_rate
from statsfs.recordings.panels import Heat, Panel

__all__ = ["draw"]

_WIDTH, _HEIGHT, _HEADING = 10.0, 2.7, 0.7  # inches
_TICKS: Final = 6
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "statsfs",  # the same recording makes the same picture
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
}
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:">
<title>{title}</title>
<style>
body {{ font: 16px/1.4 sans-serif; max-width: 64rem; margin: 1rem auto; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
nav a {{ margin-right: 1em; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
<nav>{links}</nav>
{sections}
</body>
</html>
"""


def draw(panels: Sequence[Panel], form: str, title: str) -> bytes:
    """Return a picture of panels; `form` is "png", "svg" or "html"."""
    with matplotlib.rc_context(_STYLE):
        if form == "html":
            return _make_page(panels, title).encode()
        return _render(panels, form, title)


def _render(panels: Sequence[Panel], form: str, title: str | None) -> bytes:
    rows = sum(max(1, len(panel.heats)) for panel in panels)
    height = rows * _HEIGHT + (_HEADING if title else 0)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    if title:
        figure.suptitle(f"{_escape(title)}\n{_describe_time(panels)}", fontsize=10)
    axes = iter(figure.subplots(rows, 1, squeeze=False)[:, 0])
    for panel in panels:
        if panel.heats:
            for heat in panel.heats:
                _draw_heat(figure, next(axes), panel, heat)
        else:
            _draw_lines(next(axes), panel)
    picture = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {}
    figure.savefig(picture, format=form, dpi=110, metadata=metadata)
    return picture.getvalue()


def _escape(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would take it for TeX


def _to_days(times: Any) -> Any:
    return np.asarray(times) / 86400.0  # matplotlib's dates


def _head(axes: Axes, panel: Panel, name: str) -> None:
    text = f"{panel.value} {name}".rstrip()
    if panel.what.description not in ("", panel.value):
        text += f": {panel.what.description}"
    if panel.left_out:
        text += f" (the largest; {panel.left_out:,} more are not drawn)"
    axes.set_title(_escape(text), loc="left", fontsize=9)
    axes.set_xlim(*_to_days([panel.begin, panel.times[-1]]))
    make: Any = dates  # its classes have no types
    locator = make.AutoDateLocator(tz=UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(make.ConciseDateFormatter(locator, tz=UTC))


def _draw_lines(axes: Axes, panel: Panel) -> None:
    what = panel.what
    step: Literal["pre", "post"] = "pre" if panel.rate else "post"
    times = panel.times
    for line in panel.lines:
        numbers = line.numbers
        if panel.rate:  # a rate is that of the interval that ends there
            times = np.concatenate([[panel.begin], panel.times])
            numbers = np.concatenate([numbers[:1], numbers])
        label = _escape(line.name)
        axes.step(_to_days(times), numbers, where=step, lw=1.2, label=label)
    _head(axes, panel, "")
    shown = format_rate if panel.rate else format_number
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: shown(number, what)))
    largest = max(float(np.nanmax(abs(line.numbers))) for line in panel.lines)
    if what.unit == "bytes":  # ticks at powers of 2
        axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(largest / _TICKS))))
    if all(np.nanmin(line.numbers) >= 0 for line in panel.lines):
        axes.set_ylim(bottom=0)
    if len(panel.lines) > 1 or panel.lines[0].name:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _draw_heat(figure: Figure, axes: Axes, panel: Panel, heat: Heat) -> None:
    used = np.flatnonzero(heat.rates.any(axis=1))
    low, high = int(used[0]), int(used[-1]) + 1
    rates = np.ma.masked_less_equal(heat.rates[low:high], 0)
    times = _to_days(np.concatenate([[panel.begin], panel.times]))
    norm = LogNorm(rates.min(), max(rates.max(), rates.min() * 1.001))
    mesh = axes.pcolormesh(times, np.arange(low, high + 1), rates, norm=norm, cmap="viridis")
    bar = figure.colorbar(mesh, ax=axes, pad=0.01)
    bar.ax.set_title("/s", fontsize=8)
    plain = FuncFormatter(lambda number, _: f"{number:,.3g}")  # not 4 × 10²
    bar.ax.yaxis.set_major_formatter(plain)
    bar.ax.yaxis.set_minor_formatter(plain)
    edges = find_edges(len(heat.rates), panel.what)
    ticks = np.arange(low, high + 1, max(1, -(-(high - low) // _TICKS)))
    axes.set_yticks(ticks, [_name_edge(edges[tick], panel) for tick in ticks])
    axes.grid(visible=False)
    _head(axes, panel, heat.name)


def _name_edge(edge: float, panel: Panel) -> str:
    return "∞" if np.isinf(edge) else format_number(edge, panel.what)


def _describe_time(panels: Sequence[Panel]) -> str:
    begin, end = (datetime.fromtimestamp(t, UTC) for t in (panels[0].begin, panels[0].times[-1]))
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"


def _make_page(panels: Sequence[Panel], title: str) -> str:
    links, sections = [], []
    for number, panel in enumerate(panels):
        svg = _render([panel], "svg", None).decode()
        svg = svg[svg.index("<svg") :]
        name = html.escape(panel.value)
        links.append(f'<a href="#p{number}">{name}</a>')
        # The parts of a picture have ids: each picture needs others.
        svg = svg.replace('id="', f'id="p{number}-').replace("url(#", f"url(#p{number}-")
        svg = svg.replace('href="#', f'href="#p{number}-')
        sections.append(f'<section id="p{number}" aria-label="{name}">\n{svg}</section>')
    return _PAGE.format(
        title=html.escape(title),
        about=_describe_time(panels),
        links=" ".join(links),
        sections="\n".join(sections),
    )
