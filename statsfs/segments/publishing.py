"""Publishing: the life of a segment, from its producer's side.

Owns `publish` and `Segment`. A file is created under a name that begins with ".", filled, locked
and mapped, and then gets its real name: a file of that name is a whole segment, and alive. What
follows the producer's death is up to the collector.

In a forked child the mappings are replaced by private memory: the parent's segments are not the
child's, and the parent's death is seen however long the child lives. An optional segment goes on
counting in such memory, which nobody else sees.

Threading: any thread may publish and close, under one lock, which a fork takes as well. Counting is
an attribute's increment, as on any object.
"""

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, Self, TypeVar, overload

from statsfs.exceptions import FormatError, InvalidNameError, SegmentError
from statsfs.model.buffers import SlotBuffer
from statsfs.model.locking import call_locked
from statsfs.model.names import check_label
from statsfs.model.stats import Stats, make_buffer_class, values_of
from statsfs.model.values import Value
from statsfs.segments import file_format, locks, mappings, places

__all__ = ["Segment", "publish"]

log = logging.getLogger(__name__)

_S = TypeVar("_S")
_T = TypeVar("_T", bound=Stats)

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NAME_MAX: Final = 100  # characters of the path in the file's name, which has 255 bytes
_MODES: Final = 0o644  # a writer could keep a dead segment alive: only the owner may write


class Segment(Generic[_S]):
    """What this process has published at one path; `publish` makes them.

    It lives until it is closed or the process ends, referenced or not. As a context manager it is
    closed at the end.

    >>> class WorkerStats(Stats):
    ...     requests = counter("Requests answered")
    >>> with publish("app/worker-1", values=WorkerStats, directory="segments") as segment:
    ...     segment.stats.requests += 1
    ...     segment.path, segment.file
    ('app/worker-1', PosixPath('/.../segments/app_worker-1-....stats'))
    >>> segment
    <Segment 'app/worker-1' ended '/.../segments/app_worker-1-....stats'>

    Attributes:
        path: where it is in the tree.
        file: the file's name; of an optional segment that was refused, what it would have been.
        stats: the values, as attributes over the shared memory, which starts at 0. After `close`,
            and in a forked child, each of them raises a SegmentError; those of an optional segment
            start at 0 again, in private memory.
    """

    __slots__ = ("_address", "_optional", "_size", "file", "path", "stats")

    def __init__(
        self, path: str, file: Path, stats: _S, address: int, size: int, optional: bool
    ) -> None:
        self.path: Final = path
        self.file: Final = file
        self.stats: Final = stats
        self._address = address
        self._size = size
        self._optional = optional

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._address in _live else " private" if self._optional else " ended"
        return f"<Segment {self.path!r}{state} {str(self.file)!r}>"

    def close(self) -> None:
        """End the segment, as the process's end does; nothing happens if it has ended.

        The collector keeps what was counted, and removes the file. Here it is removed only where no
        collector has ever been.

        >>> segment = publish("app/worker-1", values=[Value("requests")], directory="segments")
        >>> segment.file.exists()
        True
        >>> segment.close()
        >>> segment.file.exists()  # as there was no collector
        False
        """
        call_locked(_lock, self._close)

    def _close(self) -> None:
        if self._address not in _live:
            return
        # The collector of a directory reads its subdirectories as well.
        if not any((place / places.COLLECTOR).exists() for place in self.file.parents[:2]):
            # While it is locked: a collector that has just opened it folds it after that.
            with contextlib.suppress(OSError):
                self.file.unlink()
        self._end(f"segment {self.path!r} was closed")

    def _end(self, why: str) -> None:
        del _live[self._address]
        # Before the memory is replaced: after that another thread that counts raises. The private
        # memory, a page or so, stays for buckets that are still referenced.
        make = _make_private_class if self._optional else _make_ended_class
        self.stats.__class__ = make(why, type(self.stats))
        mappings.blank(self._address, self._size)


def _make_ended_class(why: str, living: type[Any]) -> type[Any]:
    def refuse(_: object, name: str, number: object = None) -> NoReturn:
        # `copy`, for example, looks for optional methods.
        if name.startswith("__"):
            raise AttributeError(name)
        raise SegmentError(f"{why}: no {name!r}", name)

    return _make_class("EndedStats", living, refuse, refuse)


def _make_class(name: str, living: type[Any], get: object, put: object) -> type[Any]:
    # The same layout, and the same values for what looks for them.
    kept = ("__slots__", "stats_values", "stats_addable")
    body = {one: getattr(living, one) for one in kept}
    return type(name, (SlotBuffer,), {**body, "__getattr__": get, "__setattr__": put})


