"""Limiters: users take turns."""

from collections.abc import Callable

import trio
import trio.testing

from statsfs.filesystem.limiters import FairLimiter


class Crowd:
    """Tasks of users that want in."""

    def __init__(self, limiter: FairLimiter, nursery: trio.Nursery) -> None:
        self.limiter = limiter
        self.nursery = nursery
        self.inside: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}

    async def _come(self, name: str) -> None:
        # The first letter is the user.
        user = ord(name[0])
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            await self.limiter.of(user).acquire_on_behalf_of(self)
            self.inside.append(name)

    async def come(self, *names: str) -> None:
        """Have tasks come, one after the other."""
        for name in names:
            self.nursery.start_soon(self._come, name)
            await trio.testing.wait_all_tasks_blocked()

    async def go(self, name: str) -> str:
        """Have one leave; return who comes in."""
        self.inside.remove(name)
        before = list(self.inside)
        self.limiter.of(ord(name[0])).release_on_behalf_of(self)
        await trio.testing.wait_all_tasks_blocked()
        return " ".join(one for one in self.inside if one not in before)

    async def give_up(self, name: str) -> None:
        """Have one that waits go away."""
        self.scopes[name].cancel()
        await trio.testing.wait_all_tasks_blocked()


def with_crowd(most: int, each: int, check: Callable[[Crowd], object]) -> None:
    """Run a check, which leaves nobody inside."""

    async def main() -> None:
        limiter = FairLimiter(most, each)
        async with trio.open_nursery() as nursery:
            await check(Crowd(limiter, nursery))  # type: ignore[misc]  # it is a coroutine function
        assert (limiter._free, limiter._inside, limiter._waiting) == (most, {}, {})

    trio.run(main)


def test_one_user_does_not_make_another_wait() -> None:
    """However many of the one wait, another is next."""

    async def check(crowd: Crowd) -> None:
        await crowd.come("a1", "a2", "a3", "a4")
        assert crowd.inside == ["a1", "a2"]
        await crowd.come("b1", "c1", "d1")
        assert crowd.inside == ["a1", "a2", "b1"]
        assert await crowd.go("a1") == "a3"
        assert await crowd.go("a2") == "c1"
        assert await crowd.go("a3") == "d1"
        assert await crowd.go("b1") == "a4"
        for name in ("a4", "c1", "d1"):
            assert await crowd.go(name) == ""

    with_crowd(3, 2, check)


def test_users_take_turns() -> None:
    """Each has one after the other, whatever came first."""

    async def check(crowd: Crowd) -> None:
        await crowd.come("a1", "a2", "a3", "b1", "b2", "c1")
        order = [crowd.inside[0]]
        while crowd.inside:
            if came := await crowd.go(order[-1]):
                order.append(came)
        assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]

    with_crowd(1, 1, check)


def test_those_who_give_up() -> None:
    """They leave no gap: before their turn, as the last of their user, and in the moment of it."""

    async def check(crowd: Crowd) -> None:
        await crowd.come("a1", "a2", "a3", "b1")
        await crowd.give_up("a2")
        assert await crowd.go("a1") == "a3"
        await crowd.give_up("b1")
        assert await crowd.go("a3") == ""
        with trio.CancelScope() as scope:
            scope.cancel()
            await crowd.limiter.enter(1)
        await crowd.come("c1")
        assert await crowd.go("c1") == ""

    with_crowd(1, 1, check)
