"""What QEMU answers about its statistics, as descriptors and numbers.

Owns the shapes of QEMU's qapi/stats.json and qapi/machine.json (since 7.1). How one asks is the
business of `qmp`, what becomes of the numbers that of `qemu`. Answers are trusted in nothing:
whatever is wrong with one is a `QmpError`. What a newer QEMU adds is left out.

Threading: pure functions, and objects that do not change.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from statsfs.exceptions import QmpError
from statsfs.formats.binary import Descriptor, Number
from statsfs.model.values import Kind, Unit

__all__ = ["Shape", "read_cpus", "read_schemas", "read_stats"]

_KINDS: Final = {
    "cumulative": Kind.CUMULATIVE,
    "instant": Kind.INSTANT,
    "peak": Kind.PEAK,
    "linear-histogram": Kind.LINEAR_HIST,
    "log2-histogram": Kind.LOG_HIST,
}
_UNITS: Final = {
    "none": Unit.NONE,
    "bytes": Unit.BYTES,
    "seconds": Unit.SECONDS,
    "cycles": Unit.CYCLES,
    "boolean": Unit.BOOLEAN,
}
_HISTOGRAMS: Final = (Kind.LINEAR_HIST, Kind.LOG_HIST)
_MOST: Final = (1 << 64) - 1


@contextlib.contextmanager
def _reading(command: str, answer: object) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QmpError(f"no answer to {command}: {error!r:.80}", answer) from error


def _typed(item: Any, kind: type) -> Any:
    # JSON's true is no 1 here.
    if type(item) is not kind:
        raise TypeError(item)
    return item


def read_schemas(answer: Any) -> dict[str, tuple[Descriptor, ...]]:
    """Read the answer to query-stats-schemas.

    QEMU lists what the kernel has in reverse order, so it is reversed here: the values of a VM that
    QEMU runs are equal to those that are made of its statistics descriptor.

    Args:
        answer: what was returned.

    Returns:
        By target, `vm` and `vcpu`, what KVM counts. How many buckets a histogram has is not said.

    Raises:
        QmpError: it is no such answer.
    """
    with _reading("query-stats-schemas", answer):
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
    return Descriptor(
        _typed(one["name"], str),
        _KINDS[one["type"]],
        _UNITS[one.get("unit", "none")],
        _typed(one.get("base", 10), int),
        _typed(one.get("exponent", 0), int),
        1,
        _typed(one.get("bucket-size", 0), int),
    )


def read_cpus(answer: Any) -> dict[str, int]:
    """Read the answer to query-cpus-fast.

    Returns:
        The number of each vCPU by its qom-path.

    Raises:
        QmpError: it is no such answer.
    """
    with _reading("query-cpus-fast", answer):
        return {
            _typed(one["qom-path"], str): _typed(one["cpu-index"], int)
            for one in _typed(answer, list)
        }


def read_stats(answer: Any) -> dict[str, dict[str, Any]]:
    """Read the answer to query-stats.

    Returns:
        For each VM or vCPU what was counted, by name; by its qom-path, which is "" for a VM.

    Raises:
        QmpError: it is no such answer.
    """
    with _reading("query-stats", answer):
        return {
            _typed(entry.get("qom-path", ""), str): {
                one["name"]: one["value"] for one in _typed(entry["stats"], list)
            }
            for entry in _typed(answer, list)
            if entry["provider"] == "kvm"
        }


class Shape:
    """What is in each answer to query-stats for one target.

    Args:
        schema: what there may be.
        stats: what was counted first, which tells how many buckets histograms have. What is not
            there, or is another number than its descriptor says, is left out.

    Attributes:
        descriptors: what is there.
    """

    __slots__ = ("_sizes", "descriptors")

    def __init__(self, schema: Sequence[Descriptor], stats: Mapping[str, Any]) -> None:
        # By name: a name that is there twice is one.
        found = {one.name: one for one in schema if one.name in stats}
        measured = (_measure(one, stats[one.name]) for one in found.values())
        self.descriptors = tuple(one for one in measured if one is not None)
        self._sizes = [
            (one.name, one.size if one.kind in _HISTOGRAMS else None) for one in self.descriptors
        ]

    def row(self, stats: Mapping[str, Any]) -> list[Number]:
        """Return the numbers of an answer, by descriptor.

        Args:
            stats: what was counted, by name.

        Raises:
            QmpError: a number is missing, or is none.
        """
        try:
            return [_read_number(stats[name], size) for name, size in self._sizes]
        except (KeyError, TypeError, ValueError) as error:
            raise QmpError(f"no answer to query-stats: {error!r:.80}", stats) from error


def _measure(one: Descriptor, number: Any) -> Descriptor | None:
    size = len(number) if isinstance(number, list) and one.kind in _HISTOGRAMS else None
    try:
        _read_number(number, size)
    except (TypeError, ValueError):
        return None
    return None if (size is None) is (one.kind in _HISTOGRAMS) else replace(one, size=size or 1)


def _read_number(number: Any, size: int | None) -> Number:
    # Booleans are JSON's, and become 0 and 1.
    if size is None:
        if type(number) not in (int, bool) or not 0 <= number <= _MOST:
            raise TypeError(number)
        return int(number)
    if type(number) is not list or len(number) != size or set(map(type, number)) != {int}:
        raise TypeError(number)
    if min(number) < 0 or max(number) > _MOST:
        raise ValueError(number)
    return number
