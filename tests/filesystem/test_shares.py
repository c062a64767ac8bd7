"""Shares: what one user may have, and what is left for others."""

import pytest

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.shares import Shares, ShareUsedUpError, TooMuchOpenError


def fill(shares: Shares, user: int) -> int:
    """Let a user take one by one what there is for it; return how much that was."""
    taken = 0
    while True:
        try:
            shares.take(user)
        except StatsfsError:
            return taken
        taken += 1


def test_there_is_always_something_for_one_more() -> None:
    """However many came before, and had as much as they could have."""
    shares = Shares("things", 1000)
    assert [fill(shares, user) for user in range(6)] == [500, 250, 125, 62, 31, 16]
    shares.give_back(0, 500)
    assert fill(shares, 0) > 200
    assert fill(shares, 6) > 0


def test_what_a_user_has_alone() -> None:
    """It may be of any size that there is room for."""
    shares = Shares("things", 100)
    shares.take(1, 90)
    with pytest.raises(ShareUsedUpError) as refused:
        shares.take(1)
    assert str(refused.value) == "user 1 has 90 of 100 things"
    with pytest.raises(TooMuchOpenError) as full:
        shares.take(2, 11)
    assert str(full.value) == "90 of 100 things are in use"
    shares.take(2, 10)


def test_one_thing_instead_of_another() -> None:
    """It counts as the difference. To have less is never refused; a refusal changes nothing."""
    shares = Shares("things", 100)
    shares.take(1, 20)
    shares.take(1, 100, 20)
    with pytest.raises(TooMuchOpenError):
        shares.take(1, 101, 100)
    assert shares.used == 100
    shares.take(1, 99, 100)
    shares.take(2, 1)
    shares.take(1, 98, 99)
    assert shares.used == 99
    shares.give_back(1, 98)
    shares.give_back(2)
    assert (shares.used, shares._by_user) == (0, {})
    shares.take(1, 0)
    assert shares._by_user == {}
