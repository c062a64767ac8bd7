"""Texts: small ones in the heap, large ones in a file in memory."""

import os

import pytest

from statsfs.filesystem.texts import Text, read_text


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, 3_000_001])
def test_reading(size: int) -> None:
    """Any part of it, and nothing after its end; a large one has a descriptor while it is there."""
    before, text = descriptors(), os.urandom(size)
    made = Text(text)
    assert descriptors() == before + (size >= 1 << 20)
    assert len(made) == size
    for offset in (0, 1, size // 2, size - 1, size, size + 1):
        if offset >= 0:
            assert made.read(offset, 5000) == text[offset : offset + 5000]
    assert read_text(made, 1, 10) == text[1:11]
    del made
    assert descriptors() == before


def test_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has none left has its text in the heap."""

    def refuse(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    before, text = descriptors(), b"1" * (1 << 20)
    made = Text(text)
    assert made.read(5, 1 << 21) == text[5:]
    assert descriptors() == before


def test_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written is closed."""
    real = os.memfd_create

    def read_only(name: str) -> int:
        fd = real(name)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)
        return again

    monkeypatch.setattr(os, "memfd_create", read_only)
    before, text = descriptors(), b"1" * (1 << 20)
    made = Text(text)
    assert descriptors() == before
    assert made.read(5, 1 << 21) == text[5:]


def test_parts_of_what_is_no_text() -> None:
    """Plain bytes, and nothing."""
    assert read_text(b"1234", 1, 2) == b"23"
    assert read_text(None, 0, 10) == b""
