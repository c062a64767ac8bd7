"""Who must go where there is no room."""

import pytest

from statsfs.monitoring import clients
from statsfs.monitoring.clients import Clients


class Member:
    """A client that is cut off, or not."""

    def __init__(self, resting: bool = False) -> None:
        self.is_cut = False
        self.resting = resting

    def cut(self) -> None:
        """Be cut off."""
        self.is_cut = True


@pytest.fixture(autouse=True)
def no_respite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has time to get on."""
    monkeypatch.setattr(clients, "_RESPITE", 0)


def enter(clients: Clients[Member], count: int) -> list[Member]:
    """Make so many clients, who enter."""
    members = [Member() for _ in range(count)]
    assert all(map(clients.enter, members))
    return members


def find_cut(members: list[Member]) -> list[int]:
    """Who was cut off."""
    return [number for number, member in enumerate(members) if member.is_cut]


def test_who_has_not_got_on_for_longest_goes_first() -> None:
    """One that is silent or idle, then one that does not read; none that waits for the server."""
    clients: Clients[Member] = Clients(5)
    waiting, reading, stalled, idle, silent = members = enter(clients, 5)
    for member in (waiting, reading, stalled, idle):
        clients.ask(member)
    clients.take(idle, b"")
    clients.end(idle)
    clients.take(stalled, b"text")
    clients.take(reading, b"text")
    clients.get_on(reading)
    for gone in (silent, idle, stalled, reading):
        assert not gone.is_cut
        clients.ask(enter(clients, 1)[0])
        assert gone.is_cut
    assert not waiting.is_cut
    assert not clients.enter(Member())
    clients.leave(waiting)
    assert clients.enter(Member())
    assert find_cut(members) == [1, 2, 3, 4]


def test_who_left_makes_room_once() -> None:
    """One that was cut off, or has gone, does not come back by what it still does."""
    clients: Clients[Member] = Clients(1)
    (first,) = enter(clients, 1)
    clients.ask(first)
    clients.leave(first)
    clients.take(first, b"text")
    clients.get_on(first)
    clients.end(first)
    clients.leave(first)
    (second,) = enter(clients, 1)
    enter(clients, 1)
    assert (first.is_cut, second.is_cut) == (False, True)


def test_texts_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the slowest go, but for the newest text; a text of many readers counts once."""
    monkeypatch.setattr(clients, "KEPT_MAX", 20)
    many: Clients[Member] = Clients(100)
    members = enter(many, 7)
    first, second, third, newest = (number * bytes([number]) for number in (9, 10, 11, 30))
    for member, text in zip(members, (first, first, second, third, third), strict=False):
        many.ask(member)
        many.take(member, text)
    assert find_cut(members) == []
    many.get_on(members[0])
    many.take(members[5], newest)
    # The next one has the first text, which another one has too.
    assert find_cut(members) == [1, 2]
    many.take(members[6], newest)
    assert find_cut(members) == [1, 2]
    for member in members:
        many.end(member)
    many.take(members[0], bytes(1000))
    assert find_cut(members) == [1, 2]


def test_a_server_that_ends() -> None:
    """Those that have not asked go at once."""
    clients: Clients[Member] = Clients(10)
    members = enter(clients, 3)
    clients.ask(members[1])
    clients.close()
    assert clients.closing
    assert find_cut(members) == [0, 2]


def test_who_got_on_just_now_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one must wait."""
    monkeypatch.setattr(clients, "_RESPITE", 1000)
    many: Clients[Member] = Clients(2)
    enter(many, 2)
    assert not many.enter(Member())


def test_draining() -> None:
    """Whoever rests is cut off; who asks, or has just come, gets an answer, which is the last."""
    clients: Clients[Member] = Clients(3)
    asking, coming = enter(clients, 2)
    resting = Member(resting=True)
    assert clients.enter(resting)
    clients.ask(asking)
    clients.drain()
    assert find_cut([asking, coming, resting]) == [2]
    assert clients.closing
