"""The family of errors; each also derives from a builtin, so that a program may catch either.

Threading: errors are plain objects. The family::

    StatsfsError
    ├── TreeError            (ValueError)        a second parent, a cycle, not a subordinate
    ├── DuplicateNameError   (ValueError)        a name, an array or a value twice
    ├── InvalidNameError     (ValueError)        not a file name
    ├── FormatError          (ValueError)        not an object of the binary format
    ├── BaseMismatchError    (TypeError)         a base without the declared values
    ├── UnknownValueError    (KeyError)          no such value in a source
    ├── ReleasedError        (ReferenceError)    a source used after its release
    ├── ReadOnlyValueError   (PermissionError)   a value that cannot be cleared
    ├── UnavailableError     (OSError)           a refresh that failed, a number not known now
    ├── ExhaustedError       (OverflowError)     no numbers left for files or places
    ├── MountError           (OSError)           a refused mount
    ├── SegmentError         (OSError)           a refused segment, or directory of segments
    ├── SampleError          (OSError)           a place without numbers: no mount, no server
    ├── QmpError             (OSError)           a refused QMP socket, or an invalid answer
    └── KvmError             (OSError)           a way to KVM's statistics that does not work here
"""

__all__ = [
    "BaseMismatchError",
    "DuplicateNameError",
    "ExhaustedError",
    "FormatError",
    "InvalidNameError",
    "KvmError",
    "MountError",
    "QmpError",
    "ReadOnlyValueError",
    "ReleasedError",
    "SampleError",
    "SegmentError",
    "StatsfsError",
    "TreeError",
    "UnavailableError",
    "UnknownValueError",
]


class StatsfsError(Exception):
    """The root of all errors that statsfs raises.

    Attributes:
        message: one line; `str()` of the error.
        offender: the refused object, a source, a name or a base for example; None if there is none.
    """

    def __init__(self, message: str, offender: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.offender = offender

    def __str__(self) -> str:
        # KeyError would quote the message, OSError would look for an errno.
        return self.message


class _ErrnoError(StatsfsError, OSError):
    def __init__(self, message: str, offender: object = None, errno: int | None = None) -> None:
        super().__init__(message, offender)
        self.errno = errno


class TreeError(StatsfsError, ValueError):
    """A second parent, a cycle, or not a subordinate; `offender` is the source."""


class DuplicateNameError(StatsfsError, ValueError):
    """A sibling's name, or an array or value declared twice; `offender` is that name or array."""


class InvalidNameError(StatsfsError, ValueError):
    """A file cannot have the name; `offender` is the name."""


class FormatError(StatsfsError, ValueError):
    """The bytes are not an object of the binary format, or an object cannot be written in it.

    `offender` is the invalid number, text or descriptor.
    """


class BaseMismatchError(StatsfsError, TypeError):
    """The base does not hold the integers that the values describe; `offender` is the base."""


class UnknownValueError(StatsfsError, KeyError):
    """The source shows no value of that name; `offender` is the name."""


class ReleasedError(StatsfsError, ReferenceError):
    """The source was used after its last reference was put; `offender` is the source."""


class ReadOnlyValueError(StatsfsError, PermissionError):
    """The value cannot be cleared: its mode or its base forbids it; `offender` is its name."""


class UnavailableError(StatsfsError, OSError):
    """The value is unavailable: the refresh of its source failed, or the last sync lacks it.

    `offender` is the source.
    """


class ExhaustedError(StatsfsError, OverflowError):
    """The process has used up its numbers of files or places; `offender` is what needs one."""


class MountError(_ErrnoError):
    """The mount was refused; the message says what to do.

    `offender` is the mount point; `errno` is the system's number, or None.
    """


class SegmentError(_ErrnoError):
    """The segment, or the directory of segments, was refused.

    `offender` is the path; `errno` is the system's number, or None.
    """


class SampleError(StatsfsError, OSError):
    """A directory, a server or a recording has no numbers; `offender` is its name."""


class QmpError(StatsfsError, OSError):
    """The QMP socket was refused, or its answer is not that of a VM with KVM statistics.

    `offender` is the socket's path, the process's number, or the answer.
    """


class KvmError(StatsfsError, OSError):
    """A way to KVM's statistics does not work here, and why; `offender` is what it lacks."""
