"""A naive model of the tree, written from docs/architecture.md, "Rules of the tree".

It is slow and simple on purpose: every question walks the whole subtree, every number is converted
alone, every directory's names are worked out anew. It shares no code with statsfs but the enums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import trunc
from typing import Any

from statsfs.model.arrays import Array, intern_array
from statsfs.model.values import Aggregate, Type, Value

BITS = {
    Type.U8: 8, Type.U16: 16, Type.U32: 32, Type.U64: 64,
    Type.S8: 8, Type.S16: 16, Type.S32: 32, Type.S64: 64,
}  # fmt: skip
SIGNED = {Type.S8, Type.S16, Type.S32, Type.S64}
SUFFIXES = {
    Aggregate.SUM: "sum",
    Aggregate.MIN: "min",
    Aggregate.MAX: "max",
    Aggregate.AVG: "avg",
    Aggregate.COUNT_ZERO: "count_zero",
    Aggregate.COUNT_NONZERO: "count_nonzero",
}


def convert(number: int, type: Type) -> int:
    """Convert as C does, in the most literal way."""
    if type is Type.BOOL:
        return 1 if number else 0
    number %= 2 ** BITS[type]
    if type in SIGNED and number >= 2 ** (BITS[type] - 1):
        number -= 2 ** BITS[type]
    return number


Number = int | list[int]  # a list is a histogram


def convert_any(number: Number, value: Value) -> Number:
    """Convert an integer, or each bucket of a histogram."""
    if isinstance(number, list):
        return [convert(bucket, value.type) for bucket in number]
    return convert(number, value.type)


def sum_buckets(histograms: list[list[int]], value: Value) -> list[int]:
    """The sum of histograms, bucket by bucket."""
    return [
        aggregate([buckets[bucket] for buckets in histograms], value.type, Aggregate.SUM)
        for bucket in range(value.size)
    ]


def aggregate(numbers: list[int], type: Type, kind: Aggregate) -> int:
    """One aggregate of converted numbers."""
    if not numbers:
        return 0
    if kind is Aggregate.SUM:
        return convert(sum(numbers), Type.S64 if type in SIGNED else Type.U64)
    if kind is Aggregate.MIN:
        return sorted(numbers)[0]
    if kind is Aggregate.MAX:
        return sorted(numbers)[-1]
    if kind is Aggregate.AVG:
        return trunc(Fraction(sum(numbers), len(numbers)))
    zeros = len([number for number in numbers if number == 0])
    return zeros if kind is Aggregate.COUNT_ZERO else len(numbers) - zeros


def aggregate_files(value: Value) -> list[tuple[Aggregate, str]]:
    """The kinds of a value and the file names they have above."""
    kinds = [kind for kind in SUFFIXES if kind in value.aggregate]
    return [
        (
            kind,
            value.name
            if kind is Aggregate.SUM or len(kinds) == 1
            else f"{value.name}.{SUFFIXES[kind]}",
        )
        for kind in kinds
    ]


class Ages:
    """Which array was first added anywhere in the process; those that are noted stay in use."""

    def __init__(self) -> None:
        self._ages: dict[tuple[Value, ...], int] = {}
        self._kept: list[Array] = []

    def note(self, values: tuple[Value, ...]) -> None:
        """Remember an array that was added, if it is the first of its content."""
        if values not in self._ages:
            self._ages[values] = len(self._ages)
            self._kept.append(intern_array(values))

    def __getitem__(self, values: tuple[Value, ...]) -> int:
        return self._ages[values]


def is_histogram(value: Value) -> bool:
    """Whether a value is a list of buckets."""
    return value.kind.name in ("LINEAR_HIST", "LOG_HIST", "HIST")


def find_sum(values: tuple[Value, ...], index: int) -> int | None:
    """Where the sum of a histogram is; no other value here is called so."""
    names = [value.name for value in values[index : index + 2]]
    return index + 1 if names[1:] == [f"{names[0]}.sum"] else None


def retained_kind(value: Value) -> Aggregate | None:
    """Which aggregate of a value has what is retained in it."""
    wanted = Aggregate.MAX if value.kind.name == "PEAK" else Aggregate.SUM
    return wanted if wanted in value.aggregate and value.kind.name != "INSTANT" else None


def combine(numbers: list[Any], value: Value, kind: Aggregate) -> Number:
    """One aggregate of converted numbers or histograms."""
    if is_histogram(value):
        return sum_buckets(numbers, value)
    return aggregate(numbers, value.type, kind)


@dataclass(eq=False)
class ModelEntry:
    """An array over its numbers; None for an array that is only declared.

    `numbers` has, for each value, what the base holds; two hidden values of one name in an
    attribute base share one number, so it is by name there and by index in buffers.
    """

    values: tuple[Value, ...]
    numbers: dict[Any, Number] | None
    by_name: bool
    clearable: bool = True
    hidden: bool = False
    revoked: bool = False
    clears_sums: bool = True
    had: dict[Any, Number] | None = None  # what it had before it was revoked

    def number(self, index: int) -> Any:
        assert self.numbers is not None
        value = self.values[index]
        return convert_any(self.numbers[value.name if self.by_name else index], value)

    def row(self) -> tuple[Any, ...]:
        """All numbers; histograms as tuples."""
        row = [self.number(index) for index in range(len(self.values))]
        return tuple(tuple(number) if isinstance(number, list) else number for number in row)

    def can_clear(self, index: int) -> bool:
        """Whether the base lets it be cleared; the buckets of a histogram are always a list."""
        if is_histogram(self.values[index]):
            return self.clears_sums or find_sum(self.values, index) is None
        return self.clearable

    def clear(self, index: int) -> None:
        if self.can_clear(index):
            self._clear(index)
            place = find_sum(self.values, index)
            if place is not None:
                self._clear(place)

    def _clear(self, index: int) -> None:
        assert self.numbers is not None
        value = self.values[index]
        zero: Number = [0] * value.size if is_histogram(value) else 0
        self.numbers[value.name if self.by_name else index] = zero


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A file: an own value (`entry`), or an aggregate (`kind`) of a value of an array."""

    values: tuple[Value, ...]
    index: int
    kind: Aggregate | None
    entry: ModelEntry | None

    @property
    def value(self) -> Value:
        return self.values[self.index]


