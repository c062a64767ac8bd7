"""What `.schema.json` says of a subtree: the description of each file, by source.

Threading: pure.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, get_args, get_origin

from statsfs.exceptions import SampleError

__all__ = ["INTEGERS", "Description", "Path", "Schema", "find_node", "parse_schema"]

Path = tuple[str, ...]
"""The names of sources, from the directory that is looked at downwards; of itself ()."""

_HISTOGRAMS = frozenset({"linear_hist", "log_hist", "hist"})
_MONOTONIC = _HISTOGRAMS | {"cumulative"}


@dataclass(frozen=True, slots=True)
class Description:
    """One value, or one kind of its aggregate, as `.schema.json` has it."""

    name: str
    type: str = "u64"
    kind: str = "cumulative"
    unit: str = "none"
    base: int = 10
    exponent: int = 0
    aggregate: tuple[str, ...] = ()
    mode: int = 0o444
    description: str = ""
    size: int = 1
    bucket_size: int = 0
    bounds: tuple[int, ...] = ()

    @property
    def histogram(self) -> bool:
        """Whether it is a list of buckets."""
        return self.kind in _HISTOGRAMS

    @property
    def writable(self) -> bool:
        """Whether 0 may be written to it, by somebody."""
        return bool(self.mode & 0o222)

    def counts(self, names: Mapping[str, Any], total: bool) -> bool:
        """Tell whether its number only grows until it is cleared, so that it has a rate.

        Args:
            names: those of its directory. `exits.max` is no counter beside `exits`; `latency.sum`,
                the sum of what a histogram observed, is one.
            total: whether the directory has others below it. A minimum or an average of counters
                is not a counter.
        """
        if self.kind not in _MONOTONIC:
            return False
        stem, _, suffix = self.name.rpartition(".")
        if stem in names and suffix != "sum" and suffix in self.aggregate:
            return False
        return not (total and self.aggregate and "sum" not in self.aggregate)


_FIELDS = {field.name: get_origin(field.type) or field.type for field in fields(Description)}
_ITEMS = {
    field.name: get_args(field.type)[0] for field in fields(Description) if get_args(field.type)
}
INTEGERS: Final = range(-(1 << 63), 1 << 64)
"""What a number of statsfs can be. Another one has no place in a float, or in a file's column."""


class Schema:
    """The descriptions of all files of a subtree.

    Args:
        root: what `.schema.json` is. Values are `Description`s.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def find(self, path: Path) -> Mapping[str, Description] | None:
        """Return the descriptions of a source's files by name; None if the schema lacks it."""
        node = find_node(self._root, path)
        return None if node is None else node["values"]

    def below(self, path: Path) -> "Schema | None":
        """Return the schema of one source and those below it; None if it is not there."""
        node = find_node(self._root, path)
        return None if node is None else Schema(node)

    def labels(self, path: Path) -> Mapping[str, str]:
        """Return the Prometheus labels of a source."""
        node = find_node(self._root, path)
        return {} if node is None else node["labels"]

    def walk(self) -> Iterator[tuple[Path, Mapping[str, Description]]]:
        """Yield each source and its descriptions, from the top down."""
        waiting: list[tuple[Path, Mapping[str, Any]]] = [((), self._root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node["values"]
            below = [((*path, name), child) for name, child in node["subordinates"].items()]
            waiting += reversed(below)


def find_node(root: Any, path: Path) -> Any:
    """Return the object of a source in a view, or None."""
    for name in path:
        root = root["subordinates"].get(name)
        if root is None:
            return None
    return root


def parse_schema(text: bytes) -> Schema:
    """Return what a `.schema.json` says; SampleError if it is something else."""
    known: dict[str, Description] = {}
    alike: dict[tuple[Description, ...], Mapping[str, Description]] = {}

    def convert(found: dict[str, Any]) -> Any:
        values = found.get("values")
        if isinstance(found.get("subordinates"), dict) and isinstance(values, list):
            # Thousands of sources have equal values: they share one dictionary.
            key = tuple(values)
            found["values"] = alike.setdefault(key, {value.name: value for value in key})
        elif "kind" in found and "unit" in found and isinstance(found.get("aggregate"), list):
            return known.setdefault(repr(found), _describe(found))
        return found

    try:
        root = json.loads(text, object_hook=convert)
        _check(root)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SampleError("invalid schema: it is not a .schema.json of statsfs") from error
    return Schema(root)


def _check(root: Any) -> None:
    # Refuses all but a tree of descriptions: a server, or a file of the name, may have anything.
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if not isinstance(node["values"], dict) or not isinstance(node["labels"], dict):
            raise TypeError("no source")
        waiting += node["subordinates"].values()


def _describe(found: Mapping[str, Any]) -> Description:
    def freeze(item: Any) -> Any:
        return tuple(item) if isinstance(item, list) else item

    described = {key: freeze(item) for key, item in found.items() if key in _FIELDS}
    for key, item in described.items():
        items = item if type(item) is tuple else ()
        if type(item) is not _FIELDS[key] or any(type(one) is not _ITEMS[key] for one in items):
            raise TypeError(f"{key} is {item!r}")
        if any(type(one) is int and one not in INTEGERS for one in (item, *items)):
            raise ValueError(f"{key} is {item!r}")
    if described.get("base", 10) not in (2, 10):
        raise ValueError(f"base is {described['base']!r}")
    return Description(**described)
