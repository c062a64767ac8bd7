"""Renderings that scrapes share: however many ask, one text is made at a time.

Owns which rendering answers a scrape, and when it is made. A scrape joins the rendering of its
wish that has not begun yet: so its numbers are never older than itself, and all that come while
another rendering is made share the next one. Some metrics alone have no rendering of their own:
they are cut out of the text of all, so a client that names others each time gets no more turns.

Each directory below `/api` has renderings of its own, as most are small. Clients may want very many
different ones. So a scrape of metrics waits for one of them at most, and `WAITING_MAX` of them may
wait.

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
from hashlib import blake2b
from stat import S_IROTH
from typing import Final

import trio

from statsfs.exceptions import ReleasedError
from statsfs.formats.prometheus import Where
from statsfs.formats.views import Rendering
from statsfs.monitoring.wishes import Wish
from statsfs.tree.lineage import find_lineage
from statsfs.tree.refresh import refresh_all
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

__all__ = [
    "WAITING_MAX",
    "BusyError",
    "RenderingError",
    "SharedRenderings",
    "Text",
    "UnknownPathError",
    "compress",
]

log = logging.getLogger(__name__)

WAITING_MAX: Final = 64
"""Renderings of `/api` that wait to be made; requests for others are refused."""

_PIECE: Final = 1 << 20  # bytes that are compressed in one call, without the interpreter


class RenderingError(Exception):
    """A rendering failed, and the log says why."""


class UnknownPathError(Exception):
    """There is no such directory."""


class BusyError(Exception):
    """Too many renderings wait to be made."""


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
        moment: when the values were sampled, in nanoseconds since the epoch.
        digest: of the text; empty for metrics.
    """

    plain: bytes
    packed: bytes
    moment: int
    digest: str
    _where: Where
    _end: int  # of the families

    def select(self, names: Set[str]) -> list[memoryview]:
        """Return the metrics that have one of the names, or a sample of one, in pieces."""
        # Whole: of a histogram's sum alone, programs in Go would make one that counted nothing.
        found = sorted({self._where[name] for name in names if name in self._where})
        view = memoryview(self.plain)
        return [view[start:end] for start, end in (*found, (self._end, len(view)))]


class _SharedRendering:
    __slots__ = ("done", "error", "scrapes", "text", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
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
        self._next: dict[Wish, _SharedRendering] = {}  # that have not begun
        self._scraped = False  # whether the last one was of metrics
        self._failing: set[str] = set()  # the names of views whose failure was logged
        self._thread = trio.CapacityLimiter(1)
        self._wanted = trio.Event()

    async def render(self, wish: Wish, packed: bool, is_wanted: Callable[[], bool]) -> Text:
        """Return what a view shows, no earlier than now.

        Args:
            wish: the view, and its source.
            packed: whether to have the whole text compressed, or else as it is.
            is_wanted: asked just before it is made.

        Raises:
            RenderingError: it failed.
            UnknownPathError: there is no such directory.
            BusyError: too many others wait.
            ConnectionAbortedError: all clients had hung up before it began.
        """
        rendering = self._next.get(wish)
        if rendering is None:
            if not wish.scrape and len(self._next) >= WAITING_MAX:
                raise BusyError
            rendering = self._next[wish] = _SharedRendering(wish)
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
                # None is kept until the next comes.
                await self._finish(self._next.pop(self._choose()))

    def _choose(self) -> Wish:
        # The oldest, so the formats take turns; metrics and other views take turns as well.
        others = (wish for wish in self._next if wish.scrape != self._scraped)
        wish = next(others, None) or next(iter(self._next))
        self._scraped = wish.scrape
        return wish

    async def _finish(self, rendering: _SharedRendering) -> None:
        if any(scrape.is_wanted() for scrape in rendering.scrapes):
            await self._make(rendering)
        rendering.done.set()

    async def _make(self, rendering: _SharedRendering) -> None:
        name = rendering.wish.view.name
        packed = {scrape.packed for scrape in rendering.scrapes}
        made: Text | BaseException
        try:
            made = await trio.to_thread.run_sync(
                partial(_render, self._registry, rendering.wish, packed),
                abandon_on_cancel=True,
                limiter=self._thread,
            )
        except RuntimeError as error:
            made = error  # no thread can be started
        if isinstance(made, Text):
            rendering.text = made
            self._failing.discard(name)
            return
        if isinstance(made, UnknownPathError):
            rendering.error = UnknownPathError
            return
        rendering.error = RenderingError
        if name not in self._failing:
            self._failing.add(name)
            log.error("scrapes fail: %s", name, exc_info=made)


def _render(registry: Registry, wish: Wish, packed: Set[bool]) -> Text | BaseException:
    # Whatever code of users raises, such as SystemExit, fails this rendering and nothing else.
    try:
        top = registry if wish.path is None else _find(registry, wish.path)
        refresh_all(top.sources if isinstance(top, Registry) else (top,))
        where: Where = {}
        arguments = wish.arguments
        if wish.scrape and False in packed:
            arguments["where"] = where
        view = replace(wish.view, render=partial(wish.view.render, **arguments))
        rendering = Rendering(view, top, S_IROTH)
        rendering.run()
        text = rendering.text
        return Text(
            text if False in packed else b"",
            compress(text) if True in packed else b"",
            rendering.moment,
            "" if wish.scrape else blake2b(text, digest_size=16).hexdigest(),
            where,
            max((end for _, end in where.values()), default=0),
        )
    except BaseException as error:
        left = isinstance(error, ReleasedError) and wish.path is not None
        return UnknownPathError() if left else error


def _find(registry: Registry, path: str) -> Source:
    # A hidden source has no directory, nor has anything in its subtree.
    source = registry.find(path)
    if source is None or any(one.hidden for one in find_lineage(source)):
        raise UnknownPathError
    return source


def compress(text: bytes) -> bytes:
    """Return a text as gzip, at the fastest level: ten times smaller, for little time."""
    packer = zlib.compressobj(1, wbits=31)
    view = memoryview(text)
    pieces = [packer.compress(view[at : at + _PIECE]) for at in range(0, len(view), _PIECE)]
    return b"".join((*pieces, packer.flush()))
