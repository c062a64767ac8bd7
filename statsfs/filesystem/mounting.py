"""Mounting: `mount` for any program, `mounted` for trio programs.

Owns what a program sees of a mount. The session behind it is in `session`, which is imported when
something is mounted: without pyfuse3 and trio, everything but mounting works.

Threading: the functions may be called from any thread, `mounted` in a trio program only.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Final, Self

from statsfs.exceptions import MountError
from statsfs.filesystem.mount_options import MountOptions
from statsfs.tree.registry import Registry

if TYPE_CHECKING:
    from statsfs.filesystem.session import Session
    from statsfs.filesystem.takeover import Handover, Predecessor

__all__ = ["Mount", "MountOptions", "mount", "mount_with", "mounted", "mounting"]

_INSTALL: Final = (
    "mounting needs pyfuse3: apt install fuse3 libfuse3-dev pkg-config gcc python3-dev, "
    "then pip install 'statsfs[fuse]'"
)


class Mount:
    """A live mount; a context manager that unmounts at its end.

    >>> with mount(Registry(), "stats", create=True) as live:
    ...     live
    <Mount '/.../stats'>
    >>> live.closed
    True

    Attributes:
        mountpoint: where it is, as an absolute path.
        root: the name of the one source that is the root, or None.
        stats: the counters of its requests, a `Stats`: `source.add_values(type(stats), stats)`
            shows them.
    """

    def __init__(self, session: "Session") -> None:
        self._session = session
        self.mountpoint: Final = session.mountpoint
        self.root: Final = session.root
        self.stats: Final = session.vfs.stats

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mount {self.mountpoint!r}{' closed' if self.closed else ''}>"

    @property
    def replaced(self) -> bool:
        """Whether another mount has replaced it; it closes after its last open file.

        >>> with mount(Registry(), "stats", create=True) as live:
        ...     live.replaced
        False
        """
        return self._session.replaced

    @property
    def closed(self) -> bool:
        """Whether it is unmounted, by `close` or in another way.

        >>> live = mount(Registry(), "stats", create=True)
        >>> live.closed
        False
        >>> live.close()
        >>> live.closed
        True
        """
        return self._session.done.is_set()

    def close(self) -> None:
        """Unmount, and return when that is done; once more does nothing.

        Files that clients hold open answer ENOTCONN from then on.

        >>> live = mount(Registry(), "stats", create=True)
        >>> live.close()
        >>> live
        <Mount '/.../stats' closed>

        Raises:
            RuntimeError: this is the thread that serves (the trio thread, for `mounted`).
        """
        self._session.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is unmounted, by `close` or in another way.

        >>> with mount(Registry(), "stats", create=True) as live:
        ...     live.wait(timeout=0.01)
        False
        >>> live.wait()
        True

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            Whether it is unmounted.
        """
        return self._session.done.wait(timeout)

    def run_soon(self, function: Callable[[], object]) -> None:
        """Have the serving thread call a function between two requests, as a sign of life.

        The function must be quick and must not raise. After an unmount it is not called.

        >>> from threading import Event
        >>> alive = Event()
        >>> with mount(Registry(), "stats", create=True) as live:
        ...     live.run_soon(alive.set)
        ...     alive.wait(10)
        True
        """
        self._session.run_soon(function)


@contextlib.contextmanager
def _needing_fuse(mountpoint: object) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in ("pyfuse3", "trio")
        # Such as a libfuse3.so.4 that the system has no more.
        broken = f"{mountpoint}: pyfuse3 cannot be imported: {' '.join(str(error).split())}"
        raise MountError(_INSTALL if missing else broken, mountpoint) from error


