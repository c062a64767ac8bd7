"""Access: the owners of sources, and what a view may show to a reader: what the kernel allows.

Threading: pure, but for pauses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from stat import S_IRGRP, S_IROTH, S_IRUSR
from typing import TYPE_CHECKING, Final

from statsfs.tree.pauses import take_chunks

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.snapshot import Snapshot
    from statsfs.tree.source import Source

__all__ = ["Access", "Mask", "Masks", "Owner", "check_owner", "find_masks"]

Owner = tuple[int, int]
"""A user and a group, by number."""

# The highest number means "none" to the kernel.
_ID_END: Final = 0xFFFFFFFF

_owner_of: Final = attrgetter("owner")


def check_owner(owner: Owner | None, what: str) -> Owner | None:
    """Return an owner, if it is None or can own a file; else raise TypeError or ValueError."""
    if owner is None:
        return None
    given: object = owner
    if not isinstance(given, tuple) or [type(number) for number in given] != [int, int]:
        raise TypeError(f"{what} is a pair of numbers, (uid, gid), not {owner!r}")
    if not all(0 <= number < _ID_END for number in owner):
        raise ValueError(f"{what} {owner!r} is out of range")
    return owner


@dataclass(frozen=True, slots=True)
class Access:
    """What one reader may read, below some directory.

    Attributes:
        uid, gid: the reader's user and group; its further groups are not known.
        owner: the directory's owner, which the sources in its subtree inherit.
    """

    uid: int
    gid: int
    owner: Owner

    def mask_of(self, owner: Owner) -> int:
        """Return the permission bits of which a value of that owner must have one."""
        if self.uid == 0:
            return S_IRUSR | S_IRGRP | S_IROTH
        if self.uid == owner[0]:
            return S_IRUSR
        return S_IRGRP if self.gid == owner[1] else S_IROTH


Mask = int | Access
"""The permission bits of which a value must have one to be shown; or a reader."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The permission bits of which a value must have one: those of most sources, and of others."""

    common: int
    others: "Mapping[Source, int]" = field(default_factory=dict)

    def of(self, source: "Source") -> int:
        """Return the bits of one source."""
        return self.others.get(source, self.common)


def find_masks(mask: Mask, snapshot: "Snapshot") -> Masks:
    """Return what may be read of each source in a snapshot; a reader has the owner of its root."""
    common = mask if isinstance(mask, int) else mask.mask_of(mask.owner)
    if isinstance(mask, int) or mask.uid == 0:
        return Masks(common)
    owners: dict[Source | Registry, Owner] = {}
    others: dict[Source, int] = {}
    bits_of = cache(mask.mask_of)
    for parent, subordinates in snapshot.subordinates:  # parents come first
        inherited = owners.get(parent)
        for some in take_chunks(subordinates):
            # Nearly always no source has an owner: then this takes some 50 ns a source.
            if inherited is not None or any(map(_owner_of, some)):
                for source in some:
                    owner = source.owner or inherited
                    if owner is not None:
                        owners[source] = owner
                        if bits_of(owner) != common:
                            others[source] = bits_of(owner)
    return Masks(common, others)
