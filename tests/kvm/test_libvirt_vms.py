"""Domains of libvirt as VMs: by a real libvirtd, and by a pretended one."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm import libvirt_vms
from statsfs.kvm.host import KvmHost
from statsfs.kvm.libvirt_source import Domain, LibvirtNumbers, LibvirtSource
from statsfs.kvm.libvirt_vms import LibvirtVms
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.scanning import KvmFiles
from statsfs.kvm.vm_sources import Section, read_sections
from statsfs.kvm.ways import FoundVm
from tests.support.deadlines import wait_until
from tests.support.libvirtd import Libvirtd

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.host]

FILES = {70: KvmFiles((9,), {0: 10, 1: 11}, {}), 80: KvmFiles((9,), {0: 10}, {})}


@pytest.fixture(scope="module")
def sections() -> tuple[Section, Section]:
    """What this kernel counts."""
    with OwnVm() as own:
        return read_sections(own)


class Pretended:
    """A libvirt with domains of some processes, each of which says how many exits it had."""

    def __init__(self, *pids: int) -> None:
        self.pids = list(pids)
        self.failure: str | None = None
        self.exits = 5
        self.asked: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.closed = False

    def domains(self) -> list[Domain]:
        if self.failure:
            raise KvmError(self.failure)
        return [Domain(pid, f"vm{pid}", "0-1") for pid in self.pids]

    def read(self, pid: int, vcpus: Any) -> LibvirtNumbers:
        self.asked.append(pid)
        self.may_answer.wait(20)
        if self.failure:
            raise KvmError(self.failure)
        numbers = {"exits": self.exits, "guest_mode": 1, "halt_wait_hist": 3, "unknown": 4}
        return LibvirtNumbers({"remote_tlb_flush": 2}, dict.fromkeys(sorted(vcpus), numbers))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """A libvirt that has one domain, and is asked again at once."""
    monkeypatch.setattr(libvirt_vms, "_RETRY", 0.0)
    return Pretended(70)


def make(sections: tuple[Section, Section], libvirt: Pretended) -> LibvirtVms:
    """The way to that libvirt."""
    connect: Any = lambda: libvirt  # noqa: E731
    return LibvirtVms(*sections, connect)


def look(vms: LibvirtVms, *others: str, files: dict[int, KvmFiles] | None = None) -> list[FoundVm]:
    """Look, until something was found."""
    wait_until(lambda: vms.look(files or FILES, others), "a domain")
    return vms.look(files or FILES, others)


def exits(sections: tuple[Section, Section], block: bytes) -> int:
    """The exits of a vCPU."""
    offset = sections[1].places["exits"].offset
    return int.from_bytes(block[offset : offset + 8], "little")


def test_a_domain(sections: tuple[Section, Section], libvirt: Pretended) -> None:
    """It is found when it has answered; what the kernel does not count is left out."""
    vms = make(sections, libvirt)
    (found,) = look(vms)
    assert (found.name, found.pid) == ("70-9", 70)
    block, vcpus = found.numbers
    assert [exits(sections, one) for one in vcpus.values()] == [5, 5]
    assert block is not None
    assert vms.known == ({"remote_tlb_flush"}, {"exits", "guest_mode", "halt_wait_hist", "unknown"})
    libvirt.exits = 8
    assert exits(sections, vms.read("70-9")[1][1]) == 8
    assert libvirt.asked == [70, 70]
    vms.close()
    assert libvirt.closed


def test_what_others_read_is_not_asked_for(
    sections: tuple[Section, Section], libvirt: Pretended
) -> None:
    """A VM that a better way reads, that is gone, or that has no vCPUs yet."""
    vms = make(sections, libvirt)
    assert vms.look(FILES, {"70-9", "80-9"}) == []
    assert vms.look({}, ()) == []
    assert vms.look({70: KvmFiles((9,), {}, {})}, ()) == []
    assert libvirt.asked == []
    look(vms)
    assert vms.look(FILES, {"70-9"}) == []
    with pytest.raises(KvmError, match="70-9 has ended"):
        vms.read("70-9")
    vms.close()
    make(sections, libvirt).close()


def test_a_vcpu_that_is_plugged_in(sections: tuple[Section, Section], libvirt: Pretended) -> None:
    """It is there at once, and the next reader brings its numbers."""
    vms = make(sections, libvirt)
    look(vms)
    more = {70: FILES[70]._replace(vcpus={0: 10, 1: 11, 2: 12})}
    (found,) = vms.look(more, ())
    assert [exits(sections, one) for one in found.numbers[1].values()] == [5, 5, 0]
    assert exits(sections, vms.read("70-9")[1][2]) == 5
    (found,) = vms.look({70: FILES[70]._replace(vcpus={0: 10})}, ())
    assert found.numbers[1].keys() == {0}


def test_a_domain_that_does_not_answer(
    sections: tuple[Section, Section], libvirt: Pretended
) -> None:
    """The look does not wait; it is asked again after an error, and once at a time."""
    libvirt.may_answer.clear()
    vms = make(sections, libvirt)
    assert vms.look(FILES, ()) == vms.look(FILES, ()) == []
    assert libvirt.asked == [70]
    libvirt.failure = "libvirt: no answer"
    libvirt.may_answer.set()
    wait_until(lambda: vms._failure, "the error")
    assert vms.find_failure() == "no answer"
    libvirt.failure = None
    look(vms)
    assert vms.find_failure() == ""


def test_why_not(sections: tuple[Section, Section], libvirt: Pretended) -> None:
    """Without the library, without libvirtd, and for another VM."""

    def refuse() -> LibvirtSource:
        raise KvmError("libvirt needs libvirt-python")

    assert LibvirtVms(*sections, refuse).find_failure() == "libvirt needs libvirt-python"
    vms = make(sections, libvirt)
    assert vms.explain(FILES[80]) == "no domain of libvirt's"
    assert vms.explain(KvmFiles((9,), {}, {})) == "it has no vCPUs"
    libvirt.failure = "libvirt: Failed to connect"
    assert vms.look(FILES, ()) == []
    assert vms.find_failure() == "Failed to connect"


def test_libvirt_is_not_asked_all_the_time(
    sections: tuple[Section, Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a VM that is no domain."""
    libvirt = Pretended()
    vms = make(sections, libvirt)
    assert vms.look(FILES, ()) == []
    libvirt.pids.append(70)
    assert vms.look(FILES, ()) == []
    assert libvirt.asked == []


