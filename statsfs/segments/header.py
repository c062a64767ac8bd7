"""Where the C header is: `statsfs.h`, the producer's half for programs in C and C++.

Threading: no state.
"""

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> str:
    """Return the directory of `statsfs.h`, for the option `-I` of a C or C++ compiler.

    >>> get_include()
    '/.../statsfs/include'
    """
    return str(Path(__file__).parent.parent / "include")
