"""The mock KVM: virtual machines that come, work and go, as a producer of real statistics.

Owns the `Stats` classes made from a real kernel's list (`data/kvm_stats.json`), the threads that
count in them, and the tree they stand in, `kvm/<pid>-<fd>/vcpu<n>`. It is written on the public
API alone, in the order of the proposal's example: create, add values, add subordinate, put.

What moves. Each vCPU has a thread of its own that makes exits at the given rate, and nobody else
writes what it counts. At rest `exits` is exactly the sum of the values named in `EXIT_PARTS`: every
exit has one reason here, while a real kernel also has exits without a counter of their own. The
other counters move with the exits that cause them; the histograms of halts have as many
observations as there were polls that succeeded, polls that failed and wake-ups. The VM's own values
are driven by the thread of its vCPU 0, so they have one writer too.

Threading: `MockKvm` may be used from any thread; a VM is destroyed once its threads have ended.
"""

import json
import math
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import accumulate
from random import Random
from threading import Event, Lock, Thread
from types import TracebackType, new_class
from typing import Any, Final, Self

from statsfs.exceptions import ReleasedError
from statsfs.model.stats import Stats, boolean, u64, values_of
from statsfs.model.values import Aggregate, Kind, Unit
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["EXIT_PARTS", "MockKvm", "MockVm", "VcpuStats", "VmStats"]

_TICK: Final = 0.2  # seconds from one batch of exits to the next
_CHUNK: Final = 1000  # exits between two looks at whether to stop: about a millisecond
_PID_MAX: Final = 1 << 22
_BUSY_BUCKETS: Final = range(10, 21)  # those of half a microsecond to a millisecond


def _stats_class(name: str, section: str, doc: str) -> type[Stats]:
    data = files("statsfs") / "data"
    listed = json.loads((data / "kvm_stats.json").read_text())[section]
    described = json.loads((data / "kvm_descriptions.json").read_text())[section]
    namespace: dict[str, Any] = {"__doc__": doc, "__module__": __name__}
    for entry in listed:
        kind, unit = Kind[entry["kind"].upper()], Unit[entry["unit"].upper()]
        namespace[entry["name"]] = (boolean if unit is Unit.BOOLEAN else u64)(
            Aggregate.MAX if kind is Kind.PEAK else Aggregate.SUM,
            kind=kind,
            unit=unit,
            base=entry["base"],
            exponent=entry["exponent"],
            size=entry["size"],
            bucket_size=entry["bucket_size"],
            description=described[entry["name"]],
        )
    made: type[Stats] = new_class(name, (Stats,), exec_body=lambda body: body.update(namespace))
    return made


VmStats: Final = _stats_class("VmStats", "vm", "What KVM counts for a VM: 16 values.")
VcpuStats: Final = _stats_class(
    "VcpuStats", "vcpu", "What KVM counts for a vCPU: 47 values, three of which are histograms."
)

EXIT_PARTS: Final = tuple(v.name for v in values_of(VcpuStats) if v.name.endswith("_exits"))
"""The vCPU's values that `exits` is the sum of, at rest."""


# One function for each reason of an exit, and two for each tick. They take the statistics as Any:
# the attributes come from a file, so no type checker knows them.


def _io(stats: Any, _rng: Random) -> None:
    stats.io_exits += 1
    stats.host_state_reload += 1


def _mmio(stats: Any, rng: Random) -> None:
    stats.mmio_exits += 1
    stats.pf_taken += 1
    stats.pf_emulate += 1
    stats.insn_emulation += 1
    chance = rng.random()
    if chance < 0.05:
        stats.pf_mmio_spte_created += 1
    elif chance > 0.995:
        stats.insn_emulation_fail += 1


def _signal(stats: Any, _rng: Random) -> None:
    stats.signal_exits += 1
    stats.fpu_reload += 1


def _irq_window(stats: Any, _rng: Random) -> None:
    stats.irq_window_exits += 1
    stats.req_event += 1
    stats.irq_injections += 1


def _nmi_window(stats: Any, _rng: Random) -> None:
    stats.nmi_window_exits += 1
    stats.req_event += 1
    stats.nmi_injections += 1


