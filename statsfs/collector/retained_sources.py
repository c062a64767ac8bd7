"""Retained sources: the retained numbers of each path source, as records have them.

Owns that unchanged numbers are returned as the same object, whose text need not be made anew: when
one of thousands of directories changed, the record of all is written.

Threading: under the tree's lock and that of the journal, but for `forget` and `retains`, which any
thread may call, and `forget_zeros`, which changes the tree.
"""

from operator import attrgetter
from typing import Any, Final

from statsfs.collector.journal_file import RetainedSource
from statsfs.tree.retained import Retained, add_records, fill_row, find_records
from statsfs.tree.retention import forget_row
from statsfs.tree.source import Source, directory_of

__all__ = ["RetainedSources", "forget_zeros", "retains"]

_get_row: Final = attrgetter("row")


class RetainedSources:
    """What path sources retained at the last look."""

    def __init__(self) -> None:
        self._seen: Final[dict[Source, tuple[list[Retained], list[Any], RetainedSource]]] = {}

    def look(self, source: Source) -> RetainedSource:
        """Return what a source retains: the same object as long as that is the same."""
        records = find_records(source)
        rows = list(map(_get_row, records))
        *before, seen = self._seen.get(source, ([], [], None))
        if seen is not None and before == [records, rows]:
            return seen
        if seen is None:
            seen = RetainedSource(tuple(source.path.split("/")), source.label, {}, source.collapse)
        added = add_records(records).items()
        after = {array.values: fill_row(array, row, copy=False) for array, row in added}
        seen = seen.copy(after)
        self._seen[source] = records, rows, seen
        return seen

    def forget(self, source: Source) -> None:
        """Forget a source that has left the tree."""
        self._seen.pop(source, None)

    def clear(self) -> None:
        """Forget all."""
        self._seen.clear()


def retains(source: Source) -> bool:
    """Tell whether a source itself retains something."""
    return any(index.own is not None for index in directory_of(source).index.copy().values())


def forget_zeros(source: Source) -> bool:
    """Forget retained zeros in a source's subtree that no segment there counts.

    Return whether there were some.
    """
    zeros = [
        array
        for array, index in directory_of(source).index.copy().items()
        if index.records and not index.groups and not any(map(_counts, list(index.records)))
    ]
    for array in zeros:
        forget_row(source, array)
    return bool(zeros)


def _counts(record: Retained) -> bool:
    # Whether something in it is not 0.
    return any(any(one) if isinstance(one, list) else one for one in record.row)
