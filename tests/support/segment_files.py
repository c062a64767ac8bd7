"""Segments as other processes see them: files, contents and locks."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from statsfs.formats.binary import Number
from statsfs.segments import file_format, locks

__all__ = ["Seen", "alive", "directory", "read_segment", "segments_in"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory for segments, that its owner alone may write."""
    path = tmp_path / "segments"
    path.mkdir()
    path.chmod(0o755)
    return path


class Seen(NamedTuple):
    """What one look at a segment finds."""

    head: file_format.SegmentMetadata
    numbers: dict[str, Number]


def segments_in(directory: Path) -> list[Path]:
    """The published files of a directory."""
    return sorted(directory.glob("*.stats"))


def read_segment(file: Path) -> Seen:
    """Read all of a segment."""
    encoded = file.read_bytes()
    head = file_format.decode(encoded)
    assert head is not None
    assert len(encoded) == head.size
    numbers = head.layout.numbers(encoded[head.data_offset :])
    return Seen(head, dict(zip((value.name for value in head.values), numbers, strict=True)))


def alive(file: Path) -> bool:
    """Whether another open file holds a file's lock."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return locks.is_alive(fd)
    finally:
        os.close(fd)
