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

    >>> try:
    ...     Source("web/1")
    ... except StatsfsError as error:
    ...     print(error.message)
    ...     print(error.offender)
    a source's name 'web/1' has a "/" or a control character
    web/1

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
    """A second parent, a cycle, or not a subordinate; `offender` is the source.

    >>> app, worker = Source("app"), Source("worker3")
    >>> app.add_subordinate(worker)
    >>> worker.add_subordinate(app)
    Traceback (most recent call last):
        ...
    statsfs.exceptions.TreeError: 'app' cannot be below 'app/worker3', which is below it
    """


class DuplicateNameError(StatsfsError, ValueError):
    """A sibling's name, or an array or value declared twice; `offender` is that name or array.

    >>> app = Source("app")
    >>> app.add_values([Value("jobs"), Value("jobs")], {"jobs": 0})
    Traceback (most recent call last):
        ...
    statsfs.exceptions.DuplicateNameError: app: value 'jobs' is twice in one array
    """


class InvalidNameError(StatsfsError, ValueError):
    """A file cannot have the name; `offender` is the name.

    >>> Source(".hidden")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.InvalidNameError: a source's name '.hidden' starts with "."
    """


class FormatError(StatsfsError, ValueError):
    """The bytes are not an object of the binary format, or an object cannot be written in it.

    `offender` is the invalid number, text or descriptor.

    >>> from statsfs.kvm import KvmStats
    >>> with open("/dev/null") as file:  # no statistics descriptor
    ...     KvmStats(file.fileno())
    Traceback (most recent call last):
        ...
    statsfs.exceptions.FormatError: 0 bytes, too few for a header
    """


class BaseMismatchError(StatsfsError, TypeError):
    """The base does not hold the integers that the values describe; `offender` is the base.

    >>> Source("app").add_values([Value("jobs")], {"done": 0})
    Traceback (most recent call last):
        ...
    statsfs.exceptions.BaseMismatchError: app: the dict has no value 'jobs'
    """


class UnknownValueError(StatsfsError, KeyError):
    """The source shows no value of that name; `offender` is the name.

    >>> Source("app").get_value("jobs")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.UnknownValueError: app: no value 'jobs'
    """


class ReleasedError(StatsfsError, ReferenceError):
    """The source was used after its last reference was put; `offender` is the source.

    >>> with Source("app") as app:
    ...     pass
    >>> app.names()
    Traceback (most recent call last):
        ...
    statsfs.exceptions.ReleasedError: source 'app' was released: ...
    """


class ReadOnlyValueError(StatsfsError, PermissionError):
    """The value cannot be cleared: its mode or its base forbids it; `offender` is its name.

    >>> app = Source("app")
    >>> app.add_values([Value("load", kind=Kind.INSTANT)], {"load": 1})
    >>> app.clear_value("load")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.ReadOnlyValueError: app: 'load' cannot be cleared
    """


class UnavailableError(StatsfsError, OSError):
    """The value is unavailable: the refresh of its source failed, or the last sync lacks it.

    `offender` is the source.

    >>> sensor = Source("sensor", refresh=lambda: 1 / 0)
    >>> sensor.add_values([Value("degrees")], {"degrees": 0})
    >>> sensor.get_value("degrees")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.UnavailableError: sensor: unavailable: the refresh failed: division by zero
    """


class ExhaustedError(StatsfsError, OverflowError):
    """The process has used up its numbers of files or places; `offender` is what needs one.

    >>> issubclass(ExhaustedError, StatsfsError), issubclass(ExhaustedError, OverflowError)
    (True, True)
    """


class MountError(_ErrnoError):
    """The mount was refused; the message says what to do.

    `offender` is the mount point; `errno` is the system's number, or None.

    >>> mount(Registry(), "missing")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.MountError: /.../missing: no such directory; make it (mkdir), ...
    """


class SegmentError(_ErrnoError):
    """The segment, or the directory of segments, was refused.

    `offender` is the path; `errno` is the system's number, or None.

    >>> publish("app", values=[Value("jobs")], directory="missing")
    Traceback (most recent call last):
        ...
    statsfs.exceptions.SegmentError: segment 'app': no directory /.../missing: make it
    """


class SampleError(StatsfsError, OSError):
    """A directory, a server or a recording has no numbers; `offender` is its name.

    >>> from statsfs.eyes.places import open_place
    >>> open_place("missing").read_sample()
    Traceback (most recent call last):
        ...
    statsfs.exceptions.SampleError: missing: No such file or directory
    """


class QmpError(StatsfsError, OSError):
    """The QMP socket was refused, or its answer is not that of a VM with KVM statistics.

    `offender` is the socket's path, the process's number, or the answer.

    >>> from statsfs.kvm.qemu import QemuMonitor
    >>> QemuMonitor(Source("kvm"), ["/dev/null"])
    Traceback (most recent call last):
        ...
    statsfs.exceptions.QmpError: /dev/null: refused: not a socket
    """


class KvmError(StatsfsError, OSError):
    """A way to KVM's statistics does not work here, and why; `offender` is the missing thing.

    >>> from statsfs.exceptions import KvmError
    >>> issubclass(KvmError, StatsfsError), issubclass(KvmError, OSError)
    (True, True)
    """
