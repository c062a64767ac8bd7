"""What a daemon knows of VMs and the kernel does not: handed over to the daemon that replaces it.

Owns the format: JSON, as another release may read it. It has what the source `kvm` retains; of each
VM what tells it from all others, the last numbers, what was cleared, and what its source retains.
Threading: pure.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from statsfs.exceptions import FormatError
from statsfs.formats.described_values import describe_whole, make_value
from statsfs.model.values import Value
from statsfs.tree.source import Source

__all__ = [
    "VERSION",
    "KeptKvm",
    "KeptTarget",
    "KeptVm",
    "Names",
    "Rows",
    "Values",
    "decode",
    "encode",
    "fits",
    "restore_rows",
]

VERSION: Final = 1

Values = tuple[Value, ...]
Rows = Mapping[Values, tuple[Any, ...]]
"""The retained rows of a source, by array, as in `Source.retained`."""

Names = tuple[Sequence[str], Sequence[str]]
"""The names of values of a VM, and of a vCPU."""


@dataclass(frozen=True, slots=True)
class KeptTarget:
    """The numbers of a VM or a vCPU.

    Attributes:
        vcpu: the number of the vCPU, `ways.ALL`, or None for the VM.
        numbers: the last ones, by name; what was cleared is not subtracted.
        baselines: by name what each cleared value was when it was cleared.
    """

    vcpu: int | None
    numbers: Mapping[str, Any]
    baselines: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KeptVm:
    """One VM.

    Attributes:
        name: that of debugfs.
        pid: the process that has it.
        began: when that process began: another one may have its number; None if it is unknown.
        way: the way that reads it, or read it last.
        key: as text, what tells it from other VMs of that name for this way; "" if nothing does.
        label: how Prometheus calls it.
        shown: whether it is in the tree.
        known: the values that the way knows.
        declared: all values that it had.
        retained: the retained rows of its source.
        targets: the VM and its vCPUs.
        socket: of QMP; else "".
        arrays: with a socket, the arrays of the VM, and of each vCPU.
    """

    name: str
    pid: int
    began: int | None
    way: str
    key: str
    label: str
    shown: bool
    known: Names
    declared: Names
    retained: Rows
    targets: Sequence[KeptTarget]
    socket: str = ""
    arrays: tuple[Values, Values] = ((), ())

    def find_baselines(self, vcpu: int | None) -> Mapping[str, Any]:
        """Return the baselines of a vCPU, or of the VM for None."""
        return next((one.baselines for one in self.targets if one.vcpu == vcpu), {})


@dataclass(frozen=True, slots=True)
class KeptKvm:
    """All of it.

    Attributes:
        retained: the retained rows of the source `kvm`.
        vms: the VMs that have not ended.
        heard: the number of the last uevent that was heard; 0 if there was none.
    """

    retained: Rows = field(default_factory=dict)
    vms: Sequence[KeptVm] = ()
    heard: int = 0


def encode(kept: KeptKvm) -> bytes:
    """Return it as JSON; values are described once each."""
    table: dict[Value, int] = {}

    def index(values: Values) -> list[int]:
        return [table.setdefault(value, len(table)) for value in values]

    def describe_rows(rows: Rows) -> list[Any]:
        return [[index(values), row] for values, row in rows.items()]

    vms = [
        {
            **{key: getattr(one, key) for key in _PLAIN},
            "targets": [asdict(target) for target in one.targets],
            "retained": describe_rows(one.retained),
            "arrays": [*map(index, one.arrays)],
        }
        for one in kept.vms
    ]
    described = {"heard": kept.heard, "retained": describe_rows(kept.retained), "vms": vms}
    values = [*map(describe_whole, table)]
    return json.dumps({"version": VERSION, "values": values, **described}).encode()


_PLAIN: Final = tuple(
    name for name in KeptVm.__slots__ if name not in ("targets", "retained", "arrays")
)


def decode(encoded: bytes, known: Iterable[Values] = ()) -> KeptKvm:
    """Return what was encoded, or raise FormatError, with a message of one line.

    Args:
        encoded: from `encode`.
        known: arrays that stand for those of the other process which differ only in descriptions.
    """
    try:
        described = json.loads(encoded)
        if described["version"] != VERSION:
            raise ValueError(f"version {described['version']!r}, not {VERSION}")
        values = [*map(make_value, described["values"])]
        same = {_bare(array): array for array in known}

        def find(indices: Sequence[int]) -> Values:
            array = tuple(values[one] for one in indices)
            return same.get(_bare(array), array)

        def find_rows(rows: Sequence[Any]) -> Rows:
            return {find(indices): _check_row(find(indices), row) for indices, row in rows}

        vms = [_make_vm(one, find, find_rows) for one in described["vms"]]
        return KeptKvm(find_rows(described["retained"]), vms, _check_integer(described["heard"]))
    except (
        ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise FormatError(ascii(str(error))[1:-1][:200], encoded[:100]) from None


def _bare(array: Values) -> Values:
    return tuple(replace(value, description="") for value in array)


def _make_vm(described: Mapping[str, Any], find: Any, find_rows: Any) -> KeptVm:
    targets = [
        KeptTarget(
            None if one["vcpu"] is None else _check_integer(one["vcpu"]),
            {name: _check_number(number) for name, number in one["numbers"].items()},
            {name: _check_number(number) for name, number in one["baselines"].items()},
        )
        for one in described["targets"]
    ]
    vm, vcpu = map(find, described["arrays"])
    plain = {name: described[name] for name in _PLAIN}
    for name in ("name", "way", "key", "label", "socket"):
        if type(plain[name]) is not str:
            raise TypeError(f"{name} is not a text")
    _check_integer(plain["pid"])
    for name in ("known", "declared"):
        plain[name] = tuple([*map(str, some)] for some in plain[name])
    return KeptVm(
        **plain, targets=targets, retained=find_rows(described["retained"]), arrays=(vm, vcpu)
    )


def _check_integer(number: Any) -> int:
    if type(number) is not int:
        raise TypeError("a number is not an integer")
    return number


def _check_number(number: Any) -> Any:
    # All are unsigned and of 64 bits.
    for one in number if isinstance(number, list) else [number]:
        if not 0 <= _check_integer(one) < 1 << 64:
            raise ValueError("a number is not one of 64 bits")
    return number


def _check_row(array: Values, row: Sequence[Any]) -> tuple[Any, ...]:
    if len(row) != len(array):
        raise ValueError(f"{len(row)} numbers for {len(array)} values")
    return tuple(row)


def fits(value: Value, number: Any) -> bool:
    """Tell whether something is a number of a value: an integer, or of a histogram its buckets."""
    if not value.histogram:
        return isinstance(number, int)
    return isinstance(number, list) and len(number) == value.size


def restore_rows(source: Source, rows: Rows) -> None:
    """Have a source retain these rows, of which it may retain a part already."""
    have = source.retained
    for values, row in rows.items():
        before = have.get(values)
        source.restore(values, row if before is None else _subtract_row(values, row, before))


def _subtract_row(values: Values, row: Sequence[Any], before: Sequence[Any]) -> list[Any]:
    # Of peaks the larger one stays.
    return [
        [after - one for after, one in zip(number, part, strict=True)]
        if value.histogram
        else number - part * value.cumulative
        for value, number, part in zip(values, row, before, strict=True)
    ]
