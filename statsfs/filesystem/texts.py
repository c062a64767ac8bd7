"""Texts: what open files and views show, and where it is kept.

Owns where large texts are: not in the heap, but in files in memory (memfd_create), from which each
read copies its part. So texts that clients leave open neither grow the heap nor leave holes in it.

Threading: a text may be made in any thread; it does not change.
"""

import os
from typing import Final

__all__ = ["Text", "read_text"]

# In bytes. Each such text takes a descriptor; there are few of them, as users have shares.
_SPOOLED: Final = 1 << 20


class Text:
    """A text that does not change.

    Attributes:
        holders: how many open files show it.
    """

    __slots__ = ("_fd", "_length", "_text", "holders")

    def __init__(self, text: bytes) -> None:
        self.holders = 0
        self._text = text
        self._length = len(text)
        self._fd = -1
        if len(text) >= _SPOOLED:
            self._spool(text)

    def _spool(self, text: bytes) -> None:
        try:
            self._fd = os.memfd_create("statsfs")
            with open(self._fd, "wb", closefd=False) as file:
                file.write(text)
        except OSError:  # the program has no descriptor left: then it stays where it is
            self._close()
        else:
            self._text = b""

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __len__(self) -> int:
        return self._length

    def read(self, offset: int, size: int) -> bytes:
        """Return a part of it."""
        if self._fd < 0:
            return self._text[offset : offset + size]
        return os.pread(self._fd, size, offset)

    def __del__(self) -> None:
        self._close()


def read_text(text: bytes | Text | None, offset: int, size: int) -> bytes:
    """Return a part of a text; of None, no bytes."""
    if isinstance(text, Text):
        return text.read(offset, size)
    return text[offset : offset + size] if text else b""
