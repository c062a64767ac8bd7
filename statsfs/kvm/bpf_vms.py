"""The VMs that BPF finds: the rows of each VM in a pass, and its name.

Owns how often a pass is made for readers: a new one costs a fraction of a millisecond, whatever
they read, and one of 20 ms before is as good. Threading: `look`, `bind`, `unbind` and `forget`
belong to one thread; any may `refresh`.
"""

import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from statsfs.exceptions import KvmError
from statsfs.kvm.bpf import BpfIterator, BpfPass, BpfRow
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.scanning import find_process
from statsfs.kvm.vm_sources import SCHEDULE_SIZE, VmSources
from statsfs.kvm.ways import FoundVm, Known, Numbers, Which
from statsfs.model.packed import PackedNumbers, Target

__all__ = ["BpfVms"]

_FRESH: Final = 0.02  # seconds for which a pass is new enough
_TRIES: Final = 10  # passes of one look, while uevents come
_VM: Final = re.compile(rb"kvm-(\d{1,10})\0*")


@dataclass(slots=True, eq=False)
class _Seen:
    # What a pass has of one VM.
    id: bytes = b""
    block: bytes | None = None
    places: list[tuple[int, int]] = field(default_factory=list)
    vcpus: dict[int, bytes] = field(default_factory=dict)


_Bound = dict[int, tuple[bytes, VmSources]]  # by the VM's address: its id, and its sources


class BpfVms:
    """All VMs of this host, by one iterator, which it closes.

    Args:
        iterator: what reads them.
        changed: called where a reader's pass had other VMs or vCPUs than the last look.
        behind: tells whether there are unheard uevents. The kernel tells the end of a VM before it
            frees it. So, if there are none, a pass has the same VM at an address as before.
    """

    name = "bpf"
    known: Known = (None, None)
    blocking = False

    def __init__(
        self,
        iterator: BpfIterator,
        changed: Callable[[], object],
        behind: Callable[[], bool] = lambda: False,
    ) -> None:
        self._iterator = iterator
        self._changed = changed
        self._behind = behind
        self._lock = threading.Lock()
        self._closed = False
        self._passed = 0.0
        self._rows = 0  # of the last look
        self._names: dict[object, str] = {}  # by key: the VM's address, and its id
        self._bound: _Bound = {}
        # The last pass, the bound VMs then, and for each of its rows the target of the block.
        self._last: tuple[BpfPass | None, _Bound, list[Target | None]] = (None, self._bound, [])

    def close(self) -> None:
        """Unload the program."""
        with self._lock:
            self._bound = {}
            self._closed = True
            self._iterator.close()

    def refresh(self) -> None:
        """Bring the numbers of all bound VMs up to date; OSError if that fails."""
        with self._lock:
            if time.monotonic() - self._passed < _FRESH:
                return
            found = self._pass()
            if self._behind():
                return  # a VM that has ended may have left its address to another
            self._take(found)
        if len(found.rows) != self._rows:
            self._changed()

    def freeze(self, until: float) -> None:
        """Have `refresh` leave the numbers as they are until some moment."""
        with self._lock:
            self._passed = until - _FRESH

    def read(self, name: str, which: Which = None) -> Numbers:
        """Bring all up to date, for a reader who comes as a VM moves; there is nothing to take."""
        self.refresh()
        return None, {}

    def _pass(self) -> BpfPass:
        if self._closed:  # its number may be another file's by now
            raise KvmError("BPF has ended")
        found = self._iterator.read(self._last[0])
        self._passed = time.monotonic()
        return found

    def _take(self, found: BpfPass) -> None:
        before, bound, targets = self._last
        if before is None or before.rows is not found.rows or bound is not self._bound:
            bound = self._bound
            targets = [_find_target(row, bound) for row in found.rows]
        self._last = (found, bound, targets)
        PackedNumbers.take_all(targets, found.blocks)

    def look(
        self, told: Collection[str], hear: Callable[[], object] | None = None
    ) -> list[FoundVm]:
        """Return all VMs; OSError if the kernel refuses.

        Args:
            told: the names of VMs that uevents told.
            hear: called if there are more of them meanwhile, before the next try.
        """
        for left in reversed(range(_TRIES if hear else 1)):
            with self._lock:
                passed = self._pass()
                if not self._behind():
                    self._take(passed)
                    break
            if left and hear:
                hear()
        self._rows = len(passed.rows)
        names: dict[object, str] = {}
        found = []
        for kvm, seen in _group(passed).items():
            match = _VM.fullmatch(seen.id)
            # Without a descriptor of its own it is about to go, and has no name that is known.
            if match is not None:
                key = (kvm, seen.id)
                before = self._names.get(key)
                names[key], pid = _name(int(match[1]), seen.places, told, before)
                found.append(FoundVm(names[key], pid, key, (seen.block, seen.vcpus)))
        self._names = names
        return found

    def bind(self, key: object, sources: VmSources) -> None:
        """Put the numbers of a VM into its sources from now on.

        Call it again after the sources got other vCPUs.
        """
        assert isinstance(key, tuple)
        kvm, id = key
        self._bound = {**self._bound, kvm: (id, sources)}

    def unbind(self, sources: VmSources) -> None:
        """Leave sources alone from now on."""
        self._bound = {kvm: one for kvm, one in self._bound.items() if one[1] is not sources}

    def forget(self, name: str) -> None:
        """Forget a VM that has ended: the next one may have its address and its id."""
        self._names = {key: one for key, one in self._names.items() if one != name}

    def finds(self, own: OwnVm) -> bool:
        """Tell whether it finds a VM of our own: not after KVM was unloaded and loaded again."""
        return self._iterator.finds(own)


def _find_target(row: BpfRow, bound: _Bound) -> Target | None:
    id, sources = bound.get(row.kvm, (b"", None))
    if sources is None or (row.vcpu is None and row.id != id):
        return None
    numbers = sources.find(row.vcpu)
    if numbers is None:
        return None
    # After the end of a vCPU's thread, the scheduler's last numbers stay.
    return numbers, 0 if row.vcpu is None or row.thread else SCHEDULE_SIZE


def _group(found: BpfPass) -> dict[int, _Seen]:
    seen: dict[int, _Seen] = {}
    for row, block in zip(found.rows, found.blocks, strict=True):
        one = seen.setdefault(row.kvm, _Seen())
        if row.vcpu is None:
            one.id, one.block = row.id, block
            one.places.append((row.process, row.fd))
        else:
            one.vcpus[row.vcpu] = block
    return seen


def _name(
    thread: int, places: list[tuple[int, int]], told: Collection[str], before: str | None
) -> tuple[str, int]:
    # The name, and the process. A VM may be open in several processes, and several times in one:
    # the thread that made it tells the process, and a uevent, or else the lowest number, which.
    maker = find_process(thread) if len(places) > 1 else None
    here = sorted([one for one in places if one[0] == maker] or places)
    names = [f"{thread}-{fd}" for _, fd in here]
    name = before or next((one for one in names if one in told), names[0])
    return name, here[0][0]
