"""Entries: a source gets arrays of values over bases, and loses them.

Threading: all of it is changes of the tree, under its lock.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from statsfs.exceptions import BaseMismatchError, DuplicateNameError
from statsfs.model.arrays import Array, intern_array
from statsfs.model.stats import Stats
from statsfs.model.values import Value
from statsfs.tree.index import Entry
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import TreeChange
from statsfs.tree.references import check
from statsfs.tree.retention import Folding, folding_change

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["add_values", "revoke"]


def add_values(
    source: "Source", values: type[Stats] | Sequence[Value], base: object, hidden: bool
) -> None:
    """Give a source an array over a base; the errors are those of `Source.add_values`."""
    check(source)
    try:
        array = intern_array(values)
        reader, bound = (None, None) if base is None else array.binder.bind(base)
    except (BaseMismatchError, DuplicateNameError) as error:
        raise type(error)(f"{source.path}: {error}", error.offender) from error.__cause__
    _add_entry(source, Entry(source, array, reader, bound, base, hidden))


@folding_change
def _add_entry(source: "Source", change: TreeChange, folding: Folding, entry: Entry) -> None:
    check(source)
    directory = source._directory
    directory.check_entry(entry)
    lineage = find_lineage(source)
    revoked = directory.find_revoked(entry)
    if not folding.take_back_entry(change, lineage, entry, revoked):
        return
    stale = directory.add_entry(change, entry, revoked)
    note_files(change, lineage, stale)


@folding_change
def revoke(
    source: "Source", change: TreeChange, folding: Folding, array: Array | None = None
) -> None:
    """Drop the bases of one array of a source, or of all: then their names stay."""
    check(source)
    directory = source._directory
    revoked = {
        entry: entry.revoke(hidden=array is not None)
        for entry in directory.entries.values()
        if not entry.declared and array in (None, entry.array)
    }
    lineage = find_lineage(source)
    # The source does not retain what it drops itself: the sources above do.
    if revoked and folding.retain_entries(change, lineage[1:], revoked):
        directory.revoke_entries(change, revoked)
        note_files(change, lineage, [directory])
