"""Metric conflicts: to which top-level source a metric's name belongs.

The name of a metric begins with that of its top-level source, in which other characters became "_".
So `web` may have a value `api_requests` and `web_api` a value `requests`. The top-level source with
the longer name has the metric; of equally long ones the one whose name has only allowed characters,
else the one whose name is sorted last. An administrator gives top-level names. So no user takes
another user's metric with a value's name, or by publishing first. A source `statsfs`, which is the
daemon's own, comes before all others. A value counts whether or not it has numbers at this moment:
else metrics of the other source would come and go.

Threading: pure, but for pauses.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from statsfs.formats.metric_names import make_metric, make_name
from statsfs.formats.metric_samples import find_exported
from statsfs.model.arrays import Array
from statsfs.tree.pauses import pause

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["OWN", "assign_names"]

OWN: Final = "statsfs"
"""The name of the source that shows the daemon's own numbers."""


def assign_names(
    prefixes: "Mapping[Source, str]", arrays: "Mapping[Source, Iterable[Array]]"
) -> "dict[str, Source]":
    """Return the top-level source that has each name, of metrics and samples that two might have.

    Args:
        prefixes: the top-level sources, and the start of their metrics' names.
        arrays: the arrays in the subtree of each.
    """

    def rank(top: "Source") -> tuple[bool, int, bool, str]:
        prefix = prefixes[top]
        return top.name == OWN, len(prefix), make_name(top.name) == top.name, top.name

    assigned: dict[str, Source] = {}
    for top in sorted(_find_rivals(prefixes), key=rank, reverse=True):
        names: set[str] = set()
        for array in arrays[top]:
            for _, value in find_exported(array):
                metric, _ = make_metric(prefixes[top], value)
                if assigned.keys().isdisjoint(metric.names):
                    names.update(metric.names)
            pause()
        assigned |= dict.fromkeys(names, top)
    return assigned


def _find_rivals(prefixes: "Mapping[Source, str]") -> "set[Source]":
    # Sources whose prefix begins another's, and the others. There are nearly never any.
    tops: dict[str, list[Source]] = {}
    for top, prefix in prefixes.items():
        tops.setdefault(prefix, []).append(top)
    rivals: set[Source] = set()
    for prefix, some in tops.items():
        if len(some) > 1:
            rivals.update(some)
        words = prefix.split("_")
        for count in range(1, len(words)):
            shorter = tops.get("_".join(words[:count]))
            if shorter is not None:
                rivals.update(some, shorter)
    return rivals
