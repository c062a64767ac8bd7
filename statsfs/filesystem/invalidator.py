"""The invalidator: sends the kernel what it must forget after each change of the tree.

Owns which thread sends it, and when; `vfs` knows what to send.

Threading: the thread that changed the tree sends, before its change returns. For a change on the
serving thread, a thread of our own sends: the kernel may wait for a reply of the serving thread.
The same thread sends for changes that a refresh makes, and the refresh does not wait: a listing or
a lookup may wait for the refresh, and until its answer the kernel has its directory locked against
invalidations.
Another sends for the change that a client's rmdir makes: until that is answered, the kernel has
locked the directory, its parent, and those above that others remove, against invalidations.
"""

import logging
import os
import select
import threading
import time
from queue import SimpleQueue
from typing import Final

import pyfuse3
from pyfuse3 import FileNameT, InodeT

from statsfs.filesystem.inodes import Stale
from statsfs.filesystem.vfs import Vfs
from statsfs.model.locking import Flag, call_locked
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.refresh import is_refreshing

__all__ = ["Invalidator"]

log = logging.getLogger(__name__)

# Seconds that a change on the serving thread waits for its invalidations, with a request pending
# and without. They take 10 to 100 us, unless a lookup in the same directory is under way.
_PATIENCE: Final = 0.002
_PATIENCE_UNASKED: Final = 0.25
_POLL: Final = 0.001  # seconds between two looks of `stop`


class Invalidator:
    """A listener of the registry, which tells the kernel what to forget.

    It does nothing until `start`, and nothing after `stop`: without a session pyfuse3 crashes.
    """

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._pid = os.getpid()
        self._serving: int | None = None
        self._running = False
        # How deep each thread is in `_send`. Each changes its own number only, so there is no lock
        # that a signal handler's exception could leave held.
        self._busy: dict[int, int] = {}
        self._stoppers: set[int] = set()
        self._requests: select.poll | None = None
        self._queue: SimpleQueue[tuple[Stale, Flag] | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._starting = threading.RLock()

    def start(self) -> None:
        """Begin; the session is there."""
        self._running = True

    def serve_from(self, thread: int, descriptor: int | None = None) -> None:
        """Say which thread answers the kernel (`threading.get_ident`), and on what descriptor."""
        self._serving = thread
        if descriptor is not None:
            self._requests = select.poll()
            self._requests.register(descriptor, select.POLLIN)

    def __call__(self, change: ChangeNotice) -> None:
        """Send what follows from a change."""
        # A forked child has no session.
        if not self._running or os.getpid() != self._pid:
            return
        stale = self._vfs.find_stale(change)
        if not stale.names and not stale.directories:
            return
        thread = threading.get_ident()
        if thread == self._serving or is_refreshing():
            self._hand_over(stale)
        elif thread in self._vfs.removing:
            # Nobody waits for it: what was removed the kernel has forgotten by itself.
            name = "statsfs-invalidate"
            threading.Thread(target=self._send, args=(stale,), name=name, daemon=True).start()
        else:
            self._send(stale)

    def _hand_over(self, stale: Stale) -> None:
        if self._worker is None:
            call_locked(self._starting, self._start_worker)
        sent = Flag()
        self._queue.put((stale, sent))
        if not self._running:
            # `stop` may have come before there was a worker to end.
            self._queue.put(None)
        deadline = time.monotonic() + _PATIENCE_UNASKED
        # Nearly always done by then. If not, a pending request may be a lookup that waits for this
        # very thread; without a request, the other thread just had no turn yet.
        while not self._vfs.asking and not sent.wait(_PATIENCE):
            if self._is_asked() or time.monotonic() >= deadline:
                break

    def _start_worker(self) -> None:
        if self._worker is None:
            name = "statsfs-invalidate"
            self._worker = threading.Thread(target=self._work, name=name, daemon=True)
            self._worker.start()

    def _is_asked(self) -> bool:
        return self._requests is None or bool(self._requests.poll(0))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            stale, sent = job
            try:
                self._send(stale)
            except Exception:
                # A dead worker would send nothing any more.
                log.exception("an invalidation failed")
            finally:
                sent.set()

    def _send(self, stale: Stale) -> None:
        thread = threading.get_ident()
        depth = self._busy.get(thread, 0)
        try:
            self._busy[thread] = depth + 1
            for parent, name in stale.names:
                self._forget_name(parent, name)
            for inode, by_name in stale.directories:
                self._forget_attributes(inode, by_name)
        finally:
            if depth:
                self._busy[thread] = depth
            else:
                self._busy.pop(thread, None)

    # Before each call to pyfuse3 `_running` is checked: a signal handler may have closed the mount
    # in the middle of a change.

    def _forget_name(self, parent: int, name: bytes) -> None:
        if self._running:
            _invalidate_name(parent, name)

    def _forget_attributes(self, inode: int, by_name: tuple[int, bytes] | None) -> None:
        try:
            if self._running:
                pyfuse3.invalidate_inode(InodeT(inode), attr_only=True)
        except FileNotFoundError:
            # A lookup of this directory is under way, perhaps with old attributes; this waits for
            # it.
            if by_name is not None:
                self._forget_name(*by_name)
        except OSError as error:
            log.debug("invalidating inode %d: %s", inode, error)

    def stop(self) -> None:
        """End; return when nothing is being sent any more.

        Not on the serving thread while it serves: an invalidation may wait for it. A change that is
        interrupted by a signal handler which calls this sends nothing more.
        """
        self._stoppers.add(threading.get_ident())
        self._running = False
        while not self._stoppers.issuperset(self._busy.copy()):
            time.sleep(_POLL)
        worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.put(None)
            worker.join()


def _invalidate_name(parent: int, name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(InodeT(parent), FileNameT(name))
    except FileNotFoundError:
        pass  # not cached
    except OSError as error:
        log.debug("invalidating %r: %s", name, error)
