"""`--qmp SOCKET`: the virtual machines of this host, in the registry of `statsfs mount`.

Owns the top-level source `kvm` while they are watched, and how what goes wrong becomes one line.

Threading: main thread only; the VMs are asked in a thread of their own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import click

from statsfs.kvm.qemu import QemuMonitor
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["option", "watching"]

option: Final = click.option(
    "--qmp",
    "sockets",
    metavar="SOCKET",
    multiple=True,
    help="Show a running QEMU in `kvm`: its QMP socket, that no other client uses; or a quoted "
    "pattern, as '/run/vms/*.qmp'. VMs may come and go.",
)


@contextlib.contextmanager
def watching(registry: Registry, sockets: Sequence[str]) -> Iterator[None]:
    """Show the VMs behind some QMP sockets in `kvm`, within the context; none if there are none.

    Raises:
        DuplicateNameError: the registry has a `kvm` already.
        QmpError: others can write in the directory of a socket, or above it.
        click.ClickException: the library qemu.qmp is missing.
    """
    if not sockets:
        yield
        return
    with Source("kvm") as kvm:
        registry.register(kvm)
        try:
            with QemuMonitor(kvm, sockets):
                yield
        except ModuleNotFoundError as error:
            if error.name != "qemu.qmp":
                raise
            raise click.ClickException(f"--qmp: {error}") from error
        finally:
            registry.unregister(kvm)
