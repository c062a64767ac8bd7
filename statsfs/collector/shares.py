"""Shares: what the path sources of one user weigh, and how much that may be.

A path source weighs a number for each that its totals have, whether they are of the living or of
the dead, and more for itself and for each array. So it never weighs more after a death, and all is
decided when a segment is admitted: what is there may always be folded. What a path source retains,
in memory and in its record, is a part of that.

Threading: any thread; a lock guards the state, under which no other is taken.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from statsfs.model.arrays import Array
from statsfs.model.locking import locked
from statsfs.tree.rights import change_rights
from statsfs.tree.source import Source, directory_of

__all__ = ["NUMBERS_MAX", "Shares", "user_of", "weigh_addition"]

# Numbers of one user. One takes 64 bytes where it is a bucket of a histogram that is retained: as
# an integer in a list, and as text of the record.
NUMBERS_MAX: Final = 1 << 20
# What else takes memory, in numbers: 0.5 to 1 KiB for an array in an index and its row, and the
# same for a source with its directory.
_ARRAY_WEIGHT: Final = 12
_SOURCE_WEIGHT: Final = 16


class Shares:
    """What each path source weighs, and all of a user."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._weights: Final[dict[Source, int]] = {}
        self._versions: Final[dict[Source, int]] = {}  # of the directories when they were weighed
        self._stale: Final[dict[Source, None]] = {}
        self._by_user: Final[Counter[int]] = Counter()

    @locked
    def add(self, source: Source) -> None:
        """Note a path source that comes into the tree."""
        self._weights[source] = 0
        self._stale[source] = None

    def give(self, source: Source, owner: tuple[int, int]) -> None:
        """Give a path source in the tree to another owner."""
        self.forget(source)
        change_rights(source, (), None, owner)
        self.add(source)

    @locked
    def touch(self, sources: Iterable[Source]) -> None:
        """Note path sources whose weight may be another now; some may have left meanwhile."""
        self._stale.update((one, None) for one in sources if one in self._weights)

    @locked
    def forget(self, source: Source) -> None:
        """Note that a source has left the tree."""
        self._stale.pop(source, None)
        self._versions.pop(source, None)
        if source in self._weights:
            self._by_user[user_of(source)] -= self._weights.pop(source)

    @locked
    def weigh(self, source: Source) -> int:
        """Return what a path source weighs, as far as it is known, or 0 if it has left."""
        return self._weights.get(source, 0)

    @locked
    def weigh_user(self, user: int) -> int:
        """Return what all path sources of a user weigh together."""
        self._weigh_stale()
        return self._by_user[user]

    @locked
    def weigh_users(self) -> dict[int, int]:
        """Return the weight of each user's path sources together."""
        self._weigh_stale()
        return dict(self._by_user)

    def find_heavy(self) -> dict[int, int]:
        """Return the users whose path sources weigh too much, and what they weigh."""
        return {user: all for user, all in self.weigh_users().items() if all > NUMBERS_MAX}

    def _weigh_stale(self) -> None:
        for source in self._stale:
            directory = directory_of(source)
            version = directory.version
            if self._versions.get(source) != version:
                weight = _SOURCE_WEIGHT + _weigh_arrays(directory.index.copy())
                self._by_user[user_of(source)] += weight - self._weights[source]
                self._weights[source], self._versions[source] = weight, version
        self._stale.clear()


def weigh_addition(lineage: Sequence[Source], missing: int, arrays: Collection[Array]) -> int:
    """Return how much more path sources would weigh with a segment.

    Args:
        lineage: those that are there.
        missing: how many are not.
        arrays: the segment's.
    """
    more = missing * (_SOURCE_WEIGHT + _weigh_arrays(arrays))
    for source in lineage:
        known = directory_of(source).index
        more += _weigh_arrays(array for array in arrays if array not in known)
    return more


def _weigh_arrays(arrays: Iterable[Array]) -> int:
    return sum(array.size + _ARRAY_WEIGHT for array in arrays)


def user_of(source: Source) -> int:
    """Return the user who owns a path source."""
    assert source.owner is not None
    return source.owner[0]