@dataclass(eq=False)
class Ghost:
    """What is retained of one array of something that left; of what left, if that may come back.

    With a limit it is not counted there and above: what left is there again.
    """

    left: ModelSource | ModelEntry | None
    values: tuple[Value, ...]
    amounts: dict[int, Number]
    limit: ModelSource | None = None


@dataclass(eq=False)
class ModelSource:
    """A source: its name, what it has, what is below it."""

    name: str
    hidden: bool = False
    retain: bool = False
    entries: list[ModelEntry] = field(default_factory=list)
    subordinates: list[ModelSource] = field(default_factory=list)
    parent: ModelSource | None = None
    ghosts: list[Ghost] = field(default_factory=list)

    def subtree(self) -> list[ModelSource]:
        """This source and all below it."""
        found = [self]
        for subordinate in self.subordinates:
            found += subordinate.subtree()
        return found

    def entries_below(self) -> list[ModelEntry]:
        """The entries of all sources below this one, and not its own."""
        return [entry for source in self.subtree()[1:] for entry in source.entries]

    def covered(self, value: Value) -> list[tuple[ModelEntry, int]]:
        """The entries that an aggregate of a value covers here, and its place in each."""
        return [
            (entry, index)
            for source in self.subtree()
            for entry in source.entries
            for index in find_places(entry.values, value)
            if entry.numbers is not None
        ]

    def lineage(self) -> list[ModelSource]:
        """This source and all above it."""
        return [self, *(self.parent.lineage() if self.parent else [])]

    def ghosts_here(self) -> list[Ghost]:
        """What is retained, here and below."""
        return [ghost for source in self.subtree() for ghost in source.ghosts]

    def ghosts_counted(self) -> list[Ghost]:
        """What is retained here and below, and counts here."""
        return [
            ghost
            for source in self.subtree()
            for ghost in source.ghosts
            if ghost.limit not in up_to(source.lineage(), self)
        ]

    def attach(self, child: ModelSource) -> None:
        """Take a source in; what is retained of it and it still has is forgotten."""
        entries = [entry for source in child.subtree() for entry in source.entries]
        self.take_back(child, count(entries, child.ghosts_counted()))
        self.subordinates.append(child)
        child.parent = self

    def take_back(
        self,
        left: ModelSource | ModelEntry,
        counted: dict[tuple[Value, ...], dict[int, Number]],
    ) -> None:
        """Forget what is retained of what comes back and has it still, or count it once above."""
        above = self.lineage()
        for keeper in above[-1].subtree():
            common = next(one for one in keeper.lineage() if one in above)
            for ghost in list(keeper.ghosts):
                if ghost.left is not left or ghost.values not in counted:
                    continue
                if ghost.limit is not None and ghost.limit in up_to(keeper.lineage(), common):
                    continue
                back = take_from(ghost, counted[ghost.values])
                ghost.left = None
                if common is not keeper:
                    keeper.ghosts.append(Ghost(left, ghost.values, back, common))

    def detach(self, child: ModelSource) -> None:
        """Let a source go; the nearest that retains keeps what it counted."""
        entries = [entry for source in child.subtree() for entry in source.entries]
        self.keep(child, entries, child.ghosts_counted())
        self.subordinates.remove(child)
        child.parent = None

    def keep(
        self,
        left: ModelSource | ModelEntry,
        entries: list[ModelEntry],
        ghosts: list[Ghost],
    ) -> None:
        """Have the nearest source that retains keep what leaves, this one or one above."""
        lineage = self.lineage()
        keeper = next((one for one in lineage if one.retain), None)
        if keeper is None:
            return
        limits = [None, *keeper.lineage()[1:]]
        for limit in limits:
            some = [ghost for ghost in ghosts if ghost.limit is limit and limit is not None]
            if limit is None:
                some = [ghost for ghost in ghosts if ghost.limit not in lineage]
            kept = count(entries if limit is None else [], some)
            for values, amounts in kept.items():
                for ghost in keeper.ghosts:
                    if (ghost.left, ghost.values, ghost.limit) == (left, values, limit):
                        ghost.left = None
                keeper.ghosts.append(Ghost(left, values, amounts, limit))

    def files(self, ages: Ages) -> dict[str, ModelFile]:
        """The files that the directory shows."""
        claims: list[Claim] = []
        for entry in self.entries:
            if entry.hidden:
                continue
            for index, value in enumerate(entry.values):
                if value.hidden:
                    continue
                if entry.numbers is not None:
                    own = ModelFile(entry.values, index, None, entry)
                    claims.append((1, ages[entry.values], index, [(value.name, own)]))
                else:
                    claims.append((2, ages[entry.values], index, _totals(entry.values, index)))
        for values in arrays_of(self.entries_below(), self.ghosts_here()):
            for index in range(len(values)):
                claims.append((3, ages[values], index, _totals(values, index)))
        shown: dict[str, ModelFile] = {}
        taken = {source.name for source in self.subordinates if not source.hidden}
        for _, _, _, files in sorted(join_claims(claims), key=lambda claim: claim[:3]):
            if not taken.intersection(name for name, _ in files):
                shown.update(files)
                taken.update(name for name, _ in files)
        return shown

    def find(self, name: str, shown: dict[str, ModelFile]) -> ModelFile | None:
        """What `get_value` finds: the files, then the hidden values of the source itself."""
        if name in shown:
            return shown[name]
        for entry in self.entries:
            for index, value in enumerate(entry.values):
                hidden = entry.hidden or value.hidden
                if value.name == name and hidden and entry.numbers is not None:
                    return ModelFile(entry.values, index, None, entry)
        return None

    def read(self, file: ModelFile) -> Number:
        """The number that a file shows, or its buckets."""
        if file.kind is None:
            assert file.entry is not None
            number: Number = file.entry.number(file.index)
            return number
        numbers = [entry.number(index) for entry, index in self.covered(file.value)]
        if file.kind is retained_kind(file.value):
            numbers += [
                number
                for ghost in self.ghosts_counted()
                for index in find_places(ghost.values, file.value)
                for number in retained_of([ghost], ghost.values, index)
            ]
        return combine(numbers, file.value, file.kind)

    def to_dict(self, ages: Ages) -> dict[str, Any]:
        """What `snapshot().to_dict()` returns."""
        return {
            "values": {name: self.read(file) for name, file in self.files(ages).items()},
            "subordinates": {
                source.name: source.to_dict(ages)
                for source in self.subordinates
                if not source.hidden
            },
        }

    def revoke(self) -> None:
        """All arrays stay as if their base were None; a source above may keep what they counted."""
        for entry in self.entries if self.parent else ():
            if entry.numbers is not None and self.parent:
                self.parent.keep(entry, [entry], [])
        for entry in self.entries:
            if entry.numbers is not None:
                entry.had, entry.numbers, entry.revoked = entry.numbers, None, True