def _make_private_class(why: str, living: type[Any]) -> type[Any]:
    # Its objects have the class of before again as soon as they are used, and it is logged then: a
    # program that ends closes its segments, and counts no more.
    unsaid = [why]

    def go_on(stats: Any) -> None:
        object.__setattr__(stats, "__class__", living)
        with contextlib.suppress(IndexError):  # another thread says it
            log.warning("%s: it counts privately", unsaid.pop())

    def get(stats: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        go_on(stats)
        return getattr(stats, name)

    def put(stats: Any, name: str, number: object) -> None:
        go_on(stats)
        setattr(stats, name, number)

    return _make_class("PrivateStats", living, get, put)


_said: Final[set[tuple[str, int | None]]] = set()  # where optional segments were refused, and why
# By address. A segment lives without its `Segment`: `stats` does not refer to it.
_live: Final[dict[int, Segment[Any]]] = {}
# Reentrant: a signal handler may publish or close in the middle of either.
_lock: Final = threading.RLock()


def _disown_in_child() -> None:
    # The fork took the lock for the child as well.
    try:
        for segment in list(_live.values()):
            segment._end(f"segment {segment.path!r} belongs to the process that forked this one")
    finally:
        # uWSGI may call this hook without the one before.
        with contextlib.suppress(RuntimeError):
            _lock.release()


# A child never has a descriptor or a mapping that is not in `_live` yet.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_disown_in_child
)


@overload
def publish(
    path: str,
    *args: object,
    values: type[_T],
    labels: Sequence[str | None] | None = None,
    directory: str | os.PathLike[str] | None = None,
    mode: int = 0o644,
    optional: bool = False,
) -> Segment[_T]: ...


@overload
def publish(
    path: str,
    *args: object,
    values: Sequence[Value],
    labels: Sequence[str | None] | None = None,
    directory: str | os.PathLike[str] | None = None,
    mode: int = 0o644,
    optional: bool = False,
) -> Segment[Any]: ...


def publish(
    path: str,
    *args: object,
    values: type[Stats] | Sequence[Value],
    labels: Sequence[str | None] | None = None,
    directory: str | os.PathLike[str] | None = None,
    mode: int = 0o644,
    optional: bool = False,
) -> Segment[Any]:
    """Publish values of this process, for the host's collector to show.

    Two segments may have one path, one after the other; at the same time the collector shows one.

    >>> class WorkerStats(Stats):
    ...     requests = counter("Requests answered")
    >>> segment = publish("app/worker-%d", 1, values=WorkerStats, directory="segments")
    >>> segment.stats.requests += 1
    >>> segment.stats.requests
    1
    >>> segment.close()

    Args:
        path: 1 to 8 names of sources, joined by "/": "app/worker-17".
        args: `path` is formatted with them, printf-style, if there are any.
        values: a `Stats` class, or values without offsets; at most 4,096, in at most 1 MiB. The
            collector shows integers, without a value's `show`.
        labels: for each name of the path its label, or None; no labels by default.
        directory: by default `$STATSFS_DIR`, else `/run/statsfs` or its subdirectory named after
            the user, whichever is writable, else `$XDG_RUNTIME_DIR/statsfs`.
        mode: the file's permission bits: 0600, and those of others who may read the values.
        optional: count in private memory where the directory or the system refuses the segment,
            after `close` and in a forked child, and log that once. What is wrong in the arguments
            is an error as ever.

    Raises:
        SegmentError: the directory is missing, or others may write it; no space; too many values;
            values with offsets; a label is not valid; uWSGI has yet to fork its workers.
        InvalidNameError: a name of the path is not valid, or the name of a value cannot be an
            attribute over shared memory.
        TypeError: an argument of another type.
    """
    path = _make_path(path, args)
    _check_types(path, labels, directory, mode)
    array = _make_array(path, values)
    attributes = make_buffer_class(values if isinstance(values, type) else array)
    if mode & ~_MODES or mode & 0o600 != 0o600:
        raise SegmentError(f"segment {path!r}: mode {mode:#o}, not 0600 and bits to read", path)
    if any(value.offset is not None for value in array):
        raise SegmentError(f"segment {path!r}: its values have offsets", path)
    id = os.urandom(8).hex()
    try:
        encoded = file_format.encode(path, array, labels, id=id)
        for label in filter(None, labels or ()):
            check_label(label, "label")
    except (FormatError, InvalidNameError) as error:
        raise SegmentError(f"segment {path!r}: {error}", path) from None
    head = file_format.decode(encoded)
    offset = head.data_offset
    name = f"{_FOREIGN.sub('_', path)[:_NAME_MAX]}-{id}"
    place = places.HOST_DIRECTORY

    def create() -> Segment[Any]:
        address = _create(place, name, encoded, mode, path)
        stats = attributes.from_address(address + offset)
        file = place / f"{name}{places.SUFFIX}"
        segment = Segment(path, file, stats, address, len(encoded), optional)
        _live[address] = segment
        return segment

    try:
        place = _find_place(path, directory)
        return call_locked(_lock, create)
    except SegmentError as error:
        if not optional:
            raise
        if (key := (str(place), error.errno)) not in _said:
            _said.add(key)
            log.warning("%s; it counts privately", error)
        stats = attributes.from_buffer(bytearray(len(encoded) - offset))
        return Segment(path, place / f"{name}{places.SUFFIX}", stats, 0, 0, optional)


