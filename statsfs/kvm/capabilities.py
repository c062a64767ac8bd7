"""The capabilities that reading KVM's statistics needs, and which of them this process lacks.

Threading: pure functions.
"""

from collections.abc import Iterable
from typing import Final

__all__ = ["find_missing"]

# include/uapi/linux/capability.h
_NUMBERS: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
# A capability that includes the rights of another.
_MORE: Final = {
    "CAP_BPF": "CAP_SYS_ADMIN",
    "CAP_PERFMON": "CAP_SYS_ADMIN",
    "CAP_DAC_READ_SEARCH": "CAP_DAC_OVERRIDE",
}


def find_missing(names: Iterable[str]) -> list[str]:
    """Return those of some capabilities that this process lacks."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return [
        name
        for name in names
        if not any(effective >> _NUMBERS[one] & 1 for one in (name, _MORE.get(name, name)))
    ]
