"""What `statsfs demo` does between mounting and unmounting: VMs that come and go, and a screen.

Owns the course of time: churn, refreshes, the end. On a terminal it shows a live table, elsewhere
one line a second. The VMs are mock ones or real ones: both are used alike.

Threading: main thread only; the vCPUs, mock or real, have threads of their own.
"""

import math
import os
import shlex
import sys
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Generic, Protocol, TypeVar

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from statsfs.cli.signals import Stop
from statsfs.demo.mock_kvm import VcpuStats, VmStats
from statsfs.demo.real_kvm import RealKvm
from statsfs.filesystem.mounting import Mount
from statsfs.model.stats import values_of
from statsfs.model.values import Kind
from statsfs.tree.source import Source

__all__ = ["Churn", "Kvm", "Vm", "commands_to_try", "create_vm", "run_demo", "silence"]

_TOTALS: Final = (
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_injections",
    "hypercalls",
    "pf_taken",
    "tlb_flush",
    "blocking",
    "pages_4k",
    "max_mmu_rmap_size",
)
# What guests of a few bytes move, on one machine or another; kernels differ in what they count.
_REAL_TOTALS: Final = (
    "exits",
    "io_exits",
    "halt_exits",
    "irq_exits",
    "signal_exits",
    "insn_emulation",
    "fpu_reload",
    "host_state_reload",
    "req_event",
    "preemption_other",
    "mmu_cache_miss",
    "pages_4k",
)
_CUMULATIVE: Final = {
    value.name
    for stats in (VmStats, VcpuStats)
    for value in values_of(stats)
    if value.kind is Kind.CUMULATIVE
}
_LINE: Final = ("exits", "io_exits", "halt_exits", "irq_exits")
_REAL_LINE: Final = ("exits", "io_exits", "halt_exits", "insn_emulation")
_VMS_SHOWN: Final = len(_TOTALS)
_REFRESH: Final = 1.0  # seconds
_POLL: Final = 0.2  # seconds until an unmount by others is noticed
# Rates are taken over so many refreshes: a vCPU counts five times a second, so one would jitter.
_SMOOTH: Final = 4


class Vm(Protocol):
    """A virtual machine, mock or real."""

    name: str
    source: Source


VmT = TypeVar("VmT", bound=Vm)


class Kvm(Protocol[VmT]):
    """What has virtual machines, mock or real."""

    source: Source

    @property
    def vms(self) -> tuple[VmT, ...]:
        """The living virtual machines, oldest first."""

    def create_vm(self, vcpus: int) -> VmT:
        """Create a virtual machine and start its vCPUs."""

    def destroy_vm(self, vm: VmT) -> None:
        """End a virtual machine, and remove it."""


def commands_to_try(kvm: str) -> tuple[str, str, str]:
    """Return three shell commands for another terminal: read, watch, clear.

    Args:
        kvm: the path of KVM's directory.
    """
    grep = f"grep -r --include=exits . {shlex.quote(kvm)}"
    exits = shlex.quote(f"{kvm}/exits")
    return f"cat {exits}", f"watch -n1 {shlex.quote(grep)}", f"echo 0 > {exits}"


def create_vm(kvm: Kvm[VmT], vcpus: int) -> VmT:
    """Create a VM, or say on one line that there are too many.

    Raises:
        click.ClickException: the machine gives no more threads, or KVM no more VMs.
    """
    most = len(kvm.vms) * vcpus
    try:
        return kvm.create_vm(vcpus)
    except RuntimeError:  # "can't start new thread"
        message = f"no more than {most} vCPUs: the system gives no more threads"
        raise click.ClickException(message) from None
    except OSError as error:
        what = f"no more than {most} vCPUs" if most else f"no VM of {vcpus} vCPUs"
        message = f"{what}: {error.strerror}"
        raise click.ClickException(message) from None


