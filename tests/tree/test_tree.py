"""Trees against the naive model: names, numbers, snapshots, and what clearing does."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.exceptions import DuplicateNameError, ReadOnlyValueError, UnknownValueError
from statsfs.tree.source import Source
from tests.support.model import (
    Ages,
    ModelEntry,
    ModelFile,
    ModelSource,
    count,
    find_places,
    find_sum,
    is_histogram,
)
from tests.support.strategies import Made, Recipe, bases, recipes

# What each entry was made of, and its base: kept, as a base that is gone may have another's id.
MADE: dict[ModelEntry, Made] = {}
# Which of two arrays is older is a matter of the whole process.
AGES = Ages()

Pair = tuple[Source, ModelSource]


def is_refused(model: ModelSource, made: Made) -> bool:
    """Whether the model's source has the array already, in a way that forbids another."""
    for entry in model.entries:
        if entry.values != made.entry.values or entry.revoked:
            continue
        if entry.numbers is None and made.entry.numbers is None:
            return True
        shown_both = not entry.hidden and not made.entry.hidden
        if shown_both and None not in (entry.numbers, made.entry.numbers):
            return True
    return False


def add(pair: Pair, made: Made) -> None:
    """Add an array to a source and to the model."""
    source, model = pair
    if is_refused(model, made):
        before = source.names(), source.snapshot().to_dict()
        with pytest.raises(DuplicateNameError):
            source.add_values(made.values, made.base, hidden=made.entry.hidden)
        assert (source.names(), source.snapshot().to_dict()) == before
        return
    source.add_values(made.values, made.base, hidden=made.entry.hidden)
    AGES.note(made.entry.values)
    again = [
        entry
        for entry in model.entries
        if entry.revoked and MADE[entry].base is made.base is not None
        if entry.values == made.entry.values and (entry.hidden or not made.entry.hidden)
    ]
    for entry in again[:1]:
        model.take_back(entry, count([made.entry], []))
    MADE[made.entry] = made
    model.entries = [
        entry
        for entry in model.entries
        if not (entry.revoked and entry.values == made.entry.values)
        # A hidden base does not take the place of what was shown.
        or (made.entry.hidden and not entry.hidden)
    ]
    model.entries.append(made.entry)


@st.composite
def trees(draw: st.DrawFn) -> list[Pair]:
    """Draw a tree of up to seven sources over up to four arrays; the root is first."""
    known: list[Recipe] = draw(st.lists(recipes(), min_size=1, max_size=4))
    pairs: list[Pair] = []
    MADE.clear()
    for number in range(draw(st.integers(1, 7))):
        parent = draw(st.sampled_from(pairs)) if pairs else None
        name = draw(st.sampled_from(("a", "b", "vm", "x", "y", "a.min")))
        if parent and any(sibling.name == name for sibling in parent[1].subordinates):
            name = f"s{number}"
        hidden, retain = draw(st.integers(0, 4)) == 0, draw(st.integers(0, 2)) == 0
        pair = Source(name, hidden=hidden, retain=retain), ModelSource(name, hidden, retain)
        late = draw(st.booleans())
        if parent and not late:
            attach(parent, pair)
        for _ in range(draw(st.integers(0, 3))):
            add(pair, draw(bases(draw(st.sampled_from(known)))))
        if parent and late:
            attach(parent, pair)
        pairs.append(pair)
    return pairs


def attach(parent: Pair, child: Pair) -> None:
    """Put one source below another, in the tree and in the model."""
    parent[0].add_subordinate(child[0])
    parent[1].attach(child[1])


def check_all(pairs: list[Pair]) -> None:
    """Compare everything that can be asked of every source."""
    for source, model in pairs:
        files = model.files(AGES)
        names = source.names()
        assert len(names) == len(set(names))
        assert set(names) == set(files)
        for name in {*names, *(v.name for entry in model.entries for v in entry.values)}:
            check_value(source, model, name, model.find(name, files))
        snapshot = source.snapshot()
        assert snapshot.to_dict() == model.to_dict(AGES)
        rows = Counter(
            (sampled, samples.values, hashable(row))
            for samples in snapshot.arrays.values()
            for sampled, row in zip(samples.sources, samples.rows, strict=True)
        )
        assert rows == model_rows(model, dict(zip([m for _, m in pairs], pairs, strict=True)))