@pytest.mark.usefixtures("no_bpf")
def test_a_real_domain_without_bpf(
    libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU 7.2 keeps no descriptors: libvirt has it, without histograms; restarted, too."""
    monkeypatch.setattr(libvirt_vms, "_RETRY", 0.0)
    connect: Callable[..., LibvirtVms] = lambda vm, vcpu: LibvirtVms(  # noqa: E731
        vm, vcpu, lambda: LibvirtSource(libvirtd.uri, libvirtd.state)
    )
    with KvmHost([connect]) as host:
        pid = libvirtd.create("web")

        def find() -> Any:
            return next((s for s in host.source.subordinates if s.info["pid"] == str(pid)), None)

        wait_until(find, "the domain")
        source = find()
        assert source.info["kvm.source"] == "libvirt"
        assert source.info["kvm.name"] == "web"
        wait_until(lambda: len(source.subordinates) == 2, "its vCPUs")
        vcpu = source.find("vcpu0")
        wait_until(lambda: vcpu.get_value("exits") > 100, "exits")
        assert "halt_wait_hist" not in vcpu.names()
        assert "remote_tlb_flush" in source.names()
        libvirtd.virsh("suspend", "web")
        before = vcpu.get_value("exits")
        libvirtd.kill()
        for _ in range(3):
            assert not is_read(vcpu, 0)
        unavailable = [one for one in caplog.messages if "unavailable" in one]
        assert len(unavailable) == 1
        assert f"{source.name}: unavailable: the refresh failed: libvirt: " in unavailable[0]
        libvirtd.start()
        wait_until(lambda: is_read(vcpu, before), "the same numbers")
        os.kill(pid, 9)
        wait_until(lambda: source.parent is None, "the end")
        assert host.source.get_value("exits") >= before


def is_read(vcpu: Any, before: int) -> bool:
    """Whether a vCPU has numbers again, and as many."""
    try:
        return bool(vcpu.get_value("exits") >= before)
    except OSError:
        return False
