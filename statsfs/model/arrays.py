"""Arrays of values, and which files they make in a directory.

Owns the one `Array` that stands for all equal tuples of values in the process, the `File`s that it
can make, and the `Layout`: who gets which name where several meet. Sources and bases appear here
only as what an `Entry` ties together.

Threading: arrays, files and layouts never change once made; interning has a lock of its own, under
which a `show` function may be compared, and no other lock is ever taken.
"""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Final
from weakref import WeakValueDictionary

from statsfs.exceptions import DuplicateNameError, ExhaustedError
from statsfs.model.bases import Binder
from statsfs.model.readers import Reader
from statsfs.model.values import Aggregate, Value

__all__ = [
    "FILE_NUMBERS",
    "Array",
    "Entry",
    "File",
    "Key",
    "Layout",
    "Loss",
    "intern_array",
    "make_layout",
]

# Below this are the numbers of files, of all arrays in the life of a process. Each value takes one
# for itself and one for each kind of aggregate: with a sum two, and 740 bytes of memory, so all of
# them would take 400 GB. The first eight are those of directories and of views.
FILE_NUMBERS: Final = 1 << 30
_FIRST_NUMBER: Final = 8


class File:
    """One file that an array can make: an own value, or one kind of aggregate.

    Attributes:
        array, index, value: what it shows.
        kind: the aggregate's kind, or None for an own value.
        name: its name in a directory.
        number: unique in the process and never reused; from 8 up to `FILE_NUMBERS`.
    """

    __slots__ = ("array", "index", "kind", "name", "number", "value")

    def __init__(
        self, array: "Array", index: int, kind: Aggregate | None, name: str, number: int
    ) -> None:
        self.array = array
        self.index = index
        self.value: Value = array.values[index]
        self.kind = kind
        self.name = name
        self.number = number

    def __repr__(self) -> str:
        return f"<File {self.name!r} {'own' if self.kind is None else self.kind}>"


class Array:
    """All equal tuples of values in the process.

    Attributes:
        values: the tuple that came first.
        serial: grows with each array that is made; the older wins where names meet. It is the
            number of its first file; the others follow.
        binder: recognises bases of this array.
        own: the files of a source that has the array, by value.
        aggregates: the files of an ancestor, a tuple of kinds by value.
        size: how many numbers a row has.
    """

    __slots__ = ("aggregates", "binder", "own", "serial", "size", "values")

    def __init__(self, values: tuple[Value, ...], serial: int) -> None:
        self.values = values
        self.serial = serial
        self.size = sum(value.size for value in values)
        self.binder = Binder(values)
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


# Reentrant: collecting garbage inside may run a finalizer that adds an array of its own.
_intern_lock = threading.RLock()
_arrays: Final[dict[tuple[Value, ...], Array]] = {}
_by_identity: Final[dict[int, Array]] = {}
_next_serial = _FIRST_NUMBER


def _renew_lock() -> None:
    # In a child, that of a thread which is not there is never released. What it guards is whole at
    # every moment.
    global _intern_lock
    _intern_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def intern_array(values: Sequence[Value]) -> Array:
    """Return the one array of equal values; it lives as long as the process.

    Raises:
        TypeError: something in it is no `Value`.
        ValueError: there are no values.
        DuplicateNameError: two visible values have one name.
        BaseMismatchError: the offsets are wrong.
        ExhaustedError: the process has declared too many values.
    """
    global _next_serial
    # The tuple of an array is kept alive by it, so its id is not reused. Hashing 47 values costs
    # more than all the rest of adding a source; producers pass the same tuple each time.
    known = _by_identity.get(id(values))
    if known is not None:
        return known
    key = tuple(values)
    for value in key:
        if not isinstance(value, Value):
            raise TypeError(f"an array has Values, not {type(value).__name__}")
    if not key:
        raise ValueError("an array has at least one value")
    with _intern_lock:
        array = _arrays.get(key)
        if array is None:
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
            _by_identity[id(array.values)] = array
    return array


def _check_names(values: tuple[Value, ...]) -> None:
    seen = set()
    for value in values:
        if value.hidden:
            continue
        if value.name in seen:
            raise DuplicateNameError(f"value {value.name!r} is twice in one array", value.name)
        seen.add(value.name)


Key = tuple[Array, str | int]


