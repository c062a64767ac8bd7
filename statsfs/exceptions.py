"""The errors that statsfs raises.

Owns the hierarchy and nothing else; every other module may import it. Each error also derives
from the builtin that fits, so that a program may catch either, and keeps what offended::

    StatsfsError
    ├── TreeError            (ValueError)        a second parent, a cycle, not a subordinate
    ├── DuplicateNameError   (ValueError)        a sibling's name, an array or a value twice
    ├── InvalidNameError     (ValueError)        no name for a file
    ├── FormatError          (ValueError)        bytes that are no object of the binary format
    ├── BaseMismatchError    (TypeError)         a base that does not hold the declared values
    ├── UnknownValueError    (KeyError)          no such file in the source's directory
    ├── ReleasedError        (ReferenceError)    use after the last reference was put
    ├── ReadOnlyValueError   (PermissionError)   a value that cannot be cleared
    ├── UnavailableError     (OSError)           a source that must be asked does not answer
    ├── ExhaustedError       (OverflowError)     the numbers of files or places have come to an end
    ├── MountError           (OSError)           a mount that was refused
    ├── SegmentError         (OSError)           a shared segment that was refused
    └── QmpError             (OSError)           a QMP socket that is refused, or no VM behind it
"""

__all__ = [
    "BaseMismatchError",
    "DuplicateNameError",
    "ExhaustedError",
    "FormatError",
    "InvalidNameError",
    "MountError",
    "QmpError",
    "ReadOnlyValueError",
    "ReleasedError",
    "SegmentError",
    "StatsfsError",
    "TreeError",
    "UnavailableError",
    "UnknownValueError",
]


class StatsfsError(Exception):
    """The root of all errors that statsfs raises.

    `offender` is the object that was refused (a source, a name, a base), or None.
    """

    def __init__(self, message: str, offender: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.offender = offender

    def __str__(self) -> str:
        # KeyError would show the message quoted, OSError would look for an errno.
        return self.message


class TreeError(StatsfsError, ValueError):
    """A source has a parent already, would become its own ancestor, or is not where it was said.

    `offender` is the source.
    """


class DuplicateNameError(StatsfsError, ValueError):
    """A sibling has the name already, or the same array or value is declared twice.

    `offender` is the name, or the array of values.
    """


class InvalidNameError(StatsfsError, ValueError):
    """A name that no file can have; `offender` is the name."""


class FormatError(StatsfsError, ValueError):
    """Bytes that are no object of the binary format, or what can be none.

    `offender` is what is wrong: a number, a text, a descriptor.
    """


class BaseMismatchError(StatsfsError, TypeError):
    """A base does not hold the integers that the values describe; `offender` is the base."""


class UnknownValueError(StatsfsError, KeyError):
    """A source shows no value of that name; `offender` is the name."""


class ReleasedError(StatsfsError, ReferenceError):
    """A source was used after its last reference was put; `offender` is the source."""


class ReadOnlyValueError(StatsfsError, PermissionError):
    """A value cannot be cleared, by its mode or its base; `offender` is its name."""


class UnavailableError(StatsfsError, OSError):
    """There are no numbers: who must be asked does not answer; `offender` is the source."""


class ExhaustedError(StatsfsError, OverflowError):
    """No number is left for one more file or place, in the life of the process.

    `offender` is what should have had it.
    """


class MountError(StatsfsError, OSError):
    """A mount was refused; the message is one line that says what to do.

    `offender` is the mount point; `errno` is set where the system gave one.
    """

    def __init__(self, message: str, offender: object = None, errno: int | None = None) -> None:
        super().__init__(message, offender)
        self.errno = errno


class SegmentError(StatsfsError, OSError):
    """A segment, or a directory of segments, was refused; the message is one line.

    `offender` is the path; `errno` is set where the system gave one.
    """

    def __init__(self, message: str, offender: object = None, errno: int | None = None) -> None:
        super().__init__(message, offender)
        self.errno = errno


class QmpError(StatsfsError, OSError):
    """A QMP socket must not be used, or what answers there is no VM to show.

    `offender` is the socket's path, the process's number, or what was answered.
    """
