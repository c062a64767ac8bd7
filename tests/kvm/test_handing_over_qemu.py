"""What a daemon that reads VMs by QMP hands over: monitors in this process, and what QEMU says."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statsfs.exceptions import KvmError, SegmentError, UnavailableError
from statsfs.kvm.clears import Clears
from statsfs.kvm.handing_over import KvmHandover
from statsfs.kvm.host import KvmHost
from statsfs.kvm.qemu import QemuMonitor
from statsfs.tree.source import Source
from tests.support.deadlines import wait_until
from tests.support.qemus import Qemu, running

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]


class Daemons:
    """Makes sources of VMs, with what they hand over.

    Args:
        stack: closes them.
        pattern: of the sockets.
    """

    def __init__(self, stack: ExitStack, pattern: Path) -> None:
        self._stack = stack
        self.pattern = pattern

    def start(self, held: bool = False) -> tuple[Source, KvmHandover]:
        """Start one that reads by QMP alone."""
        clears = Clears()
        kvm = self._stack.enter_context(Source("kvm", recorder=clears.clear))
        sockets = [str(self.pattern)]
        monitor = self._stack.enter_context(QemuMonitor(kvm, sockets, clears.clear, held))
        return kvm, KvmHandover(kvm, clears, None, monitor)

    def start_host(self, held: bool) -> tuple[Source, KvmHandover]:
        """Start one that reads all VMs."""
        clears = Clears()
        host = self._stack.enter_context(KvmHost((), clears.clear, held))
        return host.source, KvmHandover(host.source, clears, host, None)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Of sockets in the test's directory."""
    with ExitStack() as stack:
        yield Daemons(stack, tmp_path / "*.qmp")


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Qemu]:
    """A QEMU that has run a while, and stands still."""
    with running(tmp_path / "a.qmp") as vm:
        yield vm


def find(kvm: Source, vm: Qemu) -> Source:
    """The source of the VM."""
    wait_until(lambda: kvm.find(vm.name) is not None, "the VM")
    source = kvm.find(vm.name)
    assert source is not None
    return source


def stand_still(kvm: Source, vm: Qemu) -> None:
    """Have it stop after some exits."""
    wait_until(lambda: find(kvm, vm).get_value("exits") > 1000, "exits")
    vm.execute("stop")


def vcpu0(kvm: Source, vm: Qemu) -> int:
    """The exits of its first vCPU."""
    source = find(kvm, vm).find("vcpu0")
    assert source is not None
    return int(source.get_value("exits"))


def test_by_qmp_to_qmp(daemons: Daemons, vm: Qemu) -> None:
    """The clears go over; the old one reads nothing any more, and does not clear."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    kvm.clear_value("exits")
    assert vcpu0(kvm, vm) < 100
    new_kvm, new = daemons.start(held=True)
    kept = old.hold()
    assert new.begin(kept) == ""
    assert vcpu0(new_kvm, vm) < 200
    old.leave()
    assert kvm.subordinates
    wait_until(lambda: vcpu0_or_none(kvm, vm) is None, "the end of what was just read")
    with pytest.raises(UnavailableError, match="another process reads it now"):
        find(kvm, vm).get_value("exits")
    with pytest.raises(SegmentError, match="has taken over"):
        kvm.clear_value("exits")
    vm.end()
    for source in (kvm, new_kvm):
        wait_until(lambda source=source: not source.subordinates, "the end")  # type: ignore[misc]


def test_a_successor_that_fails(daemons: Daemons, vm: Qemu) -> None:
    """The old one reads on, and shows who comes and who ends."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    exits = kvm.get_value("exits")
    kept = json.loads(old.hold())
    assert [one["name"] for one in kept["vms"]] == [vm.name]
    assert kvm.get_value("exits") <= exits + 100
    vm.end()
    with running(daemons.pattern.with_name("b.qmp")) as other:
        assert kvm.find(vm.name) is not None
        old.go_on()
        wait_until(lambda: kvm.find(vm.name) is None, "the end")
        assert find(kvm, other).get_value("exits") >= 0


