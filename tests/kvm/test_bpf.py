"""The BPF iterator over all VMs: what it copies, what it needs, and what it does not believe."""

import errno
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.exceptions import KvmError
from statsfs.kvm import bpf
from statsfs.kvm.bpf import BpfIterator, BpfPass, BpfRow
from statsfs.kvm.bpf_program import MARK, NO_VCPU, ROW
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.vm_sources import SCHEDULE_SIZE
from statsfs.tree.registry import Registry
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]


@pytest.fixture
def iterator() -> Iterator[BpfIterator]:
    """An iterator that works here."""
    with OwnVm() as own:
        iterator = BpfIterator(own)
    with iterator:
        yield iterator


def own_rows(iterator: BpfIterator) -> list[tuple[BpfRow, bytes]]:
    """What it finds in this process, each with its block."""
    found = iterator.read()
    pairs = zip(found.rows, found.blocks, strict=True)
    return [(row, block) for row, block in pairs if row.process == os.getpid()]


def test_the_bytes_are_those_of_the_descriptors(iterator: BpfIterator, registry: Registry) -> None:
    """Of guests that ran: for the VM and each vCPU, histograms and all."""
    with RealKvm(registry, rate=0) as kvm:
        vm = kvm.create_vm(2)
        for exits, vcpu in zip((100, 33), vm.vcpus, strict=True):
            vcpu.make_exits(exits)
        rows = own_rows(iterator)
        assert {row.vcpu for row, _ in rows} == {None, 0, 1}
        assert len({row.kvm for row, _ in rows}) == 1
        for row, block in rows:
            stats = vm.stats if row.vcpu is None else vm.vcpu_stats[row.vcpu]
            stats.refresh()
            start = 0 if row.vcpu is None else SCHEDULE_SIZE
            assert row.id.rstrip(b"\0").decode() == stats.id
            assert stats._layout.numbers(block[start:]) == tuple(stats.numbers.values())
    assert own_rows(iterator) == []


def test_the_thread_of_a_vcpu(iterator: BpfIterator, registry: Registry) -> None:
    """The scheduler's numbers are those of schedstat; a thread that ended is none."""
    with RealKvm(registry, rate=0) as kvm:
        vm = kvm.create_vm(1)
        found = {(row.thread, block[:SCHEDULE_SIZE]) for row, block in own_rows(iterator)[1:]}
        assert found == {(0, bytes(SCHEDULE_SIZE))}
        threads: list[int] = []
        told: list[tuple[int, ...]] = []

        def work() -> None:
            threads.append(threading.get_native_id())
            for _ in range(100):  # until something was counted, and nothing runs between the two
                vm.vcpus[0].make_exits(10)
                schedstat = Path(f"/proc/self/task/{threads[0]}/schedstat").read_text()
                row, block = own_rows(iterator)[-1]
                told.append(struct.unpack_from("=3Q", block))
                assert row.thread == threads[0]
                if told[-1][0] and told[-1][1:] == tuple(map(int, schedstat.split()))[1:]:
                    return
            raise AssertionError(schedstat, told)

        failed: list[BaseException] = []
        thread = threading.Thread(target=lambda: _call(work, failed))
        thread.start()
        thread.join()
        assert not failed
        # It is gone for Python a moment before it is for the kernel.
        wait_until(lambda: own_rows(iterator)[-1][0].thread == 0, "the end of the thread")


def _call(function: Any, failed: list[BaseException]) -> None:
    try:
        function()
    except BaseException as error:
        failed.append(error)


def test_more_vms_than_the_kernels_buffer_holds(iterator: BpfIterator, registry: Registry) -> None:
    """Each is there, and whole: the kernel begins a row anew that does not fit."""
    with RealKvm(registry, rate=0) as kvm:
        for _ in range(20):
            kvm.create_vm(3)
        rows = own_rows(iterator)
        # The memory that a vCPU shares is one more descriptor.
        assert len({row.kvm for row, _ in rows}) == 20
        assert len({(row.kvm, row.vcpu) for row, _ in rows}) == 80
        assert {len(one) for row, one in rows if row.vcpu is None} == {iterator._sizes[True]}


