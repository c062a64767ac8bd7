"""Rights: a source in the tree gets other readers and another owner.

Owns how the arrays of a source are replaced by others that differ only in their read bits. The base
goes on counting, so nothing is retained of the old arrays.

Threading: any thread; it is one change of the tree, under its lock.
"""

from collections.abc import Iterable, Sequence

from statsfs.model.arrays import intern_array
from statsfs.model.values import Value
from statsfs.tree import placement, references
from statsfs.tree.access import Owner, check_owner
from statsfs.tree.directory import Directory
from statsfs.tree.index import ArrayIndex, Entry
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import Listening, TreeChange, tree_change
from statsfs.tree.source import Source, directory_of

__all__ = ["change_rights"]


def change_rights(
    source: Source, arrays: Iterable[Sequence[Value]], base: object, owner: Owner | None
) -> None:
    """Replace the arrays that a source shows over one base, and its owner. Mounts see a new source.

    Raises:
        ReleasedError: it was released.
        TypeError, ValueError: the owner is not a pair of numbers.
    """
    entries = []
    for values in arrays:
        array = intern_array(values)
        reader, bound = array.binder.bind(base)
        entries.append(Entry(source, array, reader, bound, base, hidden=False))
    _change_rights(source, entries, check_owner(owner, f"the owner of {source.name!r}"))


@tree_change
def _change_rights(
    source: Source, change: TreeChange, entries: Sequence[Entry], owner: Owner | None
) -> None:
    references.check(source)
    directory, lineage = directory_of(source), find_lineage(source)
    former, stale = directory.entries, []
    for entry in entries:
        if entry.key not in former:
            stale += directory.add_entry(change, entry, [])
    for key in former.keys() - {entry.key for entry in entries}:
        stale += _remove_entry(change, directory, former[key])
    change.set(directory, "owner", owner)
    note_files(change, lineage, stale)
    parent = source.parent
    if parent is not None:
        # Mounts keep what they know of a place.
        change.leave(lineage[-1].parent, directory.place)
        placement.renumber(source, change)
        place = 0 if isinstance(parent, Listening) else directory_of(parent).place
        change.touch(lineage[-1].parent, place, None if source.hidden else source.name)


def _remove_entry(change: TreeChange, directory: Directory, entry: Entry) -> list[Directory]:
    # Returns the directories whose files change.
    assert entry.reader is not None
    leaving = ArrayIndex(entry.array, {entry.reader: {entry: None}})
    change.do(directory.entries.pop, entry.key)
    change.garbage.append(entry)
    stale = []
    for one in directory.lineage():
        index = one.index[entry.array]
        if len(index) > 1:
            index.subtract(change, leaving)
        else:
            # Whole: who has it reads the same number in it.
            change.do(one.index.pop, entry.array)
            change.garbage.append(index)
        if one is directory or one.count_below(entry.array) == 1:
            one.make_stale(change)
            stale.append(one)
    return stale
