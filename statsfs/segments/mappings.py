"""Memory that is shared through a file, and what is put in its place when that ends.

Owns the calls of mmap(2). Python's own mmap keeps a duplicate of the descriptor, and with it a
forked child keeps the file's lock; here nothing but the mapping keeps what was opened.

Threading: system calls; safe from any thread.
"""

import ctypes
import mmap
import os
from typing import Final

__all__ = ["blank", "map_file", "unmap"]

_MAP_FIXED: Final = 0x10  # <asm-generic/mman-common.h>; not in Python's mmap
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *(3 * [ctypes.c_int]), ctypes.c_long]
_munmap: Final = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _map(address: int | None, size: int, flags: int, fd: int) -> int:
    mapped = _mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
    if mapped == _FAILED:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(mapped or 0)


def map_file(fd: int, size: int) -> int:
    """Map a file from its beginning, to be read and written; return the address.

    Args:
        fd: a descriptor that may read and write; it may be closed afterwards.
        size: how many bytes.

    Raises:
        OSError: the kernel refuses.
    """
    return _map(None, size, mmap.MAP_SHARED, fd)


def blank(address: int, size: int) -> None:
    """Put memory of zeros, of this process alone, in the place of a mapping.

    What still has the address reads and writes that; the file is let go of.

    Raises:
        OSError: the kernel refuses.
    """
    _map(address, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1)


def unmap(address: int, size: int) -> None:
    """End a mapping that nothing looks at."""
    _munmap(address, size)
