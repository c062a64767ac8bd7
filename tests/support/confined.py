"""Runs a command with what a unit permits, as systemd would.

    python -m tests.support.confined UNIT COMMAND ...

It needs root, `systemd-analyze`, which knows the groups of system calls, and the numbers of those
in a header of the C library. Applied are capabilities, system calls, address families, and that
memory is never made executable; not what limits networks and devices.
"""

import ctypes
import os
import platform
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["read_settings"]

_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_CAPABILITIES = Path("/usr/include/linux/capability.h")
_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # a bit of the numbers of system calls
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16  # where struct seccomp_data has them
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_CAPBSET_DROP, _SET_SECCOMP, _FILTER, _SET_NO_NEW_PRIVS = 24, 22, 2, 38
_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1
_EAFNOSUPPORT = 97


def read_settings(file: Path) -> dict[str, str]:
    """The settings of a unit, none of which is there twice."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def _find_calls(words: list[str]) -> Iterator[str]:
    # The names of system calls of a SystemCallFilter.
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        command = ["systemd-analyze", "--no-pager", "syscall-filter", word]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        yield from _find_calls([line.strip() for line in lines.splitlines()[1:] if "#" not in line])


def _find_numbers(header: Path, prefix: str) -> dict[str, int]:
    found = re.findall(rf"^#define\s+{prefix}(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def _make_filter(calls: list[str], families: list[str]) -> bytes:
    numbers = _find_numbers(_HEADER, "__NR_")
    steps = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        (_EQUAL, 0, 2 * len(families) + 2, numbers["socket"]),
        (_LOAD, 0, 0, _ARGUMENT),
    ]
    for family in families:
        steps += [(_EQUAL, 0, 1, getattr(socket, family)), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ERROR | _EAFNOSUPPORT))
    for name in calls:
        if name in numbers:
            steps += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _KILL))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def confine(settings: dict[str, str]) -> None:
    """Confine this process, and what it executes."""
    assert platform.machine() == "x86_64"
    program = _make_filter(
        ["execve", *_find_calls(settings["SystemCallFilter"].split())],
        settings["RestrictAddressFamilies"].split(),
    )
    libc = ctypes.CDLL(None, use_errno=True)

    def control(*arguments: object) -> None:
        assert libc.prctl(*arguments) == 0, os.strerror(ctypes.get_errno())

    kept = settings["CapabilityBoundingSet"].split()
    for name, number in _find_numbers(_CAPABILITIES, "(?=CAP_)").items():
        if name not in kept:
            control(_CAPBSET_DROP, number, 0, 0, 0)
    os.umask(int(settings["UMask"], 8))
    control(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if settings["MemoryDenyWriteExecute"] == "yes":
        control(_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0)
    steps = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    control(_SET_SECCOMP, _FILTER, header, 0, 0)


if __name__ == "__main__":
    confine(read_settings(Path(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])
