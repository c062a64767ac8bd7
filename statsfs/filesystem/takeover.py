"""Takeovers: a server hands its mount over to its successor, a new process.

Owns the conversation of the two, over a Unix socket. Each mount that could be taken over has one,
with an abstract name, which the successor finds by the device of what is mounted. Each side asks
the kernel who the other one is: other users are not listened to, whatever they call their sockets.

The successor connects, and gets to know who serves: until now nothing has happened. It may ask for
what else the server hands over (`begin`), which is held still from then on; says that it is about
to swap the mounts (`ready`); and hangs up. Then the old server looks: if its mount is there still
it goes on as before, however the successor ended. Else it serves what is open until all of that is
closed, for a minute at most.

Threading: the old server has a daemon thread for it, which calls the `Handover`. `Offer.close` may
be called from any other thread, all of `Predecessor` from one thread at a time.
"""

import contextlib
import errno
import json
import logging
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from statsfs.exceptions import MountError
from statsfs.filesystem.beneath import DetachedMount, detach, find_obstacle
from statsfs.filesystem.mountpoints import (
    FILESYSTEM,
    find_device,
    find_mount,
    find_user,
    is_dead,
    lock_mountpoint,
)
from statsfs.model.foreign import foreign

__all__ = ["LINGER", "Handover", "Offer", "Predecessor"]

log = logging.getLogger(__name__)

LINGER: Final = 60.0
"""Seconds for which the old server serves what is open."""

_PATIENCE: Final = 5.0  # seconds for the first word of a live server, and for the end of a swap
_ANSWERING: Final = 30.0  # seconds for its answers: it may be writing something large
_PREPARING: Final = 300.0  # seconds that a successor may take until it is ready
_MESSAGE_MAX: Final = 1 << 16  # bytes
_DESCRIPTORS_MAX: Final = 200  # the kernel passes 253
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: process, user, group


