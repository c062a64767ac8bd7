"""Numbers that this process reads but cannot write, as the block of bytes in which they came.

A block is replaced whole and decoded when it is read: of thousands of blocks a total decodes one
number each. Else as `external.Numbers`. Integers are unsigned and of 64 bits, whatever the type.

Threading: as `external`, but one lock serves all blocks, so that thousands are taken under it once.
"""

import operator
import os
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, ClassVar, Final, NamedTuple

from statsfs.exceptions import BaseMismatchError
from statsfs.model.counts import count_of
from statsfs.model.locking import locked
from statsfs.model.readers import PackedReader
from statsfs.model.values import Value

__all__ = ["PackedNumbers", "Place", "PlaceReader", "Target"]

_SLOT: Final = 8  # bytes of an integer
_get_block: Final = operator.attrgetter("block")


class Place(NamedTuple):
    """Where a value is in a block: the value, and the offset of its first integer in bytes."""

    value: Value
    offset: int


class PackedNumbers:
    """The numbers of some values, a base for arrays of any of them.

    Args:
        places: the values and where they are, by name; not copied, as thousands may share it.
        size: how many bytes a block has.

    Attributes:
        raw: the block that was taken last.
        block: the same, less the baselines.
    """

    __slots__ = ("__weakref__", "_baselines", "_kept", "_places", "block", "raw")

    # Reentrant: a signal handler may read in the middle of a `take`.
    _lock: "ClassVar[threading.RLock]" = threading.RLock()

    def __init__(self, places: Mapping[str, Place], size: int) -> None:
        self._places = places
        self._baselines: dict[str, tuple[int, ...]] = {}
        self._kept: tuple[slice, ...] = ()
        self.raw = self.block = bytes(size)

    def offsets(self, values: Iterable[Value]) -> tuple[int, ...]:
        """Return where values are; BaseMismatchError if one is missing."""
        found = []
        for value in values:
            place = self._places.get(value.name)
            if place is None or place.value != value:
                raise BaseMismatchError(f"the block has no value {value.name!r}", self)
            found.append(place.offset)
        return tuple(found)

    @locked
    def keep(self, names: Iterable[str]) -> None:
        """Keep just these values, and their baselines, as they are, whatever is taken."""
        places = map(self._places.__getitem__, names)
        self._kept = tuple(slice(at, at + _SLOT * value.size) for value, at in places)

    @locked
    def take(self, block: bytes) -> None:
        """Replace all numbers; ValueError: the block has another size."""
        self._take(block, 0)

    @classmethod
    @locked
    def take_all(cls, targets: "Iterable[Target | None]", blocks: Iterable[bytes]) -> None:
        """Replace the numbers of many, as `take` does, by a block for each; None takes nothing."""
        for target, block in zip(targets, blocks, strict=True):
            if target is not None:
                numbers, start = target
                numbers._take(block, start)

    def _take(self, block: bytes, start: int) -> None:
        block = self._fit(block, start)
        self.raw = block
        self.block = self._subtract(block) if self._baselines else block

    def _fit(self, block: bytes, start: int) -> bytes:
        # Returns the block with the old bytes of what stays as it is.
        old = self.raw
        if len(block) != len(old):
            raise ValueError(f"{count_of(len(block), 'byte')}, not {len(old)}")
        if start and not old.startswith(block[:start]):
            block = old[:start] + block[start:]
        for kept in self._kept:
            block = block[: kept.start] + old[kept] + block[kept.stop :]
        return block

    @locked
    def steps(self, block: bytes) -> list[tuple[Any, ...]]:
        """Return steps with which a change of the tree replaces all numbers, as `take` does."""
        block = self._fit(block, 0)
        return [(setattr, self, "raw", block), (setattr, self, "block", self._subtract(block))]

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers that were taken last, whole, by name: integers, and lists of buckets."""
        return {name: self._read(self.raw, name) for name in self._places}

    @property
    def baselines(self) -> dict[str, Any]:
        """What each cleared value was when it was cleared, by name, as in `numbers`."""
        found = self._baselines.copy()
        return {name: self._shape(name, baseline) for name, baseline in found.items()}

    def _read(self, block: bytes, name: str) -> Any:
        field, offset = self._field(name)
        return self._shape(name, field.unpack_from(block, offset))

    def _shape(self, name: str, held: tuple[int, ...]) -> Any:
        return list(held) if self._places[name].value.histogram else held[0]

    @locked
    def restore(self, numbers: Mapping[str, Any], baselines: Mapping[str, Any]) -> None:
        """Take numbers and baselines of another process; those that do not fit are left out."""
        block = bytearray(self.raw)
        for name, integers in self._choose(numbers):
            field, offset = self._field(name)
            field.pack_into(block, offset, *integers)
        self._baselines |= dict(self._choose(baselines))
        self.raw = bytes(block)
        self.block = self._subtract(self.raw)

    def _choose(self, numbers: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
        # Those of values that are here, and of their sizes.
        known = [name for name in numbers if name in self._places]
        found = [(name, tuple(_list_integers(numbers[name]))) for name in known]
        return [(name, some) for name, some in found if len(some) == self._places[name].value.size]

    @property
    def cleared(self) -> tuple[str, ...]:
        """The names of values that were cleared, and have not begun anew since."""
        return tuple(self._baselines)

    def _subtract(self, block: bytes) -> bytes:
        # A number below its baseline shows that counting began anew: then there is none.
        changed = bytearray(block)
        for name, baseline in list(self._baselines.items()):
            field, offset = self._field(name)
            left = [*map(operator.sub, field.unpack_from(changed, offset), baseline)]
            if min(left) < 0:
                del self._baselines[name]
            else:
                field.pack_into(changed, offset, *left)
        return bytes(changed)

    def _field(self, name: str) -> tuple[struct.Struct, int]:
        place = self._places[name]
        return _integers(place.value.size), place.offset

    @locked
    def clear_value(self, name: str) -> None:
        """Make the number of a cumulative value its baseline, else raise ValueError."""
        value = self._places[name].value
        if not value.cumulative:
            raise ValueError(f"the {value.kind} is kept where it is counted")
        field, offset = self._field(name)
        self._baselines[name] = field.unpack_from(self.raw, offset)
        self.block = self._subtract(self.raw)


Target = tuple[PackedNumbers, int]
"""Numbers that take blocks, and how many bytes at their beginning stay as they are."""


def _renew_lock() -> None:
    # A child has only the thread that forked: another one's lock is never released there.
    PackedNumbers._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _list_integers(number: Any) -> list[int]:
    return number if isinstance(number, list) else [number]


@lru_cache(maxsize=256)
def _integers(size: int) -> struct.Struct:
    return struct.Struct(f"={size}Q")


class PlaceReader(PackedReader):
    """Reads `PackedNumbers` whose values are at these offsets."""

    __slots__ = ("_fields", "_offsets")

    subtracts = True

    def __init__(self, values: tuple[Value, ...], offsets: Sequence[int]) -> None:
        layout, end = "=", 0
        stored = sorted(range(len(values)), key=offsets.__getitem__)
        for index in stored:
            layout += f"{offsets[index] - end}x{values[index].size}Q"
            end = offsets[index] + _SLOT * values[index].size
        super().__init__(values, layout, stored)
        self.sample = _get_block
        self._fields = tuple(_integers(value.size) for value in values)
        self._offsets = offsets

    def decode(self, parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
        # A block is longer than what the array has of it.
        (samples,) = parts
        size = self._struct.size
        return super().decode([[block[:size] for block in samples]])

    def read(self, base: Any, index: int) -> object:
        held = self._fields[index].unpack_from(base.block, self._offsets[index])
        return list(held) if self.values[index].histogram else held[0]

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        blocks = map(_get_block, bases)
        fields = map(self._fields[index].unpack_from, blocks, repeat(self._offsets[index]))
        if self.values[index].histogram:
            return list(map(list, fields))
        return list(chain.from_iterable(fields))

    def _clear(self, base: Any, index: int) -> None:
        base.clear_value(self.values[index].name)
