"""The values that segments bring, each of which is kept as long as the collector lives.

Owns which value of the tree stands for a value of a segment, and how many one user may bring. Each
value is an array of its own, but for the sum of a histogram, so that a release with one more value
shares the totals of the others. Values that differ in nothing but their description are one. Their
arrays are kept too: one that came and went again and again would use up the numbers of files.

Threading: for the collector's thread alone.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from statsfs.exceptions import SegmentError
from statsfs.model.arrays import Array, intern_array, split_array
from statsfs.model.values import Value

__all__ = ["BROUGHT_MAX", "TEXT_MAX", "KnownValues", "is_integer", "is_number_of"]

# Of one user, while a collector lives: different values, 5 KiB each with its array, and the bytes
# of their descriptions and bounds.
BROUGHT_MAX: Final = 8192
TEXT_MAX: Final = 1 << 22
# Bytes of one user's files for which `adopt` remembers its answers.
_CACHED_MAX: Final = 1 << 22
_VALUE_SIZE: Final = 1024  # bytes of a value but for its description and bounds


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
        self._arrays: Final[set[Array]] = set()
        # By user.
        self._brought: Final[dict[int, set[Value]]] = {}
        self._texts: Final[Counter[int]] = Counter()
        self._adopted: Final[dict[int, dict[object, Mapping[str, Value]]]] = {}
        self._cached: Final[Counter[int]] = Counter()

    def adopt(self, values: Sequence[Value], mode: int, user: int) -> Mapping[str, Value]:
        """Return the tree's values for those of a user's file, by name, or raise SegmentError.

        The file's permission bits, `mode`, limit those of the values. Equal files share a mapping.
        """
        mask = mode & 0o444 | 0o200  # the owner may clear
        key = (tuple(values), mask)
        cache = self._adopted.setdefault(user, {})
        adopted = cache.get(key)
        if adopted is None:
            adopted = self._adopt([replace(one, mode=one.mode & mask) for one in values], user)
            size = _VALUE_SIZE * len(values) + _weigh_texts(values)
            if self._cached[user] + size > _CACHED_MAX:
                cache.clear()
                self._cached[user] = 0
            self._cached[user] += size
            cache[key] = adopted
        return adopted

    def _adopt(self, values: Sequence[Value], user: int) -> Mapping[str, Value]:
        brought = self._brought.setdefault(user, set())
        new = {replace(value, description=""): value for value in values}
        new = {bare: value for bare, value in new.items() if bare not in brought}
        text = self._texts[user] + _weigh_texts(new.values())
        if len(brought) + len(new) > BROUGHT_MAX or text > TEXT_MAX:
            has = f"user {user} brought {len(brought)} different values"
            more = f"it has {len(new)} more; no more than {BROUGHT_MAX}"
            text_max = f"with {TEXT_MAX} bytes of descriptions and bounds"
            raise SegmentError(f"{has}, {more} {text_max}, until a restart", user)
        brought.update(new)
        self._texts[user] = text
        adopted = MappingProxyType({value.name: self.restore(value) for value in values})
        self._arrays.update(map(intern_array, split_array(list(adopted.values()))))
        return adopted

    def restore(self, value: Value) -> Value:
        """Return the tree's value for one of a segment, or of a record: the first equal one."""
        return self._first.setdefault(replace(value, description=""), value)


def _weigh_texts(values: Iterable[Value]) -> int:
    return sum(sys.getsizeof(one.description) + 40 * len(one.bounds) for one in values)
