"""What one daemon hands over of VMs to the next: two hosts in this process, and our own guests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest

from statsfs.demo.real_kvm import RealKvm, RealVm
from statsfs.exceptions import KvmError, SegmentError
from statsfs.kvm import host as host_module
from statsfs.kvm.clears import Clears
from statsfs.kvm.debugfs_vms import DebugfsVms
from statsfs.kvm.handing_over import KvmHandover
from statsfs.kvm.host import KvmHost
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.vm_sources import Section, read_sections
from statsfs.kvm.ways import MakeWay, Numbers
from statsfs.tree.source import Source
from tests.kvm.test_debugfs_vms import tell
from tests.kvm.test_host import alone, create_as, find, look_again, run, shown, wait_for  # noqa: F401
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.debugfs import Debugfs
from tests.support.kvm_ways import OtherWay

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]

# One for each exit that a test makes; of `exits` there is one more where an interrupt comes.
COUNT = "fpu_reload"


@dataclass
class Daemon:
    """A host with what it hands over."""

    host: KvmHost
    handover: KvmHandover

    @property
    def exits(self) -> int:
        """The total."""
        return int(self.host.source.get_value(COUNT))

    def find(self, path: str) -> Source:
        """A source of the tree."""
        found = self.host.source.find(path)
        assert found is not None, path
        return found


class Daemons:
    """Makes them, one after the other.

    Args:
        stack: closes them.
        ways: their ways besides BPF.
    """

    def __init__(self, stack: ExitStack, ways: list[MakeWay]) -> None:
        self._stack = stack
        self.ways = ways

    def start(self, held: bool = False) -> Daemon:
        """Start one; a held one shows nothing yet."""
        clears = Clears()
        host = self._stack.enter_context(KvmHost(self.ways, clears.clear, held))
        return Daemon(host, KvmHandover(host.source, clears, host, None))

    def replace(self, old: Daemon, meanwhile: Callable[[], object] = lambda: None) -> Daemon:
        """Have one take over; something may happen after the last moment of the old one."""
        new = self.start(held=True)
        assert shown(new.host.source)[COUNT] == 0
        kept = old.handover.hold()
        before = old.exits
        meanwhile()
        assert old.exits == before
        assert new.handover.begin(kept) == ""
        assert new.exits >= before
        old.handover.leave()
        return new


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    """With BPF, and no way besides."""
    with ExitStack() as stack:
        yield Daemons(stack, [])


def start_with_vm(guests: RealKvm, daemons: Daemons) -> tuple[Daemon, RealVm]:
    """Start one, with a VM that made 50 exits."""
    old = daemons.start()
    vm = guests.create_vm(1)
    run(wait_for(old.host, vm), vm, 50)
    return old, vm


def end(guests: RealKvm, daemon: Daemon, vm: RealVm) -> None:
    """End a VM, and wait until that is noticed."""
    guests.destroy_vm(vm)
    wait_until(lambda: find(daemon.host, vm) is None, "the end")


def exchange(guests: RealKvm, vm: RealVm) -> None:
    """End a VM, and have another one of its name make 7 exits."""
    guests.destroy_vm(vm)
    again = create_as(guests, vm.name)
    assert again.name == vm.name
    again.vcpus[0].make_exits(7)


def test_what_is_handed_over(guests: RealKvm, daemons: Daemons) -> None:
    """Retained counts of every kind, clears, VMs that end and that come meanwhile; three times."""
    old = daemons.start()
    ended, living, more = guests.create_vm(2), guests.create_vm(2), guests.create_vm(1)
    for vm in (ended, living, more):
        run(wait_for(old.host, vm), vm, 50)
    end(guests, old, ended)
    for path in (f"{living.name}/vcpu0", f"{more.name}"):
        old.find(path).clear_value(COUNT)
        old.find(path).clear_value("halt_wait_hist")
    run(old.find(living.name), living, 20)
    for number in range(3):
        before = {name: one for name, one in shown(old.host.source).items() if name != "run_ns"}
        short = guests.create_vm(1)
        run(wait_for(old.host, short), short, 30)
        new: list[RealVm] = []

        def happen(short: RealVm = short, new: list[RealVm] = new) -> None:
            guests.destroy_vm(short)
            new.append(guests.create_vm(1))

        exits = old.exits
        daemon = daemons.replace(old, happen)
        assert daemon.exits == exits
        assert daemon.find(f"{living.name}/vcpu0").get_value(COUNT) in range(20, 40)
        assert daemon.find(more.name).get_value(COUNT) == 0
        after = shown(daemon.host.source)
        for name, one in before.items():
            if isinstance(one, list):
                assert all(a <= b for a, b in zip(one, after[name], strict=True)), name
            elif name not in ("guest_mode", "blocking"):
                assert one <= after[name], name
        assert wait_for(daemon.host, new[0]).get_value(COUNT) == 0
        end(guests, daemon, new[0])
        assert daemon.exits == exits, number
        old = daemon
    exits = old.exits
    old.host.source.clear_value(COUNT)
    assert old.exits == 0
    daemon = daemons.replace(old)
    assert daemon.exits == 0
    run(daemon.find(living.name), living, 40)
    assert daemon.exits in range(40, 60)  # an interrupt is one more


def test_a_successor_that_fails(guests: RealKvm, daemons: Daemons) -> None:
    """The old one goes on: it reads, clears, and notices what happened."""
    old = daemons.start()
    vm, short = guests.create_vm(1), guests.create_vm(1)
    for one in (vm, short):
        run(wait_for(old.host, one), one, 50)
    exits = old.exits
    for _ in range(2):
        assert json.loads(old.handover.hold())["version"] == 1
        assert old.exits == exits
        guests.destroy_vm(short)
        later = guests.create_vm(1)
        old.handover.go_on()
        wait_for(old.host, later)
        run(old.find(vm.name), vm, 10)
        exits += 10
        assert old.exits == exits
        short = later
    old.find(vm.name).clear_value(COUNT)
    assert old.find(vm.name).get_value(COUNT) == 0


def test_another_vm_of_the_same_name(guests: RealKvm, daemons: Daemons) -> None:
    """It came in the last moment, perhaps where the other one was: it begins at 0, and counts."""
    old, vm = start_with_vm(guests, daemons)
    old.find(vm.name).clear_value(COUNT)
    run(old.find(vm.name), vm, 30)
    daemon = daemons.replace(old, lambda: exchange(guests, vm))
    assert daemon.find(vm.name).get_value(COUNT) == 7
    assert daemon.exits == 37


def test_another_vm_by_descriptors(guests: RealKvm, daemons: Daemons, no_bpf: None) -> None:
    """They keep the first one in the kernel: no uevent tells of its end, only its numbers do."""
    old, vm = start_with_vm(guests, daemons)
    daemon = daemons.replace(old, lambda: exchange(guests, vm))
    assert daemon.find(vm.name).get_value(COUNT) == 7
    assert daemon.exits == 57


def test_a_process_that_has_another_ones_number(
    guests: RealKvm, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it began tells: what the other one's VM counted is kept, and its clear is not."""
    old, vm = start_with_vm(guests, daemons)
    old.find(vm.name).clear_value(COUNT)
    run(old.find(vm.name), vm, 20)
    new = daemons.start(held=True)
    kept = json.loads(old.handover.hold())
    kept["vms"][0]["began"] -= 1
    assert new.handover.begin(json.dumps(kept).encode()) == ""
    assert new.find(vm.name).get_value(COUNT) == 70
    assert new.exits == 20 + 70


