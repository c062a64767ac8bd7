"""The collector: keeps a registry in step with a directory of segments.

Owns the thread in which everything happens that is not a reader's doing, and the order of a start:
records, removing what they name, letting in what is there, folding the dead; only then is `start`
done, so that whoever mounts after it shows a whole tree. The parts are `watching` (what happened),
`home` (the directories), `members` (who is let in), `branches` (where in the tree) and `ledger`
(what outlives it).

Threading: the tree is changed by `start`, then by the collector's own thread, then by `close`, one
after the other. Readers' threads call two things: `refresh` of the leaves, under the lock of their
numbers, and `cleared`, under that of the branches. Under neither is the tree ever changed, since
the listeners of a change may wait for a reader. The order of locks is: branches, tree, numbers.
"""

import logging
import os
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import Final, Self

from statsfs.collector.directories import Home, find_home
from statsfs.collector.journal import Ledger
from statsfs.collector.known_values import KnownValues
from statsfs.collector.members import Members
from statsfs.collector.timers import Timers
from statsfs.collector.watching import Events, Watch
from statsfs.exceptions import SegmentError, StatsfsError
from statsfs.segments.places import COLLECTOR, SUFFIX
from statsfs.tree.lock import Change
from statsfs.tree.registry import Registry

__all__ = ["Collector"]

log = logging.getLogger(__name__)

_RESCAN: Final = 60.0  # seconds; for what inotify may have missed
_PATIENCE: Final = 1.0  # seconds between two tries of what failed
_SETTLED: Final = 256  # files that are looked at before the dead among them are folded


