"""The collector: keeps a registry in step with a directory of segments.

Owns the thread, and the order of a start: records, then all files, in turns. When `start` returns
they were looked at, so that a mount after it shows a whole tree; or half a second is over,
and the names of which files are left are shown later.

Threading: the tree is changed by `start`, then by the collector's own thread, then by `close`, one
after the other. Readers' threads call `refresh` of segments, under the lock of their numbers, and
`clear`, under that of the journal. The tree is changed under neither, as the listeners of a
change may wait for a reader. The order of locks is: journal, tree, numbers.
"""

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Self

from statsfs.collector.admission import Admission
from statsfs.collector.directories import Directories, default_directory
from statsfs.collector.folding import SegmentFolding
from statsfs.collector.journal import Journal
from statsfs.collector.journal_file import RETAINED
from statsfs.collector.known_values import KnownValues
from statsfs.collector.liveness import Liveness
from statsfs.collector.scanning import Scanning
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import Location
from statsfs.collector.turns import Turns
from statsfs.collector.user_stats import Users
from statsfs.collector.watching import Events, Watch
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.model.locking import Flag
from statsfs.segments.places import COLLECTOR
from statsfs.tree.gil import GIL_OFF, is_gil_on
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry, check_registry

__all__ = ["Collector"]

log = logging.getLogger(__name__)

_RESCAN: Final = 60.0  # seconds; inotify may miss something
_PAUSE: Final = 1.0  # seconds between two tries
_START: Final = 0.5  # seconds that `start` waits for all files
_TURNS: Final = 0.005  # seconds between two looks at the events
_FEW: Final = 1000  # files that are left at a start, and not worth a line
_COUNTED_MAX: Final = 100_000  # of which the line says that there are more