def up_to(lineage: list[ModelSource], last: ModelSource) -> list[ModelSource]:
    """The beginning of a lineage, to one of its sources."""
    return lineage[: lineage.index(last) + 1]


def take_from(ghost: Ghost, known: dict[int, Number]) -> dict[int, Number]:
    """Take out of what is retained what the one that comes back still has."""
    back: dict[int, Number] = {}
    for index, amount in list(ghost.amounts.items()):
        peak = ghost.values[index].kind.name == "PEAK"
        place = find_sum(ghost.values, index)
        pair: dict[int, Number | None] = {index: amount}
        if place is not None:
            pair[place] = ghost.amounts.get(place)
        elif index and find_sum(ghost.values, index - 1) == index:
            continue  # with its histogram
        if not peak and all(covers(known.get(one), pair[one]) for one in pair):
            for one in pair:
                back[one] = ghost.amounts.pop(one)
    return back


def belong_together(one: Value, other: Value) -> bool:
    """Whether two values share a total: all that their numbers mean is the same."""
    names = ("name", "type", "kind", "unit", "base", "exponent", "size", "bucket_size", "bounds")
    alike = all(getattr(one, name) == getattr(other, name) for name in names)
    aggregated = one.aggregate is not Aggregate.NONE is not other.aggregate
    return alike and aggregated and one.mode & 0o444 == other.mode & 0o444


