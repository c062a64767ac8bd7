"""VMs by their directories in debugfs, which a test made: real guests, and what is refused."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.exceptions import KvmError, UnavailableError
from statsfs.formats import prometheus
from statsfs.kvm import host as host_module
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.host import KvmHost
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.scanning import KvmFiles
from statsfs.kvm.vm_sources import SCHEDULE_SIZE, Section, VmSources, read_sections
from statsfs.kvm.ways import ALL, Known
from statsfs.model.values import Aggregate, Kind
from statsfs.tree.source import Source
from tests.kvm.conftest import refuse
from tests.kvm.test_host import (  # noqa: F401  # the fixture
    SCHEDULE,
    alone,
    counted,
    look_again,
    run,
    shown,
    wait_for,
)
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.debugfs import Debugfs
from tests.support.repeating import repeating

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]

NAME = f"{os.getpid()}-9"
FILES = {os.getpid(): KvmFiles((9,), {0: 10, 1: 11}, {})}


@pytest.fixture(scope="module")
def sections() -> tuple[Section, Section]:
    """What this kernel counts."""
    with OwnVm() as own:
        return read_sections(own)


@pytest.fixture
def debugfs(tmp_path: Path, sections: tuple[Section, Section]) -> Debugfs:
    """A debugfs without VMs."""
    return Debugfs(tmp_path / "kvm", *sections)


@pytest.fixture
def vms(debugfs: Debugfs, sections: tuple[Section, Section]) -> Iterator[DebugfsVms]:
    """The way that reads it."""
    vms = DebugfsVms(*sections, debugfs.path)
    yield vms
    vms.close()


def get(section: Section, block: bytes, name: str) -> int:
    """A number in a block."""
    offset = section.places[name].offset
    return int.from_bytes(block[offset : offset + 8], sys.byteorder)


def test_a_vm(debugfs: Debugfs, vms: DebugfsVms, sections: tuple[Section, Section]) -> None:
    """Its numbers, the sums of its vCPUs, and of each vCPU what the scheduler counts."""
    vm, vcpu = sections
    most = (1 << 64) - 1
    debugfs.write(NAME, {"exits": 7, "halt_exits": most, "remote_tlb_flush": 3, "guest_mode": 2})
    debugfs.write_vcpus(NAME, [os.getpid(), 0])
    (debugfs.path / "12-x").mkdir()
    (found,) = vms.look(FILES, ())
    assert (found.name, found.pid) == (NAME, os.getpid())
    block, vcpus = found.numbers
    assert block is not None
    assert get(vm, block, "remote_tlb_flush") == 3
    assert vcpus.keys() == {0, 1, ALL}
    assert [get(vcpu, vcpus[ALL], one) for one in ("exits", "halt_exits", "guest_mode")] == [
        7,
        most,
        2,
    ]
    assert get(vcpu, vcpus[0], "run_ns") > 0
    assert vcpus[1] == bytes(vcpu.size)  # it did not run yet
    assert vcpus[0][SCHEDULE_SIZE:] == bytes(vcpu.size - SCHEDULE_SIZE)
    assert vms.known[1] == ("run_ns", "wait_ns", "timeslices")
    assert {"remote_tlb_flush", "max_mmu_rmap_size"} <= set(vms.known[0] or ())
    debugfs.write(NAME, {"exits": 9})
    assert get(vcpu, vms.read(NAME, found.which)[1][ALL], "exits") == 9
    assert vms.find_failure() == ""
    # Another VM has the name: its numbers are not those of the first one.
    debugfs.write("new", {"exits": 5})
    debugfs.remove(NAME)
    (debugfs.path / "new").rename(debugfs.path / NAME)
    assert vms.read(NAME, found.which) == (None, {})
    (another,) = vms.look(FILES, ())
    assert another.key != found.key
    assert get(vcpu, vms.read(NAME, another.which)[1][ALL], "exits") == 5


def test_nothing_is_written_or_kept_open(
    debugfs: Debugfs, vms: DebugfsVms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write would clear the kernel's numbers; an open file would keep the VM in the kernel."""
    debugfs.write(NAME, {"exits": 7})
    debugfs.write_vcpus(NAME, [os.getpid()])
    opened, real = [], os.open

    def note(path: Any, flags: int, **more: Any) -> int:
        opened.append(flags & os.O_ACCMODE)
        return real(path, flags, **more)

    monkeypatch.setattr(os, "open", note)
    vms.look(FILES, ())
    vms.read(NAME)
    links = map(os.path.realpath, Path("/proc/self/fd").iterdir())
    assert [one for one in links if str(one).startswith(f"{debugfs.path}/")] == []
    assert set(opened) == {os.O_RDONLY}


