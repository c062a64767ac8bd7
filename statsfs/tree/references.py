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

__all__ = ["check", "drop_hold", "get", "hold", "put", "unhold"]


def check(source: "Source") -> None:
    """Raise ReleasedError if a source was released."""
    if source._released:
        raise ReleasedError(f"source {source.path!r} was released", source)


@tree_change
def get(source: "Source", change: TreeChange) -> None:
    """Take a reference."""
    check(source)
    source._taken += 1


@tree_change
def put(source: "Source", change: TreeChange) -> None:
    """Give a reference back."""
    check(source)
    if not source._taken:
        raise ReleasedError(f"source {source.path!r}: one put() more than get()s", source)
    source._taken -= 1
    _release_unused(source, change)


def hold(source: "Source") -> None:
    """Take a reference for an open file, or raise ReleasedError; `unhold` gives it back."""
    # Not a change: each opening of a file comes here.
    with tree_lock:
        if source._released:
            check(source)
        source._holds += 1


def unhold(source: "Source") -> None:
    """Give a reference of `hold` back."""
    with tree_lock:
        # Where there are others, nothing is released.
        if source._taken + source._holds > 1:
            source._holds -= 1
            return
    _drop_last_hold(source)


def drop_hold(source: "Source", change: TreeChange) -> None:
    """Give a hold back, inside a change."""
    source._holds -= 1
    _release_unused(source, change)


_drop_last_hold = tree_change(drop_hold)


def _release_unused(source: "Source", change: TreeChange) -> None:
    unused = [source]
    while unused:
        source = unused.pop()
        if source._released or source._taken or source._holds:
            continue
        source._released = True
        for subordinate in source._directory.subordinates.values():
            subordinate._directory.parent = None
            subordinate._directory.place = 0
            subordinate._holds -= 1
            unused.append(subordinate)
        source._directory.drop(change.garbage)
