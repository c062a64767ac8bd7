"""The mock KVM: virtual machines that count what real ones would.

Owns the `Stats` classes made from a real kernel's list (`data/kvm_stats.json`), and how they move:
every exit has a counter for its reason here, unlike a kernel's; others move with those exits.
Threading: each vCPU counts in its own thread, the only writer of its statistics; that of vCPU 0
also counts for the VM.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from random import Random
from typing import Any, Final

from statsfs.demo.machines import Kvm, Vcpu, Vm
from statsfs.model.fields import boolean, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Unit
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = ["EXIT_PARTS", "MockKvm", "MockVm", "VcpuStats", "VmStats"]

_CHUNK: Final = 1000  # exits between two looks at whether to stop: about a millisecond
_PID_MAX: Final = 1 << 22


def _stats_class(class_name: str, section: str) -> type[Stats]:
    data = files("statsfs") / "data"
    listed = json.loads((data / "kvm_stats.json").read_text())[section]
    described = json.loads((data / "kvm_descriptions.json").read_text())[section]
    doc = f"What KVM counts for a {section}: {len(listed)} values."
    namespace: dict[str, Any] = {"__doc__": doc, "__module__": __name__}
    for entry in listed:
        name, kind, unit = entry["name"], Kind[entry["kind"].upper()], Unit[entry["unit"].upper()]
        make = boolean if unit is Unit.BOOLEAN else u64
        total = Aggregate.MAX if kind is Kind.PEAK else Aggregate.SUM
        fields = {key: entry[key] for key in ("base", "exponent", "size", "bucket_size")}
        namespace[name] = make(total, kind=kind, unit=unit, description=described[name], **fields)
    return type(class_name, (Stats,), namespace)


VmStats: Final = _stats_class("VmStats", "vm")
VcpuStats: Final = _stats_class("VcpuStats", "vcpu")

_WEIGHTS: Final = {
    "io_exits": 20,
    "mmio_exits": 10,
    "signal_exits": 4,
    "irq_window_exits": 10,
    "nmi_window_exits": 1,
    "halt_exits": 20,
    "request_irq_exits": 4,
    "irq_exits": 30,
    "notify_window_exits": 1,
}
EXIT_PARTS: Final = tuple(_WEIGHTS)
"""The values of a vCPU whose sum is `exits`, at rest."""


def _count_exits(stats: Any, rng: Random, exits: int) -> None:
    # Counts some exits by their reasons, and what moves with each. The statistics are Any, here and
    # below: their attributes come from a file, which type checkers do not read.
    by_reason = Counter(rng.choices(EXIT_PARTS, list(_WEIGHTS.values()), k=exits))
    for name, number in by_reason.items():
        setattr(stats, name, getattr(stats, name) + number)
    stats.exits += exits
    stats.host_state_reload += by_reason["io_exits"]
    stats.fpu_reload += by_reason["signal_exits"]
    mmio = by_reason["mmio_exits"]
    stats.pf_taken += mmio
    stats.pf_emulate += mmio
    stats.insn_emulation += mmio
    stats.pf_mmio_spte_created += _draw(rng, mmio, 0.05)
    stats.insn_emulation_fail += _draw(rng, mmio, 0.005)
    irqs, nmis = by_reason["irq_window_exits"], by_reason["nmi_window_exits"]
    stats.irq_injections += irqs
    stats.nmi_injections += nmis
    stats.req_event += irqs + nmis + by_reason["request_irq_exits"]
    stats.preemption_reported += _draw(rng, by_reason["irq_exits"], 0.1)
    stats.preemption_other += _draw(rng, by_reason["irq_exits"], 0.05)
    for _ in range(by_reason["halt_exits"]):
        _count_halt(stats, rng.random())


def _draw(rng: Random, events: int, chance: float) -> int:
    # How many of some events happen that have a chance each.
    return sum(rng.random() < chance for _ in range(events))


def _count_halt(stats: Any, chance: float) -> None:
    # As kvm_vcpu_halt() does: each time that goes into a sum goes into its histogram as well.
    stats.halt_attempted_poll += 1
    if chance < 0.6:
        stats.halt_successful_poll += 1
        stats.halt_poll_invalid += chance < 0.03
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
            setattr(stats, value.name, rng.randint(1, min(value.type.maximum, 1_000_000)))


def _fill_vcpu(stats: Any, rng: Random) -> None:
    # A vCPU's values agree as they do in one that has run.
    _fill(stats, rng)
    for buckets in (stats.halt_poll_success_hist, stats.halt_poll_fail_hist):
        # Those of half a microsecond to a millisecond.
        buckets[10:21] = [rng.randint(1, 10_000) for _ in range(11)]
    # A wait follows each failed poll; here one that takes four times as long.
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
    # The sum of the times in the buckets if each is in the middle of its bucket.
    return sum(count * (3 << number >> 2) for number, count in enumerate(buckets))


class _MockVcpu(Vcpu):
    def __init__(self, name: str, stats: Stats, rng: Random, vm_stats: Stats | None) -> None:
        super().__init__(name)
        self._stats, self._rng, self._vm_stats = stats, rng, vm_stats

    def make_exits(self, exits: int) -> None:
        for done in range(0, exits, _CHUNK):
            if self.ended.is_set():
                return
            _count_exits(self._stats, self._rng, min(_CHUNK, exits - done))
        _run_guest(self._stats, self._rng, exits)
        if self._vm_stats is not None:
            _run_mmu(self._vm_stats, self._rng)


class MockVm(Vm):
    """A virtual machine; `stats` and `vcpu_stats` are its statistics and those of its vCPUs."""

    def __init__(self, pid: int, fd: int, vcpus: int, *, still: bool, rng: Random) -> None:
        self.stats = VmStats()
        self.vcpu_stats = tuple(VcpuStats() for _ in range(vcpus))
        if still:
            _fill(self.stats, rng)
        source = Source("%d-%d", pid, fd, label="vm")
        source.add_values(VmStats, self.stats)
        threads = []
        for number, stats in enumerate(self.vcpu_stats):
            own = Random(rng.getrandbits(64))
            if still:
                _fill_vcpu(stats, own)
            vm_stats = self.stats if number == 0 else None
            threads.append(_MockVcpu(f"{source.name}/vcpu{number}", stats, own, vm_stats))
            with Source("vcpu%d", number, label="vcpu") as vcpu:
                vcpu.add_values(VcpuStats, stats)
                source.add_subordinate(vcpu)
        super().__init__(source, threads)


class MockKvm(Kvm[MockVm]):
    """The top-level source `kvm` and mock virtual machines below it.

    Args:
        registry: where `kvm` is registered.
        rate: exits a second of each vCPU, finite and not below 0. At 0 nothing runs, and every
            value stands still at a number made from the seed that is not 0.
        seed: what names, numbers and the course of the exits are made from.
    """

    def __init__(self, registry: Registry, *, rate: float = 1000, seed: int = 0) -> None:
        self._rng = Random(seed)
        super().__init__(registry, rate, (VmStats, VcpuStats))

    def _make_vm(self, vcpus: int) -> MockVm:
        while True:
            pid, fd = self._rng.randrange(300, _PID_MAX), self._rng.randrange(10, 100)
            if f"{pid}-{fd}" not in self._vms:
                rng = Random(self._rng.getrandbits(64))
                return MockVm(pid, fd, vcpus, still=self._rate == 0, rng=rng)