class Entry:
    """An array of one source over one base.

    Attributes:
        source: the source that it was added to.
        array, reader: what is read, and how.
        base: what to give the reader; None once revoked or released.
        origin: the object that the producer gave, which `base` may be a view of.
        hidden: counted above, but not shown.
        declared: has no base, or none any more: the names of its aggregates only.
        revoked: had a base; the array may be added again, and then this entry goes.
        key: unique in its source. "own" is what the source shows, "declared" what it has with base
            None, of which there is one each for an array; else a number.
    """

    __slots__ = ("array", "base", "hidden", "key", "origin", "reader", "revoked", "source")

    def __init__(
        self,
        source: Any,
        array: Array,
        reader: Reader | None,
        base: Any,
        origin: Any,
        hidden: bool,
        *,
        revoked: bool = False,
    ) -> None:
        self.source = source
        self.array = array
        self.reader = reader
        self.base = base
        self.origin = origin
        self.hidden = hidden
        self.revoked = revoked
        self.key: Key = (array, id(self) if revoked else self._kind())

    def _kind(self) -> str | int:
        if self.reader is None:
            return "declared"
        return id(self.origin) if self.hidden else "own"

    @property
    def declared(self) -> bool:
        return self.reader is None


class Loss:
    """Files of one value that are not shown, because a name of theirs is taken.

    Attributes:
        files: what is not shown.
        winner: the file that has the name, or None where it is a subdirectory.
        name: the name.
    """

    __slots__ = ("files", "name", "winner")

    def __init__(self, files: tuple[File, ...], winner: File | None, name: str) -> None:
        self.files = files
        self.winner = winner
        self.name = name


class Layout:
    """Which files a directory shows.

    Attributes:
        files: by name; own values in the order they were declared, then aggregates.
        losses: what is not shown though it was declared, but for aggregates that lost to own
            values of their own array, which is as it should be.
        claimed: every name that some file wanted.
    """

    __slots__ = ("__weakref__", "_shape", "claimed", "files", "losses")

    def __init__(self, shape: "_Shape", directories: frozenset[str]) -> None:
        self._shape = shape
        self.claimed = shape.claimed
        self.losses: list[Loss] = []
        taken: dict[str, File | None] = dict.fromkeys(directories)
        for files in shape.claims:
            lost = next((file.name for file in files if file.name in taken), None)
            if lost is None:
                taken.update((file.name, file) for file in files)
            elif not _is_normal(files[0], taken[lost]):
                self.losses.append(Loss(files, taken[lost], lost))
        self.files: dict[str, File] = {n: f for n, f in taken.items() if f is not None}


def _is_normal(loser: File, winner: File | None) -> bool:
    return winner is not None and winner.kind is None and winner.array is loser.array


_Key = tuple[tuple[Array, ...], frozenset[Array], frozenset[Array]]


class _Shape:
    # The claims of one combination of arrays, best first, and the layouts that they make. Thousands
    # of sources have the same one: a leaf then costs a pointer, not a dictionary of 47 files.
    __slots__ = ("__weakref__", "_layouts", "claimed", "claims")

    def __init__(
        self, own: Iterable[Array], declared: frozenset[Array], below: frozenset[Array]
    ) -> None:
        ranked: list[tuple[int, int, int, tuple[File, ...]]] = [
            (0, file.array.serial, file.index, (file,))
            for array in own
            for file in array.own
            if not file.value.hidden
        ]
        for array in declared | below:
            for index, files in enumerate(array.aggregates):
                # A hidden value that is only declared is hidden here, and shown above.
                shown_here = array in declared and not array.values[index].hidden
                if files and (shown_here or array in below):
                    ranked.append((1 if shown_here else 2, array.serial, index, files))
        ranked.sort(key=lambda claim: claim[:3])
        self.claims: list[tuple[File, ...]] = [claim[3] for claim in ranked]
        self.claimed = frozenset(file.name for files in self.claims for file in files)
        self._layouts: dict[frozenset[str], Layout] = {}

    def layout(self, directories: frozenset[str]) -> Layout:
        return self._layouts.get(directories) or self._layouts.setdefault(
            directories, Layout(self, directories)
        )


_shapes: Final[WeakValueDictionary[_Key, _Shape]] = WeakValueDictionary()


def make_layout(
    own: Sequence[Array],
    declared: Iterable[Array],
    below: Iterable[Array],
    is_directory: Callable[[str], bool],
) -> Layout:
    """Return which files a directory shows.

    Where names meet, a visible subdirectory wins, then an own value, then an aggregate declared
    without a base, then an aggregate; then the older array. The files of one value's aggregate
    stand or fall together.

    Args:
        own: the arrays that the source itself shows, over a base.
        declared: the arrays that it shows with base None.
        below: the arrays that are anywhere below it.
        is_directory: tells whether a name is that of a visible subordinate.
    """
    key = (tuple(own), frozenset(declared), frozenset(below))
    shape = _shapes.get(key)
    if shape is None:
        shape = _Shape(*key)
        _shapes[key] = shape
    return shape.layout(frozenset(filter(is_directory, shape.claimed)))
