"""KVM's own descriptions of its statistics, as values.

Owns how a `Descriptor`, of a statistics descriptor or of QEMU's `query-stats-schemas`, becomes a
`Value`. Threading: pure functions; equal descriptors share one result.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from statsfs.exceptions import FormatError
from statsfs.formats.binary import Descriptor
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

__all__ = ["index_values", "make_values"]


def _load_descriptions() -> Mapping[str, str]:
    # The names of VMs and vCPUs are disjoint.
    path = files("statsfs") / "data" / "kvm_descriptions.json"
    sections: dict[str, dict[str, str]] = json.loads(path.read_text())
    return {name: text for section in sections.values() for name, text in section.items()}


# Not when the first is wanted: an upgrade may have replaced the file by then.
_DESCRIPTIONS: Final = _load_descriptions()


def make_values(descriptors: Sequence[Descriptor]) -> tuple[Value, ...]:
    """Return the values that descriptors of one VM or vCPU describe, in their order.

    Totals are sums, and of peaks the largest. A PEAK has no write bit: a difference of two peaks is
    not a peak. The offsets of the data do not matter, so that thousands of vCPUs share one tuple.
    FormatError: there are no descriptors, or one does not describe a value.
    """
    return _cache_values(tuple(descriptors))


@lru_cache(maxsize=64)
def _cache_values(descriptors: tuple[Descriptor, ...]) -> tuple[Value, ...]:
    # A hit costs no `replace`, which takes a microsecond for each descriptor.
    return _make_values(tuple(replace(one, offset=0) for one in descriptors))


@lru_cache(maxsize=64)
def _make_values(descriptors: tuple[Descriptor, ...]) -> tuple[Value, ...]:
    if not descriptors:
        raise FormatError("no statistics", descriptors)
    return tuple(map(_make_value, descriptors))


def _make_value(one: Descriptor) -> Value:
    boolean = one.unit is Unit.BOOLEAN and one.kind in (Kind.CUMULATIVE, Kind.INSTANT, Kind.PEAK)
    try:
        return Value(
            one.name,
            Type.BOOL if boolean else Type.U64,
            Aggregate.MAX if one.kind is Kind.PEAK else Aggregate.SUM,
            0o444 if one.kind in (Kind.INSTANT, Kind.PEAK) else 0o644,
            kind=one.kind,
            unit=one.unit,
            base=one.base,
            exponent=one.exponent,
            description=_DESCRIPTIONS.get(one.name, ""),
            size=one.size,
            bucket_size=one.bucket_size,
        )
    except ValueError as error:
        raise FormatError(f"invalid description of {one.name[:40]!r}: {error}", one) from error


@lru_cache(maxsize=64)
def index_values(values: tuple[Value, ...]) -> Mapping[str, Value]:
    """Return values by their names, as `model.external.Numbers` needs them; equal ones share it."""
    return MappingProxyType({value.name: value for value in values})
