"""Record rows: how folds, clears and removals change the rows of a record.

Owns the arithmetic of records, which is that of the tree: sums are added, and of two peaks the
larger one stays.

Threading: everything here is a function of its arguments.
"""

from statsfs.collector.journal_file import RetainedRows, RetainedSource
from statsfs.formats.binary import Number
from statsfs.model.values import Kind, Value
from statsfs.tree.rows import add_numbers

__all__ = ["add_rows", "clear_rows"]


def add_rows(kept: RetainedSource, rows: RetainedRows) -> RetainedSource:
    """Return the retained rows of a source after more rows were added."""
    added = kept.rows.copy()
    for array, row in rows.items():
        before = added.get(array, (None,) * len(array))
        added[array] = tuple(map(_add_number, array, before, row))
    return kept.copy(added)


def clear_rows(kept: RetainedSource, places: dict[tuple[Value, ...], set[int]]) -> RetainedSource:
    """Return what a source retains after some places of its rows were cleared."""
    cleared = kept.rows.copy()
    for array in places.keys() & cleared.keys():
        row = enumerate(zip(array, cleared[array], strict=True))
        zeroed = (value.zero if at in places[array] else one for at, (value, one) in row)
        cleared[array] = tuple(zeroed)
    return kept.copy(cleared)


def _add_number(value: Value, before: Number | None, number: Number) -> Number:
    # A peak of 0 may stand for none, and another one may be negative.
    if before is None or (value.kind is Kind.PEAK and not before):
        return number
    added: Number = add_numbers(value, [before, number])
    return added
