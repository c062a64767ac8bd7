"""KVM's uevents: the kernel tells that a VM was made or is gone, whatever program runs it.

Owns the netlink socket and the text of the messages (lib/kobject_uevent.c, and
kvm_uevent_notify_change() in virt/kvm/kvm_main.c). vCPUs have no uevents.
Threading: one thread reads; any may ask whether there is something to read.
"""

import contextlib
import ctypes
import errno
import re
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

from statsfs.exceptions import KvmError

__all__ = ["KvmUevent", "KvmUevents", "parse_uevent"]

_KOBJECT_UEVENT: Final = 15  # include/uapi/linux/netlink.h
_KERNEL_GROUP: Final = 1  # that of udevd is 2
_MOST: Final = 8192  # bytes; UEVENT_BUFFER_SIZE is 2048
_BUFFER: Final = 1 << 20  # bytes; a message takes about 1 KiB of it
_BEGIN: Final = b"change@/devices/virtual/misc/kvm\0"  # of a message about KVM
_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER
_LOAD_WORD, _LOAD_BYTE, _IF_EQUAL, _RETURN = 0x20, 0x30, 0x15, 0x06
_NAME: Final = re.compile(r"/kvm/(\d+-\d+)")
_NUMBER: Final = re.compile(r"[0-9]{1,20}")


class KvmUevent(NamedTuple):
    """That a VM was made, or is gone.

    Attributes:
        created: whether it was made.
        thread: the number of the thread that made it.
        name: the VM's name in debugfs; "" where the kernel has no debugfs.
        number: the kernel's, which grows from one event to the next; 0 if there is none.
    """

    created: bool
    thread: int
    name: str
    number: int


class KvmUevents(AbstractContextManager["KvmUevents"]):
    """The uevents of KVM, as they come; closes as a context.

    Raises:
        KvmError: the kernel refuses, or a filter of system calls does.
    """

    def __init__(self) -> None:
        self._hearing = False
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _KOBJECT_UEVENT)
        except OSError as error:
            raise KvmError(f"no uevents of KVM: netlink: {error.strerror}") from error
        try:
            # Else each mount of a filesystem would wake the reader.
            code = _make_filter()
            buffer = ctypes.create_string_buffer(code, len(code))
            program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
            # Beyond the system's maximum it stays at that.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.bind((0, _KERNEL_GROUP))
        except BaseException:
            self._socket.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for epoll."""
        return self._socket.fileno()

    def is_behind(self) -> bool:
        """Tell whether there are unheard ones, or dropped ones; for any thread."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        # First the socket: a uevent leaves it before the hearing ends.
        return bool(poll.poll(0)) or self._hearing

    @contextlib.contextmanager
    def hear(self) -> Iterator[tuple[list[KvmUevent], bool]]:
        """Read them; until the end of the context they are not heard."""
        self._hearing = True
        try:
            yield self.read()
        finally:
            self._hearing = False

    def read(self) -> tuple[list[KvmUevent], bool]:
        """Return what has come, and whether the kernel dropped some as it was too much."""
        events: list[KvmUevent] = []
        overrun = False
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    message, sender = self._socket.recvfrom(_MOST)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    overrun = True
                    continue
                if sender[0] == 0:  # the kernel: root may send to the group, too
                    event = parse_uevent(message)
                    events += [event] if event else []
        return events, overrun


def _make_filter() -> bytes:
    # The instructions of a socket filter that lets through what begins so; all else is dropped in
    # the kernel.
    pieces = [(at, _BEGIN[at : at + 4]) for at in range(0, len(_BEGIN) - 3, 4)]
    pieces += [(at, _BEGIN[at : at + 1]) for at in range(len(_BEGIN) // 4 * 4, len(_BEGIN))]
    steps = []
    for left, (at, piece) in zip(range(len(pieces), 0, -1), pieces, strict=True):
        load = _LOAD_WORD if len(piece) == 4 else _LOAD_BYTE
        steps += [(load, 0, 0, at), (_IF_EQUAL, 0, 2 * left - 1, int.from_bytes(piece))]
    steps += [(_RETURN, 0, 0, _MOST), (_RETURN, 0, 0, 0)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def parse_uevent(message: bytes) -> KvmUevent | None:
    """Return what a message says about a VM; None if it is about something else."""
    words = message.decode(errors="replace").split("\0")
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    event, thread = fields.get("EVENT"), fields.get("PID", "")
    if fields.get("DEVNAME") != "kvm" or event not in ("create", "destroy"):
        return None
    if not (thread.isascii() and thread.isdigit()):
        return None
    name = _NAME.fullmatch(fields.get("STATS_PATH", ""))
    number = _NUMBER.fullmatch(fields.get("SEQNUM", ""))
    return KvmUevent(
        event == "create", int(thread), name[1] if name else "", int(number[0]) if number else 0
    )
