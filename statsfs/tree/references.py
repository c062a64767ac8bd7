"""References: how long a source lives.

`put` gives back the references of the creator and of `get`. The tree and open files have holds,
which no `put` takes from them. At zero the source is released.

Threading: the counts change under the tree's lock.
"""

from typing import TYPE_CHECKING

from statsfs.exceptions import ReleasedError
from statsfs.tree.lock import TreeChange, tree_change, tree_lock

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["References", "check", "drop_hold", "get", "hold", "put", "unhold"]


class References:
    """The references to one source.

    Attributes:
        taken: the creator's, and those of `get`.
        holds: those of the tree and of open files.
        released: whether the last one is gone, and the source is of no use.
    """

    __slots__ = ("holds", "released", "taken")

    def __init__(self) -> None:
        self.taken = 1
        self.holds = 0
        self.released = False

    @property
    def count(self) -> int:
        """How many there are."""
        return self.taken + self.holds


def check(source: "Source") -> None:
    """Raise ReleasedError if a source was released."""
    if source._references.released:
        raise ReleasedError(f"source {source.path!r} was released", source)


@tree_change
def get(source: "Source", change: TreeChange) -> None:
    """Take a reference."""
    check(source)
    source._references.taken += 1


@tree_change
def put(source: "Source", change: TreeChange) -> None:
    """Give a reference back."""
    check(source)
    if not source._references.taken:
        raise ReleasedError(f"source {source.path!r}: one put() more than get()s", source)
    source._references.taken -= 1
    _release_unused(source, change)


def hold(source: "Source") -> None:
    """Take a reference for an open file; `put` does not give it back, `unhold` does.

    Raises:
        ReleasedError: it was released.
    """
    # Not a change: each opening of a file comes here.
    with tree_lock:
        if source._references.released:
            check(source)
        source._references.holds += 1


def unhold(source: "Source") -> None:
    """Give a reference of `hold` back."""
    with tree_lock:
        references = source._references
        # Where there are others, nothing is released.
        if references.taken + references.holds > 1:
            references.holds -= 1
            return
    _drop_last_hold(source)


def drop_hold(source: "Source", change: TreeChange) -> None:
    """Give a hold back, inside a change."""
    source._references.holds -= 1
    _release_unused(source, change)


_drop_last_hold = tree_change(drop_hold)


def _release_unused(source: "Source", change: TreeChange) -> None:
    unused = [source]
    while unused:
        source = unused.pop()
        references = source._references
        if references.released or references.taken or references.holds:
            continue
        references.released = True
        for subordinate in source._directory.subordinates.values():
            subordinate._directory.parent = None
            subordinate._directory.place = 0
            subordinate._references.holds -= 1
            unused.append(subordinate)
        source._directory.drop(change.garbage)
