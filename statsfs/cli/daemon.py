"""`statsfs mount`: what programs publish, and other sources, in a mount; the host's daemon.

Owns the command, its options, and its life once it is mounted, of which systemd is told.
Threading: main thread only.
"""

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click

from statsfs.cli import ids, loading, logs, serving
from statsfs.cli.background import detach
from statsfs.cli.own_source import OwnSource
from statsfs.cli.paths import DIRECTORY, PATH
from statsfs.cli.signals import Stop, Stopped
from statsfs.cli.systemd import is_service, notify, watchdog_interval
from statsfs.cli.takeover import DaemonHandover, Inheritance
from statsfs.collector.collector import Collector
from statsfs.exceptions import DuplicateNameError
from statsfs.filesystem import mountpoints
from statsfs.filesystem.mounting import Mount, MountOptions, mount_with, mounting
from statsfs.kvm.clears import Clears
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.handing_over import KvmHandover
from statsfs.kvm.host import KvmHost
from statsfs.kvm.libvirt_vms import LibvirtVms
from statsfs.kvm.qemu import QemuMonitor
from statsfs.segments.locks import is_alive
from statsfs.segments.places import COLLECTOR
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["mount_command"]

logger = logging.getLogger(__name__)

# A daemon that was unmounted may take a moment to end, and umount(8) does not wait for it.
_PATIENCE: Final = 3.0  # seconds
# Besides the pauses of what takes long: with several threads that render, read and fold, the reads
# of others took 12 to 15 ms at the 99th percentile with this one, 31 to 36 with Python's 5 ms.
_SWITCH_INTERVAL: Final = 0.0005  # seconds


