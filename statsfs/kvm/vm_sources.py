"""The sources of one VM and its vCPUs, whatever way its numbers come.

Owns what a kernel counts, as it says itself (`Section`), and the directories `<pid>-<fd>/vcpu<n>`.
Numbers come as the blocks of statistics descriptors. A way that does not know some values has them
taken away: what was counted stays in the totals, and is taken back when they return. A way may have
only sums over all vCPUs (`ALL`). Then a hidden source has the sums, less the numbers that each vCPU
had before: the VM's totals add both.
Threading: one thread makes, shows, arranges and removes; any may `take`, but not while it shows.
"""

import struct
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from statsfs.formats.binary import Layout
from statsfs.kvm.kept import KeptTarget, KeptVm, Names, restore_rows
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.steal import SCHEDULER_VALUES
from statsfs.kvm.values import make_values
from statsfs.kvm.ways import ALL, Known
from statsfs.model.packed import PackedNumbers, Place
from statsfs.model.values import Value
from statsfs.tree.index import ClearRecorder
from statsfs.tree.late_refresh import list_at_once
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.retained import find_records
from statsfs.tree.source import Source, directory_of

__all__ = ["SCHEDULE_SIZE", "Section", "VmSources", "read_sections"]

_SLOT: Final = 8  # bytes of a number
_NUMBER: Final = struct.Struct("=Q")
_U64: Final = (1 << 64) - 1
SCHEDULE_SIZE: Final = _SLOT * len(SCHEDULER_VALUES)
"""How many bytes it has in a vCPU's block, of which it is the beginning."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """What the kernel counts for a VM, or for a vCPU.

    Attributes:
        size: how many bytes the block has.
        places: the values, and where they are in the block, by name.
        arrays: the same values: numbers, histograms, and what the scheduler counts, if there are
            some. A way knows all of an array, or shows nothing of it.
        plain: the names of those that are neither histograms nor the scheduler's.
    """

    size: int
    places: Mapping[str, Place]
    arrays: tuple[tuple[Value, ...], ...]
    plain: tuple[str, ...]

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
                one.name: Place(one, _SLOT * index) for index, one in enumerate(SCHEDULER_VALUES)
            }
            arrays.append(SCHEDULER_VALUES)
        return cls(
            start + layout.data_size,
            MappingProxyType(places),
            tuple(filter(None, arrays)),
            tuple(one.name for one in arrays[0]),
        )

    def pack(self, numbers: Mapping[str, int]) -> bytes:
        """Return a block with these numbers, and else zeros; unknown names are left out."""
        block = bytearray(self.size)
        for name, number in numbers.items():
            place = self.places.get(name)
            if place is not None and not place.value.histogram:
                _NUMBER.pack_into(block, place.offset, number & _U64)
        return bytes(block)


def read_sections(own: OwnVm) -> tuple[Section, Section]:
    """Return what the kernel counts for a VM, and for a vCPU; FormatError if it cannot be shown."""
    return Section.of(own.vm, schedule=False), Section.of(own.vcpu, schedule=True)


class _Target:
    # A VM or a vCPU: its source, and the base of its values.
    __slots__ = ("_section", "_shown", "numbers", "source")

    def __init__(self, source: Source, section: Section) -> None:
        self.source = source
        self.numbers = PackedNumbers(section.places, section.size)
        self._section = section
        self._shown: set[tuple[Value, ...]] = set()

    def keep_unknown(self, known: Collection[str]) -> None:
        """Have the last numbers of an array stay if one of its values is unknown."""
        arrays = self._section.arrays
        unknown = (values for values in arrays if not _are_known(values, known))
        self.numbers.keep(one.name for values in unknown for one in values)

    def show(self, known: Collection[str]) -> None:
        """Show the arrays of which all values are known; the others' last numbers stay."""
        self.keep_unknown(known)
        for values in self._section.arrays:
            if _are_known(values, known):
                if values not in self._shown:
                    self.source.add_values(values, self.numbers)
                    self._shown.add(values)
            elif values in self._shown:
                self.source.remove_values(values)
                self._shown.remove(values)

    def keep(self, vcpu: int | None) -> KeptTarget:
        """Return the numbers for another process."""
        return KeptTarget(vcpu, self.numbers.numbers, self.numbers.baselines)

    def restore(self, kept: KeptTarget) -> None:
        """Take the numbers of another process."""
        self.numbers.restore(kept.numbers, kept.baselines)


def _names(values: tuple[Value, ...]) -> list[str]:
    return [value.name for value in values]