def _halt(stats: Any, rng: Random) -> None:
    # As kvm_vcpu_halt() does: each time that goes into a sum goes into its histogram as well.
    stats.halt_exits += 1
    stats.halt_attempted_poll += 1
    chance = rng.random()
    if chance < 0.6:
        stats.halt_successful_poll += 1
        if chance < 0.03:
            stats.halt_poll_invalid += 1
        polled = int(chance * 100_000)
        stats.halt_poll_success_ns += polled
        stats.halt_poll_success_hist.observe(polled)
        return
    polled, waited = 200_000, int(chance * 1_000_000)
    stats.halt_poll_fail_ns += polled
    stats.halt_poll_fail_hist.observe(polled)
    stats.halt_wait_ns += waited
    stats.halt_wait_hist.observe(waited)
    stats.halt_wakeup += 1


def _request_irq(stats: Any, _rng: Random) -> None:
    stats.request_irq_exits += 1
    stats.req_event += 1


def _irq(stats: Any, rng: Random) -> None:
    stats.irq_exits += 1
    chance = rng.random()
    if chance > 0.9:
        stats.preemption_reported += 1
    elif chance > 0.85:
        stats.preemption_other += 1


def _notify_window(stats: Any, _rng: Random) -> None:
    stats.notify_window_exits += 1


_WEIGHTS: Final = {
    _io: 20,
    _mmio: 10,
    _signal: 4,
    _irq_window: 10,
    _nmi_window: 1,
    _halt: 20,
    _request_irq: 4,
    _irq: 30,
    _notify_window: 1,
}
_REASONS: Final = tuple(_WEIGHTS)
_CUMULATED: Final = tuple(accumulate(_WEIGHTS.values()))


def _run_guest(stats: Any, rng: Random, exits: int) -> None:
    # What a vCPU counts between its exits, once a tick: page faults, flushes, hypercalls, guests.
    some = 1 + exits // 20
    stats.l1d_flush += exits
    stats.pf_taken += 3 * some
    stats.pf_fixed += 2 * some
    stats.pf_fast += some
    stats.pf_spurious += rng.randrange(2)
    stats.pf_guest += rng.randrange(3)
    stats.pf_parked += 1
    stats.pf_park_timeouts += rng.random() < 0.1
    stats.tlb_flush += some
    stats.invlpg += rng.randrange(some + 1)
    stats.hypercalls += some
    stats.directed_yield_attempted += 1
    stats.directed_yield_successful += rng.randrange(2)
    stats.guest_mode = rng.randrange(2)
    stats.nested_run += stats.guest_mode
    stats.blocking = rng.randrange(2)


def _run_mmu(stats: Any, rng: Random) -> None:
    # What a VM counts in a tick, whatever its vCPUs do.
    flushes = rng.randrange(1, 5)
    stats.remote_tlb_flush_requests += flushes
    stats.remote_tlb_flush += rng.randrange(1, flushes + 1)
    stats.mmu_kicks_spared += rng.randrange(3)
    stats.mmu_cache_miss += rng.randrange(1, 4)
    stats.mmu_pte_write += rng.randrange(10)
    stats.mmu_pde_zapped += rng.randrange(2)
    stats.mmu_shadow_zapped += rng.randrange(3)
    stats.mmu_flooded += rng.randrange(2)
    stats.mmu_recycled += rng.randrange(2)
    stats.mmu_unsync = rng.randrange(8)
    stats.pages_4k = max(0, stats.pages_4k + rng.randrange(-50, 60))
    stats.pages_2m = max(0, stats.pages_2m + rng.randrange(-5, 7))
    stats.pages_1g = rng.randrange(1, 3)
    stats.nx_lpage_splits = max(0, stats.nx_lpage_splits + rng.randrange(-2, 4))
    stats.max_mmu_rmap_size = max(stats.max_mmu_rmap_size, int(rng.expovariate(0.1)))
    collisions = int(rng.expovariate(0.5))
    stats.max_mmu_page_hash_collisions = max(stats.max_mmu_page_hash_collisions, collisions)


