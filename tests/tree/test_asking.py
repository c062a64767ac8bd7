"""Names that a refresh makes, and async refreshes, in the process."""

import threading
from collections.abc import Awaitable, Callable

import pytest
import trio

from statsfs.exceptions import UnavailableError, UnknownValueError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.late_refresh import list_at_once
from statsfs.tree.refresh import find_refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE

VALUES = (Value("n", aggregate=Aggregate.SUM),)


class Poller:
    """Makes one more subordinate each time."""

    def __init__(self, **options: float) -> None:
        self.asked = 0
        self.source = Source("procs", refresh=self.poll, **options)  # type: ignore[arg-type]

    def poll(self) -> None:
        self.asked += 1
        source = Source("p%d", self.asked)
        source.add_values(VALUES, {"n": self.asked})
        self.source.add_subordinate(source)
        assert self.source.find("nothing") is None  # inside a refresh nothing is asked


@pytest.fixture
def poller(registry: Registry) -> Poller:
    """A poller in the registry."""
    poller = Poller()
    registry.register(poller.source)
    return poller


def test_a_name_that_is_missing_is_asked_for(registry: Registry, poller: Poller) -> None:
    """By its path, and by that of a value; once each time."""
    found = registry.find("procs/p1")
    assert found is not None
    assert registry.find("procs/p1") is found
    assert poller.asked == 1
    assert registry["procs/p2/n"] == 2  # asked for the name, and then for the number
    assert registry.find("procs/p1/below") is None
    assert registry.find("procs/nobody/below") is None
    with pytest.raises(UnknownValueError):
        registry["nobody/n"]


@pytest.mark.parametrize("path", ["procs/nothing", "procs/nobody/n"])
def test_a_path_of_no_value_is_asked_for_once(
    registry: Registry, poller: Poller, path: str
) -> None:
    """To say what is wrong with it takes no refresh."""
    with pytest.raises(UnknownValueError):
        registry[path]
    assert poller.asked == 1


def test_a_value_that_is_missing_is_asked_for(poller: Poller) -> None:
    """A total appears with the first subordinate."""
    assert poller.source.get_value("n") == 3  # asked for the name, then for the numbers
    with pytest.raises(UnknownValueError):
        poller.source.get_value("nothing")


def test_within_its_age_nothing_is_asked(registry: Registry) -> None:
    """A name that is missing then is missing."""
    poller = Poller(max_age=1000)
    registry.register(poller.source)
    assert registry.find("procs/p2") is None
    assert registry.find("procs/p2") is None
    assert poller.asked == 1


def test_one_that_makes_no_sources(registry: Registry, poller: Poller) -> None:
    """The package's own say so, where asking costs much and others bring the names."""
    list_at_once(poller.source)
    assert registry.find("procs/p1") is None
    assert poller.asked == 0


def test_one_that_is_late_for_a_name_is_not_late(registry: Registry) -> None:
    """A source with values alone is waited for shortly; its numbers have the time that they had."""
    answers, begun = threading.Event(), threading.Event()

    def ask() -> None:
        begun.set()
        answers.wait()

    source = Source("vm", refresh=ask)
    source.add_values(VALUES, {"n": 1})
    registry.register(source)
    assert source.find("below") is None
    assert begun.wait(DEADLINE)
    answers.set()
    assert source.get_value("n") == 1


# Async


class Asked:
    """Numbers that are awaited."""

    def __init__(self) -> None:
        self.numbers = {"n": 0}
        self.read: list[object] = []

    async def ask(self) -> None:
        await trio.sleep(0)
        self.numbers["n"] += 1
        self.read.append(find_refreshing([self.source]))
        self.read.append(self.source.get_value("n"))

    async def __call__(self) -> None:
        await self.ask()

    def show(self, refresh: Callable[[], Awaitable[None]], max_age: float = 0) -> Source:
        self.source = Source("vm", refresh=refresh, blocking=False, max_age=max_age)
        self.source.add_values(VALUES, self.numbers)
        return self.source


def test_it_is_awaited_for_a_thread_of_trio() -> None:
    """A method, or an object; one that reads its own source does not wait for itself."""

    async def read(source: Source) -> list[object]:
        names = ["n", "n"]
        return [await trio.to_thread.run_sync(source.get_value, name) for name in names]

    asked = Asked()
    assert trio.run(read, asked.show(asked.ask)) == [1, 2]
    assert asked.read == [None, 1, None, 2]
    asked = Asked()
    assert trio.run(read, asked.show(asked)) == [1, 2]
    asked = Asked()
    assert trio.run(read, asked.show(asked.ask, max_age=1000)) == [1, 1]


def test_it_is_refused_elsewhere(registry: Registry) -> None:
    """With one line; what it brought for others stays."""
    asked = Asked()
    source = asked.show(asked.ask)
    registry.register(source)

    async def read_at_once() -> object:
        return source.get_value("n")

    reads: list[Callable[[], object]] = [
        lambda: source.get_value("n"),
        lambda: registry["vm/n"],
        lambda: registry.find("vm/below"),
        lambda: trio.run(read_at_once),
        source.snapshot,
        registry.snapshot,
    ]
    for read in reads:
        with pytest.raises(UnavailableError, match=r"^vm: its refresh is async: [^\n]*$") as raised:
            read()
        assert raised.value.offender is source
    assert asked.read == []


def test_a_coroutine_that_nobody_awaits() -> None:
    """A plain function that returns one has brought nothing."""
    asked = Asked()
    for blocking, age in ((True, 0), (False, 0), (True, 9), (False, 9)):
        source = Source("vm", refresh=lambda: asked.ask(), blocking=blocking, max_age=age)
        source.add_values(VALUES, asked.numbers)
        with pytest.raises(UnavailableError, match=r"returned a coroutine, Asked.ask: pass an"):
            source.get_value("n")


def test_what_it_raises() -> None:
    """It is as with any other."""

    async def fail() -> None:
        raise OSError("gone")

    source = Source("vm", refresh=fail)
    source.add_values(VALUES, {"n": 1})

    async def read() -> None:
        with pytest.raises(UnavailableError, match="vm: unavailable: the refresh failed: gone"):
            await trio.to_thread.run_sync(source.get_value, "n")

    trio.run(read)


def test_one_that_hangs_when_its_loop_ends() -> None:
    """It is late, until it answers to a reader in another loop."""
    hangs = True

    async def ask() -> None:
        if hangs:
            await trio.sleep_forever()

    source = Source("vm", refresh=ask)
    source.add_values(VALUES, {"n": 1})

    async def read() -> object:
        return await trio.to_thread.run_sync(source.get_value, "n")

    async def read_until_it_answers() -> object:
        with trio.fail_after(DEADLINE):
            while True:
                try:
                    return await read()
                except UnavailableError:
                    await trio.sleep(0.002)

    with pytest.raises(UnavailableError, match="no answer within"):
        trio.run(read)
    hangs = False
    assert trio.run(read_until_it_answers) == 1
