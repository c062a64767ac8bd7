"""QEMU's answers about its statistics, as descriptors and numbers.

Owns the shapes of QEMU's qapi/stats.json and qapi/machine.json (since 7.1). An invalid answer is a
`QmpError`; what a newer QEMU adds is left out. Threading: pure functions, constant objects.
"""

import contextlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from statsfs.exceptions import QmpError
from statsfs.formats.binary import Descriptor, Number
from statsfs.model.values import Kind, Unit

__all__ = ["AnswerParser", "read_apic_id", "read_cpus", "read_schemas", "read_stats"]

# In the order of the kernel's numbers, which are those of `Kind`.
_NAMES: Final = ("cumulative", "instant", "peak", "linear-histogram", "log2-histogram")
_KINDS: Final = {name: Kind(number) for number, name in enumerate(_NAMES)}
_UNITS: Final = {unit.name.lower(): unit for unit in Unit}
_X86: Final = ("i386", "x86_64")
_HISTOGRAMS: Final = (Kind.LINEAR_HIST, Kind.LOG_HIST)


@contextlib.contextmanager
def _decoding(command: str, answer: object) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QmpError(f"invalid answer to {command}: {error!r:.80}", answer) from error


def _typed(item: Any, kind: type) -> Any:
    # JSON's true is not an int here.
    if type(item) is not kind:
        raise TypeError(item)
    return item


def read_schemas(answer: Any) -> dict[str, tuple[Descriptor, ...]]:
    """Return what KVM counts, by target, `vm` and `vcpu`; from query-stats-schemas.

    QEMU lists the kernel's values in reverse order; here they have that of a statistics descriptor.
    The answer lacks the number of a histogram's buckets.
    """
    with _decoding("query-stats-schemas", answer):
        return {
            _typed(entry["target"], str): tuple(
                _read_descriptor(one)
                for one in reversed(_typed(entry["stats"], list))
                if one["type"] in _KINDS and one.get("unit", "none") in _UNITS
            )
            for entry in _typed(answer, list)
            if entry["provider"] == "kvm"
        }


def _read_descriptor(one: Mapping[str, Any]) -> Descriptor:
    kind, unit = _KINDS[one["type"]], _UNITS[one.get("unit", "none")]
    base, exponent = _typed(one.get("base", 10), int), _typed(one.get("exponent", 0), int)
    width = _typed(one.get("bucket-size", 0), int)
    return Descriptor(_typed(one["name"], str), kind, unit, base, exponent, 1, width)


def read_cpus(answer: Any) -> dict[str, int | None]:
    """Return KVM's number of each vCPU by its qom-path; from query-cpus-fast.

    None is a vCPU of x86: its number is the APIC id, which this answer lacks. Elsewhere it is the
    index.
    """
    with _decoding("query-cpus-fast", answer):
        return {
            _typed(one["qom-path"], str): None
            if _typed(one["target"], str) in _X86
            else _typed(one["cpu-index"], int)
            for one in _typed(answer, list)
        }


def read_apic_id(answer: Any) -> int:
    """Return the APIC id of a vCPU; from qom-get."""
    with _decoding("qom-get", answer):
        number: int = _typed(answer, int)
        return number


def read_stats(answer: Any) -> dict[str, dict[str, Any]]:
    """Return the numbers by name, for each qom-path, which is "" for a VM; from query-stats."""
    with _decoding("query-stats", answer):
        return {
            _typed(entry.get("qom-path", ""), str): {
                one["name"]: one["value"] for one in _typed(entry["stats"], list)
            }
            for entry in _typed(answer, list)
            if entry["provider"] == "kvm"
        }


class AnswerParser:
    """Makes rows of the answers to query-stats for one target, whose descriptors are `schema`.

    `stats` is the first answer, which tells how many buckets histograms have. A descriptor without
    a number there, or with a number of another kind, is left out of `descriptors`.
    """

    __slots__ = ("_sizes", "descriptors")

    def __init__(self, schema: Sequence[Descriptor], stats: Mapping[str, Any]) -> None:
        # By name: a duplicate counts once.
        found = {one.name: one for one in schema if one.name in stats}
        measured = (_measure(one, stats[one.name]) for one in found.values())
        self.descriptors = made = tuple(filter(None, measured))
        self._sizes = [(one.name, one.size if one.kind in _HISTOGRAMS else None) for one in made]

    def row(
        self,
        stats: Mapping[str, Any],
        names: Container[str] | None = None,
        last: Sequence[Number] = (),
    ) -> list[Number]:
        """Return the numbers of an answer, by descriptor; QmpError if one is missing or invalid.

        Args:
            stats: the answer.
            names: what it was asked for; None for everything.
            last: the row before, of which the others are taken.
        """
        with _decoding("query-stats", stats):
            return [
                _read_number(stats[name], size) if names is None or name in names else last[place]
                for place, (name, size) in enumerate(self._sizes)
            ]


def _measure(one: Descriptor, number: Any) -> Descriptor | None:
    size = len(number) if isinstance(number, list) else None
    try:
        _read_number(number, size)
    except (TypeError, ValueError):
        return None
    return None if (size is None) is (one.kind in _HISTOGRAMS) else replace(one, size=size or 1)


def _read_number(number: Any, size: int | None) -> Number:
    # JSON's booleans become 0 and 1. QEMU lists buckets in reverse order, as it does the schema: it
    # prepends each to a list (7.2, 10.0 and 11.1 compared with the descriptor of the same vCPU).
    if size is None:
        if type(number) not in (int, bool) or not 0 <= number < 1 << 64:
            raise TypeError(number)
        return int(number)
    if type(number) is not list or len(number) != size or set(map(type, number)) != {int}:
        raise TypeError(number)
    if min(number) < 0 or max(number) >= 1 << 64:
        raise ValueError(number)
    return number[::-1]
