"""Info metrics: the `info` of sources, as labels of a metric that is always 1.

A query joins it with other metrics, as any `…_info` of Prometheus.

Threading: pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from statsfs.formats.metric_names import make_label
from statsfs.model.values import Kind, Value

if TYPE_CHECKING:
    from statsfs.formats.metric_samples import Home
    from statsfs.tree.source import Source

    _Rows = list[tuple[Home, tuple[int]]]

__all__ = ["list_info"]

_HELP: Final = "What is known of each beside numbers"


def list_info(homes: "Iterable[Home]") -> "Iterator[tuple[Source, Value, _Rows]]":
    """Return for each top-level source, and each label below it, a value and its samples.

    The value is called `<label>_info`, and `info` for a top-level source itself. Names with a dot
    are left out: they are for extended attributes alone.

    Args:
        homes: of all sources that have series of their own.
    """
    found: dict[tuple[Source, str], _Rows] = defaultdict(list)
    for home in homes:
        pairs = home.source.info.items()
        known = {make_label(name): text for name, text in pairs if "." not in name}
        if known:
            # The series keeps its own labels.
            labelled = type(home)(home.source, home.top, {**known, **home.labels})
            name = f"{home.source.label or 'source'}_info" if home.labels else "info"
            found[home.top, name].append((labelled, (1,)))
    for (top, name), rows in found.items():
        yield top, Value(name, kind=Kind.INSTANT, description=_HELP), rows