def mount(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    *,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool | None = None,
    create: bool = False,
    switch_interval: float | None = None,
    root: str | None = None,
    read_only: bool = False,
    replace: bool = False,
) -> Mount:
    """Mount a registry, and serve it from a background thread.

    It is mounted when this returns; use the result as a context manager, or close it. At the end of
    the program it is closed by itself. A program must not read its own mount from a thread that
    holds the interpreter without releasing it; ordinary reads are fine.

    >>> from pathlib import Path
    >>> registry = Registry()
    >>> app = registry.register(Source("app"))
    >>> app.add_values([Value("jobs")], {"jobs": 5})
    >>> with mount(registry, "stats", create=True):
    ...     int(Path("stats/app/jobs").read_text())
    5

    Args:
        registry: what the root shows.
        mountpoint: an empty directory; or one of a debugfs.
        uid, gid: who owns what is in no source with an `owner`; by default the user that this
            process runs as.
        allow_other: whether other users may look; by default only if this process is root's.
        create: make the directory if it is not there, and remove it afterwards.
        switch_interval: seconds, for `sys.setswitchinterval` while it is mounted; None leaves it.
            Beside a thread that computes in Python, a reader waits about one switch interval for a
            whole `cat`: 6 ms at the median with Python's default of 5 ms, 2 with 0.001. It is the
            whole process's, and has its price: two threads that compute got 10 % less done.
        root: the name of a top-level source that is mounted as the root, in place of all of them.
            The root is empty while none of that name is registered. It has no files but those of
            one integer, and that a name is not there may be kept by the kernel for a second.
        read_only: refuse every clear with EROFS, for root too, and through bind mounts and copies
            in containers as well.
        replace: replace the mount of another program at this path, with no moment between. This
            needs Linux 6.5 and the right to mount; both programs must run as the same user. From
            then on the path shows this registry; no numbers of the other program are handed over.
            The other program goes on. It serves files that are open until they are closed, for a
            minute at most; then its `Mount` is closed.

    Raises:
        MountError: it is refused; the message is one line that says what to do.
        TypeError: it is not a registry.
    """
    options = MountOptions(uid, gid, allow_other, create, switch_interval, root, read_only, replace)
    return mount_with(registry, mountpoint, options)


def mount_with(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    options: MountOptions,
    handover: "Handover | None" = None,
    predecessor: "Predecessor | None" = None,
) -> Mount:
    """Mount as `mount` does, with its options in one object.

    Args:
        handover: what a successor gets besides the mount.
        predecessor: the server to take over from, already connected.
    """
    with _needing_fuse(mountpoint):
        from statsfs.filesystem.session import Session
    session = Session(registry, mountpoint, options, handover, predecessor)
    session.start()
    return Mount(session)


@contextlib.contextmanager
def mounting(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    options: MountOptions,
    handover: "Handover",
) -> Iterator[Callable[[], Mount]]:
    """Mount at once, for a server that takes a while to begin.

    The context gives a function that serves the mount, and returns it; until that is called,
    clients wait. Without a call the filesystem is unmounted at the end.
    """
    with _needing_fuse(mountpoint):
        from statsfs.filesystem.session import Session
    session = Session(registry, mountpoint, options, handover)

    def serve() -> Mount:
        session.start()
        return Mount(session)

    try:
        yield serve
    finally:
        session.call_off()


@contextlib.asynccontextmanager
async def mounted(
    registry: Registry,
    mountpoint: str | os.PathLike[str],
    *,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool | None = None,
    create: bool = False,
    switch_interval: float | None = None,
    root: str | None = None,
    read_only: bool = False,
    replace: bool = False,
) -> AsyncIterator[Mount]:
    """Mount a registry, and serve it from the trio program that calls.

    The arguments and errors are those of `mount`. The program must not read its own mount from the
    trio thread: it would wait for itself. `trio.to_thread.run_sync` may.

    >>> import trio
    >>> registry = Registry()
    >>> app = registry.register(Source("app"))
    >>> app.add_values([Value("jobs")], {"jobs": 5})
    >>> async def main():
    ...     async with mounted(registry, "stats", create=True):
    ...         return int(await trio.Path("stats/app/jobs").read_text())
    >>> trio.run(main)
    5
    """
    options = MountOptions(uid, gid, allow_other, create, switch_interval, root, read_only, replace)
    with _needing_fuse(mountpoint):
        from statsfs.filesystem.trio_session import serve_in_trio
    async with serve_in_trio(registry, mountpoint, options) as session:
        yield Mount(session)
