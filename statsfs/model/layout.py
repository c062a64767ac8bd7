"""Layouts: which files a directory shows, and which value gets a name that several claim.

Threading: layouts do not change once made. Two threads may make one twice; the first is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final
from weakref import WeakValueDictionary

from statsfs.model.arrays import Array, File

__all__ = ["Layout", "Loss", "make_layout"]


class Loss:
    """Files of one value that are not shown, because a name of theirs is taken.

    Attributes:
        files: what is not shown.
        winner: the file that has the name, or None where it is a subdirectory.
        name: the name.
    """

    __slots__ = ("files", "name", "winner")

    def __init__(self, files: tuple[File, ...], winner: File | None, name: str) -> None:
        self.files = files
        self.winner = winner
        self.name = name


class Layout:
    """Which files a directory shows.

    Attributes:
        files: by name; own values in the order they were declared, then aggregates.
        losses: the files that are not shown. That an aggregate loses to an own value of its own
            array is normal, and not one of these.
        claimed: every name that a file claimed.
    """

    __slots__ = ("__weakref__", "_claims", "claimed", "files", "losses")

    def __init__(self, claims: "_Claims", directories: frozenset[str]) -> None:
        self._claims = claims
        self.claimed = claims.claimed
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
    return winner is not None and winner.kind is None and winner.array is loser.array


_Key = tuple[tuple[Array, ...], frozenset[Array], frozenset[Array]]


class _Claims:
    # The claims of one combination of arrays, best first, and the layouts that they make. Thousands
    # of sources have the same one: a leaf then costs a pointer, not a dictionary of 47 files.
    __slots__ = ("__weakref__", "_layouts", "claimed", "ranked")

    def __init__(
        self, own: Iterable[Array], declared: frozenset[Array], below: frozenset[Array]
    ) -> None:
        ranked: list[tuple[int, int, int, tuple[File, ...]]] = [
            (0, file.array.serial, file.index, (file,))
            for array in own
            for file in array.own
            if not file.value.hidden
        ]
        for array in declared | below:
            for index, files in enumerate(array.aggregates):
                # A hidden value that is only declared is hidden here, and shown above.
                shown_here = array in declared and not array.values[index].hidden
                if files and (shown_here or array in below):
                    ranked.append((1 if shown_here else 2, array.serial, index, files))
        ranked.sort(key=lambda claim: claim[:3])
        self.ranked: list[tuple[File, ...]] = [claim[3] for claim in ranked]
        self.claimed = frozenset(file.name for files in self.ranked for file in files)
        self._layouts: dict[frozenset[str], Layout] = {}

    def layout(self, directories: frozenset[str]) -> Layout:
        return self._layouts.get(directories) or self._layouts.setdefault(
            directories, Layout(self, directories)
        )


_known_claims: Final[WeakValueDictionary[_Key, _Claims]] = WeakValueDictionary()


def make_layout(
    own: Sequence[Array],
    declared: Iterable[Array],
    below: Iterable[Array],
    is_directory: Callable[[str], bool],
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
    """
    key = (tuple(own), frozenset(declared), frozenset(below))
    claims = _known_claims.get(key)
    if claims is None:
        claims = _Claims(*key)
        _known_claims[key] = claims
    return claims.layout(frozenset(filter(is_directory, claims.claimed)))
