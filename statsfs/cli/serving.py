"""What `statsfs demo` and `statsfs mount` share: options, lines on stdout, the end of a mount.

Threading: main thread only. A thread of its own waits for an unmount by others, so that an idle
server does not wake up.
"""

import contextlib
import math
import os
import resource
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from statsfs.cli.signals import Stop
from statsfs.filesystem.mounting import Mount
from statsfs.monitoring.exposition import serve_paused
from statsfs.tree.registry import Registry

if TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer

__all__ = [
    "EPILOG",
    "LONGEST_INTERVAL",
    "Number",
    "announce",
    "complete_directory",
    "listen_option",
    "listening",
    "raise_descriptor_limit",
    "root_option",
    "say",
    "silence",
    "stop_when_unmounted",
]

EPILOG: Final = """\b
Exit codes:
  0  done, also when stopped by SIGTERM, SIGINT or SIGHUP
  1  failed: a refused mount, unmount or --listen, a failing --load function, a --qmp socket or
     --segments in a directory where others can write, or that has a collector already
  2  wrong usage
"""


def complete_directory(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete a mount point, as the path of a directory."""
    return [CompletionItem(incomplete, type="dir")]


class Number(click.FloatRange):
    """A finite number; FloatRange lets nan and inf pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _parse_address(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise click.BadParameter(f"{text!r} does not end in a port, 0 to 65535", ctx, param)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise click.BadParameter(f"{text!r}: an IPv6 address must be in brackets", ctx, param)
    return host or "127.0.0.1", int(port)


LONGEST_INTERVAL: Final = 86_400.0
"""Seconds between two samples."""
listen_option: Final = click.option(
    "--listen",
    metavar="[HOST:]PORT",
    callback=_parse_address,
    help="Answer scrapes of /metrics there, for Prometheus; / is a page for browsers. The default "
    "host is the loopback address; port 0 is a free one.",
)
root_option: Final = click.option(
    "--root", metavar="SOURCE", help="Mount this one top-level source as the root, not all of them."
)


def listening(
    registry: Registry, address: tuple[str, int] | None, listener: int | None = None
) -> "contextlib.AbstractContextManager[MetricsServer | None]":
    """Take an address for scrapes, within the context; at None, do not.

    They are answered after `MetricsServer.resume`. `listener` is the descriptor of a socket that
    listens there already.
    """
    if address is None:
        return contextlib.nullcontext()
    raise_descriptor_limit()  # a client is a descriptor
    try:
        return serve_paused(registry, *address, listener)
    except (OSError, ImportError) as error:
        raise click.ClickException(f"--listen: {error}") from error


def announce(mounted: Mount, server: "MetricsServer | None", tell: Callable[[str], object]) -> None:
    """Tell where the tree, the metrics and the page are, with `say` or another function."""
    tell(f"mounted at {mounted.mountpoint}")
    if server is not None:
        tell(f"metrics at {server.url}")
        tell(f"page at {server.url.removesuffix('metrics')}")


def stop_when_unmounted(stop: Stop, mounted: Mount) -> None:
    """Tell a command to stop once others have unmounted."""

    def wait() -> None:
        mounted.wait()
        stop.tell()

    threading.Thread(target=wait, name="statsfs-unmounted", daemon=True).start()


def raise_descriptor_limit() -> None:
    """Let this process open as many files as its hard limit allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def say(text: str) -> None:
    """Print a line for the user; a server goes on without a reader."""
    try:
        click.echo(f"statsfs: {text}")
    except OSError:
        silence()


def silence() -> None:
    """Send stdout nowhere from now on: its reader is gone."""
    # Else Python tries to write the rest at its end, and exits with status 120.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
