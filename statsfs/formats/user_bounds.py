"""User bounds: how much of one user a text has.

A text has what many users count. What is in it of one is bounded, so that the text of all is made
in bounded time and memory. Whose a source is follows from the owner of its top-level source.
Sources without an owner are the program's own, which has no bounds; root has none either, nor the
user of the process.

Threading: pure.
"""

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from statsfs.tree.source import Source

__all__ = ["BYTES_MAX", "LINES_MAX", "find_bounded_user", "find_user"]

LINES_MAX: Final = 500_000  # of metrics
BYTES_MAX: Final = 64 << 20


def find_user(top: "Source") -> int | None:
    """Return the user of a top-level source, by number; None for the program's own."""
    return None if top.owner is None else top.owner[0]


def find_bounded_user(top: "Source") -> int | None:
    """Return the user of a top-level source, if there is a bound for that one."""
    user = find_user(top)
    return None if user in (None, 0, os.geteuid()) else user
