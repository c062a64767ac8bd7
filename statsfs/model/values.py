"""What a value is: its name, type, kind and unit, and how it is aggregated.

Threading: everything here is immutable.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from operator import lt
from typing import Any, Final

from statsfs.exceptions import InvalidNameError

__all__ = ["Aggregate", "Kind", "Type", "Unit", "Value", "check_name"]

_NAME_MAX: Final = 255  # bytes; NAME_MAX of Linux
_SIZE_MAX: Final = 0xFFFF  # KVM's descriptors have 16 bits for it
_LOG_SIZE_MAX: Final = 65  # the last bucket has what takes 64 bits
_BOUNDS_MAX: Final = 1024  # their text is an extended attribute, which has at most 64 KiB
_BOUND_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
_WIDTH_MAX: Final = 0xFFFFFFFF  # and 32 for this
_FORBIDDEN: Final = re.compile("[/\x00-\x1f\x7f-\x9f]")  # with Unicode's control characters, Cc


class Type(Enum):
    """The C type of a value: what its integers are converted to when they are read.

    `width` is in bytes, `minimum` and `maximum` are the integers that the type holds, `code` is
    the letter of the `struct` module.

    >>> Type.S16.width, Type.S16.minimum, Type.S16.maximum
    (2, -32768, 32767)
    """

    BOOL = ("bool", 1, False, "?")
    U8 = ("u8", 1, False, "B")
    U16 = ("u16", 2, False, "H")
    U32 = ("u32", 4, False, "I")
    U64 = ("u64", 8, False, "Q")
    S8 = ("s8", 1, True, "b")
    S16 = ("s16", 2, True, "h")
    S32 = ("s32", 4, True, "i")
    S64 = ("s64", 8, True, "q")

    def __init__(self, label: str, width: int, signed: bool, code: str) -> None:
        self.label = label
        self.width = width
        self.signed = signed
        self.code = code
        bits = 1 if label == "bool" else 8 * width
        self.minimum = -(1 << (bits - 1)) if signed else 0
        self.maximum = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1

    def __str__(self) -> str:
        return self.label

    def convert(self, number: int) -> int:
        """Convert an integer of any size as C does: BOOL is `!= 0`, the others wrap modulo 2^N.

        >>> Type.U8.convert(257), Type.S8.convert(255), Type.BOOL.convert(7)
        (1, -1, 1)
        """
        if self is Type.BOOL:
            return int(number != 0)
        return ((number - self.minimum) & (self.maximum - self.minimum)) + self.minimum


class Aggregate(Flag):
    """Which totals of a value every directory above it shows.

    >>> app = Source("app")
    >>> app.add_values([Value("load", aggregate=Aggregate.SUM | Aggregate.MAX)], None)
    >>> app.names()
    ['load', 'load.max']
    """

    NONE = 0
    SUM = auto()
    MIN = auto()
    MAX = auto()
    AVG = auto()
    COUNT_ZERO = auto()
    COUNT_NONZERO = auto()

    @property
    def label(self) -> str:
        """The name of one kind as it stands in file names: `sum`, `count_zero`.

        >>> Aggregate.COUNT_ZERO.label
        'count_zero'
        """
        return (self.name or "none").lower()


class Kind(Enum):
    """What the numbers of a value mean over time.

    Names, meanings and numbers are those of KVM's binary statistics (the kernel's
    Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD): CUMULATIVE only grows until it is
    cleared, INSTANT goes up and down and cannot be cleared, PEAK is the largest seen since it was
    cleared. A histogram is a list of buckets, each of which is a cumulative count: the buckets of
    LINEAR_HIST are all equally wide, those of LOG_HIST begin at 0, 1, 2, 4, 8 and so on; the last
    has no upper end.

    HIST, which KVM does not have, is a histogram whose buckets end where its `bounds` say. The
    binary format has it as several CUMULATIVE integers.

    >>> app = Source("app")
    >>> app.add_values([Value("waiting", kind=Kind.INSTANT)], {"waiting": 3})
    >>> app.clear_value("waiting")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.ReadOnlyValueError: app: 'waiting' cannot be cleared
    """

    CUMULATIVE = 0
    INSTANT = 1
    PEAK = 2
    LINEAR_HIST = 3
    LOG_HIST = 4
    HIST = -1

    def __str__(self) -> str:
        return self.name.lower()


_HISTOGRAMS: Final = (Kind.LINEAR_HIST, Kind.LOG_HIST, Kind.HIST)


class Unit(Enum):
    """What a value counts, times `base` to the power `exponent`; as in KVM_GET_STATS_FD.

    >>> from statsfs.formats import prometheus
    >>> app = Source("app")
    >>> wait = Value("wait_ns", unit=Unit.SECONDS, exponent=-9)
    >>> app.add_values([wait], {"wait_ns": 1_500_000_000})
    >>> print(prometheus.render(app.snapshot()).decode(), end="")
    # TYPE app_wait_seconds_total counter
    app_wait_seconds_total 1.5
    """

    NONE = 0
    BYTES = 1
    SECONDS = 2
    CYCLES = 3
    BOOLEAN = 4

    def __str__(self) -> str:
        return self.name.lower()


def check_name(name: object, what: str) -> str:
    """Return a name that a file may have, or raise InvalidNameError.

    It has 1 to 255 bytes of UTF-8, no "/", no control character, and no "." at its start.
    """
    if not isinstance(name, str):
        raise InvalidNameError(f"{what} must be a str, not {type(name).__name__}", name)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidNameError(f"{what} {name!r} is not valid UTF-8", name) from None
    if not 1 <= length <= _NAME_MAX:
        raise InvalidNameError(f"{what} {name[:40]!r} has {length} bytes, not 1 to 255", name)
    if name.startswith("."):
        raise InvalidNameError(f'{what} {name!r} starts with "."', name)
    if _FORBIDDEN.search(name):
        raise InvalidNameError(f'{what} {name!r} has a "/" or a control character', name)
    return name


@dataclass(frozen=True)
class Value:
    """One quantity of a source: a file, and how it is read, cleared and aggregated.

    >>> load = Value("load", Type.U8, Aggregate.MAX, kind=Kind.INSTANT)
    >>> str(load.type), oct(load.mode)
    ('u8', '0o444')
    >>> late = Value("late", kind=Kind.HIST, bounds=[100, 300], unit=Unit.SECONDS, exponent=-3)
    >>> late.size, late.histogram
    (3, True)

    Args:
        name: the file's name.
        type: the C type that its integers are converted to.
        aggregate: which totals the directories above show.
        mode: the file's permission bits; by default 0644, and 0444 for INSTANT.
        offset: where it is in a buffer base, in bytes; None for attribute and mapping bases.
        kind: what its numbers mean over time.
        unit, base, exponent: what it counts, times `base` (10 or 2) to the power `exponent`.
        description: one line for people; it becomes Prometheus's HELP.
        hidden: no file, but counted in the aggregates above.
        show: the text for a number, for enums; own values, MIN and MAX are shown by it.
        size: the number of buckets of a histogram, 1 to 65,535 of LINEAR_HIST and 1 to 65 of
            LOG_HIST, which hold every u64; of HIST it follows from `bounds`; 1 for anything else.
        bucket_size: the width of a bucket of LINEAR_HIST, in the value's unit, below 2^32; 0 for
            anything else.
        bounds: the largest number that each bucket of HIST counts, but for the last, which has no
            upper end: 1 to 1,024 growing integers from 0 to 2^64 - 1, in the value's unit; nothing
            for anything else.

    Attributes:
        histogram: whether the value is a list of buckets.

    Raises:
        InvalidNameError: a file cannot have the name, or that of one of its aggregates.
        ValueError: a mode with other bits than read and write, or with a write bit on an INSTANT
            value; an offset below 0; a base that is neither 10 nor 2; a size, a bucket size or
            bounds that the kind has not; a histogram of booleans, with a `show` or with another
            aggregate than SUM.
        TypeError: an argument of another type.
    """

    name: str
    type: Type = Type.U64
    aggregate: Aggregate = Aggregate.NONE
    mode: int = None  # type: ignore[assignment]  # resolved below; always an int afterwards
    offset: int | None = None
    kind: Kind = field(default=Kind.CUMULATIVE, kw_only=True)
    unit: Unit = field(default=Unit.NONE, kw_only=True)
    base: int = field(default=10, kw_only=True)
    exponent: int = field(default=0, kw_only=True)
    description: str = field(default="", kw_only=True)
    hidden: bool = field(default=False, kw_only=True)
    show: Callable[[int], str] | None = field(default=None, kw_only=True)
    size: int = field(default=1, kw_only=True)
    bucket_size: int = field(default=0, kw_only=True)
    histogram: bool = field(init=False, repr=False, compare=False)
    bounds: Sequence[int] = field(default=(), kw_only=True)  # a tuple afterwards

    def __post_init__(self) -> None:
        check_name(self.name, "a value's name")
        given: object = self.mode
        if given is None:
            object.__setattr__(self, "mode", 0o444 if self.kind is Kind.INSTANT else 0o644)
        for attribute, wanted in _FIELD_TYPES.items():
            found = getattr(self, attribute)
            if found is None and attribute == "offset":
                continue
            if not isinstance(found, wanted) or (wanted is int and isinstance(found, bool)):
                raise TypeError(
                    f"value {self.name!r}: {attribute} is not of type {wanted.__name__}: {found!r}"
                )
        if self.show is not None and not callable(self.show):
            raise TypeError(f"value {self.name!r}: show is not callable: {self.show!r}")
        if self.base not in (2, 10):
            raise ValueError(f"value {self.name!r}: base is {self.base}, not 10 or 2")
        if not -0x8000 <= self.exponent <= 0x7FFF:
            raise ValueError(f"value {self.name!r}: exponent {self.exponent} does not fit 16 bits")
        # A field, not a property: each read of a file asks for it.
        object.__setattr__(self, "histogram", self.kind in _HISTOGRAMS)
        self._check_mode()
        self._check_offset()
        self._resolve_bounds()
        self._check_buckets()
        for _, name in self.aggregate_names:
            check_name(name, "an aggregate's name")

    def _check_mode(self) -> None:
        mode = self.mode
        if mode & ~0o666:
            raise ValueError(f"value {self.name!r}: mode {mode:#o} is not of read and write bits")
        if self.kind is Kind.INSTANT and mode & 0o222:
            raise ValueError(f"value {self.name!r} is INSTANT, not to be cleared: mode {mode:#o}")

    def _check_offset(self) -> None:
        offset = self.offset
        if offset is not None and offset < 0:
            raise ValueError(f"value {self.name!r}: offset {offset} is below 0")

    def _resolve_bounds(self) -> None:
        bounds = self.bounds
        if not isinstance(bounds, list | tuple) or not all(type(bound) is int for bound in bounds):
            # They are not shown: those of a segment may be nested beyond what `repr` takes.
            raise TypeError(f"value {self.name!r}: bounds are not a list of integers")
        object.__setattr__(self, "bounds", tuple(bounds))
        if self.kind is not Kind.HIST:
            if bounds:
                raise ValueError(f"value {self.name!r}: {self.kind} has no bounds")
            return
        if not 1 <= len(bounds) <= _BOUNDS_MAX:
            raise ValueError(f"value {self.name!r}: {len(bounds)} bounds, not 1 to {_BOUNDS_MAX}")
        if not (bounds[0] >= 0 and bounds[-1] <= _BOUND_MAX and all(map(lt, bounds, bounds[1:]))):
            raise ValueError(f"value {self.name!r}: bounds do not grow from 0 to 2^64 - 1")
        if self.size == 1:
            object.__setattr__(self, "size", len(bounds) + 1)

    def _check_buckets(self) -> None:
        if not self.histogram:
            if self.size != 1 or self.bucket_size:
                raise ValueError(f"value {self.name!r}: only histograms have a size")
            return
        linear = self.kind is Kind.LINEAR_HIST
        buckets = len(self.bounds) + 1
        least = buckets if self.bounds else 1
        most = buckets if self.bounds else _SIZE_MAX if linear else _LOG_SIZE_MAX
        if not least <= self.size <= most:
            raise ValueError(f"value {self.name!r}: size is {self.size}, not {least} to {most}")
        if not (1 if linear else 0) <= self.bucket_size <= (_WIDTH_MAX if linear else 0):
            raise ValueError(f"value {self.name!r}: bucket_size {self.bucket_size} of {self.kind}")
        if self.type is Type.BOOL or self.show is not None:
            raise ValueError(f"value {self.name!r}: a histogram has counts, nothing else")
        if self.aggregate not in (Aggregate.NONE, Aggregate.SUM):
            raise ValueError(f"value {self.name!r}: the only aggregate of a histogram is SUM")

    def __hash__(self) -> int:
        # An array is looked up by content at each `add_values`; 47 full hashes would cost 50 us.
        # No cached_property: its lock, in Python 3.11, is held for ever in a child that was forked
        # while another thread had it.
        known: int | None = self.__dict__.get("_hash")
        if known is None:
            known = hash((self.name, self.type, self.aggregate, self.mode, self.offset, self.kind))
            self.__dict__["_hash"] = known
        return known

    def __getstate__(self) -> dict[str, object]:
        # Hashes are not pickled: those of strings differ from process to process.
        return {name: item for name, item in vars(self).items() if not name.startswith("_")}

    @property
    def identity(self) -> tuple[object, ...]:
        """What values that belong together have in common, in whichever array they are.

        Their aggregates are one total. A description, a `show` or a write bit may differ.

        >>> one, two = Value("jobs"), Value("jobs", description="Jobs done")
        >>> one == two, one.identity == two.identity
        (False, True)
        """
        known: tuple[object, ...] | None = self.__dict__.get("_identity")
        if known is None:
            what = (self.name, self.type, self.kind, self.unit, self.base, self.exponent)
            known = (*what, self.mode & 0o444, self.size, self.bucket_size, self.bounds)
            self.__dict__["_identity"] = known
        return known

    def describe_difference(self, other: "Value") -> str:
        """Say by what another value of the same name does not belong to this one.

        >>> Value("jobs").describe_difference(Value("jobs", Type.U32))
        'type is u32, not u64'
        """
        for name in ("type", "kind", "unit", "base", "exponent", "size", "bucket_size", "bounds"):
            if getattr(other, name) != getattr(self, name):
                return f"{name} is {getattr(other, name)}, not {getattr(self, name)}"
        return f"mode is {other.mode:04o}, not {self.mode:04o}"

    @property
    def writable(self) -> bool:
        """Whether the value can be cleared: its mode has a write bit.

        >>> Value("jobs").writable, Value("waiting", kind=Kind.INSTANT).writable
        (True, False)
        """
        return bool(self.mode & 0o222)

    @property
    def cumulative(self) -> bool:
        """Whether its number only grows until it is cleared, as each bucket of a histogram does.

        >>> Value("jobs").cumulative, Value("waiting", kind=Kind.INSTANT).cumulative
        (True, False)
        """
        return self.histogram or self.kind is Kind.CUMULATIVE

    @property
    def zero(self) -> Any:
        """What it reads where nothing is: 0, or empty buckets.

        >>> Value("jobs").zero, Value("late", kind=Kind.LOG_HIST, size=4).zero
        (0, [0, 0, 0, 0])
        """
        return [0] * self.size if self.histogram else 0

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each bucket of a histogram begins, in the value's unit.

        >>> Value("late", kind=Kind.LOG_HIST, size=5).starts
        (0, 1, 2, 4, 8)
        >>> Value("late", kind=Kind.HIST, bounds=[100, 300]).starts
        (0, 101, 301)
        """
        if self.kind is Kind.LINEAR_HIST:
            return tuple(range(0, self.size * self.bucket_size, self.bucket_size))
        if self.kind is Kind.HIST:
            return (0, *(bound + 1 for bound in self.bounds))
        return (0, *(1 << power for power in range(self.size - 1)))

    @property
    def width(self) -> int:
        """How many bytes it takes in a buffer.

        >>> Value("jobs", Type.U32).width, Value("late", kind=Kind.LOG_HIST, size=5).width
        (4, 40)
        """
        return self.type.width * self.size

    @property
    def aggregate_names(self) -> tuple[tuple[Aggregate, str], ...]:
        """The kinds of aggregate and the name under which each is shown above.

        SUM, or the only kind, has the plain name; each other kind is `name.kind`.

        >>> Value("load", aggregate=Aggregate.SUM | Aggregate.MAX).aggregate_names
        ((<Aggregate.SUM: 1>, 'load'), (<Aggregate.MAX: 4>, 'load.max'))
        """
        kinds = list(self.aggregate)
        plain = Aggregate.SUM if Aggregate.SUM in kinds else kinds[0] if len(kinds) == 1 else None
        return tuple(
            (kind, self.name if kind is plain else f"{self.name}.{kind.label}") for kind in kinds
        )


_FIELD_TYPES: Final[dict[str, type]] = {
    "type": Type,
    "aggregate": Aggregate,
    "kind": Kind,
    "unit": Unit,
    "base": int,
    "exponent": int,
    "description": str,
    "hidden": bool,
    "mode": int,
    "offset": int,
    "size": int,
    "bucket_size": int,
}
