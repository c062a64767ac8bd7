"""`statsfs mount` as the host's daemon: whose segments it shows, and its life once it is mounted.

Owns the options `--segments`, `--read-only`, `--background` and `--log`, and the wait for the end,
of which systemd is told too.

Threading: main thread only; a thread of ours waits for an unmount by others, so that nothing has to
look again and again.
"""

import contextlib
import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from statsfs.cli.background import Background, detach
from statsfs.cli.signals import Stop
from statsfs.cli.systemd import notify
from statsfs.collector.collector import Collector
from statsfs.filesystem.mounting import Mount
from statsfs.filesystem.mountpoints import (
    find_mount,
    lock_mountpoint,
    prepare_mountpoint,
    resolve_mountpoint,
)
from statsfs.segments.locks import is_alive
from statsfs.segments.places import COLLECTOR
from statsfs.tree.registry import Registry

__all__ = ["collecting", "options", "protect", "serve", "start"]

# A daemon that was unmounted may take a moment to end, and whoever unmounted has not waited for it.
_PATIENCE: Final = 3.0  # seconds

_OPTIONS: Final = (
    click.option(
        "--segments",
        metavar="DIR",
        multiple=True,
        help="Show what programs publish there; /run/statsfs, or $XDG_RUNTIME_DIR/statsfs if root "
        "does not run this, if nothing else is to be shown either.",
    ),
    click.option(
        "--read-only/--no-read-only",
        default=False,
        help="Let nobody clear anything through this mount; only root can.",
    ),
    click.option(
        "-b",
        "--background",
        "in_background",
        is_flag=True,
        help="Return when it is mounted, and serve in a process of its own until it is unmounted.",
    ),
    click.option(
        "--log",
        metavar="FILE",
        help="With --background: where its later messages are appended, in place of the system's "
        "log.",
    ),
)


def options(command: Any) -> Any:
    """Give a command the options of a daemon; a decorator."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def start(mountpoint: str, in_background: bool, log: str | None) -> Background | None:
    """Go to the background, if that is wanted; before any thread is started.

    Raises:
        click.UsageError: a log without need.
        MountError: something is mounted there already.
        SystemExit, click.ClickException: in the parent, see `detach`.
    """
    path = resolve_mountpoint(mountpoint)
    if find_mount(path) is not None:
        # Before it is asked who collects the segments: that may be who serves this very mount.
        with lock_mountpoint(path):
            prepare_mountpoint(path, allow_other=False)
    if in_background:
        return detach(log)
    if log is not None:
        raise click.UsageError("--log goes with --background")
    return None


@contextlib.contextmanager
def collecting(
    registry: Registry, directories: Sequence[str], *, by_default: bool
) -> Iterator[None]:
    """Show the segments of some directories, within the context.

    Args:
        registry: where.
        directories: theirs.
        by_default: whether no directories mean the host's, or the user's.

    Raises:
        SegmentError: one is refused, or has a collector already.
    """
    with contextlib.ExitStack() as stack:
        if directories or by_default:
            # A segment is a descriptor: as many as may be had without asking.
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        wanted: Sequence[str | None] = directories or ((None,) if by_default else ())
        for directory in wanted:
            collector = Collector(registry, directory)
            _wait_for_the_last(collector.directory / COLLECTOR)
            stack.enter_context(collector)
        yield


def _wait_for_the_last(path: Path) -> None:
    # A directory that cannot be looked into is refused by the collector, with reasons.
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + _PATIENCE
            while is_alive(fd) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            os.close(fd)


def protect(mounted: Mount) -> None:
    """Make what is mounted read-only.

    Raises:
        click.ClickException: it cannot be.
    """
    # -i: without the helper, which would be us. The kernel then refuses to open for writing.
    command = ["mount", "-i", "-o", "remount,bind,ro,nosuid,nodev,noexec", "--", mounted.mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise click.ClickException(f"--read-only: {done.stderr}")


def serve(stop: Stop, mounted: Mount, background: Background | None) -> None:
    """Say that it is mounted to whoever waits for that; return when told to stop, or unmounted."""
    if background is None:
        notify("READY=1", f"STATUS=mounted at {mounted.mountpoint}")
    else:
        background.ready()
    threading.Thread(
        target=_stop_at_end, args=(stop, mounted), name="statsfs-unmounted", daemon=True
    ).start()
    stop.wait()
    if background is None:
        notify("STOPPING=1")


def _stop_at_end(stop: Stop, mounted: Mount) -> None:
    mounted.wait()
    stop.tell()