def _make_path(path: str, args: tuple[object, ...]) -> str:
    if not isinstance(path, str):
        raise InvalidNameError(f"path must be a str, not {type(path).__name__}: {path!r}", path)
    try:
        path = path % args if args else path
    except (TypeError, ValueError) as error:
        raise InvalidNameError(f"path {path!r} % {args!r}: {error}", path) from None
    try:
        file_format.split_path(path)
    except InvalidNameError as error:
        slashes = "" if all(path.split("/")) else '; it is names joined by "/", "app/worker-1"'
        raise InvalidNameError(f"path {path[:80]!r}: {error}{slashes}", path) from None
    except FormatError as error:
        raise SegmentError(f"segment {path[:80]!r}: {error}", path) from None
    return path


def _check_types(path: str, labels: object, directory: object, mode: object) -> None:
    listed = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    if not (labels is None or listed):
        raise TypeError(
            f"segment {path!r}: labels must be a list with a label or None for each name of the "
            f"path, not {labels!r}"
        )
    if not isinstance(directory, str | bytes | os.PathLike | None) or directory in ("", b""):
        raise TypeError(f"segment {path!r}: directory must be a path, not {directory!r}")
    if not isinstance(mode, int):
        raise TypeError(f"segment {path!r}: mode must be an int, as 0o644, not {mode!r}")


def _make_array(path: str, values: type[Stats] | Sequence[Value]) -> tuple[Value, ...]:
    given: Any = values
    if isinstance(given, type) and issubclass(given, Stats):
        return values_of(given)
    array = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(value, Value) for value in array):
        raise TypeError(
            f"segment {path!r}: values must be a Stats class or a list of Values, not {given!r}"
        )
    return array


def _find_place(path: str, directory: str | os.PathLike[str] | None) -> Path:
    if _forks_later():
        raise SegmentError(
            f"segment {path!r}: uWSGI forks its workers after this, and they would all count in it:"
            " publish in each, with --lazy-apps or in uwsgi.post_fork_hook",
            path,
        )
    place = os.fsdecode(places.find_directory() if directory is None else directory)
    try:
        absolute = Path(os.path.abspath(place))
    except OSError as error:  # the process's own directory is gone
        text = f"segment {path!r} in {place}: {error.strerror}"
        raise SegmentError(text, path, error.errno) from None
    places.check_path(absolute, path)
    return absolute


def _forks_later() -> bool:
    # uWSGI forks without Python's hooks, so that a worker would not be told that the segment is not
    # its own. It is worker 0 until then, and so are the master and the spoolers ever after.
    uwsgi = sys.modules.get("uwsgi")
    worker_id = getattr(uwsgi, "worker_id", None)  # a program's own module may be called so
    if uwsgi is None or worker_id is None or worker_id() or uwsgi.mule_id():
        return False
    master = getattr(uwsgi, "masterpid", os.getpid)()
    # Without a master the first worker goes on in this process, and may be the only one.
    alone = not master and uwsgi.numproc == 1
    return master in (0, os.getpid()) and not alone


def _create(place: Path, name: str, encoded: bytes, mode: int, path: str) -> int:
    # Returns the address of the mapping.
    try:
        with _opened(place, os.O_RDONLY | os.O_DIRECTORY) as directory:
            places.check_directory(os.fstat(directory), place)
            return _create_in(directory, name, encoded, mode)
    except SegmentError:
        raise
    except ValueError as error:  # a NUL in the name
        raise SegmentError(f"segment {path!r}: directory {str(place)!r}: {error}", path) from None
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = f": no directory {place}: make it" if missing else f" in {place}: {error.strerror}"
        raise SegmentError(f"segment {path!r}{why}", path, error.errno) from None


def _create_in(directory: int, name: str, encoded: bytes, mode: int) -> int:
    with contextlib.ExitStack() as undo:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with _opened(f".{name}", flags, directory) as fd:
            undo.callback(os.unlink, f".{name}", dir_fd=directory)
            # In a sparse file on a full disk, counting would raise SIGBUS.
            os.posix_fallocate(fd, 0, len(encoded))
            with open(fd, "wb", closefd=False) as file:
                file.write(encoded)
            # Before others may read it, and so lock it.
            if not locks.hold(fd):
                raise SegmentError(f".{name} is locked by another process", name)
            os.fchmod(fd, mode)
            address = mappings.map_file(fd, len(encoded))
        undo.callback(mappings.unmap, address, len(encoded))
        # The name is random, so nothing is replaced.
        os.rename(f".{name}", f"{name}{places.SUFFIX}", src_dir_fd=directory, dst_dir_fd=directory)
        undo.pop_all()
    return address


@contextlib.contextmanager
def _opened(path: str | Path, flags: int, directory: int | None = None) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)
