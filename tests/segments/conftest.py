"""Fixtures of this room's tests."""

from tests.support.segment_files import directory

__all__ = ["directory"]