@click.command("mount", epilog=serving.EPILOG)
@click.argument("mountpoint", type=PATH, shell_complete=serving.complete_directory)
@click.option(
    "--load",
    metavar="MODULE:FUNCTION",
    multiple=True,
    callback=loading.check,
    help="A function to call with the registry; its module is in the current directory, or "
    "installed.",
)
@click.option("--create", is_flag=True, help="Make the directory; remove it afterwards.")
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Let other users in; the default is to do so when root mounts.",
)
@click.option(
    "--uid",
    metavar="USER",
    callback=ids.find_user,
    help="Owner of all files, a name or a number; default: this user.",
)
@click.option(
    "--gid",
    metavar="GROUP",
    callback=ids.find_group,
    help="Group of all files, a name or a number; default: this user's.",
)
@click.option(
    "--switch-interval",
    type=serving.Number(1e-6, 100),
    metavar="SECONDS",
    default=_SWITCH_INTERVAL,
    help="How often Python threads that compute take turns, and so how long a reader waits for "
    f"them; default: {_SWITCH_INTERVAL:g}.",
)
@click.option(
    "--kvm",
    is_flag=True,
    help="Show every virtual machine of this host in `kvm`, whatever program runs it.",
)
@click.option(
    "--qmp",
    type=PATH,
    metavar="SOCKET",
    multiple=True,
    help="Show a running QEMU in `kvm`: its QMP socket, which no other client uses; or a quoted "
    "pattern, as '/run/vms/*.qmp'. VMs may come and go.",
)
@serving.root_option
@click.option(
    "--segments",
    type=DIRECTORY,
    metavar="DIR",
    multiple=True,
    help="Show what programs publish there; it is made if it is missing and its parent is there. "
    "The default, without --load, --kvm and --qmp, is /run/statsfs for root and "
    "$XDG_RUNTIME_DIR/statsfs for others.",
)
@click.option(
    "--read-only/--no-read-only",
    default=False,
    help="Make the filesystem read-only, so that nobody clears anything.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take over from the `statsfs mount` that serves MOUNTPOINT, with no moment between; needs "
    "Linux 6.5 and the right to mount.",
)
@click.option(
    "-b",
    "--background",
    is_flag=True,
    help="Return when it is mounted, and serve in a process of its own until it is unmounted.",
)
@click.option(
    "--log",
    type=PATH,
    metavar="FILE",
    help="With --background: append later messages to this file, not to the system's log; SIGHUP "
    "opens it anew.",
)
@click.option(
    "--log-format",
    type=click.Choice(logs.FORMATS),
    default="text",
    help="Log lines of text, the default, or of JSON.",
)
@serving.listen_option
def mount_command(
    mountpoint: str,
    load: tuple[str, ...],
    kvm: bool,
    qmp: tuple[str, ...],
    segments: tuple[str, ...],
    create: bool,
    allow_other: bool | None,
    uid: int | None,
    gid: int | None,
    switch_interval: float,
    root: str | None,
    read_only: bool,
    replace: bool,
    background: bool,
    log: str | None,
    log_format: logs.Format,
    listen: tuple[str, int] | None,
) -> None:
    """Mount at MOUNTPOINT what programs publish, as the host's daemon does; or other sources too.

    Other sources are the virtual machines of this host, and what functions register: they are
    called with the registry, in order. The tree is served until SIGINT (Ctrl-C), SIGTERM or an
    unmount; in the foreground also until SIGHUP, as of a terminal that is closed, but not under
    nohup. Threads that a function starts should be daemon threads.

    \b
    Example, with programs that publish in /run/statsfs, and in a directory of one's own:
      statsfs mount /run/stats --create
      statsfs mount ./stats --create --segments ./segments
    Example, with a file app.py here that has `def setup(registry): ...`:
      statsfs mount /run/stats --create --load app:setup
    Example, with every virtual machine of this host:
      statsfs mount /run/stats --create --kvm
    Example, as an upgrade of the daemon of the first example, with the same options:
      statsfs mount /run/stats --create --replace
    Example, with VMs that have `-qmp unix:/run/vms/NAME.qmp,server=on,wait=off`:
      statsfs mount /run/stats --create --qmp '/run/vms/*.qmp'
    """
    segments = tuple(map(os.path.abspath, segments))  # a successor asks for them by name
    if background:
        qmp = tuple(map(os.path.abspath, qmp))  # the server's directory is another
    # A log of JSON has nothing else; from the background there is nobody to talk to.
    tell = logger.info if background or log_format == "json" else serving.say
    options = MountOptions(uid, gid, allow_other, create, switch_interval, root, read_only, replace)
    ready = _start(mountpoint, replace, background, log, log_format)
    stop = Stop()
    registry = Registry()
    handover = DaemonHandover(listen)
    with Inheritance(mountpoint if replace else None) as inherited:
        with stop.interrupting():
            loading.load(registry, load)
        directories = segments or ([] if load or kvm or qmp else [None])
        try:
            own = OwnSource(registry, collects=bool(directories))
        except DuplicateNameError as error:
            text = "--load: the source 'statsfs' is the daemon's own"
            raise click.ClickException(text) from error
        if ready is None:
            # Not before: a program may set up logging itself.
            logs.set_up(log_format)
        with (
            _showing_vms(registry, kvm, qmp, held=replace) as handover.vms,
            _filling(registry, directories, inherited) as handover.collectors,
            serving.listening(registry, listen, inherited.take_listener(listen)) as server,
            _mounting(registry, mountpoint, options, handover, inherited) as serve,
        ):
            for collector in handover.collectors:
                inherited.start(collector)
            inherited.make_ready(handover.vms)
            for collector in handover.collectors:
                own.add_collector(collector)
            if replace and stop.wait(0):
                raise Stopped  # the old server can still go on
            if server is not None:
                server.resume()
            with serve() as mounted:
                handover.server = server
                inherited.finish()
                handover.open()
                own.show(mounted, server)
                serving.announce(mounted, server, serving.say if background else tell)
                # A successor is the main process of the service from now on.
                is_told = ready is None or replace
                if is_told:
                    notify("READY=1", f"STATUS=mounted at {mounted.mountpoint}")
                if ready is not None:
                    try:
                        ready()
                    except BrokenPipeError:
                        # Without the caller an upgrade goes on: the old server is gone.
                        if not replace:
                            raise
                serving.stop_when_unmounted(stop, mounted)
                _wait(stop, mounted, watchdog_interval() if is_told else math.inf)
                if is_told and not mounted.replaced:
                    if mounted.closed and is_service():
                        # A failure of the service: it was not systemd that had it stop.
                        text = f"{mounted.mountpoint}: unmounted by somebody else"
                        raise click.ClickException(text)
                    notify("STOPPING=1")
    if mounted.replaced:
        handover.report()
    what = "was replaced at" if mounted.replaced else "unmounted"
    tell(f"{what} {mounted.mountpoint}")
    left = [thread.name for thread in threading.enumerate() if not thread.daemon][1:]
    if left:
        tell(f"waiting for non-daemon threads: {', '.join(left)}")
        stop.release()


