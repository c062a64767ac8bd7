"""Shares: how much each user may have of a resource that all users have in common.

A user may have as much as is left for all others: half of everything if nobody else has any, and
less the more is taken. So there is something left for a user who comes later, however many came
before. What a user has alone may be of any size, as long as there is room for it.

Threading: for the serving thread.
"""

from statsfs.exceptions import StatsfsError

__all__ = ["ShareUsedUpError", "Shares", "TooMuchOpenError"]


class TooMuchOpenError(StatsfsError, OSError):
    """All users together use too much of the server; there is no room for this."""


class ShareUsedUpError(StatsfsError, OSError):
    """One user has its share of the server; there is no room for this."""


class Shares:
    """The shares of one resource.

    Args:
        what: the name of the resource, for errors.
        most: how much all users may have together.
    """

    def __init__(self, what: str, most: int) -> None:
        self.what = what
        self.most = most
        self.used = 0
        self._by_user: dict[int, int] = {}

    def take(self, user: int, amount: int = 1, instead: int = 0) -> None:
        """Give a user an amount, in place of another (`instead`) that the user has.

        Raises:
            TooMuchOpenError: less than that is left.
            ShareUsedUpError: the user would have more than its share.
        """
        had = self._by_user.get(user, 0) - instead
        used = self.used - instead + amount
        more = amount > instead
        if more and used > self.most:
            raise TooMuchOpenError(f"{self.used} of {self.most} {self.what} are in use", user)
        if more and had and had + amount > self.most - used:
            raise ShareUsedUpError(f"user {user} has {had} of {self.most} {self.what}", user)
        self.used = used
        if had + amount:
            self._by_user[user] = had + amount
        else:
            self._by_user.pop(user, None)

    def charge(self, user: int, amount: int) -> None:
        """Add to what a user has, even beyond its share."""
        self.used += amount
        self._by_user[user] = self._by_user.get(user, 0) + amount

    def check(self, user: int) -> None:
        """Raise ShareUsedUpError if a user has more than its share."""
        had = self._by_user.get(user, 0)
        if had > self.most - self.used:
            raise ShareUsedUpError(f"user {user} has {had} of {self.most} {self.what}", user)

    def give_back(self, user: int, amount: int = 1) -> None:
        """Take back some of what a user has."""
        self.used -= amount
        left = self._by_user.pop(user, 0) - amount
        if left:
            self._by_user[user] = left
