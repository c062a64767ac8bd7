"""Counters in a C structure: C code writes them where they are, statsfs reads them by offset.

Run it, and read it from another shell::

    python examples/ctypes_counters.py ./stats
    grep . ./stats/rusage/self/*

The structure is `struct rusage`, and the C code that fills it is getrusage(2): page faults and
context switches of this process, and of the children that it has waited for.
"""

import argparse
import ctypes
import signal
import time
from typing import Any

from statsfs import Aggregate, Kind, Registry, Source, Type, Unit, Value, mount

STOP = {signal.SIGINT, signal.SIGTERM}
WHO = {"self": 0, "children": -1}  # RUSAGE_SELF, RUSAGE_CHILDREN
LIBC = ctypes.CDLL(None, use_errno=True)
# fmt: off
MEMBERS = (
    "utime_s", "utime_us", "stime_s", "stime_us", "maxrss", "ixrss", "idrss", "isrss", "minflt",
    "majflt", "nswap", "inblock", "oublock", "msgsnd", "msgrcv", "nsignals", "nvcsw", "nivcsw",
)
# fmt: on


class RUsage(ctypes.Structure):
    """`struct rusage` of getrusage(2): longs throughout."""

    _fields_ = [(name, ctypes.c_long) for name in MEMBERS]


def member(name: str, description: str, aggregate: Aggregate = Aggregate.SUM, **more: Any) -> Value:
    """A member of the structure as a value; nobody may clear what the kernel counts."""
    offset = getattr(RUsage, name).offset
    return Value(name, Type.S64, aggregate, 0o444, offset, description=description, **more)


KIBIBYTES = {"unit": Unit.BYTES, "base": 2, "exponent": 10}
VALUES = (
    member("maxrss", "Most memory resident", Aggregate.MAX, kind=Kind.PEAK, **KIBIBYTES),
    member("minflt", "Page faults that needed no I/O"),
    member("majflt", "Page faults that waited for I/O"),
    member("nvcsw", "Context switches for lack of work"),
    member("nivcsw", "Context switches in the middle of work"),
)


def main() -> None:
    """Serve until SIGINT, SIGTERM or the time is over."""
    parser = argparse.ArgumentParser(description="the counters of a C structure as files")
    parser.add_argument("mountpoint")
    parser.add_argument("--for", dest="seconds", type=float, default=float("inf"))
    args = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    usage = {name: RUsage() for name in WHO}
    registry = Registry()
    top = Source("rusage")
    registry.register(top)
    for name, structure in usage.items():
        with Source(name) as source:  # the tree keeps it
            source.add_values(VALUES, structure)
            top.add_subordinate(source)
    with mount(registry, args.mountpoint, create=True):
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and signal.sigtimedwait(STOP, 0.1) is None:
            for name, structure in usage.items():
                LIBC.getrusage(WHO[name], ctypes.byref(structure))


if __name__ == "__main__":
    main()
