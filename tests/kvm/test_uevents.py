"""KVM's uevents: their texts, and the kernel's own."""

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm import uevents
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.uevents import KvmUevent, KvmUevents, parse_uevent
from tests.support.deadlines import DEADLINE, wait_until

CREATE = (
    b"change@/devices/virtual/misc/kvm\0ACTION=change\0DEVPATH=/devices/virtual/misc/kvm\0"
    b"SUBSYSTEM=misc\0CREATED=4402\0COUNT=1\0EVENT=create\0PID=29374\0STATS_PATH=/kvm/29374-5\0"
    b"MAJOR=10\0MINOR=232\0DEVNAME=kvm\0SEQNUM=73691\0"
)


def test_what_a_kernel_sends() -> None:
    """A message of Linux 6.18, and one of a kernel without debugfs."""
    assert parse_uevent(CREATE) == KvmUevent(True, 29374, "29374-5", 73691)
    destroy = CREATE.replace(b"=create", b"=destroy").replace(b"STATS_PATH=/kvm/29374-5\0", b"")
    assert parse_uevent(destroy) == KvmUevent(False, 29374, "", 73691)
    unnumbered = parse_uevent(CREATE.replace(b"SEQNUM=73691", b"SEQNUM=none"))
    assert unnumbered == KvmUevent(True, 29374, "29374-5", 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DEVNAME=kvm", b"DEVNAME=tun"),
        (b"EVENT=create", b"EVENT=other"),
        (b"EVENT=create\0", b""),
        (b"PID=29374", b"PID=-1"),
        (b"PID=29374", b"PID=\xd9\xa3"),
        (b"PID=29374\0", b""),
        (CREATE, b""),
        (CREATE, b"libudev\0\xfe\xed\xca\xfe"),
    ],
)
def test_what_is_about_something_else(old: bytes, new: bytes) -> None:
    """Of other devices, other events, or none that makes sense."""
    assert parse_uevent(CREATE.replace(old, new)) is None


@pytest.mark.kvm
@pytest.mark.host
def test_what_is_not_heard_yet() -> None:
    """From the moment when the kernel tells it to the end of the hearing."""
    with KvmUevents() as events, OwnVm() as own:
        name = f"{os.getpid()}-{own.fd}"
        wait_until(events.is_behind)
        heard: list[KvmUevent] = []

        def hear() -> bool:
            with events.hear() as (more, overrun):
                assert events.is_behind()
                assert not overrun
                heard.extend(more)
            return any(one.name == name for one in heard)

        wait_until(hear, "the VM")
        # Other VMs of the host may come at any time.
        wait_until(lambda: hear() and not events.is_behind(), "silence")


@pytest.mark.kvm
@pytest.mark.host
def test_a_vm_that_comes_and_goes() -> None:
    """The kernel tells both, with the thread and the name of debugfs."""
    with KvmUevents() as events:
        with OwnVm() as own:
            name = f"{os.getpid()}-{own.fd}"
        heard: list[KvmUevent] = []

        def hear() -> bool:
            found, overrun = events.read()
            assert not overrun
            heard.extend(one for one in found if one.thread == os.getpid())
            return len(heard) >= 2

        wait_until(hear, "the uevents")
    first, second = (one.number for one in heard)
    assert 0 < first < second
    assert heard == [
        KvmUevent(True, os.getpid(), name, first),
        KvmUevent(False, os.getpid(), name, second),
    ]


@pytest.mark.kvm
@pytest.mark.host
def test_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An overrun is told, and what comes later is heard."""
    monkeypatch.setattr(uevents, "_BUFFER", 1)  # the kernel makes it a few KiB
    with KvmUevents() as events:
        for _ in range(50):
            with OwnVm():
                pass
        _, overrun = events.read()
        assert overrun
        with OwnVm():
            pass
        assert [one for one in events.read()[0] if one.thread == os.getpid()]


@pytest.mark.kvm
@pytest.mark.host
@pytest.mark.root
def test_other_uevents_wake_nobody(tmp_path: Path) -> None:
    """As of a filesystem that is mounted: the kernel drops them."""
    with (
        KvmUevents() as events,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, uevents._KOBJECT_UEVENT) as everything,
    ):
        everything.bind((0, uevents._KERNEL_GROUP))
        everything.settimeout(DEADLINE)
        # The kernel tells again what each of its devices is.
        Path("/sys/class/mem/null/uevent").write_text("change")
        while b"null\0" not in everything.recv(8192):
            pass
        with OwnVm():
            pass
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(events._socket.recv(8192))
        assert len(messages) >= 2
        assert {message.partition(b"\0")[0] for message in messages} == {
            b"change@/devices/virtual/misc/kvm"
        }


class FakeSocket:
    """A socket that gives what it is told to."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def recvfrom(self, size: int) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        pass


def test_only_the_kernel_is_believed() -> None:
    """Messages of programs are dropped; an error that is no overrun is raised."""
    with KvmUevents() as events:
        events._socket.close()
        events._socket = FakeSocket(  # type: ignore[assignment]  # what it does is enough
            [(CREATE, (4711, 1)), OSError(errno.EIO, "broken")]
        )
        with pytest.raises(OSError, match="broken"):
            events.read()


def test_a_system_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a unit that does not permit the address family."""
    monkeypatch.setattr(uevents, "_KOBJECT_UEVENT", 77)
    with pytest.raises(KvmError, match="no uevents of KVM: netlink: Protocol not supported"):
        KvmUevents()


def test_a_refusal_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be bound is closed."""
    monkeypatch.setattr(uevents, "_KERNEL_GROUP", None)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError):
        KvmUevents()
    assert len(os.listdir("/proc/self/fd")) == before
