"""Which rows of a pass are one VM's, how it is called, and how often a pass is made."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm.bpf import BpfPass, BpfRow
from statsfs.kvm.bpf_vms import BpfVms
from statsfs.kvm.vm_sources import SCHEDULE_SIZE
from statsfs.model.packed import PackedNumbers

PID = os.getpid()
Found = tuple[BpfRow, bytes]
SCHEDULE = b"s" * SCHEDULE_SIZE


class Rows:
    """An iterator that returns the rows it was given, and the same ones again."""

    def __init__(self, *rows: Found) -> None:
        self.rows = list(rows)
        self.passes = 0
        self.closed = False

    def read(self, before: BpfPass | None = None) -> BpfPass:
        self.passes += 1
        rows: Sequence[BpfRow] = [row for row, _ in self.rows]
        if before is not None and rows == before.rows:
            rows = before.rows
        return BpfPass(rows, [block for _, block in self.rows], [], ([], []), 0)

    def close(self) -> None:
        self.closed = True


class Taken:
    """Sources of a VM with these vCPUs, whose blocks have these bytes."""

    def __init__(self, *vcpus: int) -> None:
        self.numbers: dict[int | None, PackedNumbers] = {None: PackedNumbers({}, 2)}
        self.numbers |= {number: PackedNumbers({}, SCHEDULE_SIZE + 5) for number in vcpus}

    def find(self, vcpu: int | None) -> PackedNumbers | None:
        return self.numbers.get(vcpu)

    @property
    def raw(self) -> dict[int | None, bytes]:
        return {number: one.raw for number, one in self.numbers.items()}


def row(block: bytes = b"vm", **changes: Any) -> Found:
    """A VM of this process's main thread."""
    id = f"kvm-{PID}".encode().ljust(48, b"\0")
    return BpfRow(PID, 8, 0xFFFF, None, id, 7)._replace(**changes), block


def vcpu(number: int, schedule: bytes = b"s", **changes: Any) -> Found:
    """One of its vCPUs, whose id has another thread."""
    id = f"kvm-1/vcpu-{number}".encode()
    block = schedule * SCHEDULE_SIZE + b"vcpu%d" % number
    return row(block, vcpu=number, fd=20 + number, id=id, **changes)


def make(
    *rows: Found, behind: Callable[[], bool] = lambda: False
) -> tuple[BpfVms, Rows, list[int]]:
    """What finds VMs in these rows, and notes how often others are there."""
    iterator, changed = Rows(*rows), list[int]()
    found: Any = iterator
    return BpfVms(found, lambda: changed.append(1), behind), iterator, changed


def names(vms: BpfVms, told: set[str] | None = None) -> dict[str, int]:
    """The VMs that are found, and their processes."""
    return {one.name: one.pid for one in vms.look(told or set())}


def test_one_vm() -> None:
    """Its rows are put together, wherever they are in a pass."""
    vms, _, _ = make(vcpu(1), row(), vcpu(0), row(kvm=1, id=b"kvm-12\0", process=12))
    first, second = vms.look(())
    assert (first.name, first.pid) == (f"{PID}-8", PID)
    assert first.numbers == (b"vm", {0: SCHEDULE + b"vcpu0", 1: SCHEDULE + b"vcpu1"})
    assert (second.name, second.pid, second.numbers) == ("12-8", 12, (b"vm", {}))


@pytest.mark.parametrize("id", [b"kvm-x", b"kvm-12/vcpu-0", b"kvm-", b"kvm-1234567890123"])
def test_what_has_no_name(id: bytes) -> None:
    """A row whose id is not a VM's, or vCPUs alone, whose VM's descriptor is closed."""
    assert names(make(row(id=id), vcpu(0))[0]) == {}
    assert names(make(vcpu(0))[0]) == {}


def test_a_vm_that_is_open_in_several_places() -> None:
    """The process that made it counts, and there the lowest number, or what a uevent told."""
    rows = (row(process=1, fd=3), row(fd=9), row(fd=8), row(fd=12))
    assert names(make(*rows)[0]) == {f"{PID}-8": PID}
    assert names(make(*rows)[0], {f"{PID}-9", f"{PID}-3"}) == {f"{PID}-9": PID}
    # Nobody knows who made it.
    elsewhere = [(one._replace(process=2), block) for one, block in rows[1:]]
    assert names(make(rows[0], *elsewhere)[0]) == {f"{PID}-3": 1}


def test_a_name_stays() -> None:
    """Also when the descriptor is closed that it was called after."""
    vms, iterator, _ = make(row(fd=8), row(fd=9))
    assert names(vms) == {f"{PID}-8": PID}
    iterator.rows = [row(fd=9)]
    assert names(vms) == {f"{PID}-8": PID}


