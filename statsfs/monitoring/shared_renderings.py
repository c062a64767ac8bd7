"""Renderings that scrapes share: however many ask, one text is made at a time.

Owns which rendering answers a scrape, and when it is made. A scrape joins the rendering of its
format that has not begun yet: so its numbers are never older than itself, and all that come while
another rendering is made share the next one. Some metrics alone have no rendering of their own:
they are cut out of the text of all, so a client that names others each time gets no more turns.

A text is compressed once, if a client wants that. A rendering is not made if all its clients have
hung up.

Threading: the trio thread of the server. A rendering is made in a worker thread, one at a time: two
would take twice as long and twice the memory.
"""

import logging
import zlib
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial
from stat import S_IROTH
from typing import Final

import trio

from statsfs.formats.prometheus import Where
from statsfs.formats.views import Rendering, View
from statsfs.tree.refresh import refresh_all
from statsfs.tree.registry import Registry

__all__ = ["RenderingError", "SharedRenderings", "Text", "compress"]

log = logging.getLogger(__name__)

_PIECE: Final = 1 << 20  # bytes that are compressed in one call, without the interpreter


class RenderingError(Exception):
    """A rendering failed, and the log says why."""


@dataclass(frozen=True, slots=True, eq=False)
class _Scrape:
    # A scrape that waits for a rendering: its form, and whether the client is still there.
    packed: bool
    is_wanted: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered text, in the forms that clients want; any other form is empty.

    Attributes:
        plain: the text.
        packed: the text, compressed.
    """

    plain: bytes
    packed: bytes
    _where: Where
    _end: int  # of the families

    def select(self, names: Set[str]) -> list[memoryview]:
        """Return the metrics that have one of the names, or a sample of one, in pieces."""
        # Whole: of a histogram's sum alone, programs in Go would make one that counted nothing.
        found = sorted({self._where[name] for name in names if name in self._where})
        view = memoryview(self.plain)
        return [view[start:end] for start, end in (*found, (self._end, len(view)))]


class _SharedRendering:
    __slots__ = ("done", "error", "scrapes", "text", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self.scrapes: set[_Scrape] = set()
        self.done = trio.Event()
        self.text: Text | None = None
        self.error: type[Exception] = ConnectionAbortedError


class SharedRenderings:
    """The renderings of a server.

    Args:
        registry: its values are rendered, as everybody may read them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._next: dict[str, _SharedRendering] = {}  # that have not begun, by the view's name
        self._failing: set[str] = set()  # the names of views whose failure was logged
        self._thread = trio.CapacityLimiter(1)
        self._wanted = trio.Event()

    async def render(self, view: View, packed: bool, is_wanted: Callable[[], bool]) -> Text:
        """Return what a view shows, no earlier than now.

        Args:
            view: of the registry.
            packed: whether to have the whole text compressed, or else as it is.
            is_wanted: asked just before it is made.

        Raises:
            RenderingError: it failed.
            ConnectionAbortedError: all clients had hung up before it began.
        """
        rendering = self._next.setdefault(view.name, _SharedRendering(view))
        scrape = _Scrape(packed, is_wanted)
        rendering.scrapes.add(scrape)
        self._wanted.set()
        try:
            await rendering.done.wait()
        finally:
            rendering.scrapes.remove(scrape)
        if rendering.text is None:
            raise rendering.error
        return rendering.text

    async def run(self) -> None:
        """Make one rendering after the other."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self._next:
                # The oldest first, so the formats take turns. None is kept until the next comes.
                await self._finish(self._next.pop(next(iter(self._next))))

    async def _finish(self, rendering: _SharedRendering) -> None:
        if any(scrape.is_wanted() for scrape in rendering.scrapes):
            await self._make(rendering)
        rendering.done.set()

    async def _make(self, rendering: _SharedRendering) -> None:
        name = rendering.view.name
        packed = {scrape.packed for scrape in rendering.scrapes}
        made: Text | BaseException
        try:
            made = await trio.to_thread.run_sync(
                partial(_render, self._registry, rendering.view, packed),
                abandon_on_cancel=True,
                limiter=self._thread,
            )
        except RuntimeError as error:
            made = error  # no thread can be started
        if isinstance(made, Text):
            rendering.text = made
            self._failing.discard(name)
            return
        rendering.error = RenderingError
        if name not in self._failing:
            self._failing.add(name)
            log.error("scrapes fail: %s", name, exc_info=made)


def _render(registry: Registry, view: View, packed: Set[bool]) -> Text | BaseException:
    # Whatever code of users raises, such as SystemExit, fails this rendering and nothing else.
    try:
        refresh_all(registry.sources)
        where: Where = {}
        if False in packed:
            view = replace(view, render=partial(view.render, where=where))
        rendering = Rendering(view, registry, S_IROTH)
        rendering.run()
        text = rendering.text
        end = max((end for _, end in where.values()), default=0)
        return Text(
            text if False in packed else b"", compress(text) if True in packed else b"", where, end
        )
    except BaseException as error:
        return error


def compress(text: bytes) -> bytes:
    """Return a text as gzip, at the fastest level: ten times smaller, for little time."""
    packer = zlib.compressobj(1, wbits=31)
    view = memoryview(text)
    pieces = [packer.compress(view[at : at + _PIECE]) for at in range(0, len(view), _PIECE)]
    return b"".join((*pieces, packer.flush()))
