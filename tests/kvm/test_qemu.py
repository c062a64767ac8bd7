"""VMs behind QMP servers: they come, are asked, hang, and go. No KVM is needed."""

import asyncio
import errno
import gc
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import KvmError, QmpError, UnavailableError
from statsfs.kvm import qemu, qemu_vm, qmp, qmp_channel, qmp_sockets
from statsfs.kvm.qemu import QemuMonitor
from statsfs.kvm.values import make_values
from statsfs.model.values import Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.kvm_files import DESCRIBED
from tests.support.mounts import NOBODY
from tests.support.qmp_servers import QmpServer, no_vm, pretend_a_vm
from tests.support.trees import refresher_of

Watch = Callable[..., QemuMonitor]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for seconds, and each read asks."""
    monkeypatch.setattr(qemu, "_RESCAN", 0.01)
    monkeypatch.setattr(qemu, "_RETRY", 0.05)
    monkeypatch.setattr(qmp_channel, "_AGAIN", 0.01)
    monkeypatch.setattr(qemu_vm, "_FRESH", 0.0)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What the directory of a VM of this process is called."""
    with pretend_a_vm(monkeypatch) as name:
        yield name


@pytest.fixture
def kvm(registry: Registry) -> Iterator[Source]:
    """The top-level source."""
    with Source("kvm") as kvm:
        registry.register(kvm)
        yield kvm


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is for those who ask how old numbers are."""
    now = [1000.0]
    monkeypatch.setattr(qemu_vm, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QmpServer]:
    """A QEMU that runs."""
    with QmpServer(tmp_path / "a.qmp") as server:
        yield server


@pytest.fixture
def watch(kvm: Source, tmp_path: Path) -> Iterator[Watch]:
    """Begins to watch sockets in the test's directory, until the test ends."""
    with ExitStack() as stack:

        def begin(*patterns: str) -> QemuMonitor:
            paths = [str(tmp_path / pattern) for pattern in patterns or ("*.qmp",)]
            return stack.enter_context(QemuMonitor(kvm, paths))

        yield begin


@pytest.fixture
def vm(watch: Watch, kvm: Source, server: QmpServer, name: str) -> Source:
    """The source of the VM that runs."""
    watch()
    return appear(kvm, name)


def appear(kvm: Source, name: str) -> Source:
    """Wait for a VM."""
    wait_until(lambda: kvm.find(name), "the VM")
    vm = kvm.find(name)
    assert vm is not None
    return vm


def vanish(kvm: Source) -> None:
    """Wait for the end of all VMs."""
    wait_until(lambda: not kvm.subordinates, "the VM's end")


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How often something was said."""
    return sum(words in record.getMessage() for record in caplog.records)


# What is shown


def test_a_vm_is_shown_as_in_debugfs(vm: Source, server: QmpServer, name: str) -> None:
    """Its directory, its vCPUs in their order, with labels, and the kernel's values."""
    assert (vm.name, vm.label) == (name, "vm")
    assert [(vcpu.name, vcpu.label) for vcpu in vm.subordinates] == [
        ("vcpu0", "vcpu"),
        ("vcpu1", "vcpu"),
    ]
    arrays = vm.snapshot().arrays
    assert set(arrays) == {make_values(DESCRIBED["vm"]), make_values(DESCRIBED["vcpu"])}
    assert set(vm.subordinates[0].names()) == {one.name for one in DESCRIBED["vcpu"]}


def test_numbers_are_those_of_the_answer(vm: Source, kvm: Source, server: QmpServer) -> None:
    """Each read asks; vCPUs are told apart by their numbers; histograms are lists."""
    server.vm["mmu_cache_miss"] = 5
    server.vcpus["/machine/cpu[0]"] |= {
        "exits": 10,
        "guest_mode": True,
        "halt_wait_hist": [*range(32)],
    }
    server.vcpus["/machine/cpu[1]"] |= {"exits": 200, "halt_wait_hist": [1] * 32}
    vcpu0, vcpu1 = vm.subordinates
    assert vm.get_value("mmu_cache_miss") == kvm.get_value("mmu_cache_miss") == 5
    assert [one.get_value("exits") for one in (vcpu0, vcpu1, vm, kvm)] == [10, 200, 210, 210]
    assert [one.get_value("guest_mode") for one in (vcpu0, vcpu1, kvm)] == [1, 0, 1]
    assert vcpu1.get_value("halt_wait_hist") == [1] * 32
    assert kvm.get_value("halt_wait_hist") == [*range(1, 33)]


def test_vcpus_have_the_numbers_of_kvm(
    watch: Watch, kvm: Source, server: QmpServer, name: str
) -> None:
    """That is the APIC id on x86, which has gaps where a socket has three cores."""
    server.cpus = {"/machine/cpu[1]": 0, "/machine/cpu[0]": 4}
    server.vcpus["/machine/cpu[0]"]["exits"] = 5
    watch()
    vm = appear(kvm, name)
    assert [one.name for one in vm.subordinates] == ["vcpu0", "vcpu4"]
    assert [one.get_value("exits") for one in vm.subordinates] == [0, 5]