def test_an_older_kernel(debugfs: Debugfs, vms: DebugfsVms) -> None:
    """It does not tell the threads of vCPUs: of each vCPU nothing is known."""
    debugfs.write(NAME, {"exits": 7})
    debugfs.write_vcpus(NAME, [None, None])
    (found,) = vms.look(FILES, ())
    assert found.numbers[1].keys() == {0, 1, ALL}
    assert vms.known[1] == ()


def test_a_thread_that_ends(debugfs: Debugfs, vms: DebugfsVms) -> None:
    """Its last numbers stay, whatever has its id then; another thread has its own numbers."""
    debugfs.write(NAME, {})
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]), "it")
        debugfs.write_vcpus(NAME, [process.pid])
        (found,) = vms.look(FILES, ())
        assert found.numbers[1][0][:SCHEDULE_SIZE] != bytes(SCHEDULE_SIZE)
    before = vms.read(NAME)[1][0]
    assert before[:SCHEDULE_SIZE] >= found.numbers[1][0][:SCHEDULE_SIZE]
    debugfs.write_vcpus(NAME, [process.pid])
    assert vms.read(NAME)[1][0] == before
    debugfs.write_vcpus(NAME, [os.getpid()])
    assert vms.read(NAME)[1][0] != before
    debugfs.write_vcpus(NAME, [0])
    assert vms.read(NAME)[1][0] != bytes(len(before))


def test_which_vms_are_left_alone(debugfs: Debugfs, vms: DebugfsVms) -> None:
    """Those of a better way, of a process without a VM, and what has ended."""
    debugfs.write(NAME, {})
    assert vms.look(FILES, {NAME}) == []
    assert vms.look({}, ()) == []
    assert vms.look({1: FILES[os.getpid()]}, ()) == []
    # Its directory is named by the thread that made it.
    assert vms.look({os.getpid(): KvmFiles((8,), {}, {})}, {f"{os.getpid()}-8"}) == []
    assert [one.name for one in vms.look(FILES, {"12-3"})] == [NAME]
    debugfs.remove(NAME)
    assert vms.look(FILES, ()) == []
    with pytest.raises(KvmError, match=f"{NAME} has ended"):
        vms.read(NAME)
    assert vms.explain(FILES[os.getpid()]) == "no directory of it can be read"


def test_another_vm_of_the_same_name(debugfs: Debugfs, vms: DebugfsVms) -> None:
    """Its directory is another."""
    debugfs.write(NAME, {})
    (first,) = vms.look(FILES, ())
    (debugfs.path / NAME).rename(debugfs.path / "old")
    debugfs.write(NAME, {})
    (second,) = vms.look(FILES, ())
    assert first.key != second.key


def test_what_is_not_a_number(debugfs: Debugfs, vms: DebugfsVms) -> None:
    """No numbers are better than wrong ones."""
    debugfs.write(NAME, {})
    (debugfs.path / NAME / "exits").write_text("many\n")
    assert vms.look(FILES, ()) == []
    with pytest.raises(KvmError, match=r"exits: b'many\\n' is not a number"):
        vms.read(NAME)


