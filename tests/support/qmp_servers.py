"""A QMP server without a VM: it answers as QEMU does, or as it is told.

It runs in threads of the test's own process, whose descriptor of an eventfd stands for a VM's.
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from statsfs.formats.binary import Descriptor
from statsfs.kvm import qmp_sockets
from statsfs.model.values import Kind, Unit
from tests.support.deadlines import DEADLINE
from tests.support.kvm_files import DESCRIBED

__all__ = ["GREETING", "QmpServer", "no_vm", "pretend_a_vm"]

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}, "capabilities": ["oob"]}}
_TYPES = {Kind.LINEAR_HIST: "linear-histogram", Kind.LOG_HIST: "log2-histogram"}


@contextlib.contextmanager
def pretend_a_vm(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let this process have what looks like a VM; return the name that a directory then has."""
    links = {"anon_inode:[eventfd]": ("vm", 0)}
    monkeypatch.setattr(qmp_sockets, "parse_link", links.get)
    fd = os.eventfd(0)
    try:
        yield f"{os.getpid()}-{qmp_sockets.find_vm(os.getpid())}"
    finally:
        os.close(fd)


def no_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have nothing that looks like a VM."""
    monkeypatch.setattr(qmp_sockets, "parse_link", lambda _: None)


def describe(one: Descriptor) -> dict[str, Any]:
    """An entry of the answer to query-stats-schemas."""
    entry: dict[str, Any] = {
        "name": one.name,
        "type": _TYPES.get(one.kind, str(one.kind.name).lower()),
    }
    entry["exponent"] = one.exponent
    if one.unit is not Unit.NONE:
        entry["unit"] = one.unit.name.lower()
    if one.exponent:
        entry["base"] = one.base
    return entry


def zeros(target: str) -> dict[str, Any]:
    """What is counted when nothing is counted yet, in QEMU's reverse order."""
    return {
        one.name: False if one.unit is Unit.BOOLEAN else [0] * one.size if one.size > 1 else 0
        for one in reversed(DESCRIBED[target])
    }


class QmpServer:
    """A QMP server with a QEMU of two vCPUs, of which one may change everything.

    Attributes:
        commands: what was received, in order.
        queries: the arguments of each query-stats.
        vm, vcpus: what is counted; that of vCPUs by their qom-paths, in QEMU's reverse order.
        cpus: the APIC id of each vCPU by its qom-path, in the order of their indices.
        target: the architecture.
        answers: for a command, or "greeting", the line to send in place of the answer.
        flowing: cleared, the server hears nothing, as a stopped QEMU.
        last_heard: a command with whose next answer `flowing` is cleared.

    Args:
        path: of its socket.
        silent: whether it never accepts a connection, as if QMP had another client.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self.path = path
        self.commands: list[str] = []
        self.queries: list[dict[str, Any]] = []
        self.vm = zeros("vm")
        self.vcpus = {f"/machine/cpu[{n}]": zeros("vcpu") for n in (1, 0)}
        self.cpus = {"/machine/cpu[0]": 0, "/machine/cpu[1]": 1}
        self.target = "x86_64"
        self.answers: dict[str, bytes] = {}
        self.flowing = threading.Event()
        self.flowing.set()
        self.last_heard = ""
        self._ending = False
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if not silent:
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def asked(self, command: str) -> int:
        """How often a command was received."""
        return self.commands.count(command)

    @property
    def client(self) -> socket.socket | None:
        """The connection that is open."""
        return self._client

    def hang_up(self) -> None:
        """Close the client's connection."""
        client = self._client
        assert client is not None
        client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End, as a QEMU that is killed: its socket is left behind."""
        self._ending = True
        self.flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join(DEADLINE)
            assert not self._thread.is_alive()
        self._listener.close()

    def _serve(self) -> None:
        # One client at a time, as QMP does.
        while not self._ending:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                self._client = client
                self._talk(client)
            self._client = None

    def _talk(self, client: socket.socket) -> None:
        client.sendall(self.answers.get("greeting", b"") or _line(GREETING))
        received = ""
        while chunk := client.recv(1 << 16).decode():
            received += chunk
            while received:
                # As QEMU reads: no line ends between messages.
                try:
                    message, end = json.JSONDecoder().raw_decode(received)
                except ValueError:
                    break
                received = received[end:].lstrip()
                self.flowing.wait()
                self.commands.append(message["execute"])
                answer = self._answer(message["execute"], message)
                if message["execute"] == self.last_heard:
                    self.last_heard = ""
                    self.flowing.clear()
                client.sendall(answer)

    def _answer(self, command: str, message: dict[str, Any]) -> bytes:
        if command in self.answers:
            return self.answers[command].replace(b"ID", json.dumps(message.get("id")).encode())
        answered = self.answer(command, message.get("arguments"))
        if "id" not in message:
            return _line({"return": answered})
        event = _line({"event": "RTC_CHANGE", "data": {}})
        return event + _line({"return": answered, "id": message["id"]})

    def answer(self, command: str, arguments: Any = None) -> Any:
        """Return what a QEMU answers to a command."""
        return {
            "qmp_capabilities": self._nothing,
            "query-stats-schemas": self._schemas,
            "query-stats": self._stats,
            "query-cpus-fast": self._cpus,
            "qom-get": self._apic_id,
        }[command](arguments)

    def _nothing(self, _arguments: Any) -> Any:
        return {}

    def _schemas(self, arguments: Any) -> Any:
        assert arguments == {"provider": "kvm"}
        return [
            {
                "provider": "kvm",
                "target": target,
                "stats": [describe(one) for one in reversed(DESCRIBED[target])],
            }
            for target in ("vcpu", "vm")
        ]

    def _stats(self, arguments: Any) -> Any:
        self.queries.append(arguments)
        (provider,) = arguments["providers"]
        assert provider["provider"] == "kvm"
        names = provider.get("names")
        if arguments["target"] == "vm":
            assert "vcpus" not in arguments
            return [{"provider": "kvm", "stats": _listed(self.vm, names)}]
        vcpus = arguments.get("vcpus", self.vcpus)
        return [
            {"provider": "kvm", "qom-path": path, "stats": _listed(stats, names)}
            for path, stats in self.vcpus.items()
            if path in vcpus
        ]

    def _cpus(self, _arguments: Any) -> Any:
        return [
            {"qom-path": path, "cpu-index": index, "thread-id": 1, "target": self.target}
            for index, path in enumerate(self.cpus)
        ]

    def _apic_id(self, arguments: Any) -> Any:
        assert arguments["property"] == "apic-id"
        return self.cpus[arguments["path"]]


def _listed(stats: dict[str, Any], names: list[str] | None) -> list[dict[str, Any]]:
    # Buckets too are in QEMU's reverse order.
    return [
        {"name": name, "value": value[::-1] if isinstance(value, list) else value}
        for name, value in stats.items()
        if names is None or name in names
    ]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\r\n"
