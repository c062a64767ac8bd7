"""Syncing: a source gets the subordinates that a poller found.

Owns `Source.sync`: what it makes of names and mappings, and which subordinates are its own. All of
it is one change. Each value is an array of its own, so that a subordinate may lack some. Its base
has the numbers of the last mapping, less what they were when they were cleared; these change in
steps of the change, too.

If a cumulative number falls, something else has the name now: the old subordinate leaves, and what
it counted is retained as of any other.

Threading: any thread. Mappings are read first, under no lock; of two calls, the later change wins.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from statsfs.exceptions import BaseMismatchError, DuplicateNameError, UnknownValueError
from statsfs.model.arrays import Array, intern_array, split_array
from statsfs.model.external import Numbers, subtract_baseline
from statsfs.model.histograms import convert_counts
from statsfs.model.names import safe_name
from statsfs.model.readers import Reader, describe_number
from statsfs.model.stats import Stats
from statsfs.model.values import Value
from statsfs.tree.arguments import check_source_label
from statsfs.tree.index import Entry, make_index
from statsfs.tree.lineage import find_lineage, note_files
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.placement import check_sibling, exchange
from statsfs.tree.references import check
from statsfs.tree.retention import Folding, folding_change

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["Synced", "sync"]

_Row = dict[str, Any]


class _Numbers(Numbers):
    # The numbers of one subordinate. They and the baselines change in steps of changes. `raw` has
    # the numbers of the mappings, and the last one where the newest mapping lacks it.
    __slots__ = ("raw",)

    def __init__(self, values: Mapping[str, Value], row: _Row) -> None:
        super().__init__(values)
        self.update(row)
        self.raw = dict(self)

    def have_fallen(self, row: _Row) -> bool:
        """Tell whether a number that can only grow is less than before."""
        for name, number in row.items():
            value, before = self._values[name], self.raw[name]
            if value.histogram:
                if any(map(operator.lt, number, before)):
                    return True
            elif number < before and value.cumulative and not value.type.signed:
                return True
        return False

    def replace(self, change: TreeChange, row: _Row) -> None:
        """Add the steps that replace the numbers of a row."""
        change.set(self, "raw", {**self.raw, **row})
        if self.baselines:
            row = row | {
                name: subtract_baseline(self._values[name], row[name], baseline)
                for name, baseline in self.baselines.items()
                if name in row
            }
        change.do(self.update, row)

    def _clear(self, name: str) -> None:
        apply_change(partial(self._make_baseline, name))

    def _make_baseline(self, name: str, change: TreeChange) -> None:
        change.set(self, "baselines", {**self.baselines, name: self.raw[name]})
        change.do(self.__setitem__, name, self._values[name].zero)


class _Parts:
    # What an array is split into: the arrays by the name of their first value, each with its
    # reader; the values by name, with the least and the largest integer that each may have (of
    # histograms there is none), and the names of histograms and their sums.
    __slots__ = ("arrays", "ranges", "sums", "values")

    def __init__(self, array: Array) -> None:
        self.values = {value.name: value for value in array.values}
        base = _Numbers(self.values, {})
        self.arrays: dict[str, tuple[Array, Reader]] = {}
        for values in split_array(array.values):
            part = intern_array(values)
            self.arrays[values[0].name] = part, part.binder.bind(base)[0]
        self.ranges = {
            name: (value, value.type.minimum, -1 << 64 if value.histogram else value.type.maximum)
            for name, value in self.values.items()
        }
        names = [value.name for value in array.values]
        self.sums = [(names[one], names[other]) for one, other in array.sums.items()]


class _Member:
    # One subordinate that sync made, and its entries by the name of their first value.
    __slots__ = ("entries", "numbers", "source")

    def __init__(self, source: "Source", parts: _Parts, row: _Row) -> None:
        self.source = source
        self.numbers = _Numbers(parts.values, row)
        self.entries: dict[str, Entry] = {}
        directory = source._directory
        # At once, as the tree's reference will be the only one: nobody has seen the source.
        source._taken = 0
        for name, entry in self.find_new(parts, row).items():
            self.entries[name] = directory.entries[entry.key] = entry
            directory.index[entry.array] = make_index(entry)

    @property
    def whole(self) -> bool:
        """Whether nobody took its arrays or their bases away."""
        entries = self.source._directory.entries
        return all(entries.get(entry.key) is entry for entry in self.entries.values())

    def find_new(self, parts: _Parts, row: _Row) -> dict[str, Entry]:
        """Return entries for the values of a row that have none."""
        base = self.numbers
        return {
            name: Entry(self.source, array, reader, base, base, hidden=False)
            for name, (array, reader) in parts.arrays.items()
            if name in row and name not in self.entries
        }

    def update(
        self, change: TreeChange, lineage: "Sequence[Source]", row: _Row, new: Mapping[str, Entry]
    ) -> None:
        """Add the steps that replace the numbers, and show new entries."""
        self.numbers.replace(change, row)
        for name, entry in self.entries.items():
            if entry.silent is (name in row):
                change.set(entry, "silent", not entry.silent)
        if new:
            directory = self.source._directory
            for name, entry in new.items():
                change.do(self.entries.__setitem__, name, entry)
                change.do(directory.entries.__setitem__, entry.key, entry)
            directory.exchange(change, {one.array: make_index(one) for one in new.values()}, {})
            directory.make_stale(change)
            note_files(change, lineage, [directory])


@dataclass(frozen=True, slots=True)
class Synced:
    """The subordinates that a source was synced to.

    Attributes:
        array: all values of the subordinates.
        label: the label of each.
        members: the subordinates, by their names in the mapping.
    """

    array: Array
    label: str | None
    members: Mapping[str, _Member]


def sync(
    source: "Source",
    subordinates: object,
    values: type[Stats] | Sequence[Value],
    label: str | None,
    make: "Callable[..., Source]",
) -> None:
    """Make, update and remove subordinates; the errors are those of `Source.sync`.

    Args:
        source: the source.
        subordinates: the numbers of each by name, by the name of the value.
        values: an array.
        label: the label of the subordinates.
        make: the class of sources.
    """
    check(source)
    try:
        array = intern_array(values)
    except (BaseMismatchError, DuplicateNameError) as error:
        raise type(error)(f"{source.path}: {error}", error.offender) from None
    if array.binder.has_offsets:
        raise BaseMismatchError(f"{source.path}: values of mappings have no offsets", values)
    check_source_label(label)
    rows = _read_rows(source.path, subordinates, array.plan(_Parts))
    _sync(source, array, label, rows, make)


# What is wanted


def _read_rows(path: str, subordinates: object, parts: _Parts) -> dict[str, _Row]:
    if not isinstance(subordinates, Mapping):
        kind = type(subordinates).__name__
        raise TypeError(f"{path}: subordinates are a mapping of mappings, not {kind}")
    rows = {}
    for name, numbers in subordinates.items():
        if not isinstance(name, str):
            raise TypeError(f"{path}: the name of a subordinate must be a str: {name!r}")
        if not isinstance(numbers, Mapping):
            kind = type(numbers).__name__
            raise TypeError(f"{path}: {name!r} has no mapping of numbers, but {kind}")
        rows[name] = _read_row(f"{path}/{safe_name(name)}", numbers, parts)
    return rows


def _read_row(path: str, numbers: Mapping[Any, object], parts: _Parts) -> _Row:
    row: _Row = {}
    for name, number in numbers.items():
        known = parts.ranges.get(name)
        if known is None:
            raise UnknownValueError(f"{path}: no value {name!r}", name)
        value, least, most = known
        if type(number) is int and least <= number <= most:
            row[value.name] = number  # nearly always
        else:
            row[value.name] = _read_number(path, value, number)
    for histogram, total in parts.sums:
        if (histogram in row) is not (total in row):
            missing = total if histogram in row else histogram
            raise BaseMismatchError(f"{path}: {missing!r} is missing", numbers)
    return row


def _read_number(path: str, value: Value, number: Any) -> Any:
    where = f"{path}: {value.name!r}"
    try:
        found = convert_counts(number if value.histogram else [number], value.size)
    except (TypeError, ValueError):
        text = f"{where} holds no {describe_number(value)}, but {type(number).__name__}"
        raise BaseMismatchError(text, number) from None
    for one in found:
        if not value.type.minimum <= one <= value.type.maximum:
            raise ValueError(f"{where}: {one} does not fit into {value.type}")
    return [int(one) for one in found] if value.histogram else int(found[0])


# The change


@folding_change
def _sync(
    source: "Source",
    change: TreeChange,
    folding: Folding,
    array: Array,
    label: str | None,
    rows: Mapping[str, _Row],
    make: "Callable[..., Source]",
) -> None:
    check(source)
    parts, lineage = array.plan(_Parts), find_lineage(source)
    former = _find_members(source)
    before = source._directory.synced
    alike = before is not None and (before.array, before.label) == (array, label)
    members: dict[str, _Member] = {}
    coming: list[Source] = []
    new: dict[_Member, dict[str, Entry]] = {}
    for name, row in rows.items():
        member = former.get(name)
        if member is None or not alike or not member.whole or member.numbers.have_fallen(row):
            made = make(safe_name(name), label=label, label_value=name)
            member = _Member(made, parts, row)
            coming.append(made)
        elif found := member.find_new(parts, row):
            new[member] = found
        members[name] = member
    leaving = [one.source for name, one in former.items() if members.get(name) is not one]
    _check(source, coming, leaving, new)
    entries = [entry for found in new.values() for entry in found.values()]
    if exchange(change, folding, lineage, coming=coming, leaving=leaving, entries=entries):
        change.renumber()
        for name, member in members.items():
            if former.get(name) is member:
                member.update(change, lineage, rows[name], new.get(member, {}))
        change.drop(source._directory, "synced", Synced(array, label, members))


def _find_members(source: "Source") -> dict[str, _Member]:
    # Those that are still there.
    directory = source._directory
    if directory.synced is None:
        return {}
    return {
        name: member
        for name, member in directory.synced.members.items()
        if directory.subordinates.get(member.source.name) is member.source
    }


def _check(
    source: "Source",
    coming: "Sequence[Source]",
    leaving: "Sequence[Source]",
    new: Mapping[_Member, Mapping[str, Entry]],
) -> None:
    gone = {one.name for one in leaving}
    stay = {name: one for name, one in source._directory.subordinates.items() if name not in gone}
    for one in coming:
        check_sibling(stay, one, source.path)
    for member, found in new.items():
        for entry in found.values():
            member.source._directory.check_entry(entry)
