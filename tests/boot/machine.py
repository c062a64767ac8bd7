"""The virtual machine of `make boot`: QEMU, its console, and commands that run inside."""

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Answer", "Machine", "booted"]

_BOOTS: Final = {True: 20.0, False: 240.0}  # seconds, by KVM and without
_APPEND: Final = "root=LABEL=root rw console=ttyS0,115200 quiet loglevel=4"


@dataclass(frozen=True)
class Answer:
    """What a command did.

    Attributes:
        status: its exit status; None if it took too long.
        output: what it printed, on stderr too, without blanks around it.
        seconds: how long it ran.
    """

    status: int | None
    output: str
    seconds: float


class Machine:
    """A running virtual machine.

    Attributes:
        accelerated: whether it runs by KVM.
    """

    def __init__(self, directory: Path, accelerated: bool) -> None:
        self.accelerated: Final = accelerated
        self._console: Final = directory / "console.log"
        path = str(directory / "agent.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self._process: Final = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
                    *("-machine", "pc", "-m", "1024", "-smp", "2", "-device", "virtio-rng-pci"),
                    *(
                        ("-accel", "kvm", "-cpu", "host,-arch-capabilities")
                        if accelerated
                        else ("-accel", "tcg,thread=multi", "-cpu", "max")
                    ),
                    *("-kernel", directory / "vmlinuz", "-initrd", directory / "initrd"),
                    *("-append", _APPEND),
                    *("-drive", f"file={directory}/root.ext4,format=raw,if=virtio,snapshot=on"),
                    *("-drive", f"file={directory}/tree.ext4,format=raw,if=virtio,snapshot=on"),
                    *("-serial", f"file:{self._console}"),
                    *("-chardev", f"socket,id=agent,path={path}", "-serial", "chardev:agent"),
                ],
                stdin=subprocess.DEVNULL,
            )
            self._line: Final = listener.accept()[0]
        self._waiting = b""

    def close(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._line.close()

    def wait_for_boot(self, timeout: float | None = None) -> str | None:
        """Wait until its agent is there; return the boot's id, or None if it takes too long."""
        end = time.monotonic() + (timeout or _BOOTS[self.accelerated])
        while (line := self._read(end)) is not None:
            # The firmware and an earlier boot may have written something, too.
            if found := re.search(rb'\{"boot": "([-0-9a-f]+)"\}', line):
                return found[1].decode()
        return None

    def _read(self, end: float) -> bytes | None:
        while b"\n" not in self._waiting:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._line], [], [], left)[0]:
                return None
            said = self._line.recv(65536)
            if not said:
                return None
            self._waiting += said
        line, self._waiting = self._waiting.split(b"\n", 1)
        return line

    def send(self, command: str, timeout: float = 60.0) -> None:
        """Have a shell's command run, of which nobody waits for the answer."""
        self._line.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")

    def run(self, command: str, timeout: float = 60.0) -> Answer:
        """Run a shell's command; return what it did."""
        self.send(command, timeout)
        line = self._read(time.monotonic() + 2 * timeout + 10)
        if line is None:
            raise TimeoutError(f"the machine does not answer: {command}")
        said = json.loads(line)
        return Answer(said["status"], said["output"].strip(), said["seconds"])

    def reboot(self) -> tuple[float, str]:
        """Reboot; return how long it took until all was stopped, and the id of the new boot."""
        ends = self._count_ends()
        begun = time.monotonic()
        self.send("systemctl reboot")
        stopped = None
        while stopped is None and time.monotonic() < begun + 300:
            if self._count_ends() > ends:
                stopped = time.monotonic() - begun
            time.sleep(0.02)
        boot = self.wait_for_boot()
        if stopped is None or boot is None:
            raise TimeoutError(f"it does not reboot: {self.console[-2000:]}")
        return stopped, boot

    def _count_ends(self) -> int:
        return self.console.count("reboot: Restarting system")

    @property
    def console(self) -> str:
        """What its kernel and systemd wrote to the console."""
        try:
            return self._console.read_text(errors="replace")
        except FileNotFoundError:
            return ""


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot by KVM where the kernel boots so, else by software; at the end it is ended."""
    for accelerated in (True, False):
        if accelerated and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            continue
        machine = Machine(directory, accelerated)
        try:
            if machine.wait_for_boot() is not None:
                yield machine
                return
        finally:
            machine.close()
    raise TimeoutError(f"it does not boot: {machine.console[-2000:]}")
