"""`.stats.json`: what every directory of a subtree shows, as nested objects.

Owns the text alone, which is that of `Snapshot.to_dict`. A directory's values are put into a
template by one C call; thousands of sources share theirs.

Threading: pure.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count, groupby
from operator import itemgetter
from typing import Any, Final

from statsfs.arrays import File, Layout
from statsfs.contents import Content
from statsfs.snapshots import Pause, Snapshot, no_pause
from statsfs.values import Aggregate, Type

__all__ = ["nest", "render"]

_S64_MAX: Final = Type.S64.maximum  # sums from 0 to here need no wrapping, whatever their type
_CHUNK: Final = 16  # beginnings and ends of directories between two pauses


class _Run:
    # Files in a row that are read alike: own values of one array, or sums of one array; else one
    # file alone.

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self._array = files[0].array
        self._kind = files[0].kind
        indices = [file.index for file in files]
        # Of a row that is shown whole nothing need be picked.
        whole = indices == list(range(len(self._array.values)))
        self._pick = tuple if whole else itemgetter(*indices, indices[0])  # always a tuple
        self._count = len(files)

    def items(self, content: Content) -> Sequence[Any] | None:
        """What goes into the template, or None if there is no number for something."""
        if self._count > 1:
            totals = content.totals.get(self._array)
            row = content.own.get(self._array) if self._kind is None else totals and totals.sums
            if row:
                items = self._pick(row)[: self._count]
                if self._kind is None or (min(items) >= 0 and max(items) <= _S64_MAX):
                    return items
        items = tuple(map(content.number, self._files))
        if None in items:
            return None
        if self._files[0].value.histogram:
            return (", ".join(map("%d".__mod__, items[0])),)
        return items


def _key(file: File) -> object:
    alone = file.value.histogram or file.kind not in (None, Aggregate.SUM)
    return file if alone else (file.array, file.kind)


class _Template:
    # The values of all directories that have one layout.

    def __init__(self, files: Sequence[File]) -> None:
        self._text = _format(files)
        self._files = files
        self._runs = [_Run(list(files)) for _, files in groupby(files, _key)]

    def fill(self, content: Content) -> str:
        row: list[Any] = []
        for run in self._runs:
            items = run.items(content)
            if items is None:
                sound = [file for file in self._files if content.number(file) is not None]
                return _Template(sound).fill(content)
            row += items
        return self._text % tuple(row)


def _format(files: Sequence[File]) -> str:
    items = [
        json.dumps(file.name).replace("%", "%%") + (": [%s]" if file.value.histogram else ": %d")
        for file in files
    ]
    return f'{{"values": {{{", ".join(items)}}}, "subordinates": {{'


class _Templates:
    # One for each layout; a directory that shows none, the root of a mount, has no values.

    def __init__(self, mask: int) -> None:
        self._mask = mask
        self._known: dict[Layout | None, _Template] = {}

    def fill(self, content: Content) -> str:
        template = self._known.get(content.layout)
        if template is None:
            files = content.layout.files.values() if content.layout is not None else ()
            shown = [file for file in files if file.value.mode & self._mask]
            template = self._known[content.layout] = _Template(shown)
        return template.fill(content)


def render(snapshot: Snapshot, *, mask: int = 0o444, pause: Pause = no_pause) -> bytes:
    """Return a snapshot as JSON: `{"values": {name: int}, "subordinates": {name: {…the same…}}}`.

    Args:
        snapshot: what to show; a histogram is a list of its buckets' counts.
        mask: values are shown whose mode has one of these bits.
        pause: called every few hundred values.
    """
    return nest(snapshot.contents(pause), _Templates(mask).fill, pause)


def nest(root: Content, head: Callable[[Content], str], pause: Pause) -> bytes:
    """Return objects in objects, as the directories are.

    Args:
        root: the outermost directory.
        head: returns the text of a directory up to where its subordinates begin, and is called for
            a directory before it is for those below.
        pause: called every few directories.
    """
    # It grows in place: joining megabytes at last would take long for other threads.
    text = io.BytesIO()
    text.write(head(root).encode())
    # No recursion: a tree may be deeper than Python's stack.
    ways = [_children(root)]
    for turn in count(1):
        before, content = next(ways[-1], ("}}", None))
        text.write(before.encode())
        if content is not None:
            text.write(head(content).encode())
            ways.append(_children(content))
        else:
            ways.pop()
            if not ways:
                break
        if turn % _CHUNK == 0:
            pause()
    text.write(b"\n")
    return text.getvalue()


def _children(content: Content) -> Iterator[tuple[str, Content | None]]:
    separator = ""
    for child in content.subordinates:
        yield f"{separator}{json.dumps(child.source.name)}: ", child
        separator = ", "
