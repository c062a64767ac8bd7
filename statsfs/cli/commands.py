"""The commands of `statsfs`, and what becomes of their errors.

Owns options, help texts and exit codes. A user's mistake is one line on stderr, never a traceback.

Threading: main thread only, see `stop`.
"""

import contextlib
import math
import os
import resource
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

import statsfs
from statsfs.cli import daemon, loading, qmp
from statsfs.cli.demo import Churn, Kvm, create_vm, run_demo, silence
from statsfs.cli.install_mount_helper import install_mount_helper
from statsfs.cli.signals import Stop, Stopped
from statsfs.demo.mock_kvm import MockKvm
from statsfs.demo.real_kvm import RealKvm
from statsfs.exceptions import MountError, StatsfsError
from statsfs.filesystem.mounting import Mount, mount
from statsfs.filesystem.mountpoints import find_mount, unmount
from statsfs.monitoring.exposition import serve_metrics
from statsfs.tree.registry import Registry

if TYPE_CHECKING:
    from statsfs.monitoring.http_server import MetricsServer

__all__ = ["cli", "run"]

_DONE, _FAILED, _USAGE = 0, 1, 2  # the exit codes

_EPILOG: Final = """\b
Exit codes:
  0  done, also when told to stop by SIGTERM or SIGINT
  1  failed: a refused mount, unmount or --listen, a failing --load function, a --qmp socket or
     --segments in a directory where others can write, or that has a collector already
  2  wrong usage
"""


class _Number(click.FloatRange):
    # FloatRange lets nan and inf pass.
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
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
        raise click.BadParameter(f"{text!r}: an IPv6 address stands in brackets", ctx, param)
    return host or "127.0.0.1", int(port)


_listen_option: Final = click.option(
    "--listen",
    metavar="[HOST:]PORT",
    callback=_parse_address,
    help="Answer scrapes of /metrics there, for Prometheus; on the loopback address if no host is "
    "given, on a free port if it is 0.",
)
_root_option: Final = click.option(
    "--root",
    metavar="SOURCE",
    help="Mount this one top-level source as the root, not all of them.",
)
_ID: Final = click.IntRange(0, 0xFFFFFFFE)  # the highest number means "none" to the kernel


@click.group(epilog=_EPILOG, context_settings={"max_content_width": 100})
@click.version_option(statsfs.__version__, prog_name="statsfs", message="%(prog)s %(version)s")
def cli() -> None:
    """Show a program's counters as files: live, with totals in every directory above.

    \b
    Example:
      statsfs demo ./stats
    """


@cli.command(epilog=_EPILOG)
@click.argument("mountpoint")
@click.option("--vms", type=click.IntRange(0), default=4, show_default=True, help="VMs that stay.")
@click.option(
    "--vcpus", type=click.IntRange(1), default=4, show_default=True, help="vCPUs of each VM."
)
@click.option(
    "--rate",
    type=_Number(0),
    default=1000,
    show_default=True,
    metavar="EVENTS_PER_SECOND",
    help="VM exits of each vCPU; 0 holds every counter still at a number that is not 0.",
)
@click.option(
    "--churn",
    type=_Number(0),
    default=0,
    metavar="SECONDS",
    help="One VM more comes and goes, a full cycle in so many seconds; 0, the default: none.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="What names and numbers are made from."
)
@click.option(
    "--for",
    "duration",
    type=_Number(0),
    metavar="SECONDS",
    help="End by itself; without it, at SIGINT (Ctrl-C) or SIGTERM.",
)
@click.option(
    "--real",
    is_flag=True,
    help="Run real guests of a few bytes through /dev/kvm, not mock ones; no seed plays a part.",
)
@_root_option
@_listen_option
def demo(
    mountpoint: str,
    vms: int,
    vcpus: int,
    rate: float,
    churn: float,
    seed: int,
    duration: float | None,
    real: bool,
    root: str | None,
    listen: tuple[str, int] | None,
) -> None:
    """Mount a mock KVM, or a real one, at MOUNTPOINT.

    Its virtual machines work, come and go. The directory is made if it is missing, and removed
    afterwards. On a terminal a live table shows what moves; elsewhere it is one line a second.

    \b
    Examples:
      statsfs demo ./stats
      statsfs demo ./stats --vms 8 --vcpus 2 --churn 5
      statsfs demo ./stats --rate 0 --seed 7 --for 60
      statsfs demo ./stats --real --vms 2
    """
    stop = Stop()
    registry = Registry()
    with _make_kvm(registry, real, rate, seed) as kvm:
        for _ in range(vms):
            if not stop.wait(0):
                create_vm(kvm, vcpus)
        with (
            _listening(registry, listen) as server,
            mount(registry, mountpoint, create=True, root=root) as mounted,
        ):
            _announce(mounted, server)
            run_demo(stop, mounted, Churn(kvm, vcpus, churn), duration)
    _say(f"statsfs: unmounted {mounted.mountpoint}")


def _make_kvm(
    registry: Registry, real: bool, rate: float, seed: int
) -> "contextlib.AbstractContextManager[Kvm[Any]]":
    if not real:
        return MockKvm(registry, rate=rate, seed=seed)
    # A real vCPU takes three descriptors: as many as may be had without asking.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        return RealKvm(registry, rate=rate)
    except OSError as error:
        message = f"--real: /dev/kvm cannot be used: {error.strerror}"
        raise click.ClickException(message) from error


