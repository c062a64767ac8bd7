"""Arrays of values, and the files that they can make.

Equal tuples of values share one `Array`, as long as anything uses it.

Threading: arrays and files do not change once made. Interning has a lock of its own, under which a
`show` function may be compared; no other lock is taken under it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary, ref

from statsfs.exceptions import DuplicateNameError, ExhaustedError
from statsfs.model.bases import Binder
from statsfs.model.histograms import find_sums
from statsfs.model.locking import call_locked
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Value

__all__ = ["FILE_NUMBERS", "Array", "File", "intern_array", "split_array"]

# The end of file numbers. Inode numbers contain them, so they are never used again: arrays that
# come and go without end use them up. The first eight are those of directories and views.
FILE_NUMBERS: Final = 1 << 30

_T = TypeVar("_T")


class File:
    """One file that an array can make: an own value, or one kind of aggregate.

    Attributes:
        kind: the aggregate's kind, or None for an own value.
        number: unique in the process and never reused; from 8 up to `FILE_NUMBERS`.
        retained: whether it counts what left: sums of what only grows, and the largest peak. All
            other aggregates are of what is in the tree.
    """

    __slots__ = ("array", "index", "kind", "name", "number", "retained", "value")

    def __init__(
        self, array: "Array", index: int, kind: Aggregate | None, name: str, number: int
    ) -> None:
        self.array = array
        self.index = index
        self.value = array.values[index]
        self.kind = kind
        self.name = name
        self.number = number
        self.retained = (kind is Aggregate.SUM and self.value.cumulative) or (
            kind is Aggregate.MAX and self.value.kind is Kind.PEAK
        )

    def __repr__(self) -> str:
        return f"<File {self.name!r} {'own' if self.kind is None else self.kind}>"


class Array:
    """All equal tuples of values that are in use.

    Attributes:
        values: the tuple that came first.
        serial: grows with each array that is made; the older wins where names meet. It is the
            number of its first file; the others follow.
        own: the files of a source that has the array, by value.
        aggregates: the files of a directory above, a tuple of kinds by value.
        retained: the files that are retained, one at most of each value.
        size: how many numbers a row has.
        sums: by the index of a histogram that of its sum, which is cleared and exported with it.
    """

    def __init__(self, values: tuple[Value, ...], serial: int) -> None:
        self.values = values
        self.serial = serial
        self.size = sum(value.size for value in values)
        self.sums = find_sums(values)
        self.binder = Binder(values)
        self._plans: dict[object, Any] = {}
        numbers = count(serial)
        self.own = tuple(
            File(self, index, None, value.name, next(numbers)) for index, value in enumerate(values)
        )
        self.aggregates = tuple(
            tuple(
                File(self, index, kind, name, next(numbers)) for kind, name in value.aggregate_names
            )
            for index, value in enumerate(values)
        )
        self.retained = [file for files in self.aggregates for file in files if file.retained]

    def plan(self, make: Callable[["Array"], _T]) -> _T:
        """Return what a function or class makes of this array, once, and as long as that lives."""
        made: _T | None = self._plans.get(make)
        if made is None:
            made = self._plans[make] = make(self)
        return made


# Reentrant: collecting garbage inside may run a finalizer that adds an array of its own.
_intern_lock = threading.RLock()
# Weak: an array lives as long as a source, a file that is open, or a `Stats` class that has it.
_arrays: Final[WeakValueDictionary[tuple[Value, ...], Array]] = WeakValueDictionary()
# A plain dictionary of references is read in a tenth of the time.
_by_identity: Final[dict[int, ref[Array]]] = {}
_next_serial = 8


def _renew_lock() -> None:
    # A child has only the thread that forked: another one's lock is never released there. What the
    # lock guards is whole at every moment.
    global _intern_lock
    _intern_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def intern_array(values: type[Stats] | Sequence[Value]) -> Array:
    """Return the one array of equal values; a `Stats` class keeps its own.

    Raises:
        TypeError, ValueError: one of them is not a `Value`, or there are none.
        DuplicateNameError: two visible values have one name.
        BaseMismatchError: the offsets are wrong.
        ExhaustedError: the process has declared too many values.
    """
    if not isinstance(values, type):
        return _intern(values)
    declared = values_of(values)
    array = values._stats_array
    if array is None:
        array = values._stats_array = _intern(declared)
    return array


def _intern(values: Sequence[Value]) -> Array:
    # An array keeps its tuple alive, so that tuple's id is not reused. Hashing 47 values costs more
    # than all the rest of adding a source; producers pass the same tuple each time.
    known = _by_identity.get(id(values))
    array = known() if known is not None else None
    if array is not None:
        return array
    if isinstance(values, Stats):
        name = type(values).__name__
        raise TypeError(f"{name}() is a base, not an array: the class, {name}, comes first")
    if not isinstance(values, Iterable):
        raise TypeError(f"values are a Stats class or Values, not {type(values).__name__}")
    key = tuple(values)
    for value in key:
        if not isinstance(value, Value):
            raise TypeError(f"an array has Values, not {type(value).__name__}")
    if not key:
        raise ValueError("an array has at least one value")
    return call_locked(_intern_lock, lambda: _arrays.get(key) or _make_array(key))


def _make_array(key: tuple[Value, ...]) -> Array:
    global _next_serial
    _check_names(key)
    size = sum(1 + len(value.aggregate_names) for value in key)
    # Taken before anything is made: a finalizer may bring an array of its own meanwhile.
    serial = _next_serial
    if serial + size > FILE_NUMBERS:
        raise ExhaustedError(
            f"too many values were declared in this process: no number is left for the "
            f"files of {key[0].name!r}",
            key,
        )
    _next_serial = serial + size
    array = _arrays.setdefault(key, Array(key, serial))
    identity = id(array.values)
    _by_identity[identity] = ref(array, lambda _: _by_identity.pop(identity, None))
    return array


def split_array(values: Sequence[Value]) -> list[tuple[Value, ...]]:
    """Return values as the smallest arrays: one for each, a histogram together with its sum."""
    sums = find_sums(values)
    return [
        tuple(values[index : index + 2]) if index in sums else (value,)
        for index, value in enumerate(values)
        if index not in sums.values()
    ]


def _check_names(values: tuple[Value, ...]) -> None:
    names = [value.name for value in values if not value.hidden]
    if len({*names}) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise DuplicateNameError(f"value {name!r} is twice in one array", name)
