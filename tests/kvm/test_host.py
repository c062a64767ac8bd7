"""All VMs of a host, in this process: guests of our own, and what becomes of the tree."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.exceptions import KvmError, UnavailableError
from statsfs.kvm import host as host_module
from statsfs.kvm import scanning
from statsfs.kvm.bpf import BpfIterator, BpfPass, BpfRow
from statsfs.kvm.host import KvmHost
from statsfs.kvm.identity import Identity
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.uevents import KvmUevent
from statsfs.kvm.vm_sources import read_sections
from statsfs.kvm.ways import Numbers, Way
from statsfs.tree.source import Source
from tests.kvm.conftest import refuse
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_ways import OtherWay

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No VMs of other processes: a total is what a test makes."""
    read, scan = BpfIterator.read, scanning.scan

    def read_own(self: BpfIterator, before: BpfPass | None = None) -> BpfPass:
        found = read(self)
        pairs = zip(found.rows, found.blocks, strict=True)
        own = [(row, block) for row, block in pairs if row.process == os.getpid()]
        rows: Sequence[BpfRow] = [row for row, _ in own]
        if before is not None and rows == before.rows:
            rows = before.rows
        return found._replace(rows=rows, blocks=[block for _, block in own])

    monkeypatch.setattr(BpfIterator, "read", read_own)
    own = os.getpid()
    monkeypatch.setattr(
        scanning, "scan", lambda: {pid: files for pid, files in scan().items() if pid == own}
    )
    find = scanning.find_process
    monkeypatch.setattr(
        scanning, "find_process", lambda thread: own if find(thread) == own else None
    )


def find(host: KvmHost, vm: RealVm) -> Source | None:
    """The source of a VM in the tree of the host."""
    return host.source.find(vm.name)


def wait_for(host: KvmHost, vm: RealVm, vcpus: int | None = None) -> Source:
    """Wait until a VM is shown, with its vCPUs."""
    count = len(vm.vcpus) if vcpus is None else vcpus

    def is_there() -> bool:
        source = find(host, vm)
        return source is not None and len(source.subordinates) == count

    wait_until(is_there, vm.name)
    source = find(host, vm)
    assert source is not None
    return source


def shown(source: Source) -> dict[str, Any]:
    """The values of one directory."""
    return {name: source.get_value(name) for name in source.names()}


def run(source: Source, vm: RealVm, exits: int) -> None:
    """Have the first vCPU make exits; a number of 20 ms before is as good to readers."""
    before = source.get_value("exits")
    vm.vcpus[0].make_exits(exits)
    wait_until(lambda: source.get_value("exits") >= before + exits, "the exits")


def counted(stats: Any) -> dict[str, Any]:
    """What a statistics descriptor says."""
    stats.refresh()
    return dict(stats.numbers)


@contextmanager
def paused(host: KvmHost, *, deaf: bool = True) -> Iterator[None]:
    """Nothing is looked at, and no uevent is heard, until the context ends.

    Deaf, readers do not wait until it is: other tests' VMs come and go at any time.
    """
    rests = threading.Event()
    looking: Any = host
    looking._deaf = deaf
    looking._hear, looking._look = lambda: None, rests.set
    host._wake_up()
    assert rests.wait(DEADLINE)
    try:
        yield
    finally:
        looking._deaf = False
        del looking._hear, looking._look
        host._wake_up()


def look_again(host: KvmHost) -> None:
    """Have the host look once from now on, at least."""
    looked = threading.Event()
    looking: Any = host
    look = host._look

    def call() -> None:
        look()
        looked.set()

    looking._look = call
    host._wake_up()
    assert looked.wait(DEADLINE)
    del looking._look


def create_as(guests: RealKvm, name: str) -> RealVm:
    """Create a VM with the name of one that ended: its descriptor has the same number."""
    made: list[RealVm] = []

    def create() -> bool:
        # Lower numbers are taken; another thread may still be the first to take this one.
        lower = []
        while (descriptor := os.dup(0)) < int(name.rpartition("-")[2]):
            lower.append(descriptor)
        os.close(descriptor)
        made.append(guests.create_vm(1))
        for descriptor in lower:
            os.close(descriptor)
        if made[-1].name != name:
            guests.destroy_vm(made.pop())
        return bool(made)

    wait_until(create, name)
    return made[0]


