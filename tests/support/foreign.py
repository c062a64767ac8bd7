"""Programs whose own code raises what is no `Exception`, while a mount serves it.

`broken` makes a source for an error, with a subordinate for each place where foreign code runs.
Each of the programs is a function of a mount point; it prints what its files say.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import trio

from statsfs.filesystem.mounting import mount, mounted
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["ERRORS", "Unprintable", "broken", "interrupted", "served_by_a_thread", "served_by_trio"]


class Unprintable(Exception):
    """An error whose text raises."""

    def __str__(self) -> NoReturn:
        raise SystemExit("no text")

    __repr__ = __str__


class Odd(BaseException):
    """A program's own."""


ERRORS: dict[str, BaseException] = {
    "exit": SystemExit(1),
    "interrupt": KeyboardInterrupt(),
    "generator": GeneratorExit(),
    "group": BaseExceptionGroup("several", [SystemExit()]),
    "cancelled": trio.Cancelled._create(),
    "stop": StopIteration(),
    "recursion": RecursionError(),
    "memory": MemoryError(),
    "odd": Odd(),
    "unprintable": Unprintable(),
}

_VALUES = [Value("a", aggregate=Aggregate.SUM)]


def broken(name: str, error: BaseException) -> Source:
    """Return a source in which everything raises an error, from when it is whole."""
    whole = False

    def fail(*_: object) -> Any:
        if whole:
            raise error
        return 1

    class Property:
        a = property(fail)

    class Attribute:
        def __getattr__(self, name: str) -> Any:
            return fail()

    class Item(dict[str, int]):
        __getitem__ = fail
        __setitem__ = fail

    class Number:
        __index__ = __radd__ = fail

    top = Source(name)
    bases = {"property": Property(), "attribute": Attribute(), "item": Item(), "fine": {"a": 5}}
    for kind, base in {**bases, "number": {"a": Number()}}.items():
        with Source(kind) as source:
            source.add_values(_VALUES, base)
            top.add_subordinate(source)
    with Source("show") as source:
        source.add_values([Value("b", show=fail)], {"b": 1})
        top.add_subordinate(source)
    for kind, blocking in (("refresh", False), ("asked", True)):
        with Source(kind, refresh=fail, blocking=blocking) as source:
            source.add_values([Value("b")], {"b": 1})
            top.add_subordinate(source)
    with Source("rmdir", rmdir=fail, cleared=fail) as source:
        source.add_values([Value("b")], {"b": 1})
        top.add_subordinate(source)
    whole = True
    return top


def _registry() -> Registry:
    registry = Registry()
    for name, error in ERRORS.items():
        registry.register(broken(name, error))
    return registry


_LOOK = """
import os, sys
mountpoint, *names = sys.argv[1:]

def say(function):
    try:
        print(function(), end=" ")
    except OSError as error:
        print(error.strerror.split()[0], end=" ")

def read(path):
    with open(path) as file:
        return len(file.read())

def clear(path):
    with open(path, "wb", 0) as file:
        file.write(b"0")

for name in names:
    top = f"{mountpoint}/{name}"
    for one in "property attribute item number".split():
        say(lambda: read(f"{top}/{one}/a"))
    for one in "show refresh asked".split():
        say(lambda: read(f"{top}/{one}/b"))
    say(lambda: clear(f"{top}/item/a"))
    say(lambda: clear(f"{top}/rmdir/b"))
    say(lambda: os.rmdir(f"{top}/rmdir"))
    with open(f"{top}/a") as file, open(f"{top}/.stats.prom") as view:
        print(file.read().strip(), "} 5\\n" in view.read(), read(f"{top}/.stats.json") > 0)
"""


def _command(mountpoint: str) -> list[str]:
    return [sys.executable, "-c", _LOOK, mountpoint, *ERRORS]


def served_by_a_thread(mountpoint: str) -> None:
    """Serve from a background thread."""
    with mount(_registry(), mountpoint):
        subprocess.run(_command(mountpoint), check=True)


def served_by_trio(mountpoint: str) -> None:
    """Serve from the main thread."""

    async def main() -> None:
        async with mounted(_registry(), mountpoint):
            await trio.run_process(_command(mountpoint))

    trio.run(main)


def interrupted(mountpoint: str) -> None:
    """Serve from the main thread, in which Ctrl-C comes while foreign code runs."""

    async def main() -> None:
        registry = Registry()
        with Source(
            "kvm", refresh=lambda: signal.raise_signal(signal.SIGINT), blocking=False
        ) as kvm:
            kvm.add_values([Value("a")], {"a": 7})
            registry.register(kvm)
        async with mounted(registry, mountpoint):
            print(await trio.to_thread.run_sync(Path(f"{mountpoint}/kvm/a").read_text), end="")
            await trio.sleep_forever()

    try:
        trio.run(main)
    except KeyboardInterrupt:
        print("interrupted", os.path.ismount(mountpoint))
