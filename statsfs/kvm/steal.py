"""The scheduler's numbers of a vCPU's thread: its time on a CPU, and its wait for one, the steal.

Owns `/proc/PID/task/TID/schedstat`, as values. Its file stays open: a pread takes 0.9 us where
opening, reading and closing takes 4.6. Threading: any thread. `close` waits for a read that has
begun.
"""

import errno
import os
import struct
import threading
import weakref
from contextlib import suppress
from typing import Final, Self

from statsfs.kvm.values import index_values
from statsfs.model.external import Numbers
from statsfs.model.locking import locked
from statsfs.model.values import Aggregate, Unit, Value

__all__ = ["SCHEDULER_VALUES", "ThreadTimes"]

_MOST: Final = 100  # bytes; three numbers of 64 bits have 63

SCHEDULER_VALUES: Final = (
    Value(
        "run_ns",
        aggregate=Aggregate.SUM,
        unit=Unit.SECONDS,
        exponent=-9,
        description="Time that the thread of a vCPU ran on a CPU",
    ),
    Value(
        "wait_ns",
        aggregate=Aggregate.SUM,
        unit=Unit.SECONDS,
        exponent=-9,
        description="Time that the thread of a vCPU was ready to run and had no CPU: steal",
    ),
    Value(
        "timeslices",
        aggregate=Aggregate.SUM,
        description="Times that the thread of a vCPU was given a CPU",
    ),
)
"""The numbers of schedstat, in its order."""

_BLOCK: Final = struct.Struct(f"={len(SCHEDULER_VALUES)}Q")


class ThreadTimes:
    """The scheduler's numbers of one thread; a context manager that closes.

    Attributes:
        numbers: the base of `SCHEDULER_VALUES`: the numbers that were read last, less the
            baselines.

    Raises:
        OSError: there is no such thread, or the kernel does not count.
    """

    __slots__ = ("__weakref__", "_close", "_fd", "_lock", "_path", "numbers")

    def __init__(self, pid: int, tid: int) -> None:
        # Reentrant: a signal handler may read what the code that it interrupted is just reading.
        self._lock = threading.RLock()
        self._path = f"/proc/{pid}/task/{tid}/schedstat"
        self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        self.numbers: Final = Numbers(index_values(SCHEDULER_VALUES))
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @locked
    def close(self) -> None:
        """Close it; closing again does nothing."""
        self._fd = -1
        self._close()

    @locked
    def refresh(self) -> None:
        """Read the current numbers into `numbers`; OSError if the thread has ended."""
        row = [int(word) for word in os.pread(self._fd, _MOST, 0).split()]
        # A thread that exists ran before: zeros are those of a kernel without CONFIG_SCHED_INFO.
        if not any(row):
            raise OSError(errno.ENODATA, "the kernel does not count", self._path)
        self.numbers.take(row)

    def read_block(self) -> bytes:
        """Return the current numbers as a block; the last ones if the thread has ended."""
        with suppress(OSError):
            self.refresh()
        return _BLOCK.pack(*self.numbers.values())
