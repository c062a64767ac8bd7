"""The switch interval during a session: set for a while, and set back."""

import sys
from collections.abc import Iterator

import pytest

from statsfs.filesystem.mount_options import switch_interval


@pytest.fixture(autouse=True)
def interval() -> Iterator[float]:
    """The interval of before, which is there after each test as well."""
    before = sys.getswitchinterval()
    try:
        yield before
    finally:
        sys.setswitchinterval(before)


def test_for_a_while(interval: float) -> None:
    """Rounded down to what Python has."""
    with switch_interval(0.0012345678):
        assert sys.getswitchinterval() == pytest.approx(0.001234)
    assert sys.getswitchinterval() == interval


def test_none(interval: float) -> None:
    """The program's own is left alone, whatever that becomes."""
    with switch_interval(None):
        assert sys.getswitchinterval() == interval
        sys.setswitchinterval(0.002)
    assert sys.getswitchinterval() == pytest.approx(0.002)


def test_a_program_that_sets_another_meanwhile() -> None:
    """It knows better."""
    with switch_interval(0.001):
        sys.setswitchinterval(0.003)
    assert sys.getswitchinterval() == pytest.approx(0.003)