def check_value(source: Source, model: ModelSource, name: str, file: ModelFile | None) -> None:
    """Compare what `get_value` says of one name, shown, hidden or unknown."""
    if file is None:
        with pytest.raises(UnknownValueError):
            source.get_value(name)
        return
    number = source.get_value(name)
    assert number == model.read(file)
    assert type(number) is (list if is_histogram(file.value) else int)


def hashable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its histograms as tuples."""
    return tuple(tuple(number) if isinstance(number, list) else number for number in row)


def model_rows(model: ModelSource, pairs: dict[ModelSource, Pair]) -> Counter[Any]:
    """The rows that a snapshot's arrays have, by the model."""
    return Counter(
        (pairs[below][0], entry.values, entry.row())
        for below in model.subtree()
        for entry in below.entries
        if entry.numbers is not None
    )


def clear(pair: Pair, name: str) -> None:
    """Clear one value or aggregate, in the tree and in the model."""
    source, model = pair
    file = model.find(name, model.files(AGES))
    assert file is not None
    refuses = file.entry is not None and not file.entry.can_clear(file.index)
    if not file.value.mode & 0o222 or refuses:
        with pytest.raises(ReadOnlyValueError) as caught:
            source.clear_value(name)
        assert caught.value.offender == name
        return
    source.clear_value(name)
    if file.kind is None:
        assert file.entry is not None
        file.entry.clear(file.index)
        return
    for entry, index in model.covered(file.value):
        entry.clear(index)
    for ghost in model.ghosts_here():
        for index in find_places(ghost.values, file.value):
            for place in {index, find_sum(ghost.values, index) or index}:
                ghost.amounts.pop(place, None)


@settings(max_examples=120, deadline=None)
@given(trees())
def test_a_tree_is_what_the_model_says(pairs: list[Pair]) -> None:
    """Names, numbers and snapshots of every source are those of the naive model."""
    check_all(pairs)


@settings(max_examples=100, deadline=None)
@given(trees(), st.data())
def test_clearing_writes_zero_to_exactly_what_is_covered(
    pairs: list[Pair], data: st.DataObject
) -> None:
    """After clearing some files, everything is still what the model says."""
    for _ in range(4):
        pair = data.draw(st.sampled_from(pairs))
        names = sorted(pair[0].names())
        if names:
            clear(pair, data.draw(st.sampled_from(names)))
            check_all(pairs)


@settings(max_examples=100, deadline=None)
@given(trees(), st.data())
def test_a_tree_that_changes_is_what_the_model_says(pairs: list[Pair], data: st.DataObject) -> None:
    """Sources leave and come back, are revoked and filled again; what retains keeps their sums."""
    for _ in range(4):
        pair = data.draw(st.sampled_from(pairs))
        match data.draw(st.sampled_from(("revoke", "detach", "fill", "clear"))):
            case "revoke":
                pair[0].revoke()
                pair[1].revoke()
            case "detach":
                move(pairs, pair, data)
            case "clear":
                if names := sorted(pair[0].names()):
                    clear(pair, data.draw(st.sampled_from(names)))
            case "fill":
                add(pair, data.draw(bases(data.draw(recipes()))))
                for entry in list(pair[1].entries):
                    if entry.revoked and data.draw(st.booleans()):
                        again = replace(entry, numbers=entry.had, had=None, revoked=False)
                        add(pair, MADE[entry]._replace(entry=again))
                    elif entry.revoked:
                        fields = [recipe_of(value) for value in entry.values]
                        add(pair, data.draw(bases(Recipe(tuple(fields)))))
        check_all(pairs)


def recipe_of(value: Any) -> tuple[tuple[str, Any], ...]:
    """The recipe of a value that exists."""
    names = (
        "name", "type", "aggregate", "mode", "kind", "hidden", "description", "size", "bucket_size",
        "bounds",
    )  # fmt: skip
    fields = [(name, getattr(value, name)) for name in names]
    if value.offset is not None:
        fields.append(("offset", value.offset))
    return tuple(fields)


def move(pairs: list[Pair], pair: Pair, data: st.DataObject) -> None:
    """Take a source from its parent and put it below another source, where that may be."""
    source, model = pair
    parent = next((p for p in pairs if model in p[1].subordinates), None)
    if parent is None:
        return
    parent[0].remove_subordinate(source)
    parent[1].detach(model)
    check_all(pairs)
    to = data.draw(st.sampled_from([p for p in pairs if p[1] not in model.subtree()]))
    if any(sibling.name == model.name for sibling in to[1].subordinates):
        to = parent
    attach(to, pair)
