"""Layouts: which files a directory shows, and which value gets a name that several claim.

Threading: layouts do not change once made. Two threads may make one twice; the first is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from statsfs.model.arrays import Array, File

__all__ = ["Layout", "Loss", "make_layout"]


@dataclass(slots=True, eq=False)
class Loss:
    """Files of one value that are not shown, because a name of theirs is taken.

    Attributes:
        winner: the file that has the name, or None where it is a subdirectory.
    """

    files: tuple[File, ...]
    winner: File | None
    name: str


class Layout:
    """Which files a directory shows.

    Attributes:
        files: by name; own values in the order they were declared, then aggregates.
        losses: the files that are not shown. That an aggregate loses to an own value that it covers
            is normal, and not one of these.
        claimed: every name that a file claimed.
        covered: by aggregate the arrays that it covers, and the place of the value in each; only of
            values that belong together with values of other arrays.
    """

    __slots__ = ("__weakref__", "_claims", "claimed", "covered", "files", "losses")

    def __init__(self, claims: "_Claims", directories: frozenset[str]) -> None:
        self._claims = claims  # as long as it lives, equal layouts are one
        self.claimed = claims.claimed
        self.covered = claims.covered
        self.losses: list[Loss] = []
        taken: dict[str, File | None] = dict.fromkeys(directories)
        for files in claims.ranked:
            lost = next((file.name for file in files if file.name in taken), None)
            if lost is None:
                taken.update((file.name, file) for file in files)
            elif not _is_normal(files[0], taken[lost]):
                self.losses.append(Loss(files, taken[lost], lost))
        self.files: dict[str, File] = {n: f for n, f in taken.items() if f is not None}


def _is_normal(loser: File, winner: File | None) -> bool:
    # A source's own value is shown in place of the total of values that belong to it.
    if winner is None or winner.kind is not None:
        return False
    return winner.array is loser.array or (
        loser.kind is not None and winner.value.identity == loser.value.identity
    )


_Arrays = frozenset[Array]
_Key = tuple[tuple[Array, ...], _Arrays, _Arrays, _Arrays]
_Places = tuple[tuple[Array, int], ...]
_Claim = tuple[int, int, int, tuple[File, ...]]  # a rank, the age and place of the value, its files


class _Claims:
    # The claims of one combination of arrays, best first, and the layouts that they make. Thousands
    # of sources have the same one: a leaf then costs a pointer, not a dictionary of 47 files.
    def __init__(
        self, own: Iterable[Array], declared: _Arrays, below: _Arrays, unseen: _Arrays
    ) -> None:
        claims: list[_Claim] = [
            (0, file.array.serial, file.index, (file,))
            for array in own
            for file in array.own
            if not file.value.hidden
        ]
        self.covered: dict[File, _Places] = {}
        for places in _group({*own, *declared, *below, *unseen}).values():
            claims += _claim_totals(places, declared, below)
            if len(places) > 1:
                for array, index in places:
                    self.covered.update((file, places) for file in array.aggregates[index])
        claims.sort(key=lambda claim: claim[:3])
        self.ranked: list[tuple[File, ...]] = [claim[3] for claim in claims]
        self.claimed = frozenset(file.name for files in self.ranked for file in files)
        self.layouts: dict[frozenset[str], Layout] = {}


def _group(arrays: Iterable[Array]) -> dict[tuple[object, ...], _Places]:
    # The aggregated values, by what those that belong together have in common, the oldest first.
    groups: dict[tuple[object, ...], _Places] = {}
    for array in sorted(arrays, key=lambda array: array.serial):
        for index, value in enumerate(array.values):
            if value.aggregate_names:
                key = value.identity
                groups[key] = (*groups.get(key, ()), (array, index))
    return groups


def _claim_totals(places: _Places, declared: _Arrays, below: _Arrays) -> list[_Claim]:
    # The totals of values that belong together are one claim. Where two of them call different
    # kinds of aggregate by one name, it is the kind of the older.
    names: dict[str, File] = {}
    rank = 2
    for array, index in places:
        # A hidden value that is only declared is hidden here, and shown above.
        shown_here = array in declared and not array.values[index].hidden
        if not (shown_here or array in below):
            continue
        rank = min(rank, 1 if shown_here else 2)
        for file in array.aggregates[index]:
            names.setdefault(file.name, file)
    files = tuple(names.values())
    return [(rank, files[0].array.serial, files[0].index, files)] if files else []


_known_claims: Final[WeakValueDictionary[_Key, _Claims]] = WeakValueDictionary()


def make_layout(
    own: Sequence[Array],
    declared: Iterable[Array],
    below: Iterable[Array],
    is_directory: Callable[[str], bool],
    unseen: Iterable[Array] = (),
) -> Layout:
    """Return which files a directory shows.

    Where names meet, a visible subdirectory wins, then an own value, then an aggregate declared
    without a base, then an aggregate; then the older array. The files of one value's aggregate
    stand or fall together.

    Args:
        own: the arrays that the source itself shows, over a base.
        declared: the arrays that it shows with base None.
        below: the arrays that are anywhere below it.
        is_directory: tells whether a name is that of a visible subordinate.
        unseen: the arrays that it has hidden, and counts.
    """
    key = (tuple(own), frozenset(declared), frozenset(below), frozenset(unseen))
    claims = _known_claims.get(key)
    if claims is None:
        claims = _known_claims[key] = _Claims(*key)
    directories = frozenset(filter(is_directory, claims.claimed))
    layout = claims.layouts.get(directories)
    return layout or claims.layouts.setdefault(directories, Layout(claims, directories))
