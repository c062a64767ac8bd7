"""Replaced values: retained numbers of values that a release has changed.

Owns which retained rows must go, as living segments in their directory have another value of the
same name, and where they go.

Threading: for the collector's thread alone; each row leaves in one change of the tree.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

from statsfs.collector.shares import user_of
from statsfs.model.arrays import Array
from statsfs.model.values import Value
from statsfs.tree.log_budget import LogBudget
from statsfs.tree.retained import fill_row
from statsfs.tree.retention import forget_row
from statsfs.tree.source import Source, directory_of

__all__ = ["forget_replaced"]

log = logging.getLogger(__name__)


def forget_replaced(source: Source, budget: LogBudget) -> bool:
    """Forget what a source retains of replaced values; return whether there was something."""
    # While segments elsewhere in a directory above have such a value, it is retained there.
    replaced, above = list(_find_replaced(source)), source.parent
    for array, value, by, living in replaced:
        if not isinstance(above, Source) and _may_follow(array, living):
            _move_rows(source, array, living)
            continue
        forget_row(source, array)
        fate = f"left to {above.path}" if isinstance(above, Source) else "dropped"
        text = "%s: what is retained of %r is %s: its %s"
        difference = value.describe_difference(by)
        budget.log(user_of(source), log, text, source.path, value.name, fate, difference)
    return bool(replaced)


def _find_replaced(source: Source) -> Iterator[tuple[Array, Value, Value, Array]]:
    # The arrays that are only retained, where a segment has another value of the same name: that of
    # the array, and the other with its array.
    indexes = directory_of(source).index.copy()
    dead = [array for array, index in indexes.items() if index.records and not index.groups]
    living: dict[str, dict[object, tuple[Value, Array]]] = {}
    for array, index in indexes.items():
        for name, value in _names_in(array) if dead and index.groups else ():
            living.setdefault(name, {})[value.identity] = value, array
    known = set().union(*living.values())
    for array in dead:
        differences = [
            (array, value, *found)
            for name, value in _names_in(array)
            for identity, found in living.get(name, {}).items()
            if identity != value.identity and array.values[0].identity not in known
        ]
        yield from differences[:1]


def _may_follow(array: Array, living: Array) -> bool:
    # Whether two arrays mean the same, and only other users may read them.
    pairs = list(zip_longest(array.values, living.values))
    return all(
        one and other and replace(one, mode=other.mode).identity == other.identity
        for one, other in pairs
    )


def _move_rows(source: Source, array: Array, living: Array) -> None:
    # First to where they go: what was read of both is too much for a moment, and never too little.
    for record in list(directory_of(source).index[array].records or ()):
        record.source.restore(living.values, fill_row(array, record.row))
    forget_row(source, array)


def _names_in(array: Array) -> Iterator[tuple[str, Value]]:
    # The names that a directory above shows, and whose they are.
    for value in array.values:
        for _, name in value.aggregate_names:
            yield name, value