def test_clears_meanwhile(
    guests: RealKvm, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait; and are made, or refused as they are the successor's."""
    old, vm = start_with_vm(guests, daemons)
    source = old.find(vm.name)

    def begin() -> tuple[threading.Thread, list[BaseException | None]]:
        results: list[BaseException | None] = []

        def clear() -> None:
            try:
                source.clear_value(COUNT)
                results.append(None)
            except SegmentError as error:
                results.append(error)

        thread = threading.Thread(target=clear)
        thread.start()
        return thread, results

    old.handover.hold()
    thread, results = begin()
    thread.join(0.1)
    assert (results, old.exits) == ([], 50)
    old.handover.go_on()
    thread.join(DEADLINE)
    assert (results, old.exits) == ([None], 0)
    run(source, vm, 10)
    old.handover.hold()
    thread, results = begin()
    old.handover.leave()
    thread.join(DEADLINE)
    assert "has taken over" in str(results[0])
    assert old.exits == 10
    with monkeypatch.context() as patch:
        patch.setattr("statsfs.kvm.clears._PATIENCE", 0.01)
        clears = Clears()
        clears.hold()
        with pytest.raises(SegmentError, match="is taking over"):
            clears.clear([], lambda: None)


def test_numbers_of_the_last_moment(
    guests: RealKvm, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay for some seconds at most: then a successor hangs, and nobody hears of VMs."""
    monkeypatch.setattr("statsfs.kvm.host_takeover._FROZEN", 1.0)
    old, vm = start_with_vm(guests, daemons)
    old.handover.hold()
    guests.create_vm(1)
    vm.vcpus[0].make_exits(5)
    assert old.exits == 50
    wait_until(lambda: old.exits == 55, "a second")
    old.handover.go_on()


def test_a_host_that_is_busy(
    guests: RealKvm, daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be handed over; nor twice at a time."""
    old = daemons.start()
    old.handover.hold()
    monkeypatch.setattr("statsfs.kvm.host_takeover._PATIENCE", 0.01)
    with pytest.raises(KvmError, match="does not end"):
        old.handover.hold()
    old.handover.go_on()
    old.handover.go_on()


def test_what_cannot_be_used(guests: RealKvm, daemons: Daemons) -> None:
    """Of another version, or broken: why, and all begins anew."""
    old, vm = start_with_vm(guests, daemons)
    old.find(vm.name).clear_value(COUNT)
    kept = old.handover.hold()
    for bad, why in (
        (kept.replace(b'"version": 1', b'"version": 2'), "version 2, not 1"),
        (kept[:-10], ""),
    ):
        new = daemons.start(held=True)
        assert why in new.handover.begin(bad) != ""
        assert new.exits == 50
    new = daemons.start(held=True)
    assert new.handover.begin(None) == ""
    assert new.exits == 50
    old.handover.go_on()


# Other ways


@pytest.fixture
def sections() -> tuple[Section, Section]:
    """What this kernel counts."""
    with OwnVm() as own:
        return read_sections(own)


def block(section: Section, **numbers: int) -> bytes:
    """A block with these numbers."""
    return section.pack(numbers)


@pytest.mark.usefixtures("no_bpf")
def test_a_vm_that_nothing_reads(
    guests: RealKvm, daemons: Daemons, sections: tuple[Section, Section]
) -> None:
    """What it counted stays in the totals, once; it can be cleared; then it returns, or ends."""
    vm = guests.create_vm(1)
    guests.create_vm(1)  # so that no descriptor is known to be one's
    vms: dict[str, Numbers] = {}

    def show(exits: int, *more: int) -> None:
        blocks = {n: block(sections[1], **{COUNT: one}) for n, one in enumerate((exits, *more))}
        vms[vm.name] = (block(sections[0], remote_tlb_flush=3), blocks)

    def make(*_: Section) -> OtherWay:
        way = OtherWay(lambda: dict(vms))
        way.known = ((), sections[1].plain)
        return way

    daemons.ways = [make]
    show(50, 9)
    old = daemons.start()
    assert old.exits == 59
    old.find(f"{vm.name}/vcpu0").clear_value(COUNT)
    assert old.exits == 9
    show(55)
    look_again(old.host)  # vcpu1 was unplugged
    assert old.exits == 14
    assert "remote_tlb_flush" not in old.find(vm.name).names()
    new = daemons.replace(old)
    assert (new.exits, new.find(vm.name).get_value(COUNT)) == (14, 14)
    assert "halt_wait_hist" not in new.find(vm.name).names()
    new = daemons.replace(new, vms.clear)
    assert new.host.source.find(vm.name) is None
    assert new.exits == 14
    new = daemons.replace(new)  # a hidden one is handed over, too
    assert new.exits == 14
    show(60)
    look_again(new.host)
    assert (new.exits, new.find(vm.name).get_value(COUNT)) == (19, 19)
    vms.clear()
    new = daemons.replace(new)
    new.host.source.clear_value(COUNT)
    show(62)
    assert new.exits == 0
    look_again(new.host)
    assert new.exits == 2
    vms.clear()
    new = daemons.replace(new)
    guests.destroy_vm(vm)
    look_again(new.host)
    assert new.exits == 2


@pytest.mark.usefixtures("no_bpf")
def test_labels_stay(guests: RealKvm, daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    """The label of a VM is that which it had, whatever its process is called by now."""
    vm = guests.create_vm(1)
    guests.create_vm(1)
    vms: dict[str, Numbers] = {}
    daemons.ways = [lambda *_: OtherWay(lambda: vms)]
    old = daemons.start()
    vms[vm.name] = (bytes(old.host._vm.size), {})
    look_again(old.host)
    kept = json.loads(old.handover.hold())
    kept["vms"][0]["label"] = "web"
    new = daemons.start(held=True)
    new.handover.begin(json.dumps(kept).encode())
    assert new.find(vm.name).label_value == "web"


@contextmanager
def failing_bpf() -> Iterator[None]:
    """BPF cannot be set up."""
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise KvmError("BPF needs CAP_BPF")

        patch.setattr(host_module, "BpfIterator", refuse)
        yield


def test_from_bpf_to_debugfs_and_back(
    guests: RealKvm,
    daemons: Daemons,
    tmp_path: Any,
    sections: tuple[Section, Section],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The successors read by other ways: sums over the vCPUs count what each vCPU had before."""
    debugfs = Debugfs(tmp_path / "kvm", *sections)
    daemons.ways = [lambda vm, vcpu: DebugfsVms(vm, vcpu, debugfs.path)]
    old = daemons.start()
    vm, other = guests.create_vm(2), guests.create_vm(1)
    for one in (vm, other):
        wait_for(old.host, one)
    for number, vcpu in enumerate(vm.vcpus):
        vcpu.make_exits(50 + number)
    wait_until(lambda: old.exits >= 101, "the exits")
    old.find(f"{vm.name}/vcpu0").clear_value(COUNT)
    histogram = old.host.source.get_value("halt_wait_hist")
    exits = old.exits  # an interrupt is one more
    assert exits in range(51, 71)
    daemon = old
    for _ in range(2):
        with failing_bpf():
            tell(debugfs, vm)
            tell(debugfs, other)
            daemon = daemons.replace(daemon)
            for _ in range(2):
                assert daemon.find(vm.name).info["kvm.source"] == "debugfs"
                assert daemon.exits == exits
                daemon = daemons.replace(daemon)
            assert daemon.host.source.get_value("halt_wait_hist") == histogram
        daemon = daemons.replace(daemon)
        assert daemon.find(vm.name).info["kvm.source"] == "bpf"
        assert daemon.exits == exits
        assert daemon.find(f"{vm.name}/vcpu0").get_value(COUNT) == 0
        assert daemon.host.source.get_value("halt_wait_hist") == histogram
    run(daemon.find(vm.name), vm, 20)
    exits = daemon.exits
    end(guests, daemon, vm)
    assert daemon.exits == exits >= 71


def test_a_refresh_that_comes_late(
    guests: RealKvm, daemons: Daemons, no_bpf: None, sections: tuple[Section, Section]
) -> None:
    """A reader's numbers that come after the last moment are dropped, and are not read anew."""
    vm = guests.create_vm(1)
    guests.create_vm(1)
    exits = [50]

    def find_vms() -> dict[str, Numbers]:
        return {vm.name: (None, {0: block(sections[1], **{COUNT: exits[0]})})}

    def make(*_: Section) -> OtherWay:
        way = OtherWay(find_vms)
        way.known = ((), sections[1].plain)
        return way

    daemons.ways = [make]
    old = daemons.start()
    assert old.exits == 50
    old.handover.hold()
    exits[0] = 60
    hosted = old.host._vms[vm.name]
    assert hosted.way is not None
    hosted.take(hosted.way, hosted.way.read(vm.name), monotonic())
    assert old.exits == 50
    old.handover.go_on()
    assert old.exits == 60
