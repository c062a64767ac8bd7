"""A program that embeds statsfs, and does what a test tells it through a pipe.

Its arguments are DESCRIPTOR MODE MOUNTPOINT OPTIONS: the descriptor is that of the connection on
which calls come, the mode says how the program mounts, the options are those of `mount`, as JSON. A
call is a function of a test's module with its arguments; it runs on the main thread, which for the
mode "trio" is the one that serves.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from statsfs.exceptions import MountError
from statsfs.filesystem.mounting import Mount, mount, mounted
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["Answer", "Call", "World", "main", "mount_here", "try_to_mount"]


@dataclass
class World:
    """What a call finds: the program's registry and mounts, and whatever other calls kept."""

    registry: Registry
    mounts: list[Mount] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def mount(self) -> Mount:
        """The newest mount."""
        return self.mounts[-1]


class Call(NamedTuple):
    """What the program is to do."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Answer(NamedTuple):
    """What came of a call: its value, or an error and its traceback."""

    value: Any
    error: str | None = None
    traceback: str = ""


def answer(connection: Connection[Any, Any], world: World) -> bool:
    """Answer one call; tell whether there may be more."""
    try:
        call: Call | None = connection.recv()
    except EOFError:
        return False
    if call is None:
        return False
    try:
        reply = Answer(call.function(world, *call.args, **call.kwargs))
    except Exception as error:
        reply = Answer(None, f"{type(error).__name__}: {error}", traceback.format_exc())
    connection.send(reply)
    return True


def mount_here(world: World, /, mountpoint: str | os.PathLike[str], **options: Any) -> None:
    """Mount, in a program that has no mount yet."""
    world.mounts.append(mount(world.registry, mountpoint, **options))


def try_to_mount(
    world: World, /, mountpoint: str | os.PathLike[str], **options: Any
) -> tuple[str, int | None]:
    """Mount where that is refused; return the message and the errno."""
    try:
        mount_here(world, mountpoint, **options)
    except MountError as error:
        return str(error), error.errno
    raise AssertionError("it was mounted")


def make_registry(options: dict[str, Any]) -> Registry:
    """Make an empty registry; if it has to have a root, with a source for that."""
    registry = Registry()
    if "root" in options:
        registry.register(Source(options["root"]))
    return registry


def serve(connection: Connection[Any, Any], mountpoint: str, options: dict[str, Any]) -> None:
    """Serve from a background thread; calls run on the main thread."""
    world = World(make_registry(options))
    mount_here(world, mountpoint, **options)
    with world.mount:
        while answer(connection, world):
            pass


def serve_later(connection: Connection[Any, Any]) -> None:
    """Leave the mounting, and the closing, to calls."""
    world = World(Registry())
    while answer(connection, world):
        pass


async def serve_in_trio(
    connection: Connection[Any, Any], mountpoint: str, options: dict[str, Any]
) -> None:
    """Serve from trio's thread; calls run on it as well."""
    import trio

    registry = make_registry(options)
    async with mounted(registry, mountpoint, **options) as mounted_there:
        world = World(registry, [mounted_there])
        while True:
            await trio.lowlevel.wait_readable(connection.fileno())
            if not answer(connection, world):
                break


def main() -> None:
    """Mount, and answer calls until the connection ends."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    descriptor, mode, mountpoint, options = sys.argv[1:]
    connection: Connection[Any, Any]
    with Connection(int(descriptor)) as connection:
        match mode:
            case "thread":
                serve(connection, mountpoint, json.loads(options))
            case "trio":
                import trio

                trio.run(serve_in_trio, connection, mountpoint, json.loads(options))
            case "later":
                serve_later(connection)
