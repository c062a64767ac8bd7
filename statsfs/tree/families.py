"""Families: a source for each combination of labels, made when something is counted in it.

Threading: any thread may ask a family for a member; each member has one writer, as any base.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Generic, TypeVar

from statsfs.exceptions import DuplicateNameError, UnknownValueError
from statsfs.model.counts import count_of
from statsfs.model.locking import call_locked
from statsfs.model.names import safe_name
from statsfs.model.stats import Stats, values_of
from statsfs.tree.arguments import check_source_label
from statsfs.tree.source import Source, check_source

__all__ = ["Family", "add_below"]

_S = TypeVar("_S", bound=Stats)
_L = TypeVar("_L")
_Labels = tuple[str, ...]


def add_below(
    levels: dict[tuple[_L, ...], Source],
    labels: tuple[_L, ...],
    source: Source,
    make: Callable[[tuple[_L, ...]], Source],
) -> None:
    """Add a source to the level of its labels, and give back the creator's reference.

    The levels that are missing are made first, so that all are shown in one change.

    Args:
        levels: the source of each level, by its labels; that of no labels is there. What is made is
            added to it.
        labels: those of the level.
        source: the source.
        make: returns a new source for the level of some labels.
    """
    made: dict[tuple[_L, ...], Source] = {}
    while (above := _find_level(levels, labels)) is None:
        above = made[labels] = make(labels)
        above.add_subordinate(source)
        source.put()
        source, labels = above, labels[:-1]
    above.add_subordinate(source)
    source.put()
    levels.update(made)


def _find_level(levels: dict[tuple[_L, ...], Source], labels: tuple[_L, ...]) -> Source | None:
    # The source of a level, if the program has not removed it.
    source = levels.get(labels)
    return None if source is None or (labels and source.parent is None) else source


class Family(Generic[_S]):
    """A source for each combination of labels, below one source.

    Each label has a level of directories. A directory's name is its label's value, written as
    `safe_name` does; the label in Prometheus has the value itself. The totals are in `source` from
    the beginning. Iteration gives the labels and the stats of all members.

    >>> class EndpointStats(Stats):
    ...     requests = counter("Requests answered")
    >>> http = Source("http")
    >>> endpoint = Family(http, EndpointStats, "endpoint", "method")
    >>> endpoint("/item/{id}", "GET").requests += 1
    >>> http.find("%2Fitem%2F{id}/GET").get_value("requests"), http.get_value("requests")
    (1, 1)
    >>> list(endpoint)
    [(('/item/{id}', 'GET'), EndpointStats(requests=1))]

    Args:
        source: where the sources are made. If it retains, what a removed member counted stays in
            its totals.
        stats: the `Stats` class of the members.
        labels: the names of the labels, one at least.

    Raises:
        InvalidNameError: a label has no such name.
        TypeError: not a source, not a `Stats` class, or no label.
        ValueError: a label is given twice.
        ReleasedError: the source was released.
    """

    def __init__(self, source: Source, stats: type[_S], *labels: str) -> None:
        check_source(source)
        values_of(stats)
        if not labels:
            raise TypeError("a family needs the name of a label")
        if len({*labels}) < len(labels):
            raise ValueError(f"a label is given twice: {', '.join(labels)}")
        self.labels: Final = labels
        self._source = source
        self._stats = stats
        self._lock = threading.RLock()
        self._members: dict[_Labels, _S] = {}
        # Of members and of the levels above them, by as many values.
        self._sources: dict[_Labels, Source] = {(): source}
        for label in labels:
            check_source_label(label)
        with suppress(DuplicateNameError):  # another family of this class has declared them
            source.add_values(stats, None)

    def __repr__(self) -> str:
        members = count_of(len(self), "member")
        return f"<Family {self._source.path!r} {', '.join(self.labels)}: {members}>"

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[tuple[_Labels, _S]]:
        return iter(list(self._members.items()))

    def __call__(self, *values: str) -> _S:
        """Return the member with these labels; it is made if there is none.

        Raises:
            TypeError: too few or too many values, or one that is not a str.
            DuplicateNameError: a source that is not the family's has the directory's name.
            ReleasedError: the family's source was released.
        """
        # A `get` and its comparison would take longer.
        try:
            return self._members[values]
        except KeyError:
            pass  # so that an error is not shown as another's
        return call_locked(self._lock, lambda: self._add(values))

    def _add(self, values: _Labels) -> _S:
        member = self._members.get(values)
        if member is not None:
            return member
        self._check(values)
        member = self._stats()
        made = self._make_level(values)
        made.add_values(self._stats, member)
        add_below(self._sources, values[:-1], made, self._make_level)
        self._sources[values] = made
        self._members[values] = member
        return member

    def _make_level(self, values: _Labels) -> Source:
        value = values[-1]
        return Source(safe_name(value), label=self.labels[len(values) - 1], label_value=value)

    def _check(self, values: tuple[object, ...]) -> None:
        if len(values) != len(self.labels):
            wanted = ", ".join(self.labels)
            text = f"{count_of(len(values), 'value')} for {count_of(len(self.labels), 'label')}"
            raise TypeError(f"{text} ({wanted})")
        for label, value in zip(self.labels, values, strict=True):
            if not isinstance(value, str):
                kind = type(value).__name__
                raise TypeError(f"the label {label!r} must be a str, not {kind}: {value!r}")

    def remove(self, *values: str) -> None:
        """Remove the member with these labels, and the levels above it that are then empty.

        What is counted afterwards in its stats, which somebody may hold, is in no file.

        >>> class EndpointStats(Stats):
        ...     requests = counter("Requests answered")
        >>> http = Source("http", retain=True)
        >>> endpoint = Family(http, EndpointStats, "method")
        >>> endpoint("GET").requests += 1
        >>> endpoint.remove("GET")
        >>> len(endpoint), http.get_value("requests")
        (0, 1)

        Raises:
            UnknownValueError: there is no such member.
        """
        call_locked(self._lock, lambda: self._remove(values))

    def _remove(self, values: _Labels) -> None:
        if self._members.pop(values, None) is None:
            pairs = zip(self.labels, values, strict=False)
            has = ", ".join(f"{label}={value!r}" for label, value in pairs)
            raise UnknownValueError(f"{self._source.path}: no member {has}", values)
        doomed = self._sources.pop(values)
        while True:
            values = values[:-1]
            above = _find_level(self._sources, values)
            if above is None or doomed.parent is not above:
                return  # the program has removed it
            if not values or len(above.subordinates) > 1:
                above.remove_subordinate(doomed)
                return
            doomed = self._sources.pop(values)