def test_peaks_of_vcpus(debugfs: Debugfs, sections: tuple[Section, Section]) -> None:
    """The kernel adds them up, and their sum is not a peak: no sums are shown."""
    vm, vcpu = sections
    place = vcpu.places["exits"]
    peak = replace(place.value, kind=Kind.PEAK, aggregate=Aggregate.MAX, mode=0o444)
    with_peak = replace(vcpu, places={**vcpu.places, "exits": place._replace(value=peak)})
    debugfs.write(NAME, {})
    debugfs.write_vcpus(NAME, [0])
    vms = DebugfsVms(vm, with_peak, debugfs.path)
    (found,) = vms.look(FILES, ())
    assert found.numbers[1].keys() == {0}
    vms.close()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, "the kernel is locked down: it refuses {}"),
        (errno.EACCES, "{}: Permission denied"),
    ],
)
def test_a_kernel_that_refuses(
    debugfs: Debugfs,
    vms: DebugfsVms,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    says: str,
) -> None:
    """A locked down kernel has the directories, and lets nobody open the files."""
    debugfs.write(NAME, {})
    real = os.open

    def open_it(path: Any, flags: int, **more: Any) -> int:
        if path in ("exits", vms._vcpu.plain[0]):
            raise PermissionError(number, os.strerror(number), path)
        return real(path, flags, **more)

    monkeypatch.setattr(os, "open", open_it)
    assert vms.look(FILES, ()) == []
    assert vms.find_failure() == says.format(debugfs.path)


def test_where_debugfs_is_not_mounted(tmp_path: Path, sections: tuple[Section, Section]) -> None:
    """One line says what is not there; it is looked for again."""
    vms = DebugfsVms(*sections, tmp_path / "kvm")
    assert vms.look(FILES, ()) == []
    assert vms.find_failure() == f"{tmp_path}/kvm: No such file or directory"
    Debugfs(tmp_path / "kvm", *sections).write(NAME, {})
    assert len(vms.look(FILES, ())) == 1
    vms.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        vms.read(NAME)


def test_kvm_that_is_loaded_again(
    tmp_path: Path, debugfs: Debugfs, vms: DebugfsVms, sections: tuple[Section, Section]
) -> None:
    """Its directory is another one then."""
    assert vms.look(FILES, ()) == []
    debugfs.remove("")
    Debugfs(tmp_path / "kvm", *sections).write(NAME, {})
    assert len(vms.look(FILES, ())) == 1