def _fill(stats: Stats, rng: Random) -> None:
    # What a VM that stands still shows: no value is 0, and the sums can be checked.
    for value in values_of(type(stats)):
        if not value.histogram:
            highest = min(value.type.maximum, 1_000_000)
            setattr(stats, value.name, rng.randint(1, highest))


def _fill_vcpu(stats: Any, rng: Random) -> None:
    # A vCPU's values agree as they do in one that has run.
    _fill(stats, rng)
    for buckets in (stats.halt_poll_success_hist, stats.halt_poll_fail_hist):
        for bucket in _BUSY_BUCKETS:
            buckets[bucket] = rng.randint(1, 10_000)
    # Each poll that fails is followed by a wait; here one that takes four times as long.
    stats.halt_wait_hist[2:] = stats.halt_poll_fail_hist[:-2]
    stats.halt_poll_success_ns = _sum_times(stats.halt_poll_success_hist)
    stats.halt_poll_fail_ns = _sum_times(stats.halt_poll_fail_hist)
    stats.halt_wait_ns = _sum_times(stats.halt_wait_hist)
    stats.halt_successful_poll = sum(stats.halt_poll_success_hist)
    stats.halt_wakeup = sum(stats.halt_wait_hist)
    stats.halt_attempted_poll = stats.halt_successful_poll + stats.halt_wakeup
    stats.halt_exits = stats.halt_attempted_poll
    stats.halt_poll_invalid = rng.randint(1, stats.halt_successful_poll)
    stats.exits = sum(getattr(stats, part) for part in EXIT_PARTS)


def _sum_times(buckets: Sequence[int]) -> int:
    # What the times in the buckets add up to if each is in the middle of its bucket.
    return sum(count * (3 << number >> 2) for number, count in enumerate(buckets))


class _Vcpu:
    # A vCPU: its statistics, and the thread that counts in them.

    def __init__(self, stats: Any, rng: Random, rate: float, vm_stats: Any, name: str) -> None:
        self.stats = stats
        self._rng = rng
        self._rate = rate
        self._vm_stats = vm_stats
        self.stop = Event()
        self.thread = Thread(target=self._run, name=name, daemon=True)
        if rate == 0:
            _fill_vcpu(stats, rng)

    def _run(self) -> None:
        owed = 0.0
        before = time.monotonic()
        # The first tick is of random length, so that the vCPUs do not all wake at once.
        tick = self._rng.random() * _TICK
        while not self.stop.wait(tick):
            now = time.monotonic()
            # What a machine that is too slow does not manage in a second is forgotten.
            owed = min(owed + (now - before) * self._rate, max(self._rate, 1.0))
            before, tick = now, _TICK
            exits = int(owed)
            owed -= exits
            self._exit(exits)
            _run_guest(self.stats, self._rng, exits)
            if self._vm_stats is not None:
                _run_mmu(self._vm_stats, self._rng)

    def _exit(self, exits: int) -> None:
        stats, rng = self.stats, self._rng
        for done in range(0, exits, _CHUNK):
            if self.stop.is_set():
                return
            chunk = min(_CHUNK, exits - done)
            for reason in rng.choices(_REASONS, cum_weights=_CUMULATED, k=chunk):
                stats.exits += 1
                reason(stats, rng)


