"""What the tests of refreshes have a server do that make sources, are async, or are cleared."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE
from tests.support.mount_server import World

COUNTER = Value("n", aggregate=Aggregate.SUM)
VALUES = (COUNTER, Value("top", kind=Kind.PEAK, aggregate=Aggregate.MAX))


class Poller:
    """Makes and removes a subordinate for each name that there is, as a poller of processes."""

    def __init__(self, name: str, **options: Any) -> None:
        self.numbers: dict[str, int] = {}
        self.answers = threading.Event()
        self.answers.set()
        self.error: str | None = None
        self.asked = 0
        self.bases: dict[str, dict[str, int]] = {}
        awaits = options.pop("awaits", False)
        function: Callable[[], object] = self.poll_async if awaits else self.poll
        self.source = Source(name, refresh=function, **options)

    def poll(self) -> None:
        self.asked += 1
        self.answers.wait(DEADLINE)
        self._update()

    async def poll_async(self) -> None:
        import trio

        self.asked += 1
        while not self.answers.is_set():
            await trio.sleep(0.001)
        await trio.sleep(0)
        self._update()

    def _update(self) -> None:
        if self.error is not None:
            raise OSError(self.error)
        for name in self.bases.keys() - self.numbers.keys():
            del self.bases[name]
            found = self.source.find(name)
            assert found is not None
            self.source.remove_subordinate(found)
        for name, number in self.numbers.items():
            if name not in self.bases:
                self.bases[name] = dict.fromkeys(("n", "top"), 0)
                with Source(name) as source:
                    source.add_values(VALUES, self.bases[name])
                    self.source.add_subordinate(source)
            self.bases[name].update(n=number, top=number)


def build(world: World, /, **options: Any) -> None:
    """Make `host/procs`, whose subordinates a refresh makes."""
    logging.getLogger("statsfs.tree.refresh").addHandler(logging.NullHandler())
    host = Source("host")
    poller = Poller("procs", **options)
    host.add_subordinate(poller.source)
    world.kept["procs"] = poller
    world.registry.register(host)


def set_numbers(world: World, /, **numbers: int) -> None:
    """Say which names there are from now on."""
    world.kept["procs"].numbers = numbers


def set_answers(world: World, answers: bool = True, error: str | None = None) -> None:
    """Have the poller answer, or hang, or fail."""
    poller: Poller = world.kept["procs"]
    poller.error = error
    if answers:
        poller.answers.set()
    else:
        poller.answers.clear()


def count_asked(world: World) -> int:
    """Tell how often it was asked."""
    poller: Poller = world.kept["procs"]
    return poller.asked
