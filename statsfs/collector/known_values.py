"""The values that segments bring, each of which is kept as long as the collector lives.

Owns which value of the tree stands for a value of a segment, and how many one user may bring. Each
value is an array of its own, but for the sum of a histogram, so that a release with one more value
shares the totals of the others. Values that differ in nothing but their description are one.

Threading: for the collector's thread alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from statsfs.exceptions import SegmentError
from statsfs.model.values import Value

__all__ = ["BROUGHT_MAX", "KnownValues", "is_integer", "is_number_of"]

BROUGHT_MAX: Final = 8192  # different values of one user, while a collector lives
_CACHED_MAX: Final = 256


def is_integer(number: object) -> bool:
    """Tell whether something is an integer of 64 bits, with a sign or without."""
    return type(number) is int and -(1 << 63) <= number < 1 << 64


def is_number_of(value: Value, number: object) -> bool:
    """Tell whether something is an integer, or of a histogram the list of its buckets."""
    buckets = number if isinstance(number, list) else [number]
    return (
        isinstance(number, list) is value.histogram
        and len(buckets) == value.size
        and all(map(is_integer, buckets))
    )


class KnownValues:
    """The values that were seen."""

    def __init__(self) -> None:
        self._first: Final[dict[Value, Value]] = {}
        self._brought: Final[dict[int, set[Value]]] = {}
        self._adopted: Final[dict[tuple[object, ...], Mapping[str, Value]]] = {}

    def adopt(self, values: Sequence[Value], mode: int, user: int) -> Mapping[str, Value]:
        """Return the tree's values for those of a user's file, by name, or raise SegmentError.

        The file's permission bits, `mode`, limit those of the values. Equal files share a mapping.
        """
        mask = mode & 0o444 | 0o200  # the owner may clear
        key = (tuple(values), mask, user)
        adopted = self._adopted.get(key)
        if adopted is None:
            adopted = self._adopt([replace(one, mode=one.mode & mask) for one in values], user)
            if len(self._adopted) >= _CACHED_MAX:
                self._adopted.clear()
            self._adopted[key] = adopted
        return adopted

    def _adopt(self, values: Sequence[Value], user: int) -> Mapping[str, Value]:
        bare = [replace(value, description="") for value in values]
        brought = self._brought.setdefault(user, set())
        if len(brought.union(bare)) > BROUGHT_MAX:
            has = f"user {user} brought {len(brought)} different values"
            raise SegmentError(f"{has}, not more than {BROUGHT_MAX}", user)
        brought.update(bare)
        return MappingProxyType({value.name: self.restore(value) for value in values})

    def restore(self, value: Value) -> Value:
        """Return the tree's value for one of a segment, or of a record: the first equal one."""
        return self._first.setdefault(replace(value, description=""), value)
