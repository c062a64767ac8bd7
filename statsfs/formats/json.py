"""`.stats.json`: what every directory of a subtree shows, as nested objects.

Owns the text alone, which is that of `Snapshot.to_dict`. A directory's values are put into a
template by one C call; thousands of sources share theirs.

Threading: pure.
"""

import io
from collections.abc import Callable, Sequence
from itertools import groupby
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter
from typing import Any, Final

from statsfs.model.arrays import File, Layout
from statsfs.model.values import Aggregate, Type
from statsfs.tree.access import Mask, find_masks
from statsfs.tree.snapshot import Pause, Snapshot, no_pause
from statsfs.tree.snapshot_directories import Content

__all__ = ["nest", "quote", "render"]

_S64_MAX: Final = Type.S64.maximum  # sums from 0 to here need no wrapping, whatever their type
_CHUNK: Final = 16  # directories between two pauses


class _Run:
    # Files in a row that are read alike: own values of one array, or sums of one array; else one
    # file alone.

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self.array = files[0].array
        self._kind = files[0].kind
        self._count = len(files)
        # Of a row that is shown whole nothing need be picked.
        indices = [file.index for file in files]
        self.whole = self._count > 1 and indices == list(range(len(self.array.values)))
        self._pick = tuple if self.whole else itemgetter(*indices, indices[0])  # always a tuple

    @property
    def own(self) -> bool:
        """Whether these are a source's own values."""
        return self._kind is None

    def items(self, content: Content) -> Sequence[Any] | None:
        """What goes into the template, or None if there is no number for something."""
        if self._count > 1:
            totals = content.totals.get(self.array)
            row = content.own.get(self.array) if self.own else totals and totals.whole_sums
            if row:
                items = self._pick(row)[: self._count]
                if self.own or (min(items) >= 0 and max(items) <= _S64_MAX):
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
        # Nearly all sources have one array and show all of it: their row is what is filled in.
        (first, *others) = self._runs or (None,)
        plain = first is not None and first.whole and first.own and not others
        self._whole = first.array if first is not None and plain else None

    def fill(self, content: Content) -> str:
        if self._whole is not None and (whole := content.own.get(self._whole)) is not None:
            return self._text % whole
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
        quote(file.name).replace("%", "%%") + (": [%s]" if file.value.histogram else ": %d")
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


def render(snapshot: Snapshot, *, mask: Mask = 0o444, pause: Pause = no_pause) -> bytes:
    """Return a snapshot as JSON: `{"values": {name: int}, "subordinates": {name: {…the same…}}}`.

    Args:
        snapshot: what to show; a histogram is a list of its buckets' counts.
        mask: values are shown whose mode has one of these bits; or to whom.
        pause: called every few hundred values.
    """
    masks = find_masks(mask, snapshot.tree, pause)
    fill = _Templates(masks.common).fill
    if not masks.others:
        return nest(snapshot.contents(pause), fill, pause)
    fills = {bits: _Templates(bits).fill for bits in set(masks.others.values())}
    fills[masks.common] = fill
    return nest(
        snapshot.contents(pause), lambda content: fills[masks.of(content.source)](content), pause
    )


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
    pieces = [head(root)]
    # No recursion: a tree may be deeper than Python's stack.
    ways = [iter(root.subordinates)]
    separator = ""
    while ways:
        child = next(ways[-1], None)
        if child is None:
            ways.pop()
            pieces.append("}}")
            separator = ", "
        elif child.subordinates:
            pieces.append(f"{separator}{quote(child.source.name)}: {head(child)}")
            ways.append(iter(child.subordinates))
            separator = ""
        else:
            pieces.append(f"{separator}{quote(child.source.name)}: {head(child)}}}}}")
            separator = ", "
        if len(pieces) >= _CHUNK:
            text.write("".join(pieces).encode())
            pieces.clear()
            pause()
    pieces.append("\n")
    text.write("".join(pieces).encode())
    return text.getvalue()
