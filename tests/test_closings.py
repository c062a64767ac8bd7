"""What is closed at the end of a `with`."""

import pytest

from statsfs.closings import Closing


class Door(Closing):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_it_is_closed_at_the_end() -> None:
    """Whether the body ends well or not, and not before."""
    door = Door()
    with door as same:
        assert same is door
        assert door.closed == 0
    assert door.closed == 1
    with pytest.raises(KeyError), door:
        raise KeyError
    assert door.closed == 2


def test_each_says_how_it_is_closed() -> None:
    """The class alone does not know."""
    with pytest.raises(NotImplementedError):
        Closing().close()