def test_one_that_does_not_answer(daemons: Daemons, vm: Qemu) -> None:
    """Its totals stay, can be cleared, and go on when it answers; or end with it."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    exits = kvm.get_value("exits")
    vm.send_signal(signal.SIGSTOP)
    new_kvm, new = daemons.start(held=True)
    new.begin(old.hold())
    old.leave()
    assert exits <= new_kvm.get_value("exits") < exits + 100
    with pytest.raises(UnavailableError):
        find(new_kvm, vm).get_value("exits")
    new_kvm.clear_value("exits")
    assert new_kvm.get_value("exits") == 0
    vm.send_signal(signal.SIGCONT)
    wait_until(lambda: vcpu0_or_none(new_kvm, vm) is not None, "its answer")
    assert new_kvm.get_value("exits") < 300
    last_kvm, last = daemons.start(held=True)
    kept = new.hold()
    vm.end()
    last.begin(kept)
    assert last_kvm.subordinates == ()
    new.leave()


def vcpu0_or_none(kvm: Source, vm: Qemu) -> int | None:
    """The exits of its first vCPU; None while it is not read."""
    try:
        return vcpu0(kvm, vm)
    except UnavailableError:
        return None


def test_one_that_ends_before_it_answers(daemons: Daemons, vm: Qemu) -> None:
    """It leaves the tree."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    vm.send_signal(signal.SIGSTOP)
    new_kvm, new = daemons.start(held=True)
    new.begin(old.hold())
    old.leave()
    assert new_kvm.find(vm.name) is not None
    vm.end()
    wait_until(lambda: not new_kvm.subordinates, "the end")


def test_other_sockets(daemons: Daemons, vm: Qemu) -> None:
    """A successor that does not know the socket does not show the VM; a clear is not forgotten."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    kvm.clear_value("exits")
    path = daemons.pattern
    daemons.pattern = path.with_name("other")
    new_kvm, new = daemons.start(held=True)
    new.begin(old.hold())
    old.leave()
    assert new_kvm.subordinates == ()
    os.rename(path.with_name("a.qmp"), daemons.pattern)
    assert find(new_kvm, vm).get_value("exits") < 300


def test_from_qmp_to_all_vms_and_back(daemons: Daemons, vm: Qemu) -> None:
    """The clears of a VM are those of its values, whatever reads them."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    find(kvm, vm).clear_value("exits")
    host_kvm, host = daemons.start_host(held=True)
    assert host.begin(old.hold()) == ""
    assert find(host_kvm, vm).info["kvm.source"] == "bpf"
    assert find(host_kvm, vm).get_value("exits") < 300
    old.leave()
    again_kvm, again = daemons.start(held=True)
    assert again.begin(host.hold()) == ""
    assert find(again_kvm, vm).get_value("exits") < 300
    host.leave()


def test_a_monitor_that_is_busy(
    daemons: Daemons, vm: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be handed over, and goes on."""
    kvm, old = daemons.start()
    stand_still(kvm, vm)
    vm.send_signal(signal.SIGSTOP)
    wait_until(lambda: vcpu0_or_none(kvm, vm) is None, "a query, which a takeover waits for")
    with monkeypatch.context() as patch:
        patch.setattr("statsfs.kvm.qemu._SETUP", 0.0)
        with pytest.raises(KvmError, match="QMP is busy"):
            old.hold()
    vm.send_signal(signal.SIGCONT)
    old.go_on()
    wait_until(lambda: vcpu0_or_none(kvm, vm) is not None, "its answer")
    assert vcpu0(kvm, vm) >= 0


def test_one_that_never_begins(daemons: Daemons) -> None:
    """A held one ends well, though nothing was handed over."""
    kvm, _ = daemons.start(held=True)
    assert kvm.subordinates == ()
