"""The numbers of one source as rows: values, rates, what moved since a reset.

Threading: one thread's.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from statsfs.eyes.descriptions import Description, Path
from statsfs.eyes.numbers import format_number, format_percentiles, format_rate
from statsfs.eyes.rates import Rates, subtract
from statsfs.eyes.samples import Number, Sample
from statsfs.top.outline import natural_key

__all__ = ["ORDERS", "Entry", "Find", "describe_unit", "list_entries", "measure", "sort_entries"]

Find = Callable[[Path, str], Description | None]

ORDERS: Final = ("schema", "name", "value", "rate")
"""What values are sorted by; `schema` is the order in which the program declares them."""

_SECONDS: Final = {0: "s", -3: "ms", -6: "µs", -9: "ns"}
_BYTES: Final = {0: "B", 10: "KiB", 20: "MiB", 30: "GiB"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source.

    Attributes:
        what: its description; None if it is not known yet.
        rate: of what counts only, if it is known.
        moved: what it grew by since a reset, in the same case.
    """

    path: Path
    name: str
    number: Number
    what: Description | None
    rate: float | None
    moved: Number | None

    @property
    def text(self) -> str:
        """The number in its unit; of a histogram its percentiles."""
        what = self.what or Description(self.name)
        if isinstance(self.number, list):
            return format_percentiles(self.number, what) if self.what else f"{sum(self.number):,}"
        return format_number(self.number, what)

    @property
    def rate_text(self) -> str:
        """The rate, or nothing."""
        return "" if self.rate is None or self.what is None else format_rate(self.rate, self.what)

    @property
    def moved_text(self) -> str:
        """What it grew by since the reset; of a histogram how much was observed."""
        if self.moved is None or self.what is None:
            return ""
        if isinstance(self.moved, list):
            return f"+{sum(self.moved):,}"
        return f"+{format_number(self.moved, self.what)}"


def list_entries(
    path: Path,
    rates: Rates,
    find: Find,
    *,
    since: Sample | None = None,
    pattern: re.Pattern[str] | None = None,
) -> list[Entry]:
    """Return the entries of a source, with the numbers of the newest sample.

    Args:
        path: the source.
        rates: the samples.
        find: returns what a file is.
        since: the sample of the last reset.
        pattern: what the path of a file must have in it, as `vm/exits`.
    """
    node = None if rates.after is None else rates.after.find(path)
    if node is None:
        return []
    entries = []
    total = bool(node["subordinates"])
    prefix = "".join(f"{name}/" for name in path)
    for name, number in node["values"].items():
        if pattern is not None and not pattern.search(prefix + name):
            continue
        what = find(path, name)
        rate, moved = None, None
        if what is not None and what.counts(node["values"], total):
            rate = rates.rate(path, name)
            moved = None if since is None else subtract(since.number(path, name), number)
        entries.append(Entry(path, name, number, what, rate, moved))
    return entries


def sort_entries(entries: list[Entry], order: str, reverse: bool) -> list[Entry]:
    """Return the entries in one of the `ORDERS`; the largest numbers come first."""
    if order == "schema":
        return entries[::-1] if reverse else entries
    if order == "name":
        return sorted(entries, key=lambda entry: natural_key(entry.name), reverse=reverse)
    if order == "rate":
        return sorted(entries, key=lambda entry: measure(entry.rate), reverse=not reverse)
    return sorted(entries, key=lambda entry: measure(entry.number), reverse=not reverse)


def measure(number: Number | float | None) -> float:
    """Return the sort key of a number; an unknown one comes last."""
    if isinstance(number, list):
        return sum(number)
    return -math.inf if number is None else number


def describe_unit(what: Description) -> str:
    """Return the unit of one count: `ns`, `KiB`, `cycles`; nothing if it has none."""
    known = {("seconds", 10): _SECONDS, ("bytes", 2): _BYTES}.get((what.unit, what.base), {})
    if what.exponent == 0:
        none = {"none": "", "seconds": "s", "bytes": "B", "boolean": "bool"}
        return none.get(what.unit, what.unit)
    if what.exponent in known:
        return known[what.exponent]
    unit = "" if what.unit == "none" else f" {what.unit}"
    return f"{what.base}^{what.exponent}{unit}"
