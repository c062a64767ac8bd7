"""Samples: the numbers of a subtree at one moment, as `.stats.json` has them.

Threading: pure.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import INTEGERS, Path, find_node

__all__ = ["Number", "Sample", "parse_sample"]

Number = int | list[int]
"""What a file has: an integer, or the buckets of a histogram."""

_TYPES: Final[set[type]] = {int}
_ALL_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG: Final = (b"0" * len(str(INTEGERS.stop)), b"-" + b"0" * (len(str(INTEGERS.start)) - 1))


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers of a subtree.

    Attributes:
        time: when it was taken, in seconds since 1970.
        moment: the same on a clock that only goes forward; rates are made with it.
        root: `{"values": {name: number}, "subordinates": {name: {…the same…}}}`.
    """

    time: float
    moment: float
    root: Mapping[str, Any]

    def find(self, path: Path) -> Mapping[str, Any] | None:
        """Return the object of a source; None if it is not there."""
        node: Mapping[str, Any] | None = find_node(self.root, path)
        return node

    def number(self, path: Path, name: str) -> Number | None:
        """Return what a file has; None if there is none, or its number is not known now."""
        node = find_node(self.root, path)
        return None if node is None else node["values"].get(name)

    def walk(self) -> Iterator[tuple[Path, Mapping[str, Number]]]:
        """Yield each source and its numbers, from the top down."""
        waiting: list[tuple[Path, Mapping[str, Any]]] = [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            yield path, node["values"]
            below = [((*path, name), child) for name, child in node["subordinates"].items()]
            waiting += reversed(below)


def parse_sample(text: bytes, time: float, moment: float) -> Sample:
    """Return the sample that a `.stats.json` is; SampleError if it is something else."""
    try:
        root = json.loads(text)
        # Far faster than to look at each number; a name may have as many digits.
        digits = text.translate(_ALL_ZERO)
        _check(root, long=any(one in digits for one in _LONG))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SampleError("invalid sample: it is not a .stats.json of statsfs") from error
    return Sample(time, moment, root)


def _check(root: Any, *, long: bool) -> None:
    # Whatever a server sends, or a file that has the name, has sources and numbers in it.
    waiting = [root]
    while waiting:
        node = waiting.pop()
        numbers = node["values"].values()
        kinds = {*map(type, numbers)}
        if list in kinds:
            lists = [number for number in numbers if type(number) is list]
            kinds.remove(list)
            kinds.update(map(type, chain.from_iterable(lists)))
        if not kinds <= _TYPES:
            raise TypeError(f"numbers are {kinds}")
        if long:
            _check_range(numbers)
        waiting += node["subordinates"].values()


def _check_range(numbers: Iterable[Number]) -> None:
    for number in numbers:
        items = number if isinstance(number, list) else [number]
        if not all(item in INTEGERS for item in items):
            raise ValueError("a number has more than 64 bits")