def test_it_tells_whether_it_finds_a_vm(iterator: BpfIterator) -> None:
    """A VM of our own is found while it is open."""
    with OwnVm() as own:
        assert iterator.finds(own)
    assert not iterator.finds(own)


HEAD = (os.getpid(), 5, 0xFFFF000000000000, NO_VCPU, b"kvm-1", 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("head", "rest", "match"),
    [
        ((MARK + 1, *HEAD), bytes(4096), "not a row"),
        ((MARK, *HEAD), b"short", "not a row"),
        ((MARK, *HEAD[:3], -2, *HEAD[4:]), bytes(4096), "not a row"),
        ((MARK, *HEAD[:3], 1 << 16, *HEAD[4:]), bytes(4096), "not a row"),
        (None, b"too short", "ends in a row"),
    ],
)
def test_what_is_no_row(
    iterator: BpfIterator, monkeypatch: pytest.MonkeyPatch, head: Any, rest: bytes, match: str
) -> None:
    """It is not believed."""
    data = (b"" if head is None else ROW.pack(*head)) + rest
    monkeypatch.setattr(iterator._link, "read", lambda: data)
    with pytest.raises(KvmError, match=match):
        iterator.read()


def test_a_vcpu_that_is_just_being_made(
    iterator: BpfIterator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a VM or an id is left out."""
    size = iterator._sizes[True]
    none = ROW.pack(MARK, *HEAD[:2], 0, *HEAD[3:]) + bytes(size)
    nameless = ROW.pack(MARK, *HEAD[:4], b"", *HEAD[5:]) + bytes(size)
    whole = ROW.pack(MARK, *HEAD) + bytes(size)
    monkeypatch.setattr(iterator._link, "read", lambda: none + nameless + whole)
    assert [row.id.rstrip(b"\0") for row in iterator.read().rows] == [b"kvm-1"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"block": b"\1"}, True),
        ({"thread": 8}, False),
        ({"vcpu": 1}, False),
        ({"id": b"kvm-2/vcpu-0"}, False),
        ({"kvm": 2}, False),
        ({"more": 1}, False),
    ],
)
def test_the_pass_before(
    iterator: BpfIterator, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], same: bool
) -> None:
    """Its rows are returned again if only numbers changed; the result is as if decoded anew."""
    vm = ROW.pack(MARK, *HEAD) + bytes(iterator._sizes[True])

    def make(
        kvm: int = 1,
        vcpu: int = 0,
        id: bytes = b"kvm-1/vcpu-0",
        thread: int = 7,
        block: bytes = b"\0",
        more: int = 0,
    ) -> bytes:
        head = ROW.pack(MARK, 5, 6, kvm, vcpu, id, thread, thread, 0, 0, 0)[:-SCHEDULE_SIZE]
        return vm + head + block * (iterator._sizes[False] + SCHEDULE_SIZE) + vm * more

    data = [make()]
    monkeypatch.setattr(iterator._link, "read", lambda: data[-1])
    before = iterator.read()
    data.append(make(**change))
    again = iterator.read(before)
    assert (again.rows is before.rows) == same
    assert again == iterator.read()
    assert (again.rows, again.blocks) != (before.rows, before.blocks)


def test_a_vcpu_that_was_just_being_made(
    iterator: BpfIterator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the next pass, which is as long as the one before."""
    size = iterator._sizes[True]
    whole = ROW.pack(MARK, *HEAD) + bytes(size)
    for none in (
        ROW.pack(MARK, *HEAD[:2], 0, *HEAD[3:]),
        ROW.pack(MARK, *HEAD[:4], b"", *HEAD[5:]),
    ):
        data = [whole + none + bytes(size)]
        monkeypatch.setattr(iterator._link, "read", lambda: data[-1])  # noqa: B023
        before = iterator.read()
        data.append(whole + whole)
        assert (len(before.rows), len(iterator.read(before).rows)) == (1, 2)


LOAD = """
from statsfs.kvm.bpf import BpfIterator
from statsfs.kvm.own_vm import OwnVm
from statsfs.exceptions import KvmError
try:
    with OwnVm() as own, BpfIterator(own) as iterator:
        print(len(iterator.read().rows) >= 2)
except KvmError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("capabilities", "says"),
    [
        ("+bpf,+perfmon", "True"),
        ("+sys_admin", "True"),
        ("+perfmon,+syslog", "BPF needs CAP_BPF"),
        ("+bpf", "BPF needs CAP_PERFMON"),
        ("+syslog", "BPF needs CAP_BPF and CAP_PERFMON"),
    ],
)
def test_which_capabilities_it_needs(capabilities: str, says: str) -> None:
    """Two, or CAP_SYS_ADMIN; no symbols of the kernel. One line names what is missing."""
    done = subprocess.run(
        ["setpriv", f"--bounding-set=-all,{capabilities}", sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == (f"{says}\n", "")


def test_lockdown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Under confidentiality the call would answer EINVAL: the mode is read first."""
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr(bpf, "_LOCKDOWN", lockdown)
    bpf.check_rights()
    lockdown.write_text("none [integrity] confidentiality\n")
    bpf.check_rights()
    lockdown.write_text("none integrity [confidentiality]\n")
    with pytest.raises(KvmError, match="the kernel's lockdown is confidentiality"):
        bpf.check_rights()


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose numbers of system calls are not known here."""
    monkeypatch.setattr(bpf, "_SYSCALLS", {})
    with pytest.raises(KvmError, match="BPF is not supported on"):
        bpf.check_rights()


def make() -> None:
    """Make an iterator, as one that works."""
    with OwnVm() as own, BpfIterator(own):
        pass


def test_a_program_that_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier's reason is in the line."""
    leave = struct.pack("=BBhi", 0x95, 0, 0, 0)
    monkeypatch.setattr(bpf, "make_copier", lambda *_: leave)
    with pytest.raises(KvmError, match=r"the kernel refuses the program: .*: R0 !read_ok$"):
        make()


@pytest.mark.parametrize(
    ("command", "number", "match"),
    [
        (bpf._PROG_LOAD, errno.EPERM, "BPF is refused: Operation not permitted: seccomp"),
        (bpf._LINK_CREATE, errno.EBUSY, "BPF: no link: Device or resource busy"),
    ],
)
def test_a_command_that_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, command: int, number: int, match: str
) -> None:
    """It is named, and no descriptor is left open."""
    real = bpf._bpf

    def call(called: int, attributes: bytes) -> int:
        if called == command:
            raise OSError(number, os.strerror(number))
        return real(called, attributes)

    monkeypatch.setattr(bpf, "_bpf", call)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match=match):
        make()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("output", [b"", b"odd"])
def test_a_finder_that_finds_nothing(monkeypatch: pytest.MonkeyPatch, output: bytes) -> None:
    """As in a PID namespace, where numbers of processes are others."""
    monkeypatch.setattr(bpf._Link, "read", lambda _: output)
    with pytest.raises(KvmError, match=r"BPF finds no files|invalid BPF output"):
        make()


def test_a_copier_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all VMs would be gone, in silence."""
    monkeypatch.setattr(BpfIterator, "read", lambda _: BpfPass([], [], [], ([], []), 0))
    with pytest.raises(KvmError, match="does not find a VM of our own"):
        make()


def test_the_btf_of_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its structs have another size than the statistics."""
    monkeypatch.setattr("statsfs.kvm.btf.Btf.size", lambda *_: 8)
    with pytest.raises(KvmError, match="of another kernel: 8 bytes of statistics in kvm_vcpu"):
        make()
