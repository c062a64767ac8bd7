"""The sources of one VM and its vCPUs, whatever way its numbers come.

Owns what a kernel counts, as it says itself (`Section`), and the directories `<pid>-<fd>/vcpu<n>`.
Numbers come as the blocks of statistics descriptors. A way that does not know some values has them
taken away: what was counted stays in the totals, and is taken back when they return.
Threading: one thread makes, arranges and removes; any may `take`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from statsfs.formats.binary import Layout
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.steal import SCHEDULER_VALUES
from statsfs.kvm.values import make_values
from statsfs.kvm.ways import Known
from statsfs.model.packed import PackedNumbers, Place
from statsfs.model.values import Value
from statsfs.tree.source import Source, directory_of

__all__ = ["SCHEDULE_SIZE", "Section", "VmSources", "read_sections"]

SCHEDULE_SIZE: Final = 8 * len(SCHEDULER_VALUES)
"""How many bytes it has in a vCPU's block, of which it is the beginning."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """What the kernel counts for a VM, or for a vCPU.

    Attributes:
        size: how many bytes the block has.
        places: the values, and where they are in the block, by name.
        arrays: the same values: numbers, histograms, and what the scheduler counts, if there are
            some. A way knows all of an array, or shows nothing of it.
    """

    size: int
    places: Mapping[str, Place]
    arrays: tuple[tuple[Value, ...], ...]

    @classmethod
    def of(cls, layout: Layout, schedule: bool) -> "Section":
        """Return what the layout of a statistics descriptor describes; FormatError if it cannot.

        With `schedule` the block begins with what the scheduler counts.
        """
        start = SCHEDULE_SIZE if schedule else 0
        values = make_values(layout.descriptors)
        placed = zip(values, layout.descriptors, strict=True)
        places = {value.name: Place(value, start + one.offset) for value, one in placed}
        arrays = [tuple(one for one in values if one.histogram is kind) for kind in (False, True)]
        if schedule:
            places |= {
                one.name: Place(one, 8 * index) for index, one in enumerate(SCHEDULER_VALUES)
            }
            arrays.append(SCHEDULER_VALUES)
        return cls(start + layout.data_size, MappingProxyType(places), tuple(filter(None, arrays)))


def read_sections(own: OwnVm) -> tuple[Section, Section]:
    """Return what the kernel counts for a VM, and for a vCPU; FormatError if it cannot be shown."""
    return Section.of(own.vm, schedule=False), Section.of(own.vcpu, schedule=True)


class _Target:
    # A VM or a vCPU: its source, and the base of its values.
    __slots__ = ("_kept", "_section", "_shown", "numbers", "source")

    def __init__(self, source: Source, section: Section) -> None:
        self.source = source
        self.numbers = PackedNumbers(section.places, section.size)
        self._section = section
        self._shown: set[tuple[Value, ...]] = set()
        self._kept: list[tuple[int, int]] = []  # where in a block is what is not shown

    def take(self, block: bytes) -> None:
        """Take numbers; of what is not shown the last ones stay, and so their baselines."""
        old = self.numbers.raw
        for start, end in self._kept:
            block = block[:start] + old[start:end] + block[end:]
        self.numbers.take(block)

    def show(self, known: Collection[str]) -> None:
        """Show the arrays of which all values are known."""
        places = self._section.places
        self._kept = [
            (places[one.name].offset, places[one.name].offset + 8 * one.size)
            for values in self._section.arrays
            if not _are_known(values, known)
            for one in values
        ]
        for values in self._section.arrays:
            if _are_known(values, known):
                if values not in self._shown:
                    self.source.add_values(values, self.numbers)
                    self._shown.add(values)
            elif values in self._shown:
                self.source.remove_values(values)
                self._shown.remove(values)


def _are_known(values: tuple[Value, ...], known: Collection[str]) -> bool:
    return all(value.name in known for value in values)


class VmSources:
    """The sources of one VM: it, and its vCPUs.

    Args:
        name: that of debugfs, `<pid>-<fd>`.
        vm, vcpu: what the kernel counts.
        label_value: how Prometheus calls the VM.
        refresh: brings the numbers up to date, see `set_refresh`.

    Attributes:
        source: the VM's.
    """

    def __init__(
        self,
        name: str,
        vm: Section,
        vcpu: Section,
        *,
        label_value: str,
        refresh: Callable[[], object],
    ) -> None:
        self.source: Final = Source(
            name,
            label="vm",
            label_value=label_value,
            retain=True,
            collapse=False,
            refresh=refresh,
        )
        self._own = _Target(self.source, vm)
        self._section = vcpu
        self._vcpus: dict[int, _Target] = {}
        self._declared: set[tuple[Value, ...]] = set()
        self._known: tuple[Collection[str], Collection[str]] = ((), ())

    @property
    def vcpus(self) -> Collection[int]:
        """The numbers of the vCPUs."""
        return self._vcpus.keys()

    def set_refresh(self, *, idle: bool, blocking: bool = False) -> None:
        """Choose whether reading this VM calls its own `refresh`, and whether that may block."""
        refresher = directory_of(self.source).refresher
        assert refresher is not None
        refresher.blocking, refresher.idle = blocking, idle
        if idle and refresher.failure is not None:
            refresher.settle(None)

    def show(self, known: Known) -> None:
        """Show the values that a way knows."""
        vm, vcpu = known
        self._known = (
            self._own._section.places.keys() if vm is None else vm,
            self._section.places.keys() if vcpu is None else vcpu,
        )
        self._own.show(self._known[0])
        for values in self._section.arrays:  # before the first vCPU is there
            if values not in self._declared and _are_known(values, self._known[1]):
                self.source.add_values(values, None)
                self._declared.add(values)
        for target in self._vcpus.values():
            target.show(self._known[1])

    def arrange(self, blocks: Mapping[int, bytes]) -> None:
        """Have just these vCPUs, of which new ones begin with these numbers."""
        for number in self._vcpus.keys() - blocks.keys():
            gone = self._vcpus.pop(number)
            self.source.remove_subordinate(gone.source)
            gone.source.put()
        for number in sorted(blocks.keys() - self._vcpus.keys()):
            target = _Target(Source("vcpu%d", number, label="vcpu"), self._section)
            target.numbers.take(blocks[number])
            target.show(self._known[1])
            self.source.add_subordinate(target.source)
            self._vcpus[number] = target

    def take(self, vcpu: int | None, block: bytes, *, scheduled: bool = True) -> None:
        """Take the numbers of a vCPU, or of the VM for None; those of an unknown one are dropped.

        Unless `scheduled`, what the scheduler counted stays as it was: the thread has ended.
        """
        target = self._own if vcpu is None else self._vcpus.get(vcpu)
        if target is not None:
            if not scheduled:
                block = target.numbers.raw[:SCHEDULE_SIZE] + block[SCHEDULE_SIZE:]
            target.take(block)

    def put(self) -> None:
        """Put the sources."""
        for target in self._vcpus.values():
            target.source.put()
        self.source.put()
