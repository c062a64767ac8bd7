"""Fixtures of the tests of KVM."""

from collections.abc import Iterator

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.exceptions import KvmError
from statsfs.kvm import checking, host
from statsfs.tree.registry import Registry
from tests.support.libvirtd import Libvirtd, running_libvirtd


@pytest.fixture
def guests() -> Iterator[RealKvm]:
    """VMs of this process, which run when a test says so."""
    with RealKvm(Registry(), rate=0) as kvm:
        yield kvm


@pytest.fixture
def no_bpf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that refuses BPF."""
    for module in (host, checking):
        monkeypatch.setattr(module, "BpfIterator", refuse)


def refuse(*_: object) -> None:
    """As `BpfIterator` does."""
    raise KvmError("BPF needs CAP_BPF")


@pytest.fixture
def libvirtd() -> Iterator[Libvirtd]:
    """A libvirtd without domains."""
    with running_libvirtd() as libvirtd:
        yield libvirtd