SCHEDULE = {"run_ns", "wait_ns", "timeslices"}


def test_totals_are_there_before_the_first_vm() -> None:
    """As in debugfs: `exits` is 0."""
    with KvmHost() as host:
        values = shown(host.source)
        assert values["exits"] == values["remote_tlb_flush"] == values["wait_ns"] == 0
        assert values["halt_wait_hist"] == [0] * len(values["halt_wait_hist"])


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_all_values_are_the_descriptors(guests: RealKvm, early: bool) -> None:
    """At a standstill, of VMs that were there before and that come later."""
    vms = [guests.create_vm(2)] if early else []
    with KvmHost() as host:
        vms.append(guests.create_vm(1))
        for vm in vms:
            wait_for(host, vm)
            for number, vcpu in enumerate(vm.vcpus):
                vcpu.make_exits(50 + number)
        exits = sum(counted(stats)["exits"] for vm in vms for stats in vm.vcpu_stats)
        wait_until(lambda: host.source.get_value("exits") == exits, "the exits")
        for vm in vms:
            source = wait_for(host, vm)
            assert source.info["kvm.source"] == "bpf"
            own = counted(vm.stats)
            assert {name: shown(source)[name] for name in own} == own
            for number, stats in enumerate(vm.vcpu_stats):
                found = source.find(f"vcpu{number}")
                assert found is not None
                values = shown(found)
                assert values.keys() - counted(stats).keys() == SCHEDULE
                assert {name: values[name] for name in counted(stats)} == counted(stats)


def test_a_vm_without_vcpus(guests: RealKvm) -> None:
    """Its files are there, and 0; as are those of a VM whose vCPUs come later."""
    with KvmHost() as host:
        source = wait_for(host, guests.create_vm(0))
        assert source.get_value("exits") == source.get_value("wait_ns") == 0
        assert host.source.get_value("exits") == 0


def test_a_vm_that_ends_is_retained(guests: RealKvm) -> None:
    """Its directory is gone, what it counted is not; the next one begins at 0."""
    with KvmHost() as host:
        vm = guests.create_vm(1)
        source = wait_for(host, vm)
        run(source, vm, 70)
        exits = host.source.get_value("exits")
        assert exits >= 70
        guests.destroy_vm(vm)
        wait_until(lambda: source.parent is None, "the end")
        assert host.source.get_value("exits") == exits
        again = guests.create_vm(1)
        assert wait_for(host, again).get_value("exits") < 70
        assert host.source.get_value("exits") >= exits


def test_a_vm_in_place_of_another(guests: RealKvm) -> None:
    """Of the same thread, with the same descriptor, and before anybody looked: it is another."""
    with KvmHost() as host:
        with paused(host):  # its thread opens nothing, so that the numbers will be the same
            vm = guests.create_vm(1)
        before = source = wait_for(host, vm)
        run(source, vm, 70)
        exits = host.source.get_value("exits")
        with paused(host):
            guests.destroy_vm(vm)
            again = guests.create_vm(1)
            assert again.name == vm.name
            host._uevents.read()  # not heard: only its address tells that it is another
            assert host._bpf is not None
            host._bpf.unbind(host._vms[vm.name].sources)
            host._vms[vm.name].key = None
        wait_until(lambda: find(host, again) not in (None, before), "the next one")
        assert wait_for(host, again).get_value("exits") == 0
        assert host.source.get_value("exits") == exits


def test_each_thread_of_a_process_has_its_vms(guests: RealKvm) -> None:
    """The name has the number of the thread that made the VM."""
    with KvmHost() as host, ThreadPoolExecutor(1) as pool:
        vms = [guests.create_vm(1), pool.submit(guests.create_vm, 1).result()]
        assert len({vm.name.partition("-")[0] for vm in vms}) == 2
        for vm in vms:
            assert wait_for(host, vm).info["pid"] == str(os.getpid())