class Collector:
    """What shows the segments of a directory in a registry, and keeps what the dead counted.

    From `start` to `close`, or as a context manager. Several may have one registry: each top-level
    name is shown by the one that has it first.

    Args:
        registry: where the segments' paths begin.
        directory: theirs; it is made if it is missing. By default `/run/statsfs` for root,
            `$XDG_RUNTIME_DIR/statsfs` for others.

    Attributes:
        directory: where it looks.

    Raises:
        SegmentError: there is no default directory.
    """

    def __init__(self, registry: Registry, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory: Final = Path(directory) if directory is not None else find_home()
        self._path = os.path.abspath(self.directory)
        self._registry = registry
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._timers = Timers()
        self._ledger: Ledger
        self._members: Members
        self._watch: Watch
        self._home: Home | None = None
        self._owner = (os.geteuid(), os.getegid())
        self._retrying = False
        self._said = ""

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

        Raises:
            SegmentError: the directory is refused, another collector has it, or inotify is not to
                be had; the message is one line that says what to do.
        """
        if self._thread is not None:
            return
        self._stopping = self._retrying = False
        self._timers = Timers()
        self._watch = Watch()
        vocabulary = KnownValues()
        wake = self._watch.wake
        self._ledger = Ledger(self._registry, vocabulary, self._find_owner, wake)
        self._members = Members(self._ledger, vocabulary, self._timers.add)
        try:
            self._open()
        except BaseException as error:
            self._end()
            if isinstance(error, OSError) and not isinstance(error, SegmentError):
                why = f"{self._path}: {error.strerror}"
                raise SegmentError(why, self._path, error.errno) from error
            raise
        self._registry.add_listener(self._hear)
        self._timers.add(_RESCAN, self._rescan)
        self._thread = threading.Thread(target=self._run, name="statsfs-collector", daemon=True)
        _live.add(self)
        self._thread.start()

    def close(self) -> None:
        """Take all of it out of the registry, and leave the segments to the next collector."""
        if self._thread is None:
            return
        self._stopping = True
        self._watch.wake()
        self._thread.join()
        self._thread = None
        _live.discard(self)
        self._registry.remove_listener(self._hear)
        self._end()

    def _end(self) -> None:
        # First: who clears what is open still must not write down that nothing is left.
        self._ledger.lose()
        self._ledger.branches.clear()
        self._members.close()
        self._leave_home()
        self._watch.close()

    def _disown(self) -> None:
        # In a forked child, where nobody collects: the parent's lock, watches and records are not
        # to be kept, nor touched.
        self._thread = None
        self._watch.close()
        self._ledger.leave_to_parent()
        if self._home is not None:
            self._home.disown()

    def _find_owner(self, name: str) -> tuple[int, int]:
        return self._owner if self._home is None else self._home.find_owner(name)

    # The directory

    def _open(self) -> None:
        home = self._home = Home(self._path, self._watch)
        try:
            home.look_around()
            self._ledger.load(home.records)
            self._members.remove_folded(home.directories)
            self._scan()
            self._ledger.branches.prune()
        except BaseException:
            # Records that were not read must not be written.
            self._leave_home()
            raise

    def _leave_home(self) -> None:
        if self._home is not None:
            self._ledger.lose()
            self._home.close()
            self._home = None

    def _lose(self) -> None:
        log.warning("%s is gone: waiting for it; what was counted stays", self._path)
        self._leave_home()
        for leaf in list(self._members.leaves.values()):
            self._members.leave_orphan(leaf)
        # Not at once: whoever removes the directory would find a new lock in it meanwhile.
        self._timers.add(_PATIENCE, self._reopen)

    def _reopen(self) -> None:
        if self._home is not None:
            return
        try:
            if not os.path.isdir(self._path):
                raise FileNotFoundError
            self._open()
        except (OSError, StatsfsError) as error:
            if isinstance(error, StatsfsError) and str(error) != self._said:
                self._said = str(error)
                log.error("%s", error)
            self._timers.add(_PATIENCE, self._reopen)
        else:
            self._said = ""
            log.warning("%s is there again", self._path)

    def _scan(self) -> None:
        assert self._home is not None
        self._home.look_around()
        for leaf in list(self._members.leaves.values()):
            if leaf.directory is not self._home.directories.get(leaf.directory.prefix):
                self._members.leave_orphan(leaf)
        for directory, files in self._home.scan():
            known = dict.fromkeys(self._members.files_in(directory.prefix))
            new = [file for file in files if file not in known]
            looked = [*known, *directory.in_order(new)]
            for number, file in enumerate(looked):
                self._members.look(directory, file)
                if number % _SETTLED == _SETTLED - 1:
                    self._members.settle()
            self._members.forget_all_but(directory.prefix, looked)
        self._members.settle()

    def _rescan(self) -> None:
        self._timers.add(_RESCAN, self._rescan)
        self._rescan_now()

    def _rescan_now(self) -> None:
        if self._home is None:
            return
        if self._home.is_there:
            self._members.remove_folded(self._home.directories)
            self._scan()
        else:
            self._lose()

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._step()
            except Exception:
                # A mistake of ours, perhaps, or no memory: a daemon that shows old numbers and
                # says nothing is worse than one that says so, and looks at everything anew.
                log.exception("%s: collecting failed; looking at everything anew", self._path)
                time.sleep(_PATIENCE)
                self._timers.add(0, self._reopen if self._home is None else self._rescan_now)

    def _step(self) -> None:
        events = self._watch.wait(self._timers.seconds_left)
        if self._home is not None:
            self._handle(events)
        self._timers.run()
        self._members.settle()
        if self._ledger.failed and not self._retrying:
            self._retrying = True
            self._timers.add(_PATIENCE, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._ledger.retry()

    def _hear(self, change: Change) -> None:
        # In any thread: somebody may have given a top-level name up.
        if 0 in change.touched and self._members.waiting:
            self._members.note_vacancy()
            self._watch.wake()

    def _handle(self, events: Events) -> None:
        if "" in events.gone:
            self._lose()
            return
        for prefix in events.gone:
            self._look_at_directory(prefix[:-1])
        for prefix, names in events.names.items():
            for name in names:
                self._look(prefix, name)
        if events.lost:
            self._rescan_now()

    def _look(self, prefix: str, name: str) -> None:
        # It may be given up by what was told before.
        home = self._home
        directory = None if home is None else home.directories.get(prefix)
        if home is None or directory is None:
            return
        if name.startswith("."):
            if name == COLLECTOR and not prefix and not home.is_there:
                self._lose()
            return
        status = directory.find(name)
        known = f"{name}/" in home.directories
        if not prefix and (known or (status and stat.S_ISDIR(status.st_mode))):
            self._look_at_directory(name)
        elif name.endswith(SUFFIX):
            self._members.look(directory, name)

    def _look_at_directory(self, name: str) -> None:
        assert self._home is not None
        found = self._home.look(name)
        prefix = f"{name}/"
        for leaf in self._members.leaves_in(prefix):
            if leaf.directory is not self._home.directories.get(prefix):
                self._members.leave_orphan(leaf)
        if found is not None:
            for file in found.in_order(self._home.list_files(found) or ()):
                self._members.look(found, file)


# Those whose thread runs.
_live: Final[weakref.WeakSet[Collector]] = weakref.WeakSet()


def _disown_in_child() -> None:
    for collector in list(_live):
        collector._disown()
    _live.clear()


os.register_at_fork(after_in_child=_disown_in_child)