class Collector:
    """Shows the segments of a directory in a registry, and keeps what dead ones counted.

    From `start` to `close`, or as a context manager. Several may have one registry: each top-level
    name is shown by the one that has it first.

    >>> values = [Value("jobs", aggregate=Aggregate.SUM)]
    >>> segment = publish("app/worker-1", values=values, directory="segments")
    >>> segment.stats.jobs += 5
    >>> registry = Registry()
    >>> with Collector(registry, "segments"):
    ...     registry["app/jobs"]
    5
    >>> segment.close()

    Args:
        registry: where the segments' paths begin.
        directory: theirs; it is made if it is missing. By default `/run/statsfs` for root,
            `$XDG_RUNTIME_DIR/statsfs` for others.

    Attributes:
        directory: of the segments.

    Raises:
        SegmentError: there is no default directory, or no GIL.
        TypeError: an argument of another type.
    """

    def __init__(
        self, registry: Registry, directory: str | bytes | os.PathLike[str] | None = None
    ) -> None:
        check_registry(registry)
        self.directory: Final = _find_directory(directory)
        self._path = os.path.abspath(self.directory)
        if not is_gil_on():
            raise SegmentError(f"{self._path}: {GIL_OFF}", self._path)
        self._registry = registry
        self._budget = registry.log_budget
        self._thread: threading.Thread | None = None
        self._asked: Flag | None = None  # set when all is done that `settle` waits for
        self._resumed = False  # by `go_on`, until the first rescan after it
        self._directories: Directories | None = None
        self._last_error = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "collecting" if self._thread is not None else "closed"
        return f"<Collector {self._path!r} {state}>"

    def start(self) -> None:
        """Show what is there, and begin to keep it up to date; nothing happens if it has begun.

        If it takes longer than half a second to look at all files, a top-level name of which some
        are left is shown when all were looked at, and the log says so.

        >>> collector = Collector(Registry(), "segments")
        >>> collector.start()
        >>> collector
        <Collector '/.../segments' collecting>
        >>> collector.close()

        Raises:
            SegmentError: the directory is refused, it has another collector, or there is no
                inotify; the message is one line that says what to do.
        """
        if self._thread is None:
            self._start(None)

    def start_held(self, lock: int) -> None:
        """Start as the successor of a collector in another process, which is held.

        All files were looked at when this returns, however long that takes. This collector is held
        too, as by `hold`, until `go_on`.

        Args:
            lock: a copy of the other collector's, see `hold`.

        Raises:
            SegmentError: as for `start`.
        """
        self._start(lock)

    def prepare(self) -> None:
        """Take the lock of the directory, and read the records; `start` does the rest.

        Raises:
            SegmentError: as for `start`.
        """
        self._prepare(None)

    def _prepare(self, lock: int | None) -> None:
        self._watch = Watch()
        self._compose()
        _live.add(self)
        with self._ending_if_refused():
            if lock is not None:
                self._journal.hold()
            self._open(make=lock is None, lock=lock)

    @contextlib.contextmanager
    def _ending_if_refused(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._end()
            if isinstance(error, OSError) and not isinstance(error, SegmentError):
                why = f"{self._path}: {error.strerror}"
                raise SegmentError(why, self._path, error.errno) from None
            raise

    def _start(self, lock: int | None) -> None:
        if self._directories is None:
            self._prepare(lock)
        with self._ending_if_refused():
            self._work(_START if lock is None else math.inf)
            self._journal.tidy()
        self._say_what_is_left()
        self._registry.add_listener(self._hear)
        self._timers.add(_RESCAN, self._rescan_again)
        # Readers need the interpreter from now on.
        self._turns.yielding = True
        self._begin()

    def _begin(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="statsfs-collector", daemon=True)
        self._thread.start()

    # Takeovers

    def hold(self) -> int:
        """Hold the records for a successor, which gets a copy of the lock; return its descriptor.

        Segments come into the tree as before, and are folded in it. Until `go_on` or `follow` no
        file is removed, nothing is recorded, and clears wait.

        Raises:
            SegmentError: the records cannot be written, or the directory is gone.
        """
        if self._directories is None:
            raise SegmentError(f"{self._path} is gone", self._path)
        self._journal.hold()
        return self._directories.lock

    def halt(self) -> None:
        """Leave the tree as it is, until `go_on` or `follow`."""
        self._stopping = True
        self._watch.wake()
        if self._thread is not None:
            self._thread.join()

    def settle(self, seconds: float) -> None:
        """Wait until all events by now were handled, or so many seconds are over."""
        self._asked = asked = Flag()
        self._watch.wake()
        asked.wait(seconds)

    def go_on(self) -> None:
        """Remove files and record from now on, as the only process."""
        if self._directories is not None:
            self._directories.sign()
        self._journal.let_go()
        self._resumed = True
        if self._stopping:
            self._begin()
        self._watch.wake()

    def follow(self) -> None:
        """Never remove a file or record again, and give the lock up: a successor has it.

        Open files show what producers count until this is closed.
        """
        if self._directories is not None:
            self._directories.drop_lock()
        self._journal.give_up()
        self._begin()

    def _compose(self) -> None:
        budget, known_values = self._budget, KnownValues()
        self._timers, self._turns = timers, turns = Timers(), Turns()
        self._journal = journal = Journal(self._registry, known_values, self._watch.wake)
        self._liveness = liveness = Liveness(timers, turns)
        self._admission = admission = Admission(
            journal, known_values, liveness, timers, budget, self._look_later
        )
        self._folding = SegmentFolding(journal, liveness, admission, timers, budget)
        paths = journal.path_sources
        self._scanning = Scanning(admission, liveness, self._folding, paths, timers, turns)
        paths.top_sources.is_pending = self._scanning.is_pending
        self.users = Users(liveness, paths, admission, lambda: self._directories)

    def close(self) -> None:
        """Take everything out of the registry, and leave the segments to the next collector.

        >>> with Collector(Registry(), "segments") as collector:
        ...     collector.close()
        >>> collector
        <Collector '/.../segments' closed>
        """
        if self not in _live:
            return
        if self._thread is not None:
            self.halt()
            self._thread = None
            self._registry.remove_listener(self._hear)
        self._end()

    def _end(self) -> None:
        _live.discard(self)
        # First the records: a clear through an open file must not write that nothing is left.
        self._journal.close_files()
        self._journal.path_sources.clear()
        self._liveness.close()
        self._close_directories()
        self._watch.close()

    def _disown(self) -> None:
        # In a forked child: the lock, the watches and the records are the parent's.
        self._thread = None
        self._watch.close()
        self._journal.leave_to_parent()
        if self._directories is not None:
            self._directories.drop_lock()

    def _open(self, make: bool, lock: int | None = None) -> None:
        directories = Directories(self._path, self._watch, self._budget, make, lock)
        self._directories = directories
        try:
            # First, so that all is withheld that is restored.
            self._scanning.begin(directories)
            directories.look_around()
            self._journal.load(directories)
        except BaseException:
            # Records that were not read must not be written.
            self._close_directories()
            raise

    def _say_what_is_left(self) -> None:
        for directory in self._scanning.pending:
            with contextlib.suppress(OSError):  # said by the scan
                left = sum(1 for _ in islice(directory.entries(), _COUNTED_MAX))
                if left >= _FEW:
                    most = " or more" * (left == _COUNTED_MAX)
                    text = "%s: %d%s files are left to look at; what they count is shown after that"
                    self._budget.log(directory.owner[0], log, text, directory.path, left, most)

    def _close_directories(self) -> None:
        self._journal.close_files()
        self._scanning.end()
        self._turns.clear()
        if self._directories is not None:
            self._directories.close()
            self._directories = None

    def _lose(self) -> None:
        directories = self._directories
        assert directories is not None
        log.warning("%s is gone: waiting for it; what was counted stays", self._path)
        self._close_directories()
        self._scanning.leave(directories)
        # Not at once: a new lock file would hinder the removal of the directory.
        self._timers.add(_PAUSE, self._reopen)

    def _reopen(self) -> None:
        if self._directories is not None:
            return
        try:
            if self._journal.held or not os.path.isdir(self._path):
                raise FileNotFoundError
            self._open(make=False)  # it may have been removed since
            self._work(_START)
        except (OSError, StatsfsError) as error:
            if isinstance(error, StatsfsError) and str(error) != self._last_error:
                self._last_error = str(error)
                log.error("%s", error)
            self._timers.add(_PAUSE, self._reopen)
        else:
            self._last_error = ""
            log.warning("%s is there again", self._path)

    def _rescan_again(self) -> None:
        self._timers.add(_RESCAN, self._rescan_again)
        self._rescan()

    def _rescan(self) -> None:
        directories = self._directories
        if directories is not None and not directories.is_there():
            self._lose()
        elif directories is not None:
            self._journal.look_at_files()
            self._scanning.scan()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._step()
            except Exception:
                # A daemon must not go on with old numbers and say nothing.
                log.exception("%s: collecting failed; looking at everything anew", self._path)
                time.sleep(_PAUSE)
                self._timers.add(0, self._reopen if self._directories is None else self._rescan)

    def _step(self) -> None:
        asked = self._asked
        waited_for = asked is not None and not asked.is_set()
        left = 0.0 if self._turns or waited_for else self._timers.seconds_left
        left = min(left, self._budget.report() or left)
        again = self._journal.failed and not self._journal.held
        self._handle(self._watch.wait(min(left, _PAUSE) if again else left))
        self._timers.run()
        self._work(_TURNS)
        self._journal.tidy()
        if self._journal.failed:
            self._journal.write_all()
        if self._resumed and not self._journal.failed:
            self._resumed = False
            self._rescan()  # removes the files of what was folded meanwhile
        if asked is not None and not self._turns:
            asked.set()

    def _work(self, seconds: float) -> None:
        # Lets all that is to be done take turns.
        end = time.monotonic() + seconds
        while True:
            for name in list(self._liveness.dead):
                # A scan folds as soon as there are enough for a batch, which writes one record.
                if ("scan", name) not in self._turns:
                    self._turns.add(("fold", name), partial(self._folding.fold, name))
            self._fill_vacant()
            if not self._turns or time.monotonic() >= end:
                return
            self._turns.run(min(_TURNS, seconds))

    def _fill_vacant(self) -> None:
        self._journal.path_sources.show()
        while self._admission.vacant:
            name = self._admission.vacant.pop()
            self._turns.add(("wait", name), partial(self._admission.admit_waiting, name))

    def _hear(self, change: ChangeNotice) -> None:
        # In any thread: top-level names may have become free.
        if names := change.touched.get(0):
            self._admission.vacant.update(names)
            self._watch.wake()

    def _look_later(self, location: Location) -> None:
        self._scanning.look_later(location.directory.prefix, location.name)

    def _handle(self, events: Events) -> None:
        if "" in events.gone and self._directories is not None:
            self._lose()
        for prefix in events.gone:
            self._scanning.look_at_directory(prefix[:-1])
        for prefix, names in events.names.items():
            for name in names:
                if prefix or not self._look_at_own(name):
                    self._scanning.look_later(prefix, name)
        for prefix, names in events.created.items():
            for name in names:
                self._scanning.look_later(prefix, name, created=True)
        for prefix in events.floods:
            self._calm(prefix)
        if events.lost:
            self._rescan()

    def _look_at_own(self, name: str) -> bool:
        # Whether it is a file of the collector's own.
        directories = self._directories
        if name == COLLECTOR and directories is not None and not directories.is_there():
            self._lose()
        elif name == RETAINED:
            self._journal.look_at_files()
        return name in (COLLECTOR, RETAINED)

    def _calm(self, prefix: str, calm: bool = True) -> None:
        # Nothing more is heard of a directory for a moment, and then all in it is looked at.
        directories = self._directories
        if directories is None or prefix not in directories.by_prefix:
            return
        with contextlib.suppress(OSError):  # it is gone, or will be scanned in a minute
            self._watch.add(prefix, directories.by_prefix[prefix].fd, calm)
        if calm:
            self._timers.add(_PAUSE, partial(self._calm, prefix, calm=False))
        else:
            self._scanning.scan(prefix[:-1])


# Those that were prepared, and have not ended.
_live: Final[weakref.WeakSet[Collector]] = weakref.WeakSet()


def _disown_in_child() -> None:
    for collector in list(_live):
        collector._disown()
    _live.clear()


os.register_at_fork(after_in_child=_disown_in_child)


def _find_directory(directory: object) -> Path:
    if directory is None:
        return default_directory()
    path = os.fsdecode(directory) if isinstance(directory, str | bytes | os.PathLike) else ""
    if not path or "\0" in path:
        raise TypeError(f"directory must be a path, not {directory!r}")
    return Path(path)
