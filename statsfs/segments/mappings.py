"""Mappings of files, and of private memory in their place.

Owns the calls of mmap(2). Python's own mmap keeps a duplicate of the descriptor, and with it a
forked child would keep the file's lock. Here nothing but the mapping keeps the file open.

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
    """Map so many bytes of a file, to be read and written; return the address, or raise OSError.

    The descriptor must be open for both, and may be closed afterwards.
    """
    return _map(None, size, mmap.MAP_SHARED, fd)


def blank(address: int, size: int) -> None:
    """Replace a mapping by zeros in private memory, or raise OSError; the file is closed."""
    _map(address, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1)


def unmap(address: int, size: int) -> None:
    """End a mapping that is not used any more."""
    _munmap(address, size)
