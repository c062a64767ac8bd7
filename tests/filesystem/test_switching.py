"""The switch interval: set for a while, and set back."""

import sys
from collections.abc import Iterator

import pytest

from statsfs.filesystem.switching import Switching


@pytest.fixture(autouse=True)
def interval() -> Iterator[float]:
    """The interval of before, which is there after each test as well."""
    before = sys.getswitchinterval()
    try:
        yield before
    finally:
        sys.setswitchinterval(before)


def test_for_a_while(interval: float) -> None:
    """Rounded down to what Python has; ended twice it is no harm."""
    switching = Switching(0.0012345678)
    assert sys.getswitchinterval() == interval
    switching.begin()
    assert sys.getswitchinterval() == pytest.approx(0.001234)
    for _ in range(2):
        switching.end()
        assert sys.getswitchinterval() == interval


def test_none(interval: float) -> None:
    """The program's own is left alone, whatever that becomes."""
    switching = Switching(None)
    switching.begin()
    assert sys.getswitchinterval() == interval
    sys.setswitchinterval(0.002)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(0.002)


def test_a_program_that_sets_another_meanwhile() -> None:
    """It knows better."""
    switching = Switching(0.001)
    switching.begin()
    sys.setswitchinterval(0.003)
    switching.end()
    assert sys.getswitchinterval() == pytest.approx(0.003)
