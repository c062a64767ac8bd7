"""Wishes: the renderings that clients ask for, parsed from the targets of requests.

`/metrics` is all metrics. `/api/stats` and `/api/schema` are `.stats.json` and `.schema.json`, of
the root or, with a path behind them, of one directory. `?depth=` leaves out deeper sources,
`?value=` all values with other names. Unknown parameters are ignored, as are empty ones, and the
last `depth` counts.

Threading: pure.
"""

import re
from dataclasses import dataclass
from stat import S_IROTH
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from statsfs.formats import openmetrics, prometheus
from statsfs.formats.views import VIEWS, View

__all__ = ["METRICS", "Wish", "parse_wish"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A view of a registry or of one of its sources; equal wishes share a rendering.

    Attributes:
        view: the view.
        path: that of a source; None for all sources.
        depth, names: those of `json.render`; a view of metrics has none.
    """

    view: View
    path: str | None = None
    depth: int | None = None
    names: frozenset[str] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the view's function, besides a snapshot and a mask."""
        if self.scrape:
            return {}
        hidden = {} if self.view.name == ".stats.json" else {"readable": S_IROTH}
        return {"depth": self.depth, "names": self.names, **hidden}

    @property
    def scrape(self) -> bool:
        """Whether it is one of all metrics."""
        return self in _SCRAPES


METRICS: Final = {
    prometheus.CONTENT_TYPE: Wish(VIEWS[".stats.prom"]),
    openmetrics.CONTENT_TYPE: Wish(VIEWS[".stats.openmetrics"]),
}
"""The metrics, by content type."""

_SCRAPES: Final = frozenset(METRICS.values())

_TARGET: Final = re.compile(r"/api/(stats|schema)((?:/[^/]+)*)")
_API: Final = {"stats": VIEWS[".stats.json"], "schema": VIEWS[".schema.json"]}
_DEPTH: Final = re.compile("[0-9]{1,4}")  # a deeper path is longer than a request may be


def parse_wish(path: str, query: str) -> Wish | None:
    """Return the wish of a target below `/api`; None if there is no such path.

    Raises:
        ValueError: the query is invalid.
    """
    target = _TARGET.fullmatch(path)
    if target is None:
        return None
    try:
        below = [unquote(name, errors="strict") for name in target[2].split("/")[1:]]
    except UnicodeDecodeError:
        return None
    if any("/" in name for name in below):
        return None
    asked = parse_qs(query)
    depth = asked.get("depth", [""])[-1]
    if depth and not _DEPTH.fullmatch(depth):
        raise ValueError(f"invalid depth {depth[:40]!r}: it must be a number from 0 to 9999")
    return Wish(
        _API[target[1]],
        "/".join(below) if below else None,
        int(depth) if depth else None,
        frozenset(asked["value"]) if "value" in asked else None,
    )