def silence() -> None:
    """Send stdout nowhere from now on: its reader went away.

    Else Python tries to write what is left when it ends, and ends with status 120.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Churn(Generic[VmT]):
    """One VM more that comes and goes, a full cycle every `period` seconds; never if it is 0.

    `due` is when `step` has something to do, on the monotonic clock; `kvm` is where.
    """

    def __init__(self, kvm: Kvm[VmT], vcpus: int, period: float) -> None:
        self.due = time.monotonic() if period else float("inf")
        self.kvm = kvm
        self._vcpus = vcpus
        self._half = period / 2
        self._vm: VmT | None = None

    def step(self, now: float) -> None:
        """Create or destroy the VM if it is time."""
        if now < self.due:
            return
        self.due = max(self.due + self._half, now)
        if self._vm is None:
            self._vm = create_vm(self.kvm, self._vcpus)
        else:
            self.kvm.destroy_vm(self._vm)
            self._vm = None


@dataclass(frozen=True)
class _Sample:
    moment: float
    totals: dict[str, int]
    exits: dict[str, int]  # by VM


class Screen(Protocol):
    """Where the demo shows what moves, once a second."""

    def show(self) -> None:
        """Show it as it is now; an OSError says that nobody looks any more."""

    def close(self) -> None:
        """Leave the screen as others may use it."""


class _Sampler:
    # Totals and rates, of the last few samples.

    def __init__(self, kvm: Kvm[Any]) -> None:
        self._kvm = kvm
        names = _REAL_TOTALS if isinstance(kvm, RealKvm) else _TOTALS
        self._names = [name for name in names if name in kvm.source.names()]
        self._samples: deque[_Sample] = deque(maxlen=_SMOOTH)

    def take(self) -> _Sample:
        sample = _Sample(
            time.monotonic(),
            {name: self._kvm.source.get_value(name) for name in self._names},
            {vm.name: vm.source.get_value("exits") for vm in self._kvm.vms},
        )
        self._samples.append(sample)
        return sample

    def total_rate(self, name: str) -> float:
        return self._rate([(s.moment, s.totals[name]) for s in self._samples])

    def vm_rate(self, name: str) -> float:
        return self._rate([(s.moment, s.exits[name]) for s in self._samples if name in s.exits])

    @staticmethod
    def _rate(points: list[tuple[float, int]]) -> float:
        elapsed = points[-1][0] - points[0][0]
        # A step back means that it was cleared, or that a VM went.
        grown = sum(max(0, after - before) for (_, before), (_, after) in pairwise(points))
        return grown / elapsed if elapsed else 0.0


class LineScreen:
    """One plain line for each moment, flushed at once."""

    def __init__(self, kvm: Kvm[Any]) -> None:
        self._names = _REAL_LINE if isinstance(kvm, RealKvm) else _LINE
        self._sampler = _Sampler(kvm)
        self._sampler.take()  # so that the first line has a rate

    def show(self) -> None:
        """Print the line."""
        sample = self._sampler.take()
        numbers = (
            f"{name} {sample.totals[name]} (+{self._sampler.total_rate(name):.0f}/s)"
            for name in self._names
            if name in sample.totals
        )
        vms = len(sample.exits)
        click.echo(f"{vms} VM{'s' if vms != 1 else ' '}  {'  '.join(numbers)}")

    def close(self) -> None:
        """Nothing is to be done."""


class LiveScreen:
    """A table on a terminal that is drawn anew in place."""

    def __init__(self, kvm: Kvm[Any]) -> None:
        self._kvm = kvm
        self._sampler = _Sampler(kvm)
        self._live = Live(console=Console(highlight=False), auto_refresh=False)
        self._live.start()
        self.show()

    def show(self) -> None:
        """Draw the table."""
        sample = self._sampler.take()
        grid = Table.grid(padding=(0, 3))
        grid.add_row(self._totals(sample), self._vms(sample))
        self._live.update(grid, refresh=True)

    def close(self) -> None:
        """Leave the last table where it is and give the cursor back."""
        self._live.stop()

    def _totals(self, sample: _Sample) -> Table:
        table = _table("kvm", "total", "per second")
        for name, total in sample.totals.items():
            rate = f"{self._sampler.total_rate(name):,.0f}" if name in _CUMULATIVE else ""
            table.add_row(name, f"{total:,}", rate)
        return table

    def _vms(self, sample: _Sample) -> Table:
        table = _table("VM", "exits", "per second")
        # The newest ones: those that come and go are among them.
        names = list(sample.exits)
        hidden = len(names) - _VMS_SHOWN
        if hidden > 0:
            names = names[hidden + 1 :]
            table.add_row(f"… {hidden + 1} more", "", "")
        for name in names:
            table.add_row(name, f"{sample.exits[name]:,}", f"{self._sampler.vm_rate(name):,.0f}")
        return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(first, no_wrap=True, style="bold")
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _new_screen(kvm: Kvm[Any], mounted: Mount) -> Screen:
    # The live table on a terminal that can move its cursor, plain lines elsewhere.
    if not sys.stdout.isatty() or Console().is_dumb_terminal:
        return LineScreen(kvm)
    click.echo("In another shell, try:")
    path = mounted.mountpoint
    for command in commands_to_try(path if mounted.root else f"{path}/{kvm.source.name}"):
        click.echo(f"  {command}")
    click.echo()
    return LiveScreen(kvm)


def run_demo(stop: Stop, mounted: Mount, churn: Churn[Any], duration: float | None) -> None:
    """Let time go by until told to stop, unmounted by others, or `duration` seconds have passed."""
    due = time.monotonic() + _REFRESH
    end = math.inf if duration is None else due - _REFRESH + duration
    try:
        with closing(_new_screen(churn.kvm, mounted)) as screen:
            while (now := time.monotonic()) < end and not mounted.wait(0):
                churn.step(now)
                if now >= due:
                    screen.show()
                    due = max(due + _REFRESH, now)
                if stop.wait(min(_POLL, due - now, churn.due - now, end - now)):
                    return
    except OSError:
        silence()
