"""KVM's descriptors in /proc: of this process, which has a VM, and of others."""

import os
import subprocess
import sys
import threading

import pytest

from statsfs.demo.real_kvm import RealKvm
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.qmp_sockets import find_vm
from statsfs.kvm.scanning import (
    KvmFiles,
    find_beginning,
    find_files,
    find_process,
    find_user,
    parse_link,
    scan,
)
from statsfs.tree.registry import Registry


@pytest.mark.kvm
def test_the_files_of_a_process_with_a_vm() -> None:
    """Its VM and its vCPU, until it is closed."""
    assert find_files(os.getpid()) is None
    with OwnVm() as own:
        assert find_files(os.getpid()) == KvmFiles((own.fd,), {0: own.vcpu_fd}, {})
        second = os.dup(own.fd)
        files = find_files(os.getpid())
        os.close(second)
        assert files is not None
        assert files.vms == (own.fd, second)
        assert scan()[os.getpid()].vms == (own.fd,)
    assert os.getpid() not in scan()


@pytest.mark.kvm
def test_statistics_descriptors_that_are_kept_open(registry: Registry) -> None:
    """Those of vCPUs are found by the vCPU's number; that of the VM cannot be used."""
    with RealKvm(registry, rate=0) as kvm:
        kvm.create_vm(2)
        files = find_files(os.getpid())
        assert files is not None
        assert files.vcpus.keys() == files.stats.keys() == {0, 1}


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        ("anon_inode:kvm-vm", ("vm", 0)),
        ("anon_inode:[kvm-vm]", ("vm", 0)),
        ("anon_inode:kvm-vcpu:12", ("vcpu", 12)),
        ("anon_inode:[kvm-vcpu:12]", ("vcpu", 12)),
        ("anon_inode:kvm-vcpu-stats:3", ("vcpu-stats", 3)),
        ("anon_inode:[kvm-vcpu-stats:3]", ("vcpu-stats", 3)),
        ("anon_inode:[kvm-vm", None),
        ("anon_inode:kvm-vm]", None),
        ("anon_inode:kvm-vm-stats", None),
        ("anon_inode:kvm-vcpu", None),
        ("anon_inode:[eventfd]", None),
        ("/tmp/anon_inode:kvm-vm", None),
        ("anon_inode:kvm-vm (deleted)", None),
    ],
)
def test_links_of_older_and_newer_kernels(link: str, kind: tuple[str, int] | None) -> None:
    """Newer ones put the name in brackets."""
    assert parse_link(link) == kind


@pytest.mark.parametrize("link", ["anon_inode:kvm-vm", "anon_inode:[kvm-vm]"])
def test_a_vm_is_found_by_either_link(link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over QMP too: both know the same names."""
    fd = os.eventfd(0)
    own, read = f"/proc/{os.getpid()}/fd/{fd}", os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: link if path == own else read(path))
    try:
        files = find_files(os.getpid())
        assert files is not None
        assert files.vms == (find_vm(os.getpid()),) == (fd,)
    finally:
        os.close(fd)


def test_a_process_that_is_gone() -> None:
    """It has no files, and its thread no process."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert find_files(process.pid) is None
    assert find_process(process.pid) is None
    assert find_user(process.pid) is None
    assert find_user(os.getpid()) == os.getuid()


def test_the_process_of_a_thread() -> None:
    """Each thread's is this one."""
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(find_process(threading.get_native_id())))
    thread.start()
    thread.join()
    assert [*found, find_process(os.getpid())] == [os.getpid()] * 2


def test_when_a_process_began() -> None:
    """It stays the same, differs from that of an earlier one, and is unknown after the end."""
    own = find_beginning(os.getpid())
    assert own is not None
    command = [sys.executable, "-c", "open('/proc/self/comm', 'w').write(') 1 2'); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        began = find_beginning(process.pid)
        assert began is not None
        assert began > own
        assert find_beginning(process.pid) == began
    assert find_beginning(process.pid) is None
    assert find_beginning(os.getpid()) == own
