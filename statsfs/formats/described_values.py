"""Values as JSON, whole: all fields of each, so that another process makes the same values.

Owns what records of a collector, and a daemon that is replaced, write of a value. Threading: pure.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from statsfs.formats.schema import describe_value
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

__all__ = ["describe_whole", "make_value"]


def describe_whole(value: Value) -> dict[str, Any]:
    """Return all fields of a value, for `make_value`."""
    rest = {"name": value.name, "mode": value.mode, "hidden": value.hidden}
    return {**rest, "size": value.size, "bucket_size": value.bucket_size, **describe_value(value)}


def make_value(described: Mapping[str, Any]) -> Value:
    """Return the value that `describe_whole` described.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, OverflowError: it describes none.
    """
    kinds = (Aggregate[kind.upper()] for kind in described["aggregate"])
    aggregate = reduce(Aggregate.__or__, kinds, Aggregate.NONE)
    enums = {"type": Type, "kind": Kind, "unit": Unit}
    members: dict[str, Any] = {key: enum[described[key].upper()] for key, enum in enums.items()}
    return Value(**{**described, **members, "aggregate": aggregate})