def _start(
    mountpoint: str, replace: bool, background: bool, log: str | None, form: logs.Format
) -> Callable[[], None] | None:
    # Goes to the background, if that is wanted, before any thread is started; see `detach`.
    path = mountpoints.resolve_mountpoint(mountpoint)
    if not replace and mountpoints.find_mount(path) is not None:
        # Before a directory of segments is refused: its collector may be the server of this mount.
        with mountpoints.lock_mountpoint(path):
            mountpoints.prepare_mountpoint(path, allow_other=False)
    if background:
        return detach(log, form)
    if log is not None:
        raise click.UsageError("--log needs --background")
    return None


@contextlib.contextmanager
def _showing_vms(
    registry: Registry, kvm: bool, sockets: Sequence[str], *, held: bool
) -> Iterator[KvmHandover | None]:
    # Shows VMs in `kvm`; if they are held, from `KvmHandover.begin` on.
    if not (kvm or sockets):
        yield None
        return
    with contextlib.ExitStack() as stack:
        clears, host, monitor = Clears(), None, None
        if kvm:
            # Not by debugfs, which would take the VMs of the sockets that are named.
            ways = (LibvirtVms,) if sockets else (LibvirtVms, DebugfsVms)
            host = stack.enter_context(KvmHost(ways, clears.clear, held))
            source = host.source
        else:
            source = stack.enter_context(Source("kvm", recorder=clears.clear))
        registry.register(source)
        stack.callback(registry.unregister, source)
        if sockets:
            monitor = stack.enter_context(_make_monitor(source, sockets, clears, held))
        yield KvmHandover(source, clears, host, monitor)


@contextlib.contextmanager
def _filling(
    registry: Registry, directories: Sequence[str | None], inherited: Inheritance
) -> Iterator[list[Collector]]:
    # Gives the collectors of segments, which are not started yet. The directory None is the host's
    # or the user's.
    with contextlib.ExitStack() as stack:
        if directories:
            serving.raise_descriptor_limit()  # a segment is a descriptor
        inherited.begin()
        collectors = [Collector(registry, directory) for directory in directories]
        for collector in collectors:
            stack.push(collector)
            if not inherited.has(collector):
                _wait_for_the_last(collector.directory / COLLECTOR)
                collector.prepare()
        yield collectors


@contextlib.contextmanager
def _mounting(
    registry: Registry,
    mountpoint: str,
    options: MountOptions,
    handover: DaemonHandover,
    inherited: Inheritance,
) -> Iterator[Callable[[], Mount]]:
    # Mounts before the segments are read, so that clients wait and do not find an empty directory.
    # Not if another mount is there, or if the root is one source, which a segment may have.
    if inherited.predecessor is None and options.root is None:
        with mounting(registry, mountpoint, options, handover) as serve:
            yield serve
    else:
        predecessor = inherited.predecessor
        yield partial(mount_with, registry, mountpoint, options, handover, predecessor)


def _wait(stop: Stop, mounted: Mount, interval: float) -> None:
    # Waits until told to stop. The serving thread notifies systemd's watchdog.
    while not stop.wait(interval):
        mounted.run_soon(partial(notify, "WATCHDOG=1", wait=False))


def _make_monitor(kvm: Source, sockets: Sequence[str], clears: Clears, held: bool) -> QemuMonitor:
    try:
        return QemuMonitor(kvm, sockets, clears.clear, held)
    except ModuleNotFoundError as error:
        if error.name != "qemu.qmp":
            raise
        raise click.ClickException(f"--qmp: {error}") from error


def _wait_for_the_last(path: Path) -> None:
    # The collector itself refuses a directory that cannot be read, with a reason.
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + _PATIENCE
            while is_alive(fd) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            os.close(fd)
