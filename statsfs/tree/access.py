"""Access: who owns a source, and what a reader may read of it.

The kernel checks the permission bits of a value's file when it is opened. Views show many values at
once; here the same rule is kept for them.

Threading: pure, but for pauses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from stat import S_IRGRP, S_IROTH, S_IRUSR
from typing import TYPE_CHECKING, Final

from statsfs.tree.pauses import pause

if TYPE_CHECKING:
    from statsfs.tree.registry import Registry
    from statsfs.tree.snapshot import Snapshot
    from statsfs.tree.source import Source

__all__ = ["Access", "Mask", "Masks", "Owner", "check_owner", "find_masks"]

Owner = tuple[int, int]
"""A user and a group, by number."""

# The highest is how the kernel says "none".
_ID_END: Final = 0xFFFFFFFF

_CHUNK: Final = 256  # sources between two pauses

_owner_of: Final = attrgetter("owner")


def check_owner(owner: Owner | None, what: str) -> Owner | None:
    """Return an owner, if it can be one of a file; or None.

    Args:
        owner: the user and the group.
        what: whose, for the message.

    Raises:
        TypeError: it is no pair of numbers.
        ValueError: no user or group has such a number.
    """
    if owner is None:
        return None
    given: object = owner
    if not isinstance(given, tuple) or [type(number) for number in given] != [int, int]:
        raise TypeError(f"{what} is a pair of numbers, (uid, gid), not {owner!r}")
    if not all(0 <= number < _ID_END for number in owner):
        raise ValueError(f"{what} {owner!r} is not one that a file has")
    return owner


@dataclass(frozen=True, slots=True)
class Access:
    """What one reader may read, below some directory.

    Attributes:
        uid, gid: the reader's user and group; its further groups are not known.
        owner: whose the directory is, and what is below unless it has an owner of its own, or is
            below what has one.
    """

    uid: int
    gid: int
    owner: Owner

    def mask_of(self, owner: Owner) -> int:
        """Return the permission bits of which a value of that owner's must have one."""
        if self.uid == 0:
            return S_IRUSR | S_IRGRP | S_IROTH
        if self.uid == owner[0]:
            return S_IRUSR
        return S_IRGRP if self.gid == owner[1] else S_IROTH


Mask = int | Access
"""The permission bits of which a value must have one to be shown, whosever it is; or a reader."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The permission bits of which a value must have one, by the source that shows it.

    Attributes:
        common: those of most sources.
        others: those of the sources that have others.
    """

    common: int
    others: "Mapping[Source, int]" = field(default_factory=dict)

    def of(self, source: "Source") -> int:
        """Return those of one source."""
        return self.others.get(source, self.common)


def find_masks(mask: Mask, snapshot: "Snapshot") -> Masks:
    """Return what a reader may read of each source of a sampled subtree.

    Args:
        mask: what is shown, or to which reader, whose `owner` is that of the subtree's root.
        snapshot: of the subtree.
    """
    if isinstance(mask, int):
        return Masks(mask)
    common = mask.mask_of(mask.owner)
    if mask.uid == 0:
        return Masks(common)
    owners: dict[Source | Registry, Owner] = {}
    others: dict[Source, int] = {}
    bits_of = cache(mask.mask_of)
    for parent, subordinates in snapshot.subordinates:  # parents come first
        inherited = owners.get(parent)
        for start in range(0, len(subordinates), _CHUNK):
            some = subordinates[start : start + _CHUNK]
            # Nearly always nobody has an owner: some 50 ns a source.
            if inherited is not None or any(map(_owner_of, some)):
                for source in some:
                    owner = source.owner or inherited
                    if owner is not None:
                        owners[source] = owner
                        if bits_of(owner) != common:
                            others[source] = bits_of(owner)
            pause()
    return Masks(common, others)