class Handover:
    """What a server hands over besides its mount; this is nothing.

    Attributes:
        kind: only a successor of the same kind can take it over.
    """

    kind = "program"

    def begin(self) -> tuple[dict[str, Any], list[int]]:
        """Hold still what is handed over; return what describes it, and its descriptors."""
        return {}, []

    def stop(self, successor: int, wish: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """Change nothing and let nobody in: a process is about to swap the mounts.

        Return what only the last moment has, as far as the successor wants it, and its descriptors.
        """
        return {}, []

    def resume(self) -> None:
        """Go on as before: the successor failed."""

    def leave(self) -> None:
        """Give up what was handed over; what is open is served for a while."""


class Offer:
    """The offer of a server to be taken over.

    Args:
        mountpoint, device: of the mount.
        handover: what else is handed over.
        created: directories that the successor is to remove at its end.
        linger: called when it was taken over, in the thread of the offer.

    Attributes:
        replaced: whether it was taken over; known when `close` returns.
    """

    def __init__(
        self,
        mountpoint: str,
        device: str,
        handover: Handover,
        created: Sequence[str],
        linger: Callable[[], object],
    ) -> None:
        self._mountpoint = mountpoint
        self._device = device
        self._handover = handover
        self._created = created
        self._linger = linger
        self._users = (0, os.geteuid())
        self._connection: socket.socket | None = None
        self._closed = False
        self.replaced = False
        # Held while the mounts may be swapped.
        self._swapping = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(f"\0{_prefix(device)}{secrets.token_hex(8)}")
            self._listener.listen()
            self._thread = threading.Thread(target=self._run, name="statsfs-takeover", daemon=True)
            self._thread.start()
        except BaseException:
            self._listener.close()
            raise

    @property
    def swapping(self) -> bool:
        """Whether a successor may be swapping the mounts."""
        return self._swapping.locked()

    def close(self) -> None:
        """Withdraw the offer, and wait for the end of a swap that is under way."""
        self._closed = True
        if self._swapping.acquire(timeout=_PATIENCE):
            self._swapping.release()
        # A thread that waits at a socket is not woken by its being closed.
        for one in (self._listener, self._connection):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        if not self.replaced:  # else it waits for the end of what is open
            self._thread.join(_PATIENCE)
        self._listener.close()

    def disown(self) -> None:
        """Let go of the sockets in a forked child."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()

    def _run(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it is closed
                return
            self._connection = connection
            with connection:
                if self._converse(connection):
                    return

    def _converse(self, connection: socket.socket) -> bool:
        # Returns whether the mount was taken over.
        process, user = _find_peer(connection)
        if user not in self._users:
            return False
        began = False
        try:
            connection.settimeout(_PREPARING)
            hello = {"kind": self._handover.kind, "process": os.getpid(), "created": self._created}
            _send(connection, hello)
            for step in _receive_all(connection):
                began = True
                self._answer(connection, step, process)
        except (OSError, ValueError) as error:
            log.debug("%s: a successor failed: %s", self._mountpoint, error)
        except foreign():
            log.exception("%s: handing over failed", self._mountpoint)
        finally:
            connection.close()
            self.replaced = began and find_device(self._mountpoint) != self._device
            if self._swapping.locked():
                self._swapping.release()
        if began and not self._closed:  # else all that is handed over ends as well
            self._go_on(process)
        return self.replaced

    def _go_on(self, process: int) -> None:
        # After the conversation with a successor.
        if self.replaced:
            log.info("%s: process %d took over", self._mountpoint, process)
            self._handover.leave()
            self._linger()
        else:
            log.warning("%s: process %d did not take over", self._mountpoint, process)
            self._handover.resume()

    def _answer(self, connection: socket.socket, asked: Mapping[str, Any], process: int) -> None:
        answer: dict[str, Any] = {}
        descriptors: list[int] = []
        step = asked.get("do")
        try:
            if step == "begin":
                answer, descriptors = self._handover.begin()
            elif step == "ready" and not self._swapping.locked():
                self._swapping.acquire()
                # However long it takes: the mounts may be swapped until the connection ends.
                connection.settimeout(None)
                answer, descriptors = self._handover.stop(process, asked)
        except MountError as error:
            answer = {"error": error.message}
        _send(connection, answer, descriptors)


class Predecessor:
    """The server of a mount, as its successor sees it; nothing has happened to it yet.

    Args:
        mountpoint: an absolute path.
        kind: that the server must be of.

    Attributes:
        device: of its mount.
        process: its number.
        created: directories that it made, which the successor removes at its end.

    Raises:
        MountError: it cannot be taken over; the message is one line.
    """

    def __init__(self, mountpoint: str, kind: str = Handover.kind) -> None:
        self.mountpoint: Final = mountpoint
        obstacle = find_obstacle()
        if obstacle is not None:
            raise self._error(obstacle)
        found = find_mount(mountpoint)
        if found is None:
            raise self._error("nothing is mounted there to take over; mount without replace")
        if found != FILESYSTEM:
            raise self._error(f"what is mounted there ({found}) is not a statsfs", errno.EBUSY)
        user = find_user(mountpoint)
        if user != os.geteuid():
            raise self._error(f"it is user {user}'s; no other user can take it over", errno.EPERM)
        self.device: Final = str(find_device(mountpoint))
        self._ready = False
        self._socket = self._connect()
        try:
            hello, _ = self._receive()
            self.process: Final = int(hello["process"])
            if hello["kind"] != kind:
                raise self._error(
                    f"process {self.process} serves it, which is a {hello['kind']} and no {kind}"
                )
            self.created: Final = [*map(str, hello["created"])]
            self._socket.settimeout(_ANSWERING)
        except BaseException:
            self._socket.close()
            raise

    def _error(self, text: str, number: int | None = None) -> MountError:
        return MountError(f"{self.mountpoint}: {text}", self.mountpoint, number)

    def _connect(self) -> socket.socket:
        for name in _find_names(self.device):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                one.settimeout(_PATIENCE)
                one.connect(name)
                if _find_peer(one)[1] == os.geteuid():
                    return one
            except OSError:  # it has just ended; or is somebody's who lets nobody in
                pass
            one.close()
        if is_dead(self.mountpoint):
            raise self._error("its server is dead; mount without replace", errno.ENOTCONN)
        raise self._error("its server cannot hand it over; unmount it, and mount without replace")

    def begin(self) -> tuple[dict[str, Any], list[int]]:
        """Have it hold still what it hands over besides; return that, and its descriptors."""
        return self._ask("begin")

    def make_ready(self, **wish: Any) -> tuple[dict[str, Any], list[int]]:
        """Have it change nothing until the end; nothing happens if it does so already.

        Return what it hands over of the last moment, and its descriptors. A server of another
        release leaves out what it does not know of `wish`.
        """
        if self._ready:
            return {}, []
        answer = self._ask("ready", **wish)
        self._ready = True
        return answer

    def replace_by(self, detached: DetachedMount) -> str:
        """Swap its mount for another one; return the device of that, which is served.

        MountError: that failed; nothing happened.
        """
        # Neither watchers nor the server, which waits, unmount meanwhile.
        with lock_mountpoint(self.mountpoint):
            self.make_ready()
            if find_device(self.mountpoint) != self.device:
                raise self._error("something else was mounted there meanwhile", errno.EBUSY)
            try:
                detached.put_beneath(self.mountpoint)
                detach(self.mountpoint)
            except OSError as error:
                text = f"cannot be mounted beneath the old mount: {error.strerror}"
                raise self._error(text, error.errno) from error
            return str(find_device(self.mountpoint))

    def _ask(self, step: str, **wish: Any) -> tuple[dict[str, Any], list[int]]:
        try:
            _send(self._socket, {**wish, "do": step})
        except OSError:
            pass  # it is closed; its last words may be there
        answer, descriptors = self._receive()
        if "error" in answer:
            raise self._error(str(answer["error"]))
        return answer, descriptors

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            found, descriptors = _receive(self._socket)
            if found is None:
                raise EOFError
        except TimeoutError as error:
            text = "its server does not answer, or is being taken over already"
            raise self._error(text, errno.ETIMEDOUT) from error
        except (EOFError, OSError, ValueError) as error:
            raise self._error("its server has ended, or was just taken over") from error
        return found, descriptors

    def close(self) -> None:
        """End the conversation; the server then looks whether its mount was taken over."""
        self._socket.close()

    disown = close  # in a forked child


def _prefix(device: str) -> str:
    return f"statsfs/{device}/"


def _find_names(device: str) -> Iterator[str]:
    # The abstract names of sockets that may be a server's; a NUL is shown as "@".
    with open("/proc/net/unix", "rb") as table:
        for line in table:
            *_, name = line.rstrip(b"\n").split(b" ", 7)
            if name.partition(b"@")[2].startswith(_prefix(device).encode()):
                yield "\0" + os.fsdecode(name.partition(b"@")[2])


def _find_peer(one: socket.socket) -> tuple[int, int]:
    # The process and the user at the other end.
    packed = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(packed)
    return process, user


def _send(one: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    socket.send_fds(one, [json.dumps(message).encode()], list(descriptors), socket.MSG_NOSIGNAL)


def _receive(one: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    # None at the end.
    flags = socket.MSG_CMSG_CLOEXEC
    packet, descriptors, _, _ = socket.recv_fds(one, _MESSAGE_MAX, _DESCRIPTORS_MAX, flags)
    if not packet:
        return None, []
    message = json.loads(packet)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message, descriptors


def _receive_all(one: socket.socket) -> Iterator[dict[str, Any]]:
    while True:
        message, descriptors = _receive(one)
        for descriptor in descriptors:  # nobody has any for a server
            os.close(descriptor)
        if message is None:
            return
        yield message
