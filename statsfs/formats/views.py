"""Views: files that show a whole subtree in one read; which there are, and rendering one of them.

Threading: a rendering is made and used on the serving thread, and runs in any.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from statsfs.formats import binary, json, openmetrics, prometheus, schema
from statsfs.tree.access import Mask, find_masks
from statsfs.tree.directory import UNWEIGHED
from statsfs.tree.lock import suspend_collection
from statsfs.tree.pauses import pause, pausing
from statsfs.tree.refresh import Refreshing, find_refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot import Snapshot, take_snapshot
from statsfs.tree.snapshot_directories import make_directory
from statsfs.tree.source import Source, directory_of

__all__ = ["BINARY", "VIEWS", "Rendering", "View"]

# A view of so many values is rendered at once, in less than a millisecond; others in a thread.
_QUICK: Final = 500
# One of so many takes up to 200 bytes for each while it is rendered.
_LARGE: Final = 100_000


@dataclass(frozen=True, slots=True)
class View:
    """A file in every directory that shows the whole subtree; no listing has its name."""

    name: str
    number: int  # as that of a `File`
    render: Callable[..., bytes]


def _render_binary(snapshot: Snapshot, *, mask: Mask) -> bytes:
    path = "/".join(source.name for source in snapshot.lineage)
    bits = find_masks(mask, snapshot).common
    files = (file for file in make_directory(snapshot).files() if file[0].value.mode & bits)
    return binary.render(path, ((file.name, file.value, number) for file, number in files))


BINARY: Final = View(".stats.bin", 2, _render_binary)
VIEWS: Final = {
    view.name: view
    for view in (
        BINARY,
        View(".stats.json", 3, json.render),
        View(".stats.prom", 4, prometheus.render),
        View(".stats.openmetrics", 5, openmetrics.render),
        View(".schema.json", 6, schema.render),
    )
}
"""The views, by name; the root has no `.stats.bin`."""


class Rendering:
    """A view in the making; `run` may be called in any thread.

    Attributes:
        quick: whether `run` takes no longer than reading a few files.
        large: whether it takes tens of megabytes and more.
        text: what the view shows, once it ran.
        moment: when that was so, in nanoseconds since the epoch.
    """

    __slots__ = ("_foreign", "_mask", "_top", "_view", "large", "moment", "quick", "text")

    def __init__(self, view: View, top: Registry | Source, mask: Mask) -> None:
        self._view = view
        self._top = top
        self._mask = mask
        weights = [directory_of(source).weigh() for source in _sources(top)]
        self.quick = sum(weights) <= _QUICK
        self.large = sum(weight for weight in weights if weight != sys.maxsize) > _LARGE
        self._foreign = max(weights, default=0) >= UNWEIGHED
        self.text = b""
        self.moment = 0

    def refreshing(self) -> Refreshing | None:
        """Return the refreshes that are to be made before `run`; None for none."""
        return find_refreshing(_sources(self._top))

    def run(self) -> None:
        """Sample and make the text, once; raise ReleasedError if the source was released."""
        # The sample is dropped before garbage is collected again. Foreign code may run for ever.
        with contextlib.ExitStack() as stack:
            if not self.quick:
                stack.enter_context(pausing())
                if not self._foreign:
                    stack.enter_context(suspend_collection())
            self._render()

    def _render(self) -> None:
        snapshot = take_snapshot(self._top)
        pause()
        self.moment = snapshot.moment
        self.text = self._view.render(snapshot, mask=self._mask)


def _sources(top: Registry | Source) -> tuple[Source, ...]:
    return top.sources if isinstance(top, Registry) else (top,)
