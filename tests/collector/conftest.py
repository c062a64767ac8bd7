"""Fixtures of this room's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector.trusted_directory import TrustedDirectory, open_directory
from tests.support.segment_files import directory

__all__ = ["directory", "trusted"]


@pytest.fixture
def trusted(directory: Path) -> Iterator[TrustedDirectory]:
    """The same directory, opened."""
    trusted = open_directory(str(directory))
    yield trusted
    trusted.close()
    trusted.close()
