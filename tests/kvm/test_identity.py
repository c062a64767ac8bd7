"""Who a VM is: the command lines of VMMs, and hostile ones."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.kvm.identity import Identity, identify, parse_command
from tests.support.deadlines import wait_until

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
PROGRAMS = {
    "qemu": "/usr/bin/qemu-system-x86_64",
    "cloud-hypervisor": "cloud-hypervisor",
    "firecracker": "/opt/firecracker-v1.7.0-x86_64",
    "crosvm": "/usr/bin/crosvm",
}


def parse(line: str, program: str = "") -> Identity:
    """The identity in a command line, whose words have no blanks."""
    return parse_command([word.encode() for word in line.split()], program.encode())


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("-name web", "web"),
        ("--name web", "web"),
        ("-name guest=web,debug-threads=on", "web"),
        ("-name web,debug-threads=on", "web"),
        ("-name debug-threads=on,guest=web", "web"),
        ("-name guest=a,,b=c,process=x", "a,b=c"),
        ("-name process=x", ""),
        ("-name debug-threads=on -name web", "web"),
        ("-name web -name debug-threads=on", "web"),
        ("-name old -name new", "new"),
        ("-name", ""),
        ("-m 16", ""),
    ],
)
def test_the_name_of_a_qemu(line: str, name: str) -> None:
    """All forms of its option."""
    assert parse(f"qemu-system-x86_64 -m 1 {line}") == Identity("qemu", name)


@pytest.mark.parametrize(
    ("line", "machine"),
    [
        ("-machine pc-q35-7.2,usb=off", "pc-q35-7.2"),
        ("-M q35", "q35"),
        ("-machine usb=off,type=pc", "pc"),
        ("-machine accel=kvm -M microvm", "microvm"),
        ("-machine accel=kvm", ""),
    ],
)
def test_the_machine_of_a_qemu(line: str, machine: str) -> None:
    """The type, wherever it is."""
    assert parse(f"/usr/libexec/qemu-kvm {line}") == Identity("qemu", machine=machine)


def test_uuids() -> None:
    """One form for all; what is none is left out."""
    assert parse(f"kvm -uuid {UUID.upper()}").uuid == UUID
    assert parse(f"kvm -uuid {UUID.replace('-', '')}").uuid == UUID
    assert parse("kvm -uuid 1234").uuid == ""
    assert parse(f"cloud-hypervisor --platform num_pci_segments=2,uuid={UUID}").uuid == UUID
    assert parse("cloud-hypervisor --platform num_pci_segments=2 --cpus boot=1").uuid == ""


@pytest.mark.parametrize("vmm", PROGRAMS)
def test_the_program_tells_the_vmm(vmm: str) -> None:
    """What is executed, whatever it calls itself; else what it calls itself."""
    assert parse("renamed", PROGRAMS[vmm]).vmm == vmm
    assert parse(PROGRAMS[vmm]).vmm == vmm
    assert parse(f"{PROGRAMS[vmm]} --help", "/usr/bin/wrapped").vmm == vmm


def test_other_programs() -> None:
    """A VMM that is not known has its program's name; one that a linker runs is found."""
    assert parse("python3 kvm.py qemu-system-x86_64 -name x", "/usr/bin/python3.11") == Identity(
        "python3.11"
    )
    linked = parse("/lib/ld-linux.so.2 --argv0 x /usr/bin/qemu-system-x86_64 -name w", "/ld-2.so")
    assert linked == Identity("qemu", "w")
    assert parse("") == parse_command([b""]) == Identity()


def test_names_of_other_vmms() -> None:
    """Firecracker has an id, crosvm a name, cloud-hypervisor neither."""
    assert parse("firecracker --id a-1 --api-sock x") == Identity("firecracker", "a-1")
    assert parse("firecracker --id=a-1") == Identity("firecracker", "a-1")
    assert parse("crosvm run --name vm bzImage") == Identity("crosvm", "vm")
    assert parse("cloud-hypervisor --api-socket x") == Identity("cloud-hypervisor")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb\x1b[2Jc", "a\ufffdb\ufffd[2Jc"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("\u202egnp.exe".encode(), "\ufffdgnp.exe"),
        ("Größe".encode(), "Größe"),
        (b"x" * 1000, "x" * 255),
        ("ü".encode() * 1000, "ü" * 127),
    ],
)
def test_names_are_text_to_show(name: bytes, shown: str) -> None:
    """A VM's owner writes them: no line ends, escapes or bidirectional marks, and not too long."""
    assert parse_command([b"kvm", b"-name", name]) == Identity("qemu", shown)


WORDS = [b"-name", b"--name=", b"-uuid", b"-M", b"--platform", b"--id", b",,,=,", b"=", b"-"]


@given(st.sampled_from(sorted(PROGRAMS)), st.lists(st.binary() | st.sampled_from(WORDS)))
def test_any_command_line(vmm: str, words: list[bytes]) -> None:
    """It is never an error, and what is said fits on a line."""
    found = parse_command([PROGRAMS[vmm].encode(), *words])
    assert found.vmm == vmm
    for text in (found.name, found.uuid, found.machine):
        assert text == "" or text.isprintable()
        assert len(text.encode()) <= 255


def test_processes() -> None:
    """What a process is called, and nothing of one that has ended."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    command = ["qemu-system-x86_64", "-c", code, "-name", "guest=web"]
    with subprocess.Popen(
        command, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert identify(process.pid) == Identity("qemu", "web")
        process.kill()
        wait_until(lambda: identify(process.pid) == Identity(), "a zombie")
    assert identify(process.pid) == Identity()


def test_a_program_that_was_replaced() -> None:
    """The system then says that it is deleted."""
    assert identify(os.getpid()).vmm == os.path.basename(os.path.realpath(sys.executable))
