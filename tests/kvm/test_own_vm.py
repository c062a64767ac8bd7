"""A VM of our own: what the kernel says that it counts."""

import os
from pathlib import Path

import pytest

from statsfs.exceptions import FormatError, KvmError
from statsfs.kvm import own_vm
from statsfs.kvm.own_vm import OwnVm


@pytest.mark.kvm
def test_what_the_kernel_counts() -> None:
    """A VM and a vCPU have layouts, and nothing is left of them."""
    before = len(os.listdir("/proc/self/fd"))
    with OwnVm() as own:
        assert {one.name for one in own.vcpu.descriptors} >= {"exits", "halt_wait_hist"}
        assert "remote_tlb_flush" in {one.name for one in own.vm.descriptors}
        assert os.readlink(f"/proc/self/fd/{own.fd}") == "anon_inode:kvm-vm"
        assert os.readlink(f"/proc/self/fd/{own.vcpu_fd}") == "anon_inode:kvm-vcpu:0"
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line says what there is in its place."""
    monkeypatch.setattr(own_vm, "DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(KvmError, match="/kvm: No such file or directory"):
        OwnVm()
    (tmp_path / "kvm").touch()
    with pytest.raises(KvmError, match="/kvm: Inappropriate ioctl for device"):
        OwnVm()


@pytest.mark.kvm
def test_statistics_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with another format is refused, and nothing is left open."""

    def refuse(_: bytes) -> None:
        raise FormatError("unknown flags 0x1000")

    monkeypatch.setattr(own_vm, "decode", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match="/dev/kvm: unknown statistics: unknown flags"):
        OwnVm()
    assert len(os.listdir("/proc/self/fd")) == before