def test_the_address_of_a_vm_that_has_ended() -> None:
    """The next VM that has it is another one, and has a name of its own."""
    vms, iterator, _ = make(row(fd=8), row(kvm=7, fd=30))
    assert names(vms) == {f"{PID}-8": PID, f"{PID}-30": PID}
    vms.forget(f"{PID}-8")
    iterator.rows = [row(fd=20), row(kvm=7, fd=31)]
    assert names(vms) == {f"{PID}-20": PID, f"{PID}-30": PID}


def test_uevents_that_nobody_has_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look tries again after it has heard them; no numbers are taken meanwhile."""
    monkeypatch.setattr("statsfs.kvm.bpf_vms._FRESH", 0.0)
    unheard, heard = 0, list[int]()

    def hear() -> None:
        nonlocal unheard
        unheard -= 1
        heard.append(unheard)

    vms, iterator, changed = make(row(), behind=lambda: unheard > 0)
    sources: Any = Taken()
    (found,) = vms.look(())
    vms.bind(found.key, sources)
    unheard = 2
    iterator.rows = [row(b"ab"), row(kvm=7)]
    vms.refresh()
    assert (changed, sources.raw) == ([], {None: bytes(2)})
    assert (len(vms.look(())), heard, sources.raw) == (2, [], {None: bytes(2)})
    assert (len(vms.look((), hear)), heard, sources.raw) == (2, [1, 0], {None: b"ab"})
    unheard = 100  # more come all the time: what is found is shown, and is not counted yet
    iterator.rows = [row(b"cd"), row(kvm=7)]
    assert (len(vms.look((), hear)), len(heard), sources.raw) == (2, 11, {None: b"ab"})
    unheard = 0
    vms.refresh()
    assert sources.raw == {None: b"cd"}


def test_a_reader_gets_numbers_of_20_ms_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass serves all that read within that time; another number of rows is told."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    vms, iterator, changed = make(row(), vcpu(0))
    sources: Any = Taken(0)
    (found,) = vms.look(())
    vms.bind(found.key, sources)
    vms.refresh()
    assert (iterator.passes, sources.raw[None]) == (1, bytes(2))
    now += 0.021
    assert vms.read(found.name) == (None, {})
    assert sources.raw == {None: b"vm", 0: SCHEDULE + b"vcpu0"}
    vms.refresh()
    assert (iterator.passes, changed) == (2, [])
    now += 0.021
    iterator.rows.append(vcpu(1))
    vms.refresh()
    assert changed == [1]


def test_what_a_pass_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block goes to its vCPU, whatever comes, goes and changes places."""
    monkeypatch.setattr("statsfs.kvm.bpf_vms._FRESH", 0.0)
    vms, iterator, _ = make(row(), vcpu(0))
    sources: Any = Taken(0)
    (found,) = vms.look(())
    vms.bind(found.key, sources)
    for number in b"123":
        iterator.rows = [row(b"v%c" % number), vcpu(0, b"%c" % number)]
        vms.refresh()
        block = b"%c" % number * SCHEDULE_SIZE + b"vcpu0"
        assert sources.raw == {None: b"v%c" % number, 0: block}
    # A vCPU that is plugged in, before and after it is arranged for.
    iterator.rows = [vcpu(1), row(b"v4"), vcpu(0)]
    vms.refresh()
    assert sources.raw == {None: b"v4", 0: SCHEDULE + b"vcpu0"}
    sources.numbers |= Taken(1).numbers
    vms.bind(found.key, sources)
    vms.refresh()
    expected = {None: b"v4", 0: SCHEDULE + b"vcpu0", 1: SCHEDULE + b"vcpu1"}
    assert sources.raw == expected
    # The thread of one has ended: what the scheduler counted stays as it was.
    iterator.rows = [row(b"v5"), (vcpu(1, b"\0", thread=0)[0], bytes(SCHEDULE_SIZE) + b"VCPU1")]
    vms.refresh()
    expected |= {None: b"v5", 1: SCHEDULE + b"VCPU1"}
    assert sources.raw == expected
    vms.unbind(sources)
    iterator.rows = [row(b"v6"), vcpu(0, b"x"), vcpu(1, b"x")]
    vms.refresh()
    vms.look(())
    assert sources.raw == expected


def test_another_vm_at_the_same_address() -> None:
    """Its numbers are not those of the one that was bound."""
    vms, iterator, _ = make(row())
    sources: Any = Taken()
    (found,) = vms.look(())
    vms.bind(found.key, sources)
    iterator.rows = [row(b"ab", id=b"kvm-77".ljust(48, b"\0"))]
    (other,) = vms.look(())
    vms.look(())
    assert (sources.raw[None], other.key == found.key) == (bytes(2), False)


def test_closing() -> None:
    """The program goes, and nothing more is read: its descriptor may be another one's."""
    vms, iterator, _ = make(row())
    vms.close()
    assert iterator.closed
    with pytest.raises(KvmError, match="BPF has ended"):
        vms.look(())
    assert iterator.passes == 0