def test_vcpus_of_another_architecture(
    watch: Watch, kvm: Source, server: QmpServer, name: str
) -> None:
    """There is no APIC id: KVM counts them as QEMU does."""
    server.target = "aarch64"
    server.cpus = {"/machine/cpu[0]": 7, "/machine/cpu[1]": 8}
    watch()
    assert [one.name for one in appear(kvm, name).subordinates] == ["vcpu0", "vcpu1"]
    assert not server.asked("qom-get")


def test_a_clear_is_a_baseline(vm: Source, kvm: Source, server: QmpServer) -> None:
    """QEMU's numbers cannot be cleared: what they were is subtracted."""
    server.vcpus["/machine/cpu[0]"]["exits"] = 10
    kvm.clear_value("exits")
    assert kvm.get_value("exits") == 0
    server.vcpus["/machine/cpu[0]"]["exits"] = 13
    server.vcpus["/machine/cpu[1]"]["exits"] = 1
    assert [one.get_value("exits") for one in (*vm.subordinates, vm, kvm)] == [3, 1, 4, 4]


def test_nothing_is_asked_until_somebody_reads(
    clock: list[float], vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor within 100 ms of the last answer; schemas are asked for once."""
    monkeypatch.setattr(qemu_vm, "_FRESH", 100.0)
    before = list(server.commands)
    assert before == [
        "qmp_capabilities", "query-stats-schemas", "query-stats", "query-stats", "query-cpus-fast",
        "qom-get", "qom-get",
    ]  # fmt: skip
    assert vm.get_value("exits") == 0
    assert server.commands == before
    clock[0] += 100
    with ThreadPoolExecutor(8) as pool:
        for read in [pool.submit(vm.get_value, "exits") for _ in range(50)]:
            assert read.result(DEADLINE) == 0
    assert server.commands[len(before) :] == ["query-stats"]


def query(target: str, *vcpus: int, names: list[str] | None = None) -> dict[str, Any]:
    """The arguments of a query; without vCPUs of all."""
    provider: dict[str, Any] = {"provider": "kvm"} | ({} if names is None else {"names": names})
    paths = {"vcpus": [f"/machine/cpu[{number}]" for number in vcpus]} if vcpus else {}
    return {"target": target, "providers": [provider]} | paths


def test_only_what_is_read_is_asked_for(vm: Source, kvm: Source, server: QmpServer) -> None:
    """QEMU 7.2 interrupts each vCPU of which it tells anything."""
    vcpu0, vcpu1 = vm.subordinates
    del server.queries[:]
    for source, name in (
        (kvm, "mmu_cache_miss"), (vcpu1, "exits"), (kvm, "exits"), (vcpu0, None), (kvm, None),
    ):  # fmt: skip
        if name is None:
            source.snapshot()
        else:
            source.get_value(name)
    vm.clear_value("mmu_flooded")
    with Source("other") as other:
        other.add_values((Value("others"),), {"others": 7})
        vm.add_subordinate(other)
        assert other.get_value("others") == 7
        vm.remove_subordinate(other)
    assert server.queries == [
        query("vm", names=["mmu_cache_miss"]),
        query("vcpu", 1, names=["exits"]),
        query("vcpu", names=["exits"]),
        query("vcpu", 0),
        query("vm"),
        query("vcpu"),
        query("vm", names=["mmu_flooded"]),
    ]


def test_what_is_read_soon_after_is_asked_for_once(
    clock: list[float], vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `grep -r` reads a hundred files: the second name is asked for with all others."""
    monkeypatch.setattr(qemu_vm, "_FRESH", 100.0)
    server.vcpus["/machine/cpu[0]"] |= {"exits": 5, "halt_exits": 6, "irq_exits": 7}
    vcpu0, _ = vm.subordinates
    del server.queries[:]
    clock[0] += 100
    assert vcpu0.get_value("exits") == 5
    assert vcpu0.get_value("halt_exits") == 6
    server.vcpus["/machine/cpu[0]"] |= {"exits": 50, "halt_exits": 60, "irq_exits": 70}
    clock[0] += 99
    assert vcpu0.get_value("irq_exits") == 7
    assert vcpu0.get_value("exits") == 5
    assert server.queries == [query("vcpu", 0, names=["exits"]), query("vcpu", 0)]
    # Those of other vCPUs, and of the VM, are as old as before.
    assert vm.get_value("exits") == 5
    assert vm.get_value("mmu_cache_miss") == 0
    assert server.queries[2:] == [
        query("vcpu", 1, names=["exits"]),
        query("vm", names=["mmu_cache_miss"]),
    ]
    clock[0] += 100
    assert vcpu0.get_value("exits") == 50


def test_numbers_are_new_from_when_they_came(
    clock: list[float], vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where asking takes longer than they count as new, the next reader does not ask again."""
    monkeypatch.setattr(qemu_vm, "_FRESH", 100.0)
    clock[0] += 100
    asking: Any = refresher_of(vm).function
    before = server.asked("query-stats")
    server.flowing.clear()
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(asking)
        wait_until(lambda: asking.__self__._answer is not None)
        clock[0] += 1000
        server.flowing.set()
        read.result(DEADLINE)
    asking()
    assert server.asked("query-stats") == before + 2
    clock[0] += 100
    asking()
    assert server.asked("query-stats") == before + 4


def test_totals_stay_when_the_last_vm_goes(vm: Source, kvm: Source, server: QmpServer) -> None:
    """They are declared with the first VM, and are 0 without any, as KVM's are."""
    server.vcpus["/machine/cpu[0]"]["exits"] = 10
    assert kvm.get_value("exits") == 10
    names = kvm.names()
    server.close()
    vanish(kvm)
    assert kvm.names() == names
    assert kvm.get_value("exits") == 0


def test_totals_that_are_declared_already(
    watch: Watch, kvm: Source, server: QmpServer, name: str
) -> None:
    """The program may have declared them."""
    kvm.add_values(make_values(DESCRIBED["vm"]), None)
    watch()
    assert appear(kvm, name).get_value("exits") == 0


# VMs come and go


def test_sockets_that_come_later(watch: Watch, kvm: Source, name: str, tmp_path: Path) -> None:
    """Paths and patterns need not be there yet; a VM may run again behind the same socket."""
    watch("a.qmp", "vms/*.qmp")
    for path in (tmp_path / "a.qmp", tmp_path / "vms" / "b.qmp", tmp_path / "a.qmp"):
        path.parent.mkdir(exist_ok=True)
        with QmpServer(path):
            appear(kvm, name)
            path.unlink()
        vanish(kvm)


def test_a_socket_that_is_left_behind(
    watch: Watch, kvm: Source, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket without a listener is not logged, and works once it has one."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "a.qmp"))
        watch()
        with QmpServer(tmp_path / "b.qmp"):
            appear(kvm, name)
        vanish(kvm)
    (tmp_path / "a.qmp").unlink()
    with QmpServer(tmp_path / "a.qmp"):
        appear(kvm, name)
    assert not caplog.records


def test_a_connection_that_is_lost(vm: Source, kvm: Source, server: QmpServer) -> None:
    """The VM stays, and is asked over another one."""
    server.vcpus["/machine/cpu[0]"]["exits"] = 5
    server.hang_up()
    wait_until(lambda: server.asked("qmp_capabilities") == 2, "another connection")
    assert kvm.subordinates == (vm,)
    assert vm.get_value("exits") == 5


def test_a_connection_that_nobody_uses(
    vm: Source, kvm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed: another client has its turn, and the VM has no numbers until that has gone."""
    monkeypatch.setattr(qmp_channel, "_IDLE", 0.01)
    monkeypatch.setattr(qmp, "_GREETING", 0.05)
    server.vcpus["/machine/cpu[0]"]["exits"] = 5
    assert vm.get_value("exits") == 5
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(DEADLINE)
        other.connect(str(server.path))
        assert other.recv(1000)
        assert kvm.subordinates == (vm,)
        with pytest.raises(UnavailableError, match=r"no greeting within 0\.05 s: another"):
            vm.get_value("exits")
    server.vcpus["/machine/cpu[0]"]["exits"] = 6
    wait_until(lambda: number(vm) == 6)
    assert kvm.subordinates == (vm,)


def number(vm: Source) -> int | None:
    """How many exits there are, if that is known."""
    try:
        exits: int = vm.get_value("exits")
    except UnavailableError:
        return None
    return exits


@pytest.mark.parametrize("limit", ["_IDLE", "_LONGEST"])
def test_a_connection_that_is_used_all_the_time(
    limit: str, vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that begins as the connection is to be closed is answered; others get their turn."""
    monkeypatch.setattr(qmp_channel, limit, 0.0)
    for _ in range(50):
        assert vm.get_value("exits") == 0
    wait_until(lambda: server.client is None, "its closing")
    assert vm.get_value("exits") == 0


def test_the_end_of_a_process(
    watch: Watch, kvm: Source, server: QmpServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the end of its VM, also while there is no connection."""
    monkeypatch.setattr(qmp_channel, "_IDLE", 0.0)
    with subprocess.Popen(["sleep", "100"]) as process:
        pidfd = os.pidfd_open(process.pid)
        monkeypatch.setattr(os, "pidfd_open", lambda _: pidfd)
        watch()
        vm = appear(kvm, name)
        wait_until(lambda: server.asked("qom-get") == 2 and server.client is None, "its closing")
        assert kvm.subordinates == (vm,)
        monkeypatch.setattr(os, "pidfd_open", refuse_pidfd)
        process.kill()
        vanish(kvm)


def refuse_pidfd(pid: int) -> int:
    """As the system does for a process that has ended."""
    raise ProcessLookupError(errno.ESRCH, "No such process")


def test_a_process_that_just_ended(
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    name: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may do so between its greeting and the look at it."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "pidfd_open", refuse_pidfd)
        watch()
        wait_until(lambda: said(caplog, f"a.qmp: process {os.getpid()}: No such process; tried"))
        assert not kvm.subordinates
    appear(kvm, name)


def test_a_socket_that_another_vm_has_now(
    vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are not shown as those of the VM before: that is gone, and the other is shown."""
    asking: Any = refresher_of(vm).function
    asking.__self__._channel.pid = 1
    server.hang_up()
    wait_until(lambda: asking.__self__._channel.ended.is_set())


def test_a_socket_whose_inode_is_used_again(
    watch: Watch,
    kvm: Source,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As ext4 does: the next VM is shown at once, after one that ended, and one that failed."""
    monkeypatch.setattr(qemu, "_RETRY", 1000.0)
    real = qmp_sockets.FoundSocket
    monkeypatch.setattr(qmp_sockets, "FoundSocket", lambda path, device, inode: real(path, 1, 1))
    watch("a.qmp")
    for fails in (False, True, False):
        with QmpServer(tmp_path / "a.qmp") as server:
            if fails:
                server.answers["query-stats"] = b'{"return": [], "id": ID}\n'
                wait_until(lambda: said(caplog, "no KVM statistics"))
            else:
                appear(kvm, name)
        vanish(kvm)
        (tmp_path / "a.qmp").unlink()


def test_a_lost_connection_wakes_its_readers(vm: Source, kvm: Source, server: QmpServer) -> None:
    """Its readers do not wait for the deadline."""
    server.flowing.clear()
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(refresher_of(vm).function)
        server.hang_up()
        assert isinstance(read.exception(DEADLINE), QmpError)
    server.flowing.set()


def test_two_names_of_one_vm(
    vm: Source, kvm: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A second socket of the same VM is left alone, and its connection given back."""
    with QmpServer(tmp_path / "b.qmp") as second:
        wait_until(lambda: second.asked("query-cpus-fast") > 1, "two attempts")
        assert kvm.subordinates == (vm,)
    assert said(caplog, f"there is a {vm.name!r} already") == 1


def test_vcpus_come_and_go(vm: Source, server: QmpServer) -> None:
    """A read tells which there are; what is not of QMP's list of vCPUs has no number."""
    server.vcpus["/machine/new"] = server.vcpus["/machine/cpu[0]"] | {"exits": 5}
    del server.vcpus["/machine/cpu[0]"]
    vm.get_value("exits")
    wait_until(lambda: [one.name for one in vm.subordinates] == ["vcpu1"])
    assert vm.get_value("exits") == 0
    server.cpus["/machine/new"] = 2

    def plugged() -> bool:
        vm.get_value("exits")
        return [one.name for one in vm.subordinates] == ["vcpu1", "vcpu2"]

    wait_until(plugged)
    assert vm.get_value("exits") == 5


@pytest.mark.parametrize("read", ["exits", "mmu_cache_miss"])
def test_vcpus_that_come_while_no_total_is_read(
    read: str, clock: list[float], vm: Source, server: QmpServer
) -> None:
    """Who reads one vCPU, or what the VM counts, finds out too, within a second."""
    source = vm if read == "mmu_cache_miss" else vm.subordinates[0]
    before = server.asked("query-cpus-fast")
    for _ in range(3):
        source.get_value(read)
    assert server.asked("query-cpus-fast") == before + 1
    server.vcpus["/machine/new"] = server.vcpus["/machine/cpu[0]"] | {"exits": 5}
    server.cpus["/machine/new"] = 2
    clock[0] += 1
    source.get_value(read)
    wait_until(lambda: [one.name for one in vm.subordinates] == ["vcpu0", "vcpu1", "vcpu2"])


def test_a_vcpu_that_cannot_be_shown(
    vm: Source, server: QmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Others that came with it are, once."""
    caplog.set_level(logging.INFO)
    zeros = server.vcpus["/machine/cpu[0]"]
    server.vcpus |= {"/machine/new": zeros | {"exits": 5}, "/machine/bad": zeros | {"exits": -1}}
    server.cpus |= {"/machine/new": 2, "/machine/bad": 3}
    for _ in range(2):
        before = said(caplog, "cannot update the vCPUs: invalid answer")
        wait_until(lambda: vm.get_value("exits") in (0, 5))
        wait_until(lambda: said(caplog, "cannot update the vCPUs: invalid answer") > before)  # noqa: B023
    assert [one.name for one in vm.subordinates] == ["vcpu0", "vcpu1", "vcpu2"]
    server.vcpus["/machine/bad"]["exits"] = 6
    wait_until(lambda: vm.get_value("exits") == 11)


def test_one_update_of_vcpus_at_a_time(vm: Source, server: QmpServer) -> None:
    """Reads that come while one is under way begin no other."""
    asking: Any = refresher_of(vm).function
    asking.__self__._plugging = object()
    server.vcpus["/machine/new"] = server.vcpus["/machine/cpu[0]"] | {"exits": 5}
    server.cpus["/machine/new"] = 2
    before = server.asked("query-cpus-fast")
    assert vm.get_value("exits") == 0
    assert server.asked("query-cpus-fast") == before
    asking.__self__._plugging = None
    vm.get_value("exits")
    wait_until(lambda: len(vm.subordinates) == 3)


def test_a_vcpu_that_is_gone_when_it_is_asked(vm: Source, server: QmpServer) -> None:
    """Its last number is not shown as the current one, until it is gone from the tree too."""
    asking: Any = refresher_of(vm).function
    vcpu = vm.subordinates[1]
    asking.__self__._plugging = object()
    del server.vcpus["/machine/cpu[1]"]
    with pytest.raises(UnavailableError, match="no such vCPU any more"):
        vcpu.get_value("exits")
    asking.__self__._plugging = None
    vm.get_value("exits")
    wait_until(lambda: [one.name for one in vm.subordinates] == ["vcpu0"])


def test_vcpus_that_cannot_be_followed(
    vm: Source, server: QmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are shown, and it is tried again."""
    caplog.set_level(logging.INFO)
    server.answers["query-cpus-fast"] = b'{"return": 7, "id": ID}\n'
    server.vcpus["/machine/new"] = server.vcpus["/machine/cpu[0]"]
    server.vcpus["/machine/cpu[0]"]["exits"] = 3
    assert vm.get_value("exits") == 3
    wait_until(lambda: said(caplog, "cannot update the vCPUs: invalid answer to query-cpus-fast"))
    assert [one.name for one in vm.subordinates] == ["vcpu0", "vcpu1"]


# VMs that hang


@pytest.mark.slow
def test_a_vm_that_hangs(vm: Source, kvm: Source, server: QmpServer) -> None:
    """It has no numbers, those above keep its last; it is asked once, and returns by itself."""
    server.vcpus["/machine/cpu[0]"]["exits"] = 10
    assert kvm.get_value("exits") == 10
    server.flowing.clear()
    before = server.asked("query-stats")
    for _ in range(3):
        with pytest.raises(UnavailableError, match="unavailable"):
            vm.get_value("exits")
    with pytest.raises(UnavailableError):
        vm.subordinates[0].get_value("exits")
    assert kvm.get_value("exits") == 10
    server.vcpus["/machine/cpu[0]"]["exits"] = 11
    server.flowing.set()
    refresher = refresher_of(vm)
    assert refresher is not None
    # Without a reader: the answer that was missed arrives.
    wait_until(lambda: refresher.failure is None, "the answer")
    assert server.asked("query-stats") == before + 1
    assert vm.get_value("exits") == kvm.get_value("exits") == 11


def test_a_refresh_does_not_wait_for_ever(
    vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives its thread back, and the next one waits for the same answer."""
    monkeypatch.setattr(qemu_vm, "_PATIENCE", 0.01)
    server.flowing.clear()
    before = server.asked("query-stats")
    for _ in range(3):
        with pytest.raises(QmpError, match=r"^no answer within 0.01 s$"):
            refresher_of(vm).function()
    asking: Any = refresher_of(vm).function
    with asking.__self__._turn, pytest.raises(QmpError, match=r"^no answer within 0.01 s$"):
        asking()
    server.flowing.set()
    monkeypatch.setattr(qemu_vm, "_PATIENCE", DEADLINE)
    asking()
    assert server.asked("query-stats") in (before + 2, before + 4)


def test_wrong_answers_are_no_numbers(vm: Source, kvm: Source, server: QmpServer) -> None:
    """The files say so, until a good answer comes."""
    server.answers["query-stats"] = b'{"return": [7], "id": ID}\n'
    with pytest.raises(
        UnavailableError, match="refresh failed: invalid answer to query-stats: TypeError"
    ):
        vm.get_value("exits")
    server.answers["query-stats"] = b'{"error": {"class": "x", "desc": "not now"}, "id": ID}\n'
    with pytest.raises(UnavailableError, match="query-stats: not now"):
        vm.get_value("exits")
    server.answers.clear()
    del server.vcpus["/machine/cpu[0]"]["exits"]
    with pytest.raises(UnavailableError, match="'exits'"):
        vm.get_value("exits")
    server.vcpus["/machine/cpu[0]"]["exits"] = 9
    assert vm.get_value("exits") == kvm.get_value("exits") == 9


@pytest.mark.parametrize("garbage", [b"{}{]\n", b"[1]\n", b"[" * 100_000 + b"\n", b"x" * 20_000])
def test_a_server_that_goes_mad(
    garbage: bytes,
    kvm: Source,
    watch: Watch,
    server: QmpServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not QMP, or has no end, ends the connection; the VM has no numbers until the next."""
    monkeypatch.setattr(qmp, "_LONGEST", 1 << 18)
    watch()
    vm = appear(kvm, name)
    server.answers["query-stats"] = garbage * (30 if garbage[:1] == b"x" else 1)
    server.vcpus["/machine/cpu[0]"]["exits"] = 5
    with pytest.raises(UnavailableError):
        vm.get_value("exits")
    server.answers.clear()
    wait_until(lambda: number(vm) == 5)
    assert kvm.subordinates == (vm,)


# Sockets that are not for us


def test_a_socket_that_is_somebody_elses(
    watch: Watch,
    kvm: Source,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No greeting, as QMP has another client: said once, and it works when that has gone."""
    monkeypatch.setattr(qmp, "_GREETING", 0.05)
    opened = []
    real = qmp._Client

    def make() -> qmp._Client:
        opened.append(real())
        return opened[-1]

    monkeypatch.setattr(qmp, "_Client", make)
    with QmpServer(tmp_path / "a.qmp") as server, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(tmp_path / "a.qmp"))
        assert other.recv(1000)
        watch()
        wait_until(lambda: len(opened) > 2, "three attempts")
        assert not kvm.subordinates
        assert not server.commands
        other.close()
        appear(kvm, name)
    assert said(caplog, "no greeting within 0.05 s: another client?") == 1


def attempts(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was logged of sockets that cannot be used."""
    return [record for record in caplog.records if "tried again" in record.getMessage()]


def test_a_socket_at_which_many_wait(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full queue counts as a missing greeting."""
    with ExitStack() as stack:
        stack.enter_context(QmpServer(tmp_path / "a.qmp", silent=True))
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(tmp_path / "a.qmp"))
            except BlockingIOError:
                break
        watch()
        wait_until(lambda: said(caplog, "no greeting"))


def test_a_socket_of_another_sort(
    watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the system says is said in its words."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "a.qmp"))
        watch()
        wait_until(lambda: said(caplog, "a.qmp: not QMP: Protocol wrong type for socket; tried"))


GREETINGS = {
    "no JSON": (b"SSH-2.0-OpenSSH\r\n", "not QMP: "),
    "no QMP": (b'{"hello": 1}\n', "not QMP: "),
    "no object": (b"[]\n", "not QMP: "),
    "too long": (b"x" * 300_000, "not QMP: "),
    "two lines": (b'{"QMP": {"version": {}, "capabilities": []}}\nthen\n', "not QMP: "),
}


@pytest.mark.parametrize("greeting", GREETINGS)
def test_a_socket_of_something_else(
    greeting: str,
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said on one line what is wrong, once."""
    monkeypatch.setattr(qmp, "_LONGEST", 1 << 18)
    server.answers["greeting"], words = GREETINGS[greeting]
    watch()
    wait_until(lambda: said(caplog, f"a.qmp: {words}"))
    (message,) = [record.getMessage() for record in attempts(caplog)]
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    assert not kvm.subordinates


OLD = b'{"error": {"class": "CommandNotFound", "desc": "not found"}, "id": ID}\n'


@pytest.mark.parametrize(
    ("command", "answer", "words"),
    [
        ("query-stats-schemas", OLD, "query-stats-schemas: not found"),
        ("query-stats-schemas", b"[]", "no KVM statistics"),
        ("query-stats-schemas", b"1", "invalid answer to query-stats-schemas"),
        ("query-stats", b"[]", "no KVM statistics"),
        ("query-stats", b'[{"provider": "kvm", "stats": []}]', "no statistics"),
        ("query-cpus-fast", b"{}", "invalid answer to query-cpus-fast"),
        ("qom-get", b"[]", "invalid answer to qom-get"),
        ("query-cpus-fast", b"", "no answer within 0.05 s"),
    ],
)
def test_a_vm_that_does_not_say_what_it_has(
    command: str,
    answer: bytes,
    words: str,
    watch: Watch,
    kvm: Source,
    name: str,
    server: QmpServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said, and tried again."""
    if not answer:
        monkeypatch.setattr(qemu, "_SETUP", 0.05)
    if answer != OLD:
        answer = answer and b'{"return": ' + answer + b', "id": ID}\n'
    server.answers[command] = answer
    watch()
    wait_until(lambda: said(caplog, words))
    assert not kvm.subordinates
    monkeypatch.setattr(qemu, "_SETUP", DEADLINE)
    server.answers.clear()
    appear(kvm, name)
    assert said(caplog, words) == 1


def test_a_process_without_a_vm(
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A QEMU that emulates has no statistics; it is let go."""
    no_vm(monkeypatch)
    watch()
    wait_until(lambda: said(caplog, f"process {os.getpid()} has no VM of KVM"))
    assert not kvm.subordinates


def test_a_socket_of_a_manager(
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It works; that the manager must wait is said once, of what is found too."""
    monkeypatch.setattr(qmp_sockets, "_MANAGERS", {str(tmp_path / "vms"): "VMs"})
    words = "a socket of VMs, which cannot connect while statsfs is connected"
    (tmp_path / "vms").mkdir()
    watch("a.qmp", "vms/a.qmp", "vms/*.qmp")
    appear(kvm, name)
    assert said(caplog, f"vms/a.qmp: {words}") == said(caplog, words) == 1
    with QmpServer(tmp_path / "vms" / "b.qmp"):
        watch("**/b.qmp")
        wait_until(lambda: said(caplog, f"vms/b.qmp: {words}"))


@pytest.mark.root
def test_a_directory_of_another_user(
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is refused if the VM is not that user's, and the connection is given back."""
    os.chown(tmp_path, NOBODY, NOBODY)
    watch("a.qmp")
    wait_until(lambda: said(caplog, f"refused: {tmp_path} belongs to user {NOBODY}; tried again"))
    assert not kvm.subordinates
    wait_until(lambda: server.client is None, "its end")
    os.chown(tmp_path, 0, 0)
    appear(kvm, name)


def test_a_directory_that_is_refused(
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    name: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A path is refused at once; a socket that a pattern finds is logged once, and not used."""
    tmp_path.chmod(0o777)
    with pytest.raises(QmpError, match="others can write in"):
        watch("a.qmp")
    watch("*.qmp")
    wait_until(lambda: said(caplog, "others can write in"))
    assert not server.commands
    tmp_path.chmod(0o700)
    appear(kvm, name)
    assert said(caplog, "others can write in") == 1


# The end


def threads() -> list[str]:
    """Our threads."""
    return [thread.name for thread in threading.enumerate() if thread.name == "statsfs-qemu"]


def test_the_end_leaves_nothing(kvm: Source, server: QmpServer, name: str) -> None:
    """No VM, no thread, no connection, even while a VM hangs and a reader waits for it."""
    before = os.listdir("/proc/self/fd")
    monitor = QemuMonitor(kvm, [str(server.path)])
    vm = appear(kvm, name)
    refresher = refresher_of(vm)
    assert refresher is not None
    vm.get()
    server.flowing.clear()
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(refresher.function)
        wait_until(lambda: server.asked("query-stats") > 2 or read.running())
        monitor.close()
        assert isinstance(read.exception(DEADLINE), QmpError)
    assert not kvm.subordinates
    assert threads() == []
    with pytest.raises(QmpError, match="the VM has ended"):
        refresher.function()
    vm.put()
    server.flowing.set()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= len(before))
    monitor.close()


def test_the_end_while_a_greeting_is_awaited(kvm: Source, tmp_path: Path) -> None:
    """The end does not wait for it."""
    with QmpServer(tmp_path / "a.qmp", silent=True), QemuMonitor(kvm, [str(tmp_path / "a.qmp")]):
        pass
    assert threads() == []


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("step", ["_establish_session", "execute"])
def test_the_end_in_the_tick_of_an_answer(
    kvm: Source,
    server: QmpServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    ticks: int,
) -> None:
    """Python 3.11's `wait_for` then swallowed it: 4 of 249 ends waited for ever."""
    original = getattr(qmp._Client, step)

    async def answer(client: object, *args: object) -> object:
        answered = await original(client, *args)
        monitor._stop.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        return answered

    monkeypatch.setattr(qmp._Client, step, answer)
    monitor = QemuMonitor(kvm, [str(server.path)])
    monitor._thread.join(DEADLINE)
    assert threads() == []
    assert not kvm.subordinates
    monitor.close()


def test_a_source_that_goes_first(
    registry: Registry, server: QmpServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The program may remove the VMs, or the whole of `kvm`."""
    kvm = Source("kvm")
    with QemuMonitor(kvm, [str(server.path)]):
        vm: Any = refresher_of(appear(kvm, name)).function
        kvm.put()
        server.close()
        wait_until(lambda: vm.__self__._ended)
        server.path.unlink()
        with QmpServer(server.path):
            wait_until(lambda: said(caplog, "tried again"))
    assert threads() == []


def test_no_thread(kvm: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none can be started, nothing is left open."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RuntimeError, match="can't start"):
        QemuMonitor(kvm, [])
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("missing", ["qemu.qmp", "statsfs.kvm.qmp"])
def test_a_library_that_is_missing(
    missing: str, kvm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to install qemu.qmp; another missing module is a bug."""
    import statsfs.kvm

    monkeypatch.delattr(statsfs.kvm, "qmp")
    monkeypatch.delitem(sys.modules, "statsfs.kvm.qmp")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        QemuMonitor(kvm, [])
    assert raised.value.name == missing
    assert ("pip install 'statsfs[kvm]'" in str(raised.value)) is (missing == "qemu.qmp")


def test_only_questions_are_sent(
    vm: Source, server: QmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QMP is full control of a VM: nothing else than the five commands ever goes over it."""
    vm.get_value("exits")
    assert set(server.commands) == {
        "qmp_capabilities", "query-stats-schemas", "query-stats", "query-cpus-fast", "qom-get",
    }  # fmt: skip


def test_a_channel_that_is_closed(server: QmpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not connected again, and gives back the connection that was just being made."""
    real = qmp.QmpConnection.open

    async def use(*, during: bool) -> None:
        channel = qmp_channel.QmpChannel(str(server.path))

        async def connect(path: str) -> qmp.QmpConnection:
            connection = await real(path)
            await channel.close()
            return connection

        if during:
            monkeypatch.setattr(qmp.QmpConnection, "open", connect)
        else:
            await channel.close()
        with pytest.raises(QmpError, match=r"a\.qmp: the VM has ended$"):
            async with channel.connected():
                pass

    for during in (False, True):
        asyncio.run(use(during=during))
    wait_until(lambda: server.client is None, "the connection's end")


def test_closing_a_connection_that_is_lost(server: QmpServer) -> None:
    """Errors of the library are ignored then."""

    async def lose() -> Any:
        connection = await qmp.QmpConnection.open(str(server.path))
        server.hang_up()
        await connection.wait_closed()
        await connection.close()
        with pytest.raises(QmpError, match="query-cpus-fast"):
            await connection.query_cpus()

    asyncio.run(lose())


def test_closing_is_not_interrupted(server: QmpServer) -> None:
    """A cancellation while a lost connection is closed leaves nothing that asyncio logs."""
    unseen: list[dict[str, Any]] = []

    async def cancel() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
        connection = await qmp.QmpConnection.open(str(server.path))
        server.hang_up()
        await connection.wait_closed()
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        del connection
        gc.collect()

    asyncio.run(cancel())
    assert unseen == []


def test_what_the_library_leaves_behind(caplog: pytest.LogCaptureFixture) -> None:
    """No traceback in the log: the call that failed says what went wrong."""
    with caplog.at_level(logging.DEBUG, "statsfs.kvm.qemu"), asyncio.Runner() as runner:
        qemu._note_loop_error(runner.get_loop(), {"message": "odd", "exception": EOFError()})
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "odd: EOFError()" in caplog.text


def test_a_takeover_that_came_too_early_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the takeover came first where the loop was busy, and no VM was shown any more."""
    go_on = threading.Event()
    with QemuMonitor(Source("kvm"), [str(tmp_path / "a.qmp")]) as monitor:
        loop = monitor._loop
        loop.call_soon_threadsafe(go_on.wait, DEADLINE)
        with monkeypatch.context() as patch:
            patch.setattr(qemu, "_SETUP", 0.0)
            with pytest.raises(KvmError, match="QMP is busy"):
                monitor.hold()
        monitor.go_on()
        go_on.set()
        for _ in range(3):  # what was called by then has run
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(DEADLINE)
        assert monitor._free.is_set()


@pytest.fixture
def held_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover takes as long as the test wants, and does not wait for answers."""
    monkeypatch.setattr(qemu, "_FROZEN", DEADLINE)
    monkeypatch.setattr(qemu, "_RESTING", 0.01)


@pytest.mark.usefixtures("held_long")
@pytest.mark.parametrize("read", ["exits", "mmu_cache_miss"])
def test_an_answer_that_comes_while_it_is_held(
    read: str,
    watch: Watch,
    kvm: Source,
    server: QmpServer,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbers stay as they were handed over, and who waited for it asks nothing."""
    monitor = watch()
    vm = appear(kvm, name)
    asking: Any = refresher_of(vm).function
    before = server.asked("query-stats")
    server.flowing.clear()
    with monkeypatch.context() as patch:
        patch.setattr(qemu_vm, "_PATIENCE", 0.01)
        with pytest.raises(UnavailableError, match="no answer within"):
            vm.get_value(read)
    wait_until(asking.__self__._channel._turn.locked, "the query")
    with ThreadPoolExecutor(1) as pool:
        next_read = pool.submit(asking)
        wait_until(asking.__self__._turn.locked, "the next reader")
        monitor.hold()
        kept = monitor.keep()
        server.vm["mmu_cache_miss"] = server.vcpus["/machine/cpu[0]"]["exits"] = 5
        server.flowing.set()
        next_read.result(DEADLINE)
    assert server.asked("query-stats") == before + 1
    assert monitor.keep() == kept
    assert vm.get_value(read) == 0
    monitor.go_on()
    assert vm.get_value(read) == 5


@pytest.mark.usefixtures("held_long")
def test_a_vcpu_that_comes_while_it_is_held(
    watch: Watch, kvm: Source, server: QmpServer, name: str
) -> None:
    """It is not shown until the takeover is over: it would be missing in what is handed over."""
    monitor = watch()
    vm = appear(kvm, name)
    asking: Any = refresher_of(vm).function
    server.vcpus["/machine/new"] = server.vcpus["/machine/cpu[0]"] | {"exits": 5}
    server.cpus["/machine/new"] = 2
    server.last_heard = "query-stats"
    assert vm.get_value("exits") == 0
    wait_until(asking.__self__._channel._turn.locked, "the query which there are")
    before = server.asked("query-cpus-fast")
    monitor.hold()
    server.flowing.set()
    wait_until(lambda: asking.__self__._plugging is None, "its answer")
    assert server.asked("query-cpus-fast") == before + 1
    assert [one.name for one in vm.subordinates] == ["vcpu0", "vcpu1"]
    monitor.go_on()
    wait_until(lambda: vm.get_value("exits") == 5)
    assert [one.name for one in vm.subordinates] == ["vcpu0", "vcpu1", "vcpu2"]


@pytest.mark.usefixtures("held_long")
@pytest.mark.parametrize("leaves", [False, True])
def test_a_vm_that_is_found_in_a_takeover(
    leaves: bool, watch: Watch, kvm: Source, server: QmpServer, name: str
) -> None:
    """It is shown when that is over; never, if another process shows it then."""
    server.last_heard = "query-stats-schemas"
    monitor = watch()
    wait_until(lambda: not server.flowing.is_set(), "its description")
    monitor.hold()
    server.flowing.set()
    wait_until(lambda: server.asked("qom-get") == 2 and server.client is None, "its rest")
    assert not kvm.subordinates
    if leaves:
        monitor.leave()
        wait_until(lambda: not monitor._channels, "the end of its connection")
        assert not kvm.subordinates
    else:
        monitor.go_on()
        assert appear(kvm, name).get_value("exits") == 0


@pytest.mark.usefixtures("held_long")
def test_a_successor_of_which_one_vm_does_not_answer(
    watch: Watch, kvm: Source, server: QmpServer, name: str, tmp_path: Path
) -> None:
    """It waits for all, a moment; it shows that one as it was, and leaves nothing of it."""
    server.vcpus["/machine/cpu[0]"]["exits"] = 5
    old = watch("a.qmp")
    assert appear(kvm, name).get_value("exits") == 5
    old.hold()
    (kept,) = old.keep()
    hung = tmp_path / "b.qmp"
    with QmpServer(hung, silent=True), Source("kvm") as shown:
        with QemuMonitor(shown, [str(server.path), str(hung)], held=True) as successor:
            for one in (kept, replace(kept, name="1-1", socket=str(hung))):
                successor.adopt(one)
            server.vcpus["/machine/cpu[0]"]["exits"] = 7
            assert shown.get_value("exits") == 10
            successor.begin()
            old.leave()
            wait_until(lambda: number(appear(shown, name)) == 7, "its connection")
            assert not successor._whole.is_set()
            with pytest.raises(UnavailableError, match="it is not connected yet"):
                appear(shown, "1-1").get_value("exits")
            assert shown.get_value("exits") == 12
        assert shown.subordinates == ()