def test_a_descriptor_of_a_vm_that_is_there_twice(guests: RealKvm) -> None:
    """The VM is there once, under the name of the first."""
    vm = guests.create_vm(1)
    fd = int(vm.name.partition("-")[2])
    second = os.dup(fd)
    try:
        with KvmHost() as host:
            wait_for(host, vm)
            assert [
                one.name for one in host.source.subordinates if one.info["pid"] == str(os.getpid())
            ] == [vm.name]
    finally:
        os.close(second)


def test_clearing_lasts(guests: RealKvm) -> None:
    """A cleared value counts from 0, whatever the kernel goes on with."""
    with KvmHost() as host:
        vm = guests.create_vm(1)
        source = wait_for(host, vm)
        run(source, vm, 30)
        source.clear_value("exits")
        assert source.get_value("exits") == 0
        run(source, vm, 10)
        assert source.get_value("exits") < 30


# Moves from one way to another


def test_bpf_ends_and_returns(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The descriptors are next: no number falls, what they do not know is not shown."""
    monkeypatch.setattr(host_module, "_RETRY", 0.0)
    real = BpfIterator
    with KvmHost() as host:
        vm = guests.create_vm(1)
        source = wait_for(host, vm)
        run(source, vm, 40)
        before = host.source.get_value("exits")
        source.clear_value("halt_exits")
        monkeypatch.setattr(host_module, "BpfIterator", refuse)
        bpf = host._bpf
        assert bpf is not None
        monkeypatch.setattr(bpf._iterator, "read", refuse)
        wait_until(lambda: source.info["kvm.source"] == "descriptors", "the other way")
        assert find(host, vm) is source
        assert "remote_tlb_flush" not in source.names()
        assert host.source.get_value("exits") == source.get_value("exits") == before
        assert source.get_value("halt_exits") == 0
        run(source, vm, 5)
        assert source.get_value("exits") < before + 20
        monkeypatch.setattr(host_module, "BpfIterator", real)
        wait_until(lambda: source.info["kvm.source"] == "bpf", "BPF")
        assert "remote_tlb_flush" in source.names()
        assert before + 5 <= host.source.get_value("exits") == source.get_value("exits")
        assert find(host, vm) is source
    assert "BPF ends: BPF needs CAP_BPF" in caplog.text


def test_a_vm_that_nothing_can_read_for_a_while(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not shown; when it returns it does not count twice."""
    monkeypatch.setattr(host_module, "_RETRY", 0.0)
    real = BpfIterator
    with KvmHost() as host:
        # Of several it is not known whose the descriptors are.
        vms = [guests.create_vm(1) for _ in range(3)]
        source = wait_for(host, vms[0])
        wait_for(host, vms[1])
        run(source, vms[0], 40)
        before = host.source.get_value("exits")
        monkeypatch.setattr(host_module, "BpfIterator", refuse)
        assert host._bpf is not None
        monkeypatch.setattr(host._bpf._iterator, "read", refuse)
        wait_until(lambda: source.parent is None, "it is hidden")
        with pytest.raises(UnavailableError, match="no way to read it"):
            source.get_value("exits")
        look_again(host)
        assert host.source.get_value("exits") == before
        other = host._vms[vms[1].name].sources.source
        guests.destroy_vm(vms[1])
        wait_until(lambda: other.refcount == 0, "the end of the other")
        monkeypatch.setattr(host_module, "BpfIterator", real)
        wait_until(lambda: source.parent is not None, "it is shown")
        assert host.source.get_value("exits") == before
        assert source.get_value("exits") == before


def test_kvm_is_unloaded_and_loaded_again(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the program finds nothing, in silence: a VM of our own tells, and it is made anew."""
    with KvmHost() as host:
        bpf = host._bpf
        assert bpf is not None
        monkeypatch.setattr(bpf._iterator, "read", lambda *_: BpfPass([], [], [], ([], []), 0))
        vm = guests.create_vm(1)
        wait_for(host, vm)
        assert host._bpf is not bpf
    assert "KVM was unloaded, and loaded again" in caplog.text


def test_a_reader_of_a_bpf_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have no data until the next look."""
    with KvmHost() as host:
        assert host._bpf is not None
        with paused(host):
            monkeypatch.setattr(host._bpf._iterator, "read", refuse)
            wait_until(lambda: not is_available(host.source), "no data")
        wait_until(lambda: is_available(host.source), "data")


def is_available(source: Source) -> bool:
    """Whether a source has numbers."""
    try:
        source.get_value("exits")
    except UnavailableError:
        return False
    return True


# Without BPF


def test_descriptors_that_a_process_keeps(guests: RealKvm, no_bpf: None) -> None:
    """A VM comes, counts and ends; its last numbers are retained to the last."""
    with KvmHost() as host:
        vm = guests.create_vm(2)
        source = wait_for(host, vm)
        assert source.info["kvm.source"] == "descriptors"
        for vcpu in vm.vcpus:
            vcpu.make_exits(20)
        for number, stats in enumerate(vm.vcpu_stats):
            vcpu_source = source.find(f"vcpu{number}")
            assert vcpu_source is not None
            values = shown(vcpu_source)
            assert {name: values[name] for name in counted(stats)} == counted(stats)
        guests.destroy_vm(vm)
        wait_until(lambda: source.parent is None, "the end")
        assert host.source.get_value("exits") >= 40


def test_the_address_of_another_vm(guests: RealKvm) -> None:
    """A VM that is made before the end of another is heard is often where that was: not in BPF.

    Readers get the last numbers until the end is heard, and then the new VM's as well.
    """
    with KvmHost() as host:
        total = 0
        for _ in range(5):
            vm = guests.create_vm(1)
            run(wait_for(host, vm), vm, 50)
            total += 50
            with paused(host, deaf=False):
                guests.destroy_vm(vm)
                again = create_as(guests, vm.name)
                again.vcpus[0].make_exits(7)
                assert host._bpf is not None
                host._bpf._passed = 0.0  # the next reader makes a pass
                assert host.source.get_value("fpu_reload") == total
            total += 7
            wait_until(lambda: host.source.get_value("fpu_reload") == total, "both")  # noqa: B023
            assert wait_for(host, again).get_value("fpu_reload") == 7
            guests.destroy_vm(again)
            wait_until(lambda: find(host, again) is None, "the end")  # noqa: B023


@pytest.mark.parametrize("exits", [7, 70])
def test_another_vm_by_descriptors(guests: RealKvm, no_bpf: None, exits: int) -> None:
    """It has the name of one that ended between two looks: what that counted stays in the total."""
    with KvmHost() as host:
        vm = guests.create_vm(1)
        run(wait_for(host, vm), vm, 50)
        with paused(host):
            guests.destroy_vm(vm)
            again = create_as(guests, vm.name)
            again.vcpus[0].make_exits(exits)
        wait_until(lambda: host.source.get_value("fpu_reload") == 50 + exits, "both")
        assert wait_for(host, again).get_value("fpu_reload") == exits


def test_without_any_way(
    monkeypatch: pytest.MonkeyPatch, no_bpf: None, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says what is missing for each."""
    monkeypatch.setattr(host_module, "find_missing", lambda names: list(names)[:1])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match="BPF needs CAP_BPF; other ways need CAP_SYS_PTRACE"):
        KvmHost()
    assert len(os.listdir("/proc/self/fd")) == before
    assert caplog.text == ""


def test_a_way_of_another_kind(guests: RealKvm, no_bpf: None) -> None:
    """It is asked last, for what others do not have; it is closed with the host."""
    vm, more = guests.create_vm(1), guests.create_vm(1)
    blocks: dict[str, Numbers] = {}
    way = OtherWay(lambda: blocks)
    with KvmHost([lambda *_: way]) as host:
        assert find(host, vm) is None
        blocks[vm.name] = (bytes(host._vm.size), {0: bytes(host._vcpu.size)})
        host._wake_up()
        source = wait_for(host, vm)
        assert source.info["kvm.source"] == "other"
        assert find(host, more) is None
        # Of the arrays it knows none whole.
        assert "remote_tlb_flush" not in source.names()
        way.known = (None, ("run_ns", "wait_ns", "timeslices"))
        del blocks[vm.name]
        host._wake_up()
        wait_until(lambda: source.parent is None, "it is hidden")
        schedule = (7).to_bytes(8, "little") + bytes(16)
        blocks[vm.name] = (bytes(host._vm.size), {0: schedule + bytes(host._vcpu.size - 24)})
        host._wake_up()
        wait_until(lambda: find(host, vm) is source, "it returns")
        vcpu = source.find("vcpu0")
        assert vcpu is not None
        assert shown(vcpu) == {"run_ns": 7, "wait_ns": 0, "timeslices": 0}
        blocks[vm.name] = (None, {1: bytes(host._vcpu.size)})
        look_again(host)
        assert [one.name for one in source.subordinates] == ["vcpu1"]
        assert source.get_value("run_ns") == 7
        assert host.source.get_value("run_ns") == 7
    assert way.closed
    assert isinstance(way, OtherWay)
    _: Way = way


class Interrupted(OtherWay):
    """One VM that makes ten exits at each read; something may happen before these are taken.

    Attributes:
        exits: how many it made.
        interrupt: what happens, in so many reads as `times` says.
    """

    known = (None, None)

    def __init__(self, name: str) -> None:
        super().__init__(self._read)
        self.exits = self.times = 0
        self.interrupt: Callable[[], object] = lambda: None
        self._name = name
        with OwnVm() as own:
            self._vm, self._vcpu = read_sections(own)

    def _read(self) -> dict[str, Numbers]:
        self.exits += 10
        block = self._vcpu.pack({"exits": self.exits})
        if self.times > 0:
            times, self.times = self.times - 1, 0
            self.interrupt()
            self.times = times
        return {self._name: (bytes(self._vm.size), {0: block})}


def taken(host: KvmHost, vm: RealVm) -> int:
    """The exits of a VM that the tree has, without asking for newer ones."""
    numbers = host._vms[vm.name].sources.find(0)
    assert numbers is not None
    return int(numbers.numbers["exits"])


@pytest.mark.usefixtures("no_bpf")
def test_numbers_of_a_look_that_are_late(guests: RealKvm) -> None:
    """A reader's are newer: the file never goes back to those of the look."""
    vm, _ = guests.create_vm(1), guests.create_vm(1)  # of two no descriptors are taken
    way = Interrupted(vm.name)
    with KvmHost([lambda *_: way]) as host, paused(host):
        source = wait_for(host, vm)
        for way.times in (1, 0):
            way.interrupt = lambda: source.get_value("exits")
            KvmHost._look(host)
            assert taken(host, vm) == way.exits


@pytest.mark.usefixtures("no_bpf")
@pytest.mark.parametrize("times", [1, 2])
def test_numbers_of_a_reader_that_are_late(guests: RealKvm, times: int) -> None:
    """A look's may be newer, or older than the question: it asks once more, and not for ever."""
    vm, _ = guests.create_vm(1), guests.create_vm(1)  # of two no descriptors are taken
    way = Interrupted(vm.name)
    with KvmHost([lambda *_: way]) as host, paused(host):
        source = wait_for(host, vm)
        before, way.times = way.exits, times
        way.interrupt = lambda: KvmHost._look(host)
        shown = source.get_value("exits")
        assert shown == taken(host, vm) == before + (30 if times == 1 else 40)
        assert way.times == 0


@pytest.mark.usefixtures("no_bpf")
def test_another_way_whose_numbers_are_late(guests: RealKvm) -> None:
    """A reader's by the way before are newer: the other one is asked again."""
    vm, _ = guests.create_vm(1), guests.create_vm(1)  # of two no descriptors are taken
    before, better = Interrupted(vm.name), Interrupted(vm.name)
    better.vms, read = dict, better.vms
    with KvmHost([lambda *_: better, lambda *_: before]) as host, paused(host):
        source = wait_for(host, vm)

        def count_on() -> None:
            better.exits = before.exits + 50
            source.get_value("exits")

        better.vms, better.times, better.interrupt = read, 1, count_on
        KvmHost._look(host)
        assert source.info["kvm.source"] == "other"
        assert taken(host, vm) == better.exits > before.exits


def test_the_end_of_a_vm_is_told_late(guests: RealKvm) -> None:
    """Of one that somebody held: another one has its name by then, and is not counted twice."""
    vm = guests.create_vm(1)
    with KvmHost() as host, paused(host):
        run(wait_for(host, vm), vm, 30)
        before = host.source.get_value("exits")
        shown = host._vms[vm.name]
        shown.key = "another one, which had ended"
        KvmHost._look(host)
        assert host._vms[vm.name] is not shown
        created, ended = (
            KvmUevent(created=kind, thread=0, name=vm.name, number=0) for kind in (True, False)
        )
        total = host.source.get_value("exits")
        assert total == 2 * before  # as if both had made them
        for late, events in ((True, [created, ended]), (False, [ended])):
            host._uevents.read = lambda: (events, False)  # type: ignore[method-assign]  # noqa: B023
            KvmHost._hear(host)
            assert (vm.name in host._vms) is late
            assert host.source.get_value("exits") == total


def test_bpf_whose_numbers_are_late(guests: RealKvm) -> None:
    """As it returns, a reader's numbers of a moment ago are newer than those that it found."""
    vm = guests.create_vm(1)
    with KvmHost() as host, paused(host):
        run(wait_for(host, vm), vm, 50)
        bpf, hosted = host._bpf, host._vms[vm.name]
        assert bpf is not None
        (found,) = (one for one in bpf.look(()) if one.name == vm.name)
        vm.vcpus[0].make_exits(10)
        hosted.read_by(bpf, found, hosted.read_at - 1, ())
        assert taken(host, vm) >= 60


def test_a_vm_that_no_way_reads(
    guests: RealKvm, no_bpf: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, with why not."""
    monkeypatch.setattr(host_module, "_YOUTH", 0.0)
    for _ in range(2):
        guests.create_vm(1)
    with KvmHost([lambda *_: OtherWay(dict)]) as host:
        look_again(host)
        look_again(host)
    (line,) = [one for one in caplog.text.splitlines() if "is not shown" in one]
    assert line.endswith("is not shown: descriptors: its process has 2 VMs; other: it knows none")


# Names


def test_who_it_is(guests: RealKvm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is the label's value unless another VM has it, or it looks like a directory."""
    names = iter(["web", "web", "12-3", "", "db"])
    monkeypatch.setattr(
        host_module, "identify", lambda _: Identity("qemu", next(names), "0-1", "pc")
    )
    with KvmHost() as host:
        vms = []
        for _ in range(5):
            vms.append(guests.create_vm(1))
            wait_for(host, vms[-1])
        found = [find(host, vm) for vm in vms]
        values = [source.label_value for source in found if source is not None]
        assert values == ["web", vms[1].name, vms[2].name, vms[3].name, "db"]
        assert found[0] is not None
        assert found[0].info == {
            "pid": str(os.getpid()),
            "vmm": "qemu",
            "uuid": "0-1",
            "kvm.name": "web",
            "kvm.machine": "pc",
            "kvm.source": "bpf",
        }


def test_more_vms_than_are_shown_of_a_user(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ones are shown, and the log says so once; others' are shown all the same."""
    monkeypatch.setattr(host_module, "_VMS", 2)
    monkeypatch.setattr(host_module, "_COMPLAINTS", 1)
    with KvmHost() as host:
        vms = [guests.create_vm(1) for _ in range(4)]
        text = f"of user {os.getuid()} 2 VMs are shown, and no more"
        wait_until(lambda: text in caplog.text, "the log")
        look_again(host)
        assert len(host.source.subordinates) == 2
        for vm in vms:
            if find(host, vm) is None:
                guests.destroy_vm(vm)
        monkeypatch.setattr(scanning, "find_user", lambda _: 4711)
        wait_for(host, guests.create_vm(1))
    assert caplog.text.count("are shown, and no more") == 1


def test_more_vcpus_than_are_shown_of_a_user(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ones of the first VMs; there is room again when some are gone."""
    monkeypatch.setattr(host_module, "_VCPUS", 3)
    with KvmHost() as host:
        first = guests.create_vm(2)
        wait_for(host, first)
        source = wait_for(host, guests.create_vm(2), vcpus=1)
        assert [one.name for one in source.subordinates] == ["vcpu0"]
        assert f"of user {os.getuid()} 3 vCPUs are shown, and no more" in caplog.text
        guests.destroy_vm(first)
        wait_until(lambda: len(source.subordinates) == 2, "the second vCPU")


def test_a_vm_that_something_else_shows(guests: RealKvm, caplog: pytest.LogCaptureFixture) -> None:
    """Never twice: what has the name keeps it, until it goes."""
    with KvmHost() as host:
        with paused(host):
            vm = guests.create_vm(1)
            other = Source(vm.name)
            host.source.add_subordinate(other)
        wait_until(lambda: f"there is a {vm.name!r} already" in caplog.text, "the log")
        assert find(host, vm) is other
        host.source.remove_subordinate(other)
        look_again(host)
        assert find(host, vm) not in (None, other)
    other.put()


def test_a_vm_that_cannot_be_shown(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and does not hide the others."""
    with KvmHost() as host:
        with paused(host):
            vms = [guests.create_vm(1), guests.create_vm(1)]
            odd = [RuntimeError("odd")]

            def identify_the_second(pid: int) -> Identity:
                if odd:
                    raise odd.pop()
                return Identity()

            monkeypatch.setattr(host_module, "identify", identify_the_second)
        for vm in vms:
            wait_for(host, vm)
    assert caplog.text.count("cannot be shown") == 1


def test_a_process_that_ends_while_it_is_looked_at(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells of its end then but the next look."""

    def refuse_pid(_: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", refuse_pid)
    with KvmHost() as host:
        vm = guests.create_vm(1)
        source = wait_for(host, vm)
        guests.destroy_vm(vm)
        wait_until(lambda: source.parent is None, "the end")


def test_a_vm_that_was_gone_before_it_was_seen() -> None:
    """A VM of our own shows that BPF works all the same."""
    with KvmHost() as host:
        bpf = host._bpf
        host._unseen.add("12-3")
        look_again(host)
        assert host._unseen == set()
        assert host._bpf is bpf


def test_a_look_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next one comes."""
    with KvmHost() as host:
        looking: Any = host

        def fail() -> None:
            del looking._look
            raise RuntimeError("odd")

        looking._look = fail
        host._wake_up()
        wait_until(lambda: "a look failed" in caplog.text, "the log")
        wait_until(lambda: is_available(host.source), "the next")


def test_an_overrun_of_uevents(
    guests: RealKvm, monkeypatch: pytest.MonkeyPatch, no_bpf: None
) -> None:
    """Then all processes are looked at again."""
    with KvmHost() as host:
        read = host._uevents.read
        monkeypatch.setattr(host._uevents, "read", lambda: (read()[0], True))
        vm = guests.create_vm(1)
        wait_for(host, vm)


def test_closing_twice(guests: RealKvm) -> None:
    """Nothing is left, and the second time nothing happens."""
    before = len(os.listdir("/proc/self/fd"))
    host = KvmHost()
    vm = guests.create_vm(1)
    wait_for(host, vm)
    guests.destroy_vm(vm)
    host.close()
    host.close()
    host._wake_up()  # as of a reader who comes late
    assert len(os.listdir("/proc/self/fd")) == before
    assert "statsfs-kvm" not in [thread.name for thread in threading.enumerate()]
