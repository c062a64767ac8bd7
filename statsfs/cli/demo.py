"""`statsfs demo`: VMs that work, come and go in a mount, until the end.

Owns the command, its options, and the course of time. The VMs are mock ones or real ones.
Threading: main thread only; the vCPUs have threads of their own.
"""

import math
import shlex
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import repeat
from typing import Final

import click

from statsfs.cli import serving
from statsfs.cli.demo_screen import AnyScreen, open_screen
from statsfs.cli.paths import PATH
from statsfs.cli.signals import Stop
from statsfs.demo.machines import Kvm, Vm
from statsfs.demo.mock_kvm import MockKvm
from statsfs.demo.real_kvm import RealKvm
from statsfs.filesystem.mounting import Mount, mount
from statsfs.model.counts import count_of
from statsfs.tree.registry import Registry

__all__ = ["demo"]

_REFRESH: Final = 1.0  # seconds
_MOST: Final = 10_000  # vCPUs: far more would keep Python's main thread from its signals


@click.command(epilog=serving.EPILOG, context_settings={"show_default": True})
@click.argument("mountpoint", type=PATH, shell_complete=serving.complete_directory)
@click.option("--vms", type=click.IntRange(0), default=4, help="VMs that stay.")
@click.option("--vcpus", type=click.IntRange(1), default=4, help="vCPUs of each VM.")
@click.option(
    "--rate",
    type=serving.Number(0),
    default=1000,
    metavar="EVENTS_PER_SECOND",
    help="VM exits of each vCPU; 0 holds every counter still at a number that is not 0.",
)
@click.option(
    "--churn",
    type=serving.Number(0),
    default=0,
    metavar="SECONDS",
    help="One VM more comes and goes, a full cycle in so many seconds; not if it is 0.",
)
@click.option("--seed", type=int, default=0, help="Names and numbers are made from it.")
@click.option(
    "--for",
    "duration",
    type=serving.Number(0),
    metavar="SECONDS",
    help="End by itself; without it, at SIGINT (Ctrl-C), SIGTERM or SIGHUP.",
)
@click.option(
    "--real",
    is_flag=True,
    help="Run real guests of a few bytes through /dev/kvm, not mock ones; the seed has no effect.",
)
@serving.root_option
@serving.listen_option
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
    afterwards. A terminal gets `statsfs top` of them, other outputs one line a second.

    \b
    Examples:
      statsfs demo ./stats
      statsfs demo ./stats --vms 8 --vcpus 2 --churn 5
      statsfs demo ./stats --rate 0 --seed 7 --for 60
      statsfs demo ./stats --real --vms 2
    """
    if vms * vcpus > _MOST:
        what = f"{count_of(vms, 'VM')} of {count_of(vcpus, 'vCPU')}"
        raise click.UsageError(f"{what}: no more than {_MOST} vCPUs, as each is a thread")
    stop = Stop()
    registry = Registry()
    with _make_kvm(registry, real, rate, seed) as kvm:
        for _ in range(vms):
            if not stop.wait(0):
                _create_vm(kvm, vcpus)
        with (
            serving.listening(registry, listen) as server,
            mount(registry, mountpoint, create=True, root=root) as mounted,
        ):
            if server is not None:
                server.resume()
            serving.announce(mounted, server, serving.say)
            _suggest(mounted)
            serving.stop_when_unmounted(stop, mounted)
            churning = _churn(kvm, vcpus, churn) if churn else repeat(math.inf)
            try:
                with closing(open_screen(kvm, mounted, stop)) as screen:
                    _run(stop, screen, churning, math.inf if duration is None else duration)
            except OSError:
                serving.silence()
    serving.say(f"unmounted {mounted.mountpoint}")


def _suggest(mounted: Mount) -> None:
    # Two lines, and so that each command can be pasted into any shell. Without the extra `record`,
    # its command says what to install.
    root = shlex.quote(mounted.mountpoint)
    kvm = root if mounted.root else shlex.quote(f"{mounted.mountpoint}/kvm")
    looking = f"statsfs top {root}; statsfs stat -p {root} -- sleep 5"
    serving.say(f"try: {looking}; statsfs record -o demo.parquet -p {root} -- sleep 5")
    serving.say(f"try: cat {kvm}/exits; cat {kvm}/.stats.json; echo 0 > {kvm}/exits")


def _make_kvm(registry: Registry, real: bool, rate: float, seed: int) -> Kvm[Vm]:
    if not real:
        return MockKvm(registry, rate=rate, seed=seed)
    serving.raise_descriptor_limit()  # a real vCPU takes three descriptors
    try:
        return RealKvm(registry, rate=rate)
    except OSError as error:
        raise click.ClickException(f"--real: /dev/kvm cannot be used: {error.strerror}") from error


def _create_vm(kvm: Kvm[Vm], vcpus: int) -> Vm:
    # Creates a VM, or says on one line that there are too many.
    most = len(kvm.vms) * vcpus
    what = (
        f"no more than {count_of(most, 'vCPU')}" if most else f"no VM of {count_of(vcpus, 'vCPU')}"
    )
    try:
        return kvm.create_vm(vcpus)
    except (RuntimeError, OSError) as error:  # RuntimeError: "can't start new thread"
        why = error.strerror if isinstance(error, OSError) else "the system has no more threads"
        raise click.ClickException(f"{what}: {why}") from None


def _churn(kvm: Kvm[Vm], vcpus: int, period: float) -> Iterator[float]:
    # One VM more comes and goes, a full cycle every `period` seconds; yields when to go on.
    due = time.monotonic()
    while True:
        vm = _create_vm(kvm, vcpus)
        yield (due := max(due + period / 2, time.monotonic()))
        kvm.destroy_vm(vm)
        yield (due := max(due + period / 2, time.monotonic()))


def _run(stop: Stop, screen: AnyScreen, churning: Iterator[float], duration: float) -> None:
    # Returns when told to stop, or after `duration` seconds; OSError: the output has no reader.
    begun = time.monotonic()
    end, refresh_due, churn_due = begun + duration, begun + _REFRESH, begun
    while (now := time.monotonic()) < end:
        if now >= churn_due:
            churn_due = next(churning)
        if now >= refresh_due:
            screen.show()
            refresh_due = max(refresh_due + _REFRESH, now)
        if stop.wait(min(refresh_due, churn_due, end) - now):
            return