class MockVm:
    """A virtual machine: its source, its statistics and those of its vCPUs.

    `name` is `<pid>-<fd>`; `stats` is a `VmStats`, `vcpus` are `VcpuStats`, vCPU 0 first. Made by
    `MockKvm.create_vm`, ended by `MockKvm.destroy_vm`.
    """

    def __init__(
        self, kvm: Source, pid: int, fd: int, vcpus: int, *, rate: float, rng: Random
    ) -> None:
        self.name = f"{pid}-{fd}"
        self.stats = VmStats()
        if rate == 0:
            _fill(self.stats, rng)
        self.source = Source("%d-%d", pid, fd, label="vm")
        self.source.add_values(VmStats, self.stats)
        kvm.add_subordinate(self.source)
        self._vcpus: list[_Vcpu] = []
        for number in range(vcpus):
            driven = self.stats if number == 0 else None
            own = Random(rng.getrandbits(64))
            vcpu = _Vcpu(VcpuStats(), own, rate, driven, f"{self.name}/vcpu{number}")
            self._vcpus.append(vcpu)
            source = Source("vcpu%d", number, label="vcpu")
            source.add_values(VcpuStats, vcpu.stats)
            self.source.add_subordinate(source)
            # No need to keep it: a vCPU goes with its VM, and the tree has the only reference.
            source.put()

    @property
    def vcpus(self) -> tuple[Stats, ...]:
        """The statistics of the vCPUs, in order."""
        return tuple(vcpu.stats for vcpu in self._vcpus)

    def start(self) -> None:
        """Start the vCPUs' threads."""
        for vcpu in self._vcpus:
            vcpu.thread.start()

    def stop(self) -> None:
        """Tell the vCPUs' threads to stop."""
        for vcpu in self._vcpus:
            vcpu.stop.set()

    def join(self) -> None:
        """Wait until the vCPUs' threads have ended; `stop` ends them."""
        for vcpu in self._vcpus:
            if vcpu.thread.ident is not None:
                vcpu.thread.join()


class MockKvm:
    """The top-level source `kvm` and the virtual machines below it; a context manager that closes.

    Args:
        registry: where `kvm` is registered.
        rate: exits a second of each vCPU. At 0 nothing runs, and every value stands still at a
            number made from the seed that is not 0 (the booleans at 1, the histograms with
            observations in some of their buckets).
        seed: what names, numbers and the course of the exits are made from.

    Raises:
        ValueError: the rate is below 0 or not finite.
        DuplicateNameError: the registry has a `kvm` already.
    """

    def __init__(self, registry: Registry, *, rate: float = 1000, seed: int = 0) -> None:
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"a rate of {rate} exits a second")
        self.source = Source("kvm")
        # The totals are there, and 0, before the first VM and after the last, as KVM's are.
        self.source.add_values(VmStats, None)
        self.source.add_values(VcpuStats, None)
        registry.register(self.source)
        self._registry = registry
        self._rate = rate
        self._rng = Random(seed)
        self._closed = False
        self._lock = Lock()  # VMs come and go one at a time
        self._vms: dict[str, MockVm] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def vms(self) -> tuple[MockVm, ...]:
        """The living virtual machines, oldest first."""
        return tuple(self._vms.values())

    def create_vm(self, vcpus: int) -> MockVm:
        """Create a virtual machine and start its vCPUs.

        Raises:
            ValueError: fewer than 0 vCPUs.
            ReleasedError: after `close`.
            RuntimeError: no more threads can be started; the VM is gone again.
        """
        if vcpus < 0:
            raise ValueError(f"a VM of {vcpus} vCPUs")
        with self._lock:
            if self._closed:
                raise ReleasedError("create_vm() after close()", self.source)
            pid, fd = self._new_name()
            rng = Random(self._rng.getrandbits(64))
            vm = MockVm(self.source, pid, fd, vcpus, rate=self._rate, rng=rng)
            self._vms[vm.name] = vm
            try:
                if self._rate:
                    vm.start()
            except RuntimeError:
                self._destroy(vm)
                raise
        return vm

    def destroy_vm(self, vm: MockVm) -> None:
        """Stop a virtual machine's threads and remove it; its vCPUs go with it.

        Raises:
            ValueError: it is gone already, or not of this KVM.
        """
        with self._lock:
            if self._vms.get(vm.name) is not vm:
                raise ValueError(f"no living VM here: {vm.name}")
            self._destroy(vm)

    def close(self) -> None:
        """Destroy every VM and unregister `kvm`; once closed, closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for vm in self.vms:
                vm.stop()
            for vm in self.vms:
                self._destroy(vm)
            self._registry.unregister(self.source)
            self.source.put()

    def _new_name(self) -> tuple[int, int]:
        while True:
            pid, fd = self._rng.randrange(300, _PID_MAX), self._rng.randrange(10, 100)
            if f"{pid}-{fd}" not in self._vms:
                return pid, fd

    def _destroy(self, vm: MockVm) -> None:
        vm.stop()
        vm.join()
        self.source.remove_subordinate(vm.source)
        vm.source.put()
        del self._vms[vm.name]