def find_places(values: tuple[Value, ...], value: Value) -> list[int]:
    """Where in an array the values are that belong to a value."""
    return [index for index, other in enumerate(values) if belong_together(value, other)]


Claim = tuple[int, int, int, list[tuple[str, ModelFile]]]


def join_claims(claims: list[Claim]) -> list[Claim]:
    """One claim for all totals of values that belong together; the oldest of each kind has it."""
    joined: list[Claim] = []
    for rank, age, index, files in sorted(claims, key=lambda claim: (claim[1], claim[2], claim[0])):
        if not files:
            continue
        if files[0][1].kind is None:
            joined.append((rank, age, index, files))
            continue
        for place, (other, oldest, where, known) in enumerate(joined):
            first = known[0][1]
            if first.kind is None or not belong_together(first.value, files[0][1].value):
                continue
            names = {name for name, _ in known}
            # Another kind of aggregate under a name that is taken loses.
            more = [(name, file) for name, file in files if name not in names]
            joined[place] = (min(rank, other), oldest, where, [*known, *more])
            break
        else:
            joined.append((rank, age, index, files))
    return joined


def _totals(values: tuple[Value, ...], index: int) -> list[tuple[str, ModelFile]]:
    return [
        (name, ModelFile(values, index, kind, None))
        for kind, name in aggregate_files(values[index])
    ]


def arrays_of(entries: list[ModelEntry], ghosts: list[Ghost]) -> set[tuple[Value, ...]]:
    """All arrays that some entries have, or that are retained."""
    return {entry.values for entry in entries} | {ghost.values for ghost in ghosts}


def retained_of(ghosts: list[Ghost], values: tuple[Value, ...], index: int) -> list[Any]:
    """What is retained of one value."""
    return [
        ghost.amounts[index]
        for ghost in ghosts
        if ghost.values == values and index in ghost.amounts
    ]


def count(
    entries: list[ModelEntry], ghosts: list[Ghost]
) -> dict[tuple[Value, ...], dict[int, Number]]:
    """What some entries, and what is retained already, amount to, by array and value."""
    living = [entry for entry in entries if entry.numbers is not None]
    counted: dict[tuple[Value, ...], dict[int, Number]] = {}
    for values in arrays_of(living, ghosts):
        kinds = {index: retained_kind(value) for index, value in enumerate(values)}
        for index, kind in kinds.items():
            if kind is not None:
                numbers = [entry.number(index) for entry in living if entry.values == values]
                numbers += retained_of(ghosts, values, index)
                counted.setdefault(values, {})
                if numbers:
                    counted[values][index] = combine(numbers, values[index], kind)
    return counted


def covers(number: Any, amount: Number | None) -> bool:
    """Whether a number, or each bucket of it, is no less than an amount."""
    if number is None or amount is None:
        return False
    if isinstance(amount, list):
        return all(mine >= theirs for mine, theirs in zip(number, amount, strict=True))
    return bool(number >= amount)
