"""Real virtual machines for tests: QEMU on KVM, which boots a BIOS and finds nothing to run."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from statsfs.kvm.qmp_sockets import find_vm
from tests.support.deadlines import DEADLINE, wait_until

__all__ = ["Qemu", "running"]

_LIFETIME = 90  # seconds; no test leaves one behind, even if it is killed


class Qemu:
    """A running QEMU of two vCPUs, with one QMP socket for statsfs and one for the test.

    Args:
        path: of the socket for statsfs.

    Attributes:
        pid: its process.
        name: what debugfs would call the VM.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        own = path.with_suffix(".own")
        self.process = subprocess.Popen(
            [
                *("timeout", "--foreground", "-s", "KILL", str(_LIFETIME)),
                *("qemu-system-x86_64", "-accel", "kvm", "-machine", "pc", "-nodefaults"),
                *("-display", "none", "-m", "16", "-smp", "2,maxcpus=3"),
                *("-qmp", f"unix:{path},server=on,wait=off"),
                *("-qmp", f"unix:{own},server=on,wait=off"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._qmp = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._qmp.settimeout(DEADLINE)
        wait_until(lambda: self._qmp.connect_ex(str(own)) == 0, "QEMU")
        self._lines = self._qmp.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")
        ucred = self._qmp.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = memoryview(ucred).cast("i")[0]
        self.name = f"{self.pid}-{find_vm(self.pid)}"

    def execute(self, command: str, **arguments: Any) -> Any:
        """Have a QMP command executed, over the test's own socket."""
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._qmp.sendall(json.dumps(message).encode())
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def stats(self) -> dict[str, dict[str, Any]]:
        """What QMP says is counted, by the directory that shows it: "." for the VM."""
        kvm = [{"provider": "kvm"}]
        numbers = {one["qom-path"]: one["cpu-index"] for one in self.execute("query-cpus-fast")}
        (vm,) = self.execute("query-stats", target="vm", providers=kvm)
        vcpus = self.execute("query-stats", target="vcpu", providers=kvm)
        shown = {".": vm} | {f"vcpu{numbers[one['qom-path']]}": one for one in vcpus}
        return {
            where: {one["name"]: one["value"] for one in entry["stats"]}
            for where, entry in shown.items()
        }

    def send_signal(self, number: signal.Signals) -> None:
        """Stop it, let it go on, or kill it."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)
        self._lines.close()
        self._qmp.close()


@contextlib.contextmanager
def running(path: Path) -> Iterator[Qemu]:
    """Run a QEMU until the context ends, or the test ends it."""
    qemu = Qemu(path)
    try:
        yield qemu
    finally:
        qemu.end()
