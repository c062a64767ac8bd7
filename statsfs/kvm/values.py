"""KVM's own descriptions of its statistics, as values.

Owns how a descriptor becomes a `Value`. Descriptors come from a statistics descriptor or from a
VMM that asked one (QEMU's `query-stats-schemas` has the same fields): where the numbers are is the
business of others.

Threading: pure functions, whose results are shared by all that describe the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

from statsfs.exceptions import FormatError
from statsfs.formats.binary import Descriptor
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

__all__ = ["index_values", "make_values"]


def make_values(descriptors: Sequence[Descriptor]) -> tuple[Value, ...]:
    """Return the values that descriptors describe, in their order.

    The names are the kernel's. All are unsigned 64-bit integers, but for the unit BOOLEAN. Totals
    are sums; the total of peaks is the largest. A PEAK has no write bit: the kernel keeps it, and
    no difference of two peaks is one. Where data are placed makes no difference, so that thousands
    of vCPUs share one tuple.

    Args:
        descriptors: of one VM, or of one vCPU.

    Raises:
        FormatError: there are none, or one describes what is no value: a name that no file can
            have, several numbers that are no histogram, buckets beyond 64 bits.
    """
    return _place_values(tuple(descriptors))


@lru_cache(maxsize=64)
def _place_values(descriptors: tuple[Descriptor, ...]) -> tuple[Value, ...]:
    # Equal descriptors are recognised as they are; others may differ in where their data are.
    return _make_values(tuple(replace(one, offset=0) for one in descriptors))


@lru_cache(maxsize=64)
def _make_values(descriptors: tuple[Descriptor, ...]) -> tuple[Value, ...]:
    if not descriptors:
        raise FormatError("no statistics are described", descriptors)
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
            description=_descriptions().get(one.name, ""),
            size=one.size,
            bucket_size=one.bucket_size,
        )
    except ValueError as error:
        raise FormatError(f"no value can be made of {one.name[:40]!r}: {error}", one) from error


@lru_cache(maxsize=1)
def _descriptions() -> Mapping[str, str]:
    # A VM and its vCPUs have no name in common.
    text = (files("statsfs") / "data" / "kvm_descriptions.json").read_text()
    sections: dict[str, dict[str, str]] = json.loads(text)
    return {name: said for section in sections.values() for name, said in section.items()}


@lru_cache(maxsize=64)
def index_values(values: tuple[Value, ...]) -> Mapping[str, Value]:
    """Return values by their names, as `baselines.Numbers` wants them; one mapping for equal ones.

    Args:
        values: what `make_values` returned.
    """
    return MappingProxyType({value.name: value for value in values})