@cli.command("mount", epilog=_EPILOG)
@click.argument("mountpoint")
@click.option(
    "--load",
    "loads",
    metavar="MODULE:FUNCTION",
    multiple=True,
    callback=loading.parse,
    help="A function to call with the registry, from the current directory or what is installed.",
)
@click.option("--create", is_flag=True, help="Make the directory; remove it afterwards.")
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Let other users in; the default is to do so when root mounts.",
)
@click.option("--uid", type=_ID, help="Owner of all files, as a number; default: who mounts.")
@click.option("--gid", type=_ID, help="Group of all files, as a number; default: who mounts.")
@click.option(
    "--switch-interval",
    type=_Number(1e-6, 100),
    metavar="SECONDS",
    help="How often Python threads that compute take turns, and so how long a reader waits for "
    "them; Python's default is 0.005.",
)
@qmp.option
@_root_option
@daemon.options
@_listen_option
def mount_command(
    mountpoint: str,
    loads: list[tuple[str, str]],
    sockets: tuple[str, ...],
    segments: tuple[str, ...],
    create: bool,
    allow_other: bool | None,
    uid: int | None,
    gid: int | None,
    switch_interval: float | None,
    root: str | None,
    read_only: bool,
    in_background: bool,
    log: str | None,
    listen: tuple[str, int] | None,
) -> None:
    """Mount at MOUNTPOINT what programs publish, as the host's daemon does; or other things too.

    Those are what functions register, each of which is called with the registry, in order, and the
    virtual machines that QEMU runs. The tree is served until SIGINT (Ctrl-C), SIGTERM or an
    unmount. Threads that a function starts should be daemons.

    \b
    Example, with programs that publish in /run/statsfs, and in a directory of one's own:
      statsfs mount /run/stats --create
      statsfs mount ./stats --create --segments ./segments
    Example, with a file app.py here that has `def setup(registry): ...`:
      statsfs mount /run/stats --create --load app:setup
    Example, with VMs that have `-qmp unix:/run/vms/NAME.qmp,server=on,wait=off`:
      statsfs mount /run/stats --create --qmp '/run/vms/*.qmp'
    """
    if in_background:
        sockets = tuple(map(os.path.abspath, sockets))  # which goes on in another directory
    background = daemon.start(mountpoint, in_background, log)
    stop = Stop()
    registry = Registry()
    with stop.interrupting():
        loading.load(registry, loads)
    with (
        qmp.watching(registry, sockets),
        daemon.collecting(registry, segments, by_default=not (loads or sockets)),
        _listening(registry, listen) as server,
        mount(
            registry,
            mountpoint,
            uid=uid,
            gid=gid,
            allow_other=allow_other,
            create=create,
            switch_interval=switch_interval,
            root=root,
        ) as mounted,
    ):
        if read_only:
            daemon.protect(mounted)
        _announce(mounted, server)
        daemon.serve(stop, mounted, background)
    _say(f"statsfs: unmounted {mounted.mountpoint}")
    left = [thread.name for thread in threading.enumerate() if not thread.daemon][1:]
    if left:
        _say(f"statsfs: waiting for threads that are no daemons: {', '.join(left)}")
        stop.release()


@cli.command(epilog=_EPILOG)
@click.argument("mountpoint")
def umount(mountpoint: str) -> None:
    """Unmount the statsfs at MOUNTPOINT.

    Whoever serves it notices and ends. It is refused while somebody uses the tree.

    \b
    Example:
      statsfs umount ./stats
    """
    path = os.path.realpath(mountpoint)
    if find_mount(path) != "fuse.statsfs":
        raise click.ClickException(f"{mountpoint} is not a mounted statsfs")
    try:
        unmount(path)
    except MountError as error:
        if "busy" not in str(error):
            raise
        hint = "close its files and leave its directories (fuser -vm tells whose), then try again"
        raise click.ClickException(f"{mountpoint} is busy: {hint}") from error


cli.add_command(install_mount_helper)


def _listening(
    registry: Registry, address: tuple[str, int] | None
) -> "contextlib.AbstractContextManager[MetricsServer | None]":
    if address is None:
        return contextlib.nullcontext()
    try:
        return serve_metrics(registry, *address)
    except OSError as error:
        raise click.ClickException(f"--listen: {error}") from error


def _announce(mounted: Mount, server: "MetricsServer | None") -> None:
    _say(f"statsfs: mounted at {mounted.mountpoint}")
    if server is not None:
        _say(f"statsfs: metrics at {server.url}")


def run(arguments: Sequence[str] | None = None, program: str = "statsfs") -> int:
    """Run a command; return the exit code.

    Args:
        arguments: its name and what follows; those of the process by default.
        program: who speaks in errors.
    """
    try:
        cli.main(arguments, prog_name="statsfs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "statsfs"
        return _fail(program, f"{error.format_message()} (see {command} --help)", _USAGE)
    except click.ClickException as error:
        return _fail(program, error.format_message())
    except StatsfsError as error:
        return _fail(program, str(error))
    except (Stopped, click.Abort, BrokenPipeError):
        silence()
    return _DONE


def _fail(program: str, message: str, code: int = _FAILED) -> int:
    click.echo(f"{program}: error: {' '.join(message.split())}", err=True)
    return code


def _say(text: str) -> None:
    try:
        click.echo(text)
    except OSError:
        silence()  # nobody reads it; a server goes on
