"""User bounds: the largest part that one user's sources have in a text.

A text shows the sources of many users. Each user's part is bounded, so that a text takes bounded
time and memory. A source belongs to the owner of its top-level source. Sources without an owner are
the program's own and have no bound; nor have those of root and of the process's user.

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
    """Return the user of a top-level source if that user has a bound, else None."""
    user = find_user(top)
    return None if user in (None, 0, os.geteuid()) else user
