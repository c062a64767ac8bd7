"""The identity of a VM: its VMM, name, UUID and machine type, from its process's command line.

Owns the options with which each VMM gets them. The user who runs a VM chooses these words: they are
text to show, and prove nothing. Threading: pure functions; /proc is read.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Identity", "identify", "parse_command"]

_MOST: Final = 1 << 17  # bytes of a command line that are read; libvirt writes some 10 KB
_LONGEST: Final = 255  # bytes of a text, as of a source's name
_FIRST: Final = 8  # words among which the program is that a dynamic linker runs
_VMMS: Final = {
    "qemu": re.compile(r"qemu-system-\w+|qemu-kvm|kvm"),
    "cloud-hypervisor": re.compile(r"cloud-hypervisor(-static)?"),
    "firecracker": re.compile(r"firecracker(-v[\d.]+)?(-\w+)?"),
    "crosvm": re.compile(r"crosvm"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a VM; a text is "" where it is not, and printable.

    Attributes:
        vmm: `qemu`, `cloud-hypervisor`, `firecracker`, `crosvm`; else the name of the program.
        name: of the VM. Two VMs may have the same.
        uuid: of the VM, as `uuid.UUID` writes it.
        machine: QEMU's type of machine.
    """

    vmm: str = ""
    name: str = ""
    uuid: str = ""
    machine: str = ""


def identify(pid: int) -> Identity:
    """Return the identity of a process's VM; it is empty for a process that has ended."""
    program, words = "", b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(_MOST)
    with contextlib.suppress(OSError):  # needs CAP_SYS_PTRACE for other users' processes
        program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    return parse_command(words.rstrip(b"\0").split(b"\0"), os.fsencode(program))


def parse_command(words: Sequence[bytes], program: bytes = b"") -> Identity:
    """Return the identity of the VM whose process has this command line.

    Args:
        words: the command line.
        program: the path of what the process executes, if that is known.
    """
    texts = [word.decode(errors="replace") for word in words]
    vmm = _find_vmm([program.decode(errors="replace"), *texts])
    name = number = machine = ""
    if vmm == "qemu":
        for option, text in _read_options(texts):
            # A later option adds to the ones before it.
            values = _read_values(text)
            if option == "name":
                name = values.get("guest", values.get("", name))
            elif option == "uuid":
                number = text
            elif option in ("machine", "M"):
                machine = values.get("type", values.get("", machine))
    elif vmm == "cloud-hypervisor":
        for option, text in _read_options(texts):
            if option == "platform":
                number = _read_values(text).get("uuid", number)
    elif vmm in ("firecracker", "crosvm"):
        wanted = "id" if vmm == "firecracker" else "name"
        name = dict(_read_options(texts)).get(wanted, "")
    return Identity(_clean(vmm), _clean(name), _read_uuid(number), _clean(machine))


def _find_vmm(paths: Sequence[str]) -> str:
    # A dynamic linker that was told to run a program is not the program.
    names = [path.rpartition("/")[2] for path in paths]
    linked = names[0].startswith("ld-")
    for name in names[: _FIRST if linked else 2]:
        for vmm, pattern in _VMMS.items():
            if pattern.fullmatch(name):
                return vmm
    return next(filter(None, names), "")


def _read_options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    # `-name web`, `--name web` and `--name=web`.
    for place, word in enumerate(words):
        if word.startswith("-"):
            option, equals, text = word.lstrip("-").partition("=")
            yield option, text if equals else "".join(words[place + 1 : place + 2])


def _read_values(text: str) -> dict[str, str]:
    # `web,debug-threads=on`: "" has what has no key. A comma in a value is doubled.
    parts = re.findall(r"(?:[^,]|,,)+", text)
    pairs = [part.replace(",,", ",").partition("=") for part in parts]
    return {key if equals else "": value if equals else key for key, equals, value in pairs}


def _read_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return ""


def _clean(text: str) -> str:
    # A terminal, a label and an extended attribute show it: no line ends, escapes, or marks that
    # change the direction of writing.
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[:_LONGEST])
    return text.encode()[:_LONGEST].decode(errors="ignore")
