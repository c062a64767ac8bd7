"""A real libvirtd with one domain, apart from that of the machine.

It has the directories of a libvirtd, and a user database with Debian's user of QEMUs, in a mount
namespace of its own. `make qemu` installs it, which starts nothing.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadlines import DEADLINE, wait_until
from tests.support.qemus import IDLE_ROM

__all__ = ["UUID", "Libvirtd", "running_libvirtd"]

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_USER = 64055  # of Debian's libvirt-qemu
_DIRECTORIES = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")

_PREPARE = f"""
cd "$1"
for directory in {" ".join(_DIRECTORIES)} /etc/libvirt; do
    mkdir -p $directory
    mkdir -p .$directory
    mount --bind .$directory $directory
done
for file in passwd group; do mount --bind $file /etc/$file; done
mount --bind kvm /dev/kvm
cp libvirtd.conf qemu.conf /etc/libvirt
exec libvirtd -f libvirtd.conf -p pid
"""
_CONF = """
unix_sock_dir = "{}/sockets"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0777"
"""
_QEMU_CONF = """
user = "libvirt-qemu"
group = "libvirt-qemu"
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
"""
_DOMAIN = """
<domain type="kvm">
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit="MiB">16</memory>
  <vcpu>{vcpus}</vcpu>
  <os><type arch="x86_64" machine="pc">hvm</type><loader type="rom">{rom}</loader></os>
  <cpu><topology sockets="{sockets}" cores="{cores}" threads="1"/></cpu>
  <devices><emulator>{emulator}</emulator></devices>
</domain>
"""


class Libvirtd:
    """A libvirtd.

    Attributes:
        uri: for the library.
        state: where it writes which process a domain is.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        sockets = directory / "sockets"
        self.uri = f"qemu:///system?socket={sockets}/libvirt-sock-ro"
        self.state = directory / "run" / "libvirt" / "qemu"
        self._own = f"qemu:///system?socket={sockets}/libvirt-sock"
        self._socket = sockets / "libvirt-sock-ro"
        sockets.mkdir()
        (directory / "libvirtd.conf").write_text(_CONF.format(directory))
        (directory / "qemu.conf").write_text(_QEMU_CONF)
        for name, line in (
            ("passwd", f"libvirt-qemu:x:{_USER}:{_USER}::/var/lib/libvirt:/usr/sbin/nologin\n"),
            ("group", f"libvirt-qemu:x:{_USER}:\n"),
        ):
            (directory / name).write_text(Path("/etc", name).read_text() + line)
        os.mknod(directory / "kvm", 0o020666, os.stat("/dev/kvm").st_rdev)
        (directory / "kvm").chmod(0o666)
        self._pids: set[int] = set()
        self.start()

    def start(self) -> None:
        """Start it, again if it was killed."""
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-euc", _PREPARE, "sh", self._directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._try("list") is not None, "libvirtd")

    def kill(self) -> None:
        """Kill it; its domains go on."""
        self._process.kill()
        self._process.wait(DEADLINE)

    def send_signal(self, number: signal.Signals) -> None:
        """Stop it, or let it go on."""
        self._process.send_signal(number)

    def _try(self, *command: str | Path) -> str | None:
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self._own, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        return done.stdout if done.returncode == 0 else None

    def virsh(self, *command: str | Path) -> str:
        """Have a command of virsh executed, with all rights."""
        output = self._try(*command)
        assert output is not None, command
        return output

    def create(
        self,
        name: str,
        uuid: str = UUID,
        emulator: str = "/usr/bin/qemu-system-x86_64",
        sockets: int = 1,
        cores: int = 2,
    ) -> int:
        """Start a domain; return its process."""
        domain: dict[str, Any] = {"name": name, "uuid": uuid, "emulator": emulator}
        rom = self._directory / "rom"
        rom.write_bytes(IDLE_ROM)
        domain |= {"rom": rom, "sockets": sockets, "cores": cores, "vcpus": sockets * cores}
        file = self._directory / f"{name}.xml"
        file.write_text(_DOMAIN.format(**domain))
        self.virsh("create", file)
        pid = int((self.state / f"{name}.pid").read_text())
        self._pids.add(pid)
        return pid

    def end(self) -> None:
        """Leave nothing of it."""
        self.kill()
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: _has_ended(fd))  # noqa: B023
                os.close(fd)


def _has_ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


@contextlib.contextmanager
def running_libvirtd() -> Iterator[Libvirtd]:
    """Run a libvirtd without domains until the context ends; a test that cannot have it xfails."""
    if importlib.util.find_spec("libvirt") is None:
        pytest.xfail("there is no libvirt-python: make qemu")
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        pytest.xfail("there is no libvirtd: make qemu")
    with tempfile.TemporaryDirectory(prefix="statsfs-libvirt-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # QEMU's user must enter it
        libvirtd = Libvirtd(directory)
        try:
            yield libvirtd
        finally:
            libvirtd.end()
