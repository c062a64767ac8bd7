"""Producers that do not do what they should: only what they broke is broken."""

import contextlib
import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from statsfs.model.stats import values_of
from statsfs.model.values import Type, Value
from statsfs.tree.source import Source
from tests.soak.clients import shell_client
from tests.soak.measures import expect_counting, expect_quiet, serving_long
from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import DEADLINE, until, wait_until
from tests.support.mount_server import World
from tests.support.mounts import Server, run
from tests.support.trees import Cpu

__all__ = ["blocking_producers", "broken_producers"]

SOUND = ["cpu0", "cpu1"]
VIEWS = (".stats.json", ".stats.prom", ".stats.openmetrics")


# In the server


class _Log(logging.Handler):
    # What is logged, in place of stderr.
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _listen(world: World) -> None:
    world.kept["log"] = log = _Log()
    logger = logging.getLogger("statsfs")
    logger.propagate = False
    logger.addHandler(log)


def _messages(world: World) -> list[str]:
    log: _Log = world.kept["log"]
    messages, log.messages = log.messages, []
    return messages


def _show(number: int) -> str:
    if number:
        raise ValueError("no name for it")
    return "idle"


STATE = (Value("state", Type.U32, show=_show, description="producers"),)


class _Slow:
    # Its `exits` are counted by something that does not answer.
    wait = 0
    busy = 0

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.asked = 0

    @property
    def exits(self) -> int:
        self.asked += 1
        self.gate.wait(DEADLINE)
        return 1


def _add_broken(world: World) -> None:
    world.kept["torn"] = SimpleNamespace(exits=100, wait=100, busy=1)
    world.kept["shown"] = {"state": 0}
    for name, values in (("torn", values_of(Cpu)), ("shown", STATE)):
        with Source(name) as source:
            source.add_values(values, world.kept[name])
            calls.kvm_of(world).add_subordinate(source)


def _set(world: World, exits: object, state: int) -> None:
    world.kept["torn"].exits = exits
    world.kept["shown"]["state"] = state


def _add_slow(world: World) -> None:
    world.kept["slow"] = slow = _Slow(threading.Event())
    slow.gate.set()
    with Source("slow") as source:
        source.add_values(values_of(Cpu), slow)
        calls.kvm_of(world).add_subordinate(source)


def _set_gate(world: World, open: bool) -> int:
    slow: _Slow = world.kept["slow"]
    (slow.gate.set if open else slow.gate.clear)()
    return slow.asked


def _asked(world: World) -> int:
    asked: int = world.kept["slow"].asked
    return asked


# What the clients see


def _error_of(path: os.PathLike[str]) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            file.read(99)
    except OSError as error:
        return error.errno
    return None


def _numbers(server: Server, view: str) -> dict[str, Any]:
    text = (server / "kvm" / view).read_text()
    if view == ".stats.json":
        found: dict[str, Any] = json.loads(text)["subordinates"]
        return {name: below["values"] for name, below in found.items() if below["values"]}
    return {name: "" for name in ("torn", "shown", *SOUND) if f'="{name}"' in text}


def broken_producers(seconds: float) -> str:
    """Read what cannot be read: an attribute that is a string, a `show` that raises.

    That file alone says EIO, totals leave it out, views leave out the row whole; each says so in
    the log, once for ever.
    """
    times = 0
    expected = [
        "kvm/torn: 'exits' holds no",
        "left out of aggregates",
        "left out of snapshots",
        "show(7) failed",
    ]
    with serving_long(seconds) as server:
        server.call(_listen)
        server.call(calls.clear)
        for name in SOUND:
            server.call(calls.add, name, 1)
        server.call(_add_broken)
        for _ in until(seconds):
            server.call(_set, "many", 7)
            for _ in range(3):
                check_broken(server)
            for message in server.call(_messages):
                (part,) = (part for part in expected if part in message)
                expected.remove(part)
            server.call(_set, 100, 0)
            check_mended(server)
            times += 1
        assert expected == []
        server.call(calls.clear)
        expect_quiet(server)
    return f"broken and mended {times} times"


def check_broken(server: Server) -> None:
    """See that what is broken is missed, and nothing else."""
    kvm = server / "kvm"
    assert [_error_of(kvm / name) for name in ("torn/exits", "shown/state")] == [errno.EIO] * 2
    sound = ("torn/wait", "torn/busy", "exits", "wait.max")
    assert [(kvm / name).read_text() for name in sound] == ["100\n", "1\n", "2\n", "100\n"]
    for view in VIEWS:
        assert set(_numbers(server, view)) == {*SOUND, "shown"}
    assert _numbers(server, ".stats.json")["shown"] == {"state": 7}
    totals = json.loads((kvm / ".stats.json").read_text())["values"]
    assert (totals["exits"], totals["wait.max"]) == (2, 0)


def check_mended(server: Server) -> None:
    """See that all is there."""
    sound = ("torn/exits", "exits", "shown/state")
    assert [(server / f"kvm/{name}").read_text() for name in sound] == ["100\n", "102\n", "idle\n"]
    assert set(_numbers(server, ".stats.json")) == {*SOUND, "shown", "torn"}


def blocking_producers(seconds: float) -> str:
    """Read a property that blocks.

    While it does in a view, others read on and the tree changes; while it does for a plain file,
    other readers wait, but the program counts on. All are answered in the end.
    """
    times = 0
    with serving_long(seconds) as server:
        server.call(calls.clear)
        for name in SOUND:
            server.call(calls.add, name, 1)
        server.call(_add_slow)
        server.call(threads.start_counter)
        for _ in until(seconds):
            with _waiting(server, *VIEWS):
                assert run("cat", server / "kvm/cpu0/exits").stdout == "1\n"
                assert set(SOUND) < set(os.listdir(server / "kvm"))
                server.call(calls.add, "passing")
                server.call(calls.remove, "passing")
            with _waiting(server, "slow/exits", "exits", "cpu0/wait"):
                expect_counting(server)
            assert (server / "kvm/exits").read_text() == "3\n"
            times += 1
        server.call(threads.stop_counter)
        server.call(calls.clear)
        expect_quiet(server)
    return f"blocked {times} times in views and in files"


@contextlib.contextmanager
def _waiting(server: Server, *names: str) -> Iterator[None]:
    # During a block clients wait for these files, and at least one of them for the property.
    with contextlib.ExitStack() as stack:
        asked = server.call(_set_gate, False)
        try:
            clients = [
                stack.enter_context(shell_client('exec cat "$1"', server / f"kvm/{name}"))
                for name in names
            ]
            wait_until(lambda: server.call(_asked) > asked, "a client that waits")
            yield
        finally:
            server.call(_set_gate, True)
        assert [process.wait(DEADLINE) for process in clients] == [0] * len(names)
