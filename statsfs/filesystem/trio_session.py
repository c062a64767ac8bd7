"""A session that a trio program serves itself, from its own loop.

Owns how such a session begins and ends. It needs trio, so it is imported with the first mount.
Threading: for the thread of the program's trio loop.
"""

import contextlib
import os
from collections.abc import AsyncIterator

import trio

from statsfs.exceptions import MountError
from statsfs.filesystem.mount_options import MountOptions
from statsfs.filesystem.session import Session
from statsfs.tree.registry import Registry

__all__ = ["serve_in_trio"]


@contextlib.asynccontextmanager
async def serve_in_trio(
    registry: Registry, mountpoint: str | os.PathLike[str], options: MountOptions
) -> AsyncIterator[Session]:
    """Mount, and serve from the trio program that calls until the block ends.

    Raises:
        MountError: it is refused, or this is not a trio program.
    """
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError as error:
        raise MountError(
            f"{mountpoint}: mounted() is for trio programs; use mount() in this one", mountpoint
        ) from error
    session = Session(registry, mountpoint, options)
    session.serve_here()
    served = trio.Event()

    async def serve() -> None:
        try:
            await session.serve()
        finally:
            served.set()

    try:
        # A system task: what the body raises is not wrapped in an exception group, and Ctrl-C does
        # not strike in the middle of a handler.
        trio.lowlevel.spawn_system_task(serve, name="statsfs")
    except BaseException:
        session.finish()
        raise
    try:
        await trio.to_thread.run_sync(session.take_place)
        yield session
    finally:
        with trio.CancelScope(shield=True):
            # An invalidation may wait for an answer, which only this thread can give.
            await trio.to_thread.run_sync(session.invalidator.stop)
            session.terminate()
            await served.wait()
