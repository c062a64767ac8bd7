"""The demo's screen: `statsfs top` on a terminal, elsewhere one line a second.

A process must not read its own mount from the thread that serves it, so top has a process of its
own. Where textual is not installed there is a live table in its place. Owns the totals and rates
that this and the lines show of a KVM, mock or real. Threading: main thread only, but for a thread
that waits for the end of top.
"""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import pairwise
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from statsfs.cli.signals import Stop
from statsfs.demo.machines import Kvm, Vm
from statsfs.demo.mock_kvm import VcpuStats, VmStats
from statsfs.demo.real_kvm import RealKvm
from statsfs.filesystem.mounting import Mount
from statsfs.model.counts import count_of
from statsfs.model.stats import values_of
from statsfs.model.values import Kind

__all__ = ["AnyScreen", "Screen", "TopScreen", "open_screen"]

_TOTALS: Final = (
    "exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections", "hypercalls",
    "pf_taken", "tlb_flush", "blocking", "pages_4k", "max_mmu_rmap_size",
)  # fmt: skip
# What guests of a few bytes move on one machine or another; kernels differ in what they count.
_REAL_TOTALS: Final = (
    "exits", "io_exits", "halt_exits", "irq_exits", "signal_exits", "insn_emulation", "fpu_reload",
    "host_state_reload", "req_event", "preemption_other", "mmu_cache_miss", "pages_4k",
)  # fmt: skip
_LINE: Final = ("exits", "io_exits", "halt_exits", "irq_exits")
_REAL_LINE: Final = ("exits", "io_exits", "halt_exits", "insn_emulation")
_VALUES: Final = (*values_of(VmStats), *values_of(VcpuStats))
_CUMULATIVE: Final = {value.name for value in _VALUES if value.kind is Kind.CUMULATIVE}
_VMS_SHOWN: Final = len(_TOTALS)
# Rates are taken over so many samples: a vCPU counts five times a second, so one would jitter.
_SMOOTH: Final = 4
_PATIENCE: Final = 5.0  # seconds


def open_screen(kvm: Kvm[Vm], mounted: Mount, stop: Stop) -> "AnyScreen":
    """Return the screen that there can be; `stop` is told when its user quits."""
    if importlib.util.find_spec("textual") and _has_terminal():
        return TopScreen(mounted, stop)
    return Screen(kvm)


def _has_terminal() -> bool:
    # In the background nothing may be read from a terminal.
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or Console().is_dumb_terminal:
        return False
    return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


class TopScreen:
    """`statsfs top` in a process of its own."""

    def __init__(self, mounted: Mount, stop: Stop) -> None:
        command = [sys.executable, "-m", "statsfs", "top", mounted.mountpoint]
        self._process = subprocess.Popen(command)

        def wait() -> None:
            self._process.wait()
            stop.tell()

        threading.Thread(target=wait, name="statsfs-demo-top", daemon=True).start()

    def show(self) -> None:
        """Do nothing: it reads the mount by itself."""

    def close(self) -> None:
        """End it; it gives the terminal back as it was."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Screen:
    """Some totals of a KVM and the exits of its VMs; OSError: the output has no reader any more."""

    def __init__(self, kvm: Kvm[Vm]) -> None:
        real = isinstance(kvm, RealKvm)
        names: tuple[str, ...] = _REAL_LINE if real else _LINE
        self._live: Live | None = None
        if sys.stdout.isatty() and not Console().is_dumb_terminal:
            names = _REAL_TOTALS if real else _TOTALS
            self._live = Live(console=Console(highlight=False), auto_refresh=False)
        shown = kvm.source.names()  # kernels differ
        self._kvm = kvm
        self._names = [name for name in names if name in shown]
        self._samples: deque[tuple[float, dict[str, int]]] = deque(maxlen=_SMOOTH)
        if self._live is None:
            self._take()  # so that the first line has a rate
        else:
            self._live.start()
            self.show()

    def show(self) -> None:
        """Show the numbers of now."""
        totals, exits = self._take()
        if self._live is not None:
            grid = Table.grid(padding=(0, 3))
            grid.add_row(self._list_totals(totals), self._list_vms(exits))
            self._live.update(grid, refresh=True)
            return
        numbers = (f"{name} {total} (+{self._rate(name):.0f}/s)" for name, total in totals.items())
        click.echo(f"{count_of(len(exits), 'VM'):5}  {'  '.join(numbers)}")

    def close(self) -> None:
        """Give the terminal back as it was."""
        if self._live is not None:
            self._live.stop()

    def _take(self) -> tuple[dict[str, int], dict[str, int]]:
        # Samples the totals, and the exits of each VM.
        totals = {name: self._kvm.source.get_value(name) for name in self._names}
        exits = {vm.name: vm.source.get_value("exits") for vm in self._kvm.vms}
        self._samples.append((time.monotonic(), totals | exits))
        return totals, exits

    def _rate(self, name: str) -> float:
        # Of a total, or of a VM's exits, by its name.
        points = [(moment, numbers[name]) for moment, numbers in self._samples if name in numbers]
        steps = [
            (end - begin, after - before) for (begin, before), (end, after) in pairwise(points)
        ]
        # A step back means that it was cleared, or that a VM went: what it grew by is not known.
        steps = [(seconds, grown) for seconds, grown in steps if grown >= 0]
        elapsed = sum(seconds for seconds, _ in steps)
        return sum(grown for _, grown in steps) / elapsed if elapsed else 0.0

    def _list_totals(self, totals: dict[str, int]) -> Table:
        table = _make_table("kvm", "total", "per second")
        for name, total in totals.items():
            rate = f"{self._rate(name):,.0f}" if name in _CUMULATIVE else ""
            table.add_row(name, f"{total:,}", rate)
        return table

    def _list_vms(self, exits: dict[str, int]) -> Table:
        table = _make_table("VM", "exits", "per second")
        # The newest ones: those that come and go are among them.
        shown = list(exits) if len(exits) <= _VMS_SHOWN else list(exits)[1 - _VMS_SHOWN :]
        if len(shown) < len(exits):
            table.add_row(f"… {len(exits) - len(shown)} more", "", "")
        for name in shown:
            table.add_row(name, f"{exits[name]:,}", f"{self._rate(name):,.0f}")
        return table


AnyScreen = Screen | TopScreen


def _make_table(first: str, *others: str) -> Table:
    numbers = (Column(title, justify="right", no_wrap=True) for title in others)
    name = Column(first, no_wrap=True, style="bold")
    return Table(name, *numbers, box=None, padding=(0, 1), pad_edge=False)