def _are_known(values: tuple[Value, ...], known: Collection[str]) -> bool:
    return all(value.name in known for value in values)


class VmSources:
    """The sources of one VM: it, and its vCPUs.

    Args:
        name: that of debugfs, `<pid>-<fd>`.
        vm, vcpu: what the kernel counts.
        label_value: how Prometheus calls the VM.
        refresh: brings the numbers up to date, see `set_refresh`.
        recorder: that of all sources.

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
        recorder: ClearRecorder | None = None,
    ) -> None:
        self.source: Final = Source(
            name,
            label="vm",
            label_value=label_value,
            retain=True,
            collapse=False,
            refresh=refresh,
            recorder=recorder,
        )
        self._recorder = recorder
        list_at_once(self.source)
        self._own = _Target(self.source, vm)
        self._section = vcpu
        self._vcpus: dict[int, _Target] = {}
        self._declared: set[tuple[Value, ...]] = set()
        self._known: tuple[Collection[str], Collection[str]] = ((), ())

    @property
    def vcpus(self) -> Collection[int]:
        """The numbers of the vCPUs, and `ALL` if there are sums over all of them."""
        return self._vcpus.keys()

    def set_refresh(self, *, idle: bool, blocking: bool = False) -> None:
        """Choose whether reading this VM calls its own `refresh`, and whether that may block."""
        refresher = directory_of(self.source).refresher
        assert refresher is not None
        refresher.blocking, refresher.idle = blocking, idle
        if idle and refresher.failure is not None:
            refresher.settle(None)

    def show(self, known: Known, blocks: Mapping[int, bytes]) -> None:
        """Show the values that a way knows; `blocks` has its numbers of the vCPUs."""
        vm, vcpu = known
        self._known = (
            self._own._section.places.keys() if vm is None else vm,
            self._section.places.keys() if vcpu is None else vcpu,
        )
        self._own.show(self._known[0])
        together: _Target | None = None
        cleared: Collection[str] = ()
        if ALL not in blocks and set(self._section.plain) <= set(self._known[1]):
            together = self._vcpus.pop(ALL, None)
        if together is not None:
            cleared = together.numbers.cleared
            self._prepare(blocks, cleared)
        for values in self._section.arrays:  # before the first vCPU is there
            if values not in self._declared and _are_known(values, self._known[1]):
                self.source.add_values(values, None)
                self._declared.add(values)
        for target in self._each():
            target.show(self._known[1])
        if together is not None:
            self._part(together, blocks, cleared)

    def _each(self) -> list[_Target]:
        # From a copy: vCPUs may come while a reader's numbers are taken.
        return [target for number, target in list(self._vcpus.items()) if number != ALL]

    def _prepare(self, blocks: Mapping[int, bytes], cleared: Collection[str]) -> None:
        # The vCPUs are shown first with the numbers that the totals have of them: so these stay.
        # Values that were cleared meanwhile begin at 0: each vCPU's part is unknown.
        for number, target in self._vcpus.items():
            target.keep_unknown(self._known[1])
            numbers = target.numbers
            old, new = numbers.raw, blocks.get(number, numbers.raw)
            numbers.take(new)
            for name in cleared:
                numbers.clear_value(name)
            first = bytearray(new)
            for name, field in self._fields(self._section.plain):
                if name not in cleared:
                    cumulative = self._section.places[name].value.cumulative
                    first[field] = old[field] if cumulative else bytes(_SLOT)
            numbers.take(bytes(first))

    def _part(
        self, together: _Target, blocks: Mapping[int, bytes], cleared: Collection[str]
    ) -> None:
        # In one step, each vCPU gets its new numbers, and the sums lose them.
        left = bytearray(self._section.size)
        for _, field in self._fields(cleared):
            left[field] = together.numbers.block[field]

        def change_hands(change: TreeChange) -> None:
            change.set(together.numbers, "block", bytes(left))
            for number, target in self._vcpus.items():
                for step in target.numbers.steps(blocks.get(number, target.numbers.raw)):
                    change.do(*step)

        apply_change(change_hands)
        self._remove(together)

    def _fields(self, names: Iterable[str]) -> list[tuple[str, slice]]:
        # Returns where plain values are in a block.
        starts = ((name, self._section.places[name].offset) for name in names)
        return [(name, slice(start, start + _SLOT)) for name, start in starts]

    def _remove(self, target: _Target) -> None:
        self.source.remove_subordinate(target.source)
        target.source.put()

    def arrange(self, blocks: Mapping[int, bytes]) -> None:
        """Have just these vCPUs, of which new ones begin with these numbers."""
        for number in self._vcpus.keys() - blocks.keys() - {ALL}:
            self._remove(self._vcpus.pop(number))
        for number in sorted(blocks.keys() - self._vcpus.keys()):
            target = self._make_vcpu(number)
            if number == ALL:
                target.numbers.take(self._subtract(blocks[number]))
                target.show(self._section.plain)
            else:
                target.numbers.take(blocks[number])
                target.show(self._known[1])
            self._add(number, target)

    def _make_vcpu(self, number: int) -> _Target:
        recorder = self._recorder
        if number == ALL:
            source = Source("vcpus", hidden=True, recorder=recorder)
        else:
            source = Source("vcpu%d", number, label="vcpu", recorder=recorder)
        return _Target(source, self._section)

    def _add(self, number: int, target: _Target) -> None:
        self.source.add_subordinate(target.source)
        self._vcpus[number] = target

    def _subtract(self, block: bytes) -> bytes:
        # The totals have the earlier numbers of each vCPU, but for values that go up and down. A
        # sum below them shows that somebody cleared the kernel's own numbers.
        left = bytearray(block)
        for name, field in self._fields(self._section.plain):
            if self._section.places[name].value.cumulative:
                before = sum(_read(one.numbers.raw, field) for one in self._each())
                left[field] = max(_read(block, field) - before, 0).to_bytes(_SLOT, sys.byteorder)
        return bytes(left)

    def has_fallen(self, blocks: Mapping[int, bytes]) -> bool:
        """Tell whether a counter of a vCPU is less than before: then it is another VM's."""
        places = self._section.places
        cumulative = [name for name in self._section.plain if places[name].value.cumulative]
        return any(
            _read(block, field) < _read(self._vcpus[number].numbers.raw, field)
            for number, block in blocks.items()
            if number in self._vcpus
            for _, field in self._fields(cumulative)
        )

    def take(self, vcpu: int | None, block: bytes) -> None:
        """Take the numbers of a vCPU, or of the VM for None; of an unknown one they are dropped."""
        numbers = self.find(vcpu)
        if numbers is not None:
            numbers.take(self._subtract(block) if vcpu == ALL else block)

    def find(self, vcpu: int | None) -> PackedNumbers | None:
        """Return the base of a vCPU's values, or of the VM's for None; None for an unknown vCPU."""
        target = self._own if vcpu is None else self._vcpus.get(vcpu)
        return None if target is None else target.numbers

    # Takeovers

    def keep(self) -> tuple[Names, Names, list[KeptTarget]]:
        """Return the values that are known, those that ever were, and the numbers."""
        own = {value.name for values in self.source.retained for value in values}
        had = [one for one in self._own._section.arrays if own.issuperset(_names(one))]
        declared = [*self._own._shown, *had], [*self._declared]
        known = tuple(sorted(names) for names in self._known)
        ever = tuple(sorted({name for one in some for name in _names(one)}) for some in declared)
        targets = [self._own.keep(None), *(one.keep(n) for n, one in self._vcpus.items())]
        return (known[0], known[1]), (ever[0], ever[1]), targets

    def restore(self, kept: KeptVm) -> None:
        """Become what the sources of another process were, before they are in the tree.

        The values that the way does not know are shown first, and then taken away: so they return
        as they would have there.
        """
        self.show(kept.declared, {})
        for one in kept.targets:
            if one.vcpu is None:
                self._own.restore(one)
            else:
                target = self._make_vcpu(one.vcpu)
                target.restore(one)
                target.show(self._section.plain if one.vcpu == ALL else kept.declared[1])
                self._add(one.vcpu, target)
        vcpus = {number: target.numbers.raw for number, target in self._vcpus.items()}
        self.show(kept.known, vcpus)
        restore_rows(self.source, kept.retained)

    def clear_values(self, names: Collection[str]) -> None:
        """Clear the cumulative ones of these values, while they are not in the tree."""
        for name in names:
            apply_change(partial(self._forget, name))
        for target in (self._own, *self._vcpus.values()):
            for name in names:
                place = target._section.places.get(name)
                if place is not None and place.value.cumulative:
                    target.numbers.clear_value(name)

    def _forget(self, name: str, change: TreeChange) -> None:
        for record in find_records(self.source):
            for index, value in enumerate(record.array.values):
                if value.name == name:
                    record.clear(change, index)

    def put(self) -> None:
        """Put the sources."""
        for target in self._vcpus.values():
            target.source.put()
        self.source.put()


def _read(block: bytes, field: slice) -> int:
    return int.from_bytes(block[field], sys.byteorder)
