"""Reading: what open files show, and how they are cleared.

Owns which reads and clears are made at once, on the serving thread, and which take so long that a
thread makes them, while others are answered. If one user asks for the same several times before
its work begins, the work is done once.

Threading: for the serving thread; what `prepare` and `prepare_clear` yield runs in any.
"""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from statsfs.exceptions import ReadOnlyValueError, SegmentError, StatsfsError
from statsfs.filesystem.event_files import OpenEvents
from statsfs.filesystem.handles import Handles, OpenFile, OpenView
from statsfs.filesystem.serving_stats import ServingStats
from statsfs.filesystem.texts import Text, read_text
from statsfs.filesystem.value_files import check_zero
from statsfs.filesystem.works import Work, Works
from statsfs.formats.views import Rendering
from statsfs.tree.clearing import is_told_of_clears
from statsfs.tree.refresh import Refresher, Refreshing, find_refreshing
from statsfs.tree.registry import Registry

__all__ = ["Reading", "UnrecordedError"]

# To read, add and format a bucket takes as long as to add so many numbers, at some 50 ns each.
_PER_BUCKET: Final = 8
# Up to so many are read or cleared at once: half a millisecond.
_QUICK: Final = 10_000
# More than these are read by one thread at a time: that takes memory.
_LARGE: Final = 1_000_000


class UnrecordedError(StatsfsError, OSError):
    """A clear, or the removal of a directory, cannot be recorded, and was not made."""


class Reading:
    """How what is open is read and cleared; `registry` is what the root's views show."""

    def __init__(self, handles: Handles, registry: Registry, stats: ServingStats) -> None:
        self._handles = handles
        self._registry = registry
        self._stats = stats
        # Other requests of the same user may join these before they begin.
        self._views: Works[tuple[Text, int]] = Works()
        self._texts: Works[Text] = Works()

    def prepare(self, handle: int, offset: int | None) -> Iterator[Refreshing | Work[Any]]:
        """Yield what must run, in this order, before an open file is read.

        Each may run in any thread, and must have run before the next is asked for.

        Args:
            handle: from `open`.
            offset: where it is to be read; None right after `open`.
        """
        opened = self._handles.files[handle]
        if isinstance(opened, OpenView):
            if offset is None or (offset == 0 and not opened.fresh):
                self._stats.views += 1
                with self._stats.view_duration_ns.time():
                    yield from self._prepare_view(handle, opened)
            else:
                opened.fresh = opened.fresh and offset != 0
        elif isinstance(opened, OpenFile) and (not offset or opened.text is None):
            yield from _refresh(opened)
            weight = _weigh(opened)
            opened.heavy = weight > _QUICK
            if opened.heavy:
                yield from self._prepare_text(handle, opened, large=weight > _LARGE)

    def _prepare_view(self, handle: int, opened: OpenView) -> Iterator[Refreshing | Work[Any]]:
        rendering = Rendering(opened.file, opened.source or self._registry, opened.access)
        refreshing = rendering.refreshing()
        if refreshing is not None:
            yield refreshing

        def render() -> tuple[Text, int]:
            rendering.run()
            text, rendering.text = Text(rendering.text), b""
            return text, rendering.moment

        key = (opened.access, opened.known, opened.file.number)
        make = partial(Work, render, opened.user, quick=rendering.quick, large=rendering.large)
        with self._views.share(key, make) as work:
            yield work
            # It may have been closed meanwhile.
            if handle in self._handles.files:
                self._handles.set_view(handle, opened, *work.result)

    def _prepare_text(self, handle: int, opened: OpenFile, *, large: bool) -> Iterator[Work[Text]]:
        def render() -> Text:
            return Text(opened.render())

        key = (opened.user, opened.known, opened.file.number)
        make = partial(Work, render, opened.user, large=large)
        with self._texts.share(key, make) as work:
            yield work
            if handle in self._handles.files:
                self._handles.set_text(opened, work.result)

    def read_at_once(self, handle: int, offset: int, size: int) -> bytes | None:
        """Read an open file as `read` does; None if `prepare` may have something to do."""
        opened = self._handles.files[handle]
        if not isinstance(opened, OpenFile):
            return None
        if not offset or opened.text is None:
            file = opened.file
            plain = file.kind is None and file.value.size == 1  # nearly always, at no cost
            if Refresher.made or not (plain or _weigh(opened) <= _QUICK):
                return None
            self._handles.set_text(opened, opened.render())
        return read_text(opened.text, offset, size)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Read an open file: made at offset 0, and then the same text at every other offset.

        What `prepare` made is read as it was made. A value without a text raises
        BrokenValueError.
        """
        opened = self._handles.files[handle]
        if isinstance(opened, OpenEvents):
            return opened.read(offset, size)
        if isinstance(opened, OpenFile) and (not (offset or opened.heavy) or opened.text is None):
            self._handles.set_text(opened, opened.render())
        return read_text(opened.text, offset, size)

    def prepare_clear(self, handle: int, data: bytes) -> Iterator[Refreshing | Work[None]]:
        """Yield what must run, as for `prepare`, to clear an open file into which 0 is written.

        Anything else raises NotZeroError, a base that refuses ReadOnlyValueError, and a clear that
        cannot be recorded UnrecordedError.
        """
        opened = self._handles.files[handle]
        if not isinstance(opened, OpenFile):
            raise ReadOnlyValueError(f"{opened.file.name!r} cannot be written", opened.file.name)
        check_zero(opened.file, data)
        yield from _refresh(opened)
        quick = _weigh_clear(opened) <= _QUICK
        yield Work(partial(_clear, opened), opened.user, quick=quick)


def _clear(opened: OpenFile) -> None:
    try:
        opened.directory.clear(opened.file, opened.entry)
    except SegmentError as error:
        raise UnrecordedError(error.message, error.offender) from error


def _refresh(opened: OpenFile) -> Iterator[Refreshing]:
    refreshing = find_refreshing((opened.source,), opened.file.name) if Refresher.made else None
    if refreshing is not None:
        yield refreshing


def _weigh(opened: OpenFile) -> int:
    # How long reading takes and making the text, in numbers of a total.
    value, size = opened.file.value, 1
    if opened.file.kind is not None:
        size = sum([len(index) for index, _ in opened.directory.parts(opened.file)])
    return size * _PER_BUCKET * value.size if value.histogram else size


def _weigh_clear(opened: OpenFile) -> int:
    # How many numbers are cleared; most of all if a source is told of it, which may take long.
    if opened.entry is not None:
        sources = [opened.entry.source]
    else:
        indexes = [index for index, _ in opened.directory.parts(opened.file)]
        groups = [members for index in indexes for members in list(index.groups.values())]
        sources = [entry.source for members in groups for entry in members.copy()]
        sources += [record.source for index in indexes for record in list(index.records or ())]
    if any(map(is_told_of_clears, sources)):
        return sys.maxsize
    return len(sources) * opened.file.value.size