def test_a_mount_over_it(
    debugfs: Debugfs, sections: tuple[Section, Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a tree of our own, for kvm_stat: it is not read."""
    debugfs.write(NAME, {"exits": 7})
    before = DebugfsVms(*sections, debugfs.path)
    assert len(before.look(FILES, ())) == 1
    subprocess.run(["mount", "-t", "tmpfs", "over", debugfs.path], check=True)
    try:
        assert get(sections[1], before.read(NAME)[1][ALL], "exits") == 7
        assert len(before.look(FILES, ())) == 1
        before.close()
        after = DebugfsVms(*sections, debugfs.path)
        assert after.look(FILES, ()) == []
        assert after.find_failure() == f"something is mounted over {debugfs.path}"
    finally:
        subprocess.run(["umount", debugfs.path], check=True)


def test_no_moment_of_a_move_is_wrong(sections: tuple[Section, Section]) -> None:
    """From sums to vCPUs: in between, no total is less than before, or more than after."""
    vm, vcpu = sections

    def make(exits: int) -> bytes:
        block = bytearray(vcpu.size)
        offset = vcpu.places["exits"].offset
        block[offset : offset + 8] = exits.to_bytes(8, sys.byteorder)
        return bytes(block)

    kvm = Source("kvm", retain=True)
    sources = VmSources(NAME, vm, vcpu, label_value=NAME, refresh=lambda: None)
    kvm.add_subordinate(sources.source)
    seen: list[int] = []

    def note(frame: object, event: str, _: object) -> None:
        if event == "return":
            sys.setprofile(None)
            seen.append(kvm.get_value("exits"))
            sys.setprofile(note)

    def move(known: Known, blocks: dict[int, bytes]) -> None:
        sys.setprofile(note)
        try:
            sources.show(known, blocks)
            for number, block in blocks.items():
                sources.take(number, block)
            sources.arrange(blocks)
        finally:
            sys.setprofile(None)

    sources.show((None, None), {})
    sources.arrange({0: make(5), 1: make(7)})
    for turn in range(2):
        exits = 12 + 20 * turn
        together = {0: make(0), 1: make(0), ALL: make(exits + 10)}
        move((vm.plain, ()), together)
        assert (seen[0], seen[-1]) == (exits, exits + 10)
        assert seen == sorted(seen)
        seen.clear()
        move((None, None), {0: make(6), 1: make(exits + 14)})
        assert (seen[0], seen[-1]) == (exits + 10, exits + 20)
        assert seen == sorted(seen)
        seen.clear()
    kvm.remove_subordinate(sources.source)
    sources.put()
    assert kvm.get_value("exits") == 52
    kvm.put()


# In a host: two guests of this process; which of them a descriptor belongs to is unknown


@pytest.fixture
def host(debugfs: Debugfs, monkeypatch: pytest.MonkeyPatch) -> Callable[[], KvmHost]:
    """Makes a host that has BPF, descriptors and this debugfs."""
    monkeypatch.setattr(host_module, "_RETRY", 0.0)
    return lambda: KvmHost([lambda vm, vcpu: DebugfsVms(vm, vcpu, debugfs.path)])


def tell(debugfs: Debugfs, vm: RealVm) -> dict[str, int]:
    """Have debugfs show what the kernel says of a VM; return its sums over the vCPUs."""
    sums: dict[str, int] = {}
    for stats in vm.vcpu_stats:
        for name, number in counted(stats).items():
            if isinstance(number, int):
                sums[name] = sums.get(name, 0) + number
    debugfs.write(vm.name, {**counted(vm.stats), **sums})
    debugfs.write_vcpus(vm.name, [threading.get_native_id()] * len(vm.vcpus))
    return sums


def make_two(kvm: KvmHost, guests: RealKvm, vcpus: int) -> tuple[RealVm, RealVm, Source]:
    """Make a VM and another one of one vCPU; return them and the first one's source."""
    vm, other = guests.create_vm(vcpus), guests.create_vm(1)
    source = wait_for(kvm, vm)
    wait_for(kvm, other)
    return vm, other, source


@contextmanager
def without_bpf(host: KvmHost, source: Source) -> Iterator[None]:
    """BPF fails until the context ends; meanwhile debugfs reads a VM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_module, "BpfIterator", refuse)
        assert host._bpf is not None
        patch.setattr(host._bpf._iterator, "read", refuse)
        wait_until(lambda: source.info["kvm.source"] == "debugfs", "debugfs")
        look_again(host)
        yield
    wait_until(lambda: source.info["kvm.source"] == "bpf", "BPF")
    look_again(host)


@contextmanager
def never_falling(*sources: Source) -> Iterator[None]:
    """Read the exits of sources all the time: none is ever less than it was, or too many."""
    most, wrong = dict.fromkeys(sources, 0), []

    def read() -> None:
        for source, before in most.items():
            try:
                now = source.get_value("exits")
            except UnavailableError:  # BPF fails, and that is not known yet
                continue
            if now < before:
                wrong.append((source.path, before, now))
            most[source] = now

    with repeating(read, 0.0002):
        yield
    assert wrong == []


@pytest.mark.usefixtures("no_bpf")
def test_a_vm_that_only_debugfs_has(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """The VM has its numbers and the sums; its vCPUs what the scheduler counts; it ends."""
    vms = [guests.create_vm(2), guests.create_vm(1)]
    vms[0].vcpus[0].make_exits(30)
    vms[0].vcpus[1].make_exits(20)
    sums = [tell(debugfs, vm) for vm in vms]
    with host() as kvm:
        source = wait_for(kvm, vms[0], vcpus=3)
        assert source.info["kvm.source"] == "debugfs"
        own = counted(vms[0].stats)
        values = shown(source)
        assert {name: values[name] for name in sums[0]} == sums[0]
        assert {name: values[name] for name in own} == own
        assert "halt_wait_hist" not in values
        vcpu = source.find("vcpu1")
        assert vcpu is not None
        assert shown(vcpu).keys() == SCHEDULE
        assert vcpu.get_value("run_ns") > 0
        assert kvm.source.get_value("exits") == sums[0]["exits"] + sums[1]["exits"]
        text = prometheus.render(kvm.source.snapshot(), mask=0o444).decode()
        assert f'kvm_exits_total{{vm="{vms[0].name}"}} {sums[0]["exits"]}\n' in text
        assert f'kvm_run_seconds_total{{vcpu="vcpu1",vm="{vms[0].name}"}} ' in text
        vms[0].vcpus[0].make_exits(10)
        more = tell(debugfs, vms[0])["exits"]
        assert source.get_value("exits") == more > sums[0]["exits"]
        source.clear_value("exits")
        assert source.get_value("exits") == 0
        assert kvm.source.get_value("exits") == sums[1]["exits"]
        debugfs.remove(vms[0].name)
        guests.destroy_vm(vms[0])
        wait_until(lambda: source.parent is None, "the end")
        assert kvm.source.get_value("exits") == sums[1]["exits"]


def test_moves_to_debugfs_and_back(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """No number falls; after each move all are the kernel's."""
    with host() as kvm:
        vm, other, source = make_two(kvm, guests, vcpus=2)
        with never_falling(source, kvm.source):
            for turn in range(3):
                vm.vcpus[0].make_exits(20)
                vm.vcpus[1].make_exits(10 + turn)
                tell(debugfs, other)
                exits = tell(debugfs, vm)["exits"]
                with without_bpf(kvm, source):
                    assert source.get_value("exits") == exits
                    vm.vcpus[1].make_exits(30)
                    exits = tell(debugfs, vm)["exits"]
                    assert source.get_value("exits") == exits
                for number, stats in enumerate(vm.vcpu_stats):
                    vcpu = source.find(f"vcpu{number}")
                    assert vcpu is not None
                    values = shown(vcpu)
                    assert {name: values[name] for name in counted(stats)} == counted(stats)
                assert source.get_value("exits") == exits
                total = exits + counted(other.vcpu_stats[0])["exits"]
                assert kvm.source.get_value("exits") == total
        assert {one.name for one in source.subordinates} == {"vcpu0", "vcpu1"}


def test_a_vm_that_begins_in_debugfs(
    guests: RealKvm, debugfs: Debugfs, monkeypatch: pytest.MonkeyPatch, host: Callable[[], KvmHost]
) -> None:
    """When BPF has it, its vCPUs have their numbers, and all counts once."""
    vm, other = guests.create_vm(2), guests.create_vm(1)
    vm.vcpus[0].make_exits(40)
    exits = tell(debugfs, vm)["exits"] + tell(debugfs, other)["exits"]
    with monkeypatch.context() as patch:
        patch.setattr(host_module, "BpfIterator", refuse)
        patch.setattr(host_module, "_RETRY", 1000.0)
        made = host()
        made._next_try = 0.0
    with made as kvm:
        source = wait_for(kvm, vm)
        wait_until(lambda: source.info["kvm.source"] == "bpf", "BPF")
        look_again(kvm)
        assert kvm.source.get_value("exits") == exits
        vcpu = source.find("vcpu0")
        assert vcpu is not None
        assert vcpu.get_value("exits") == counted(vm.vcpu_stats[0])["exits"] >= 40


def test_clears_while_debugfs_has_it(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """What is cleared stays so, and what was counted since then stays, too."""
    with host() as kvm:
        vm, other, source = make_two(kvm, guests, vcpus=2)
        run(source, vm, 50)
        source.clear_value("halt_exits")
        halts = tell(debugfs, vm)["halt_exits"]
        tell(debugfs, other)
        with without_bpf(kvm, source):
            assert source.get_value("halt_exits") == 0
            vm.vcpus[1].make_exits(10)
            tell(debugfs, vm)
            kvm.source.clear_value("exits")
            assert source.get_value("exits") == 0
            vm.vcpus[0].make_exits(7)
            before = tell(debugfs, vm)
            since = source.get_value("exits")
            assert 7 <= since < 17
        assert source.get_value("exits") == since
        assert source.get_value("halt_exits") == before["halt_exits"] - halts
        vcpus = [source.find(f"vcpu{number}") for number in range(2)]
        assert [one and one.get_value("exits") for one in vcpus] == [0, 0]
        vm.vcpus[1].make_exits(5)
        wait_until(lambda: source.get_value("exits") >= since + 5, "exits")
        assert vcpus[1] is not None
        assert source.get_value("exits") == since + vcpus[1].get_value("exits")


def test_numbers_that_somebody_cleared_in_debugfs(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """The kernel counts anew: the numbers before stay in the totals."""
    with host() as kvm:
        vm, other, source = make_two(kvm, guests, vcpus=1)
        run(source, vm, 50)
        tell(debugfs, other)
        exits = tell(debugfs, vm)["exits"]
        with without_bpf(kvm, source):
            debugfs.write(vm.name, {"exits": 3})
            assert source.get_value("exits") == exits


@pytest.mark.usefixtures("no_bpf")
def test_a_way_that_knows_less_than_debugfs(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """The sums stay as they were, until a way knows the vCPUs."""
    vm, other = guests.create_vm(1), guests.create_vm(1)
    vm.vcpus[0].make_exits(20)
    exits = tell(debugfs, vm)["exits"]
    tell(debugfs, other)
    with host() as kvm:
        source = wait_for(kvm, vm, vcpus=2)
        sources = kvm._vms[vm.name].sources
        sources.show(((), ("run_ns", "wait_ns", "timeslices")), {0: bytes(kvm._vcpu.size)})
        sources.arrange({0: bytes(kvm._vcpu.size)})
        assert source.get_value("exits") == exits


def test_numbers_that_come_late(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that asked debugfs before BPF had the VM: its numbers are not taken."""
    with host() as kvm:
        vm, other, source = make_two(kvm, guests, vcpus=1)
        vm.vcpus[0].make_exits(20)
        exits = tell(debugfs, vm)["exits"]
        tell(debugfs, other)
        asked, answer, real = threading.Event(), threading.Event(), DebugfsVms.read

        def read(self: DebugfsVms, *which: Any) -> Any:
            numbers = real(self, *which)
            if threading.current_thread().name != "statsfs-kvm":
                asked.set()
                assert answer.wait(DEADLINE)
            return numbers

        refresh = kvm._refresh_vm
        with without_bpf(kvm, source):
            monkeypatch.setattr(DebugfsVms, "read", read)
            late = threading.Thread(target=refresh, args=(kvm._vms[vm.name],))
            # The look must not wait for the reader's turn in debugfs.
            late.start()
            assert asked.wait(DEADLINE)
        answer.set()
        late.join()
        assert source.get_value("exits") == exits
        vcpu = source.find("vcpu0")
        assert vcpu is not None
        assert vcpu.get_value("exits") == exits


def test_bpf_is_before_debugfs(
    guests: RealKvm, debugfs: Debugfs, host: Callable[[], KvmHost]
) -> None:
    """It is asked only for what nothing better reads."""
    with host() as kvm:
        vm = guests.create_vm(1)
        tell(debugfs, vm)
        source = wait_for(kvm, vm)
        look_again(kvm)
        assert source.info["kvm.source"] == "bpf"
