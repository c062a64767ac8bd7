"""Baselines of bases that others overwrite: a clear notes each number, and a read subtracts it.

Owns `BaselineReader`, which reads a base through any other reader, less the baselines. `Numbers`
and `PackedNumbers` subtract baselines of their own when they get numbers, so that a total of
thousands runs no Python code for each.

Threading: a clear takes the lock of one `Baselined`; reading takes none. Baselines are replaced and
never changed, and read before the number: so a number is never older than its baseline.
"""

import operator
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final
from weakref import ref

from statsfs.model.external import subtract_baseline
from statsfs.model.foreign import foreign
from statsfs.model.locking import locked
from statsfs.model.readers import Reader, convert_number
from statsfs.model.values import Value

__all__ = ["BaselineReader", "Baselined"]


class _Baselines(dict[int, Any]):
    # The number of each cleared value when it was cleared, by the value's place in its array.
    __slots__ = ("owner",)

    def __init__(self, owner: "Baselined", baselines: dict[int, Any]) -> None:
        super().__init__(baselines)
        self.owner = ref(owner)

    def subtract(self, value: Value, index: int, number: Any) -> Any:
        """Return a base's number for a value, less the baseline; other objects as they are."""
        baseline = self.get(index)
        if baseline is None:
            return number
        try:
            converted = convert_number(value, number)
        except foreign():
            return number  # the reader complains
        left = subtract_baseline(value, converted, baseline)
        if left is not None:
            return left
        owner = self.owner()
        if owner is not None:
            owner.forget(index, self)
        return number


class Baselined:
    """A base, and its baselines.

    Args:
        base: what to give the reader of the base.
    """

    __slots__ = ("__weakref__", "_lock", "base", "baselines")

    def __init__(self, base: Any) -> None:
        self.base = base
        self.baselines = _Baselines(self, {})
        self._lock = threading.RLock()

    @locked
    def note(self, index: int, number: Any) -> None:
        """Make a number the baseline of the value at `index`."""
        self.baselines = _Baselines(self, {**self.baselines, index: number})

    @locked
    def forget(self, index: int, seen: _Baselines) -> None:
        """Drop a baseline, unless the baselines were replaced since they were seen."""
        if self.baselines is seen:
            left = {place: number for place, number in seen.items() if place != index}
            self.baselines = _Baselines(self, left)


_get_base: Final = operator.attrgetter("base")
_get_baselines: Final = operator.attrgetter("baselines")


class BaselineReader(Reader):
    """Reads a `Baselined`: what another reader reads, less the baselines.

    Args:
        values: the array.
        reader: the reader of the bases.
    """

    __slots__ = ("_reader",)

    def __init__(self, values: tuple[Value, ...], reader: Reader) -> None:
        super().__init__(values, reader.plain)
        self._reader = reader
        self.sample = self._sample

    def _sample(self, base: Baselined) -> Any:
        baselines = base.baselines
        return baselines, self._reader.sample(base.base)

    def read(self, base: Any, index: int) -> object:
        baselines = base.baselines
        return baselines.subtract(self.values[index], index, self._reader.read(base.base, index))

    def parts(self, bases: Collection[Any]) -> list[tuple[Callable[[Any], Any], Iterable[Any]]]:
        return [(_get_baselines, bases), *self._reader.parts([*map(_get_base, bases)])]

    def column(self, bases: Iterable[Any], index: int) -> list[Any]:
        bases, value = list(bases), self.values[index]
        baselines = [*map(_get_baselines, bases)]
        column = self._reader.column([*map(_get_base, bases)], index)
        pairs = zip(baselines, column, strict=True)
        return [one.subtract(value, index, number) for one, number in pairs]

    def decode(self, parts: Sequence[list[Any]]) -> list[tuple[Any, ...]]:
        if len(parts) == 1:
            baselines = [one for one, _ in parts[0]]
            rows = self._reader.decode([[sample for _, sample in parts[0]]])
        else:
            baselines, *sampled = parts
            rows = self._reader.decode(sampled)
        return [*map(self._subtract, baselines, rows)]

    def _subtract(self, baselines: _Baselines, row: tuple[Any, ...]) -> tuple[Any, ...]:
        if not baselines:
            return row
        places = enumerate(zip(self.values, row, strict=True))
        return tuple([baselines.subtract(value, at, number) for at, (value, number) in places])

    def _clear(self, base: Any, index: int) -> None:
        value = self.values[index]
        if not value.cumulative:
            self._reader._clear(base.base, index)
            return
        number = convert_number(value, self._reader.read(base.base, index))
        base.note(index, list(number) if value.histogram else number)
