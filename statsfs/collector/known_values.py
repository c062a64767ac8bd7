"""The values that segments bring, each of which stays for the life of the process.

Owns which array a value of a segment belongs to, and how many one user may bring. Each value is an
array of its own, so that a release with one more value shares the totals of the others; and that
which was seen first stands for all that differ in nothing but their description.

Threading: for the collector's thread alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from statsfs.exceptions import SegmentError
from statsfs.model.arrays import intern_array
from statsfs.model.values import Value

__all__ = ["BROUGHT_MAX", "Vocabulary"]

BROUGHT_MAX: Final = 8192
"""How many different values the segments of one user may bring, while a collector lives."""

_READ: Final = 0o444
_OWNERS_WRITE: Final = 0o200
_CACHED: Final = 256


class Vocabulary:
    """The values that were seen."""

    def __init__(self) -> None:
        self._first: Final[dict[Value, Value]] = {}
        self._brought: Final[dict[int, set[Value]]] = {}
        self._known: Final[dict[tuple[object, ...], Mapping[str, Value]]] = {}

    def adopt(self, values: Sequence[Value], mode: int, user: int) -> Mapping[str, Value]:
        """Return what stands for the values of a segment, by name; equal ones share one mapping.

        Args:
            values: its values, their names all different.
            mode: the permission bits of its file: whoever may not read that does not read values.
            user: whose it is.

        Raises:
            SegmentError: the user brought more values than are kept for one.
        """
        mask = mode & _READ | _OWNERS_WRITE
        key = (tuple(values), mask, user)
        known = self._known.get(key)
        if known is None:
            known = self._adopt([_mask(value, mask) for value in values], user)
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = known
        return known

    def _adopt(self, values: Sequence[Value], user: int) -> Mapping[str, Value]:
        bare = [replace(value, description="") for value in values]
        brought = self._brought.setdefault(user, set())
        if len(brought.union(bare)) > BROUGHT_MAX:
            raise SegmentError(
                f"user {user} brought {len(brought)} different values, not more than {BROUGHT_MAX}",
                user,
            )
        brought.update(bare)
        firsts = map(self._first.setdefault, bare, values)
        return MappingProxyType({value.name: value for value in firsts})

    def restore(self, value: Value) -> Value:
        """Return what stands for a value that was seen in an earlier life of the collector."""
        return self._first.setdefault(replace(value, description=""), value)

    @staticmethod
    def array(value: Value) -> tuple[Value, ...]:
        """Return the array of one value."""
        return intern_array((value,)).values


def _mask(value: Value, mask: int) -> Value:
    mode = value.mode & mask
    return value if mode == value.mode else replace(value, mode=mode)
