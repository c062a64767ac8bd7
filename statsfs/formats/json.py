"""`.stats.json`: what every directory of a subtree shows, as nested objects.

The text is that of `Snapshot.to_dict`. One C call puts a directory's values into a template, which
thousands of sources share.

Threading: pure, but for pauses.
"""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from json.encoder import encode_basestring_ascii as quote
from operator import itemgetter
from typing import Any, Final

from statsfs.formats.user_bounds import BYTES_MAX, find_bounded_user
from statsfs.model.arrays import File
from statsfs.model.layout import Layout
from statsfs.model.values import Aggregate, Type
from statsfs.tree.access import Mask, find_masks
from statsfs.tree.pauses import pause, take_chunks
from statsfs.tree.snapshot import Snapshot
from statsfs.tree.snapshot_directories import SnapshotDirectory, make_directories
from statsfs.tree.source import Source

__all__ = ["choose_files", "nest", "quote", "render"]

_S64_MAX: Final = Type.S64.maximum  # sums from 0 to here need no wrapping, whatever their type
_CHUNK: Final = 16  # directories between two pauses
_LONG: Final = 8192  # buckets between two pauses


class _Span:
    # Files in a row that are read alike: own values or sums of one array; else one file alone.

    def __init__(self, files: Sequence[File]) -> None:
        self._files = files
        self._count = len(files)
        self.array = files[0].array
        self.own = files[0].kind is None
        # Of a row that is shown whole nothing need be picked.
        indices = [file.index for file in files]
        self.whole = self._count > 1 and indices == list(range(len(self.array.values)))
        self._pick = tuple if self.whole else itemgetter(*indices, indices[0])  # always a tuple

    def items(self, directory: SnapshotDirectory) -> Sequence[Any] | None:
        """The numbers for the template, or None if one is missing."""
        if self._count > 1:
            totals = directory.totals.get(self.array)
            sums = totals.sums if totals is not None and not totals.retained else ()
            row = directory.own.get(self.array) if self.own else sums
            if row:
                items = self._pick(row)[: self._count]
                if self.own or (min(items) >= 0 and max(items) <= _S64_MAX):
                    return items
        items = tuple(map(directory.number, self._files))
        if None in items:
            return None
        if self._files[0].value.histogram:
            return (_join(items[0]),)
        return items


def _join(buckets: Sequence[int]) -> str:
    return ", ".join([", ".join(map("%d".__mod__, some)) for some in take_chunks(buckets, _LONG)])


class _Template:
    # The values of all directories that have one layout.

    def __init__(self, files: Sequence[File], layout: Layout) -> None:
        def key(file: File) -> object:
            # Equal for files of one span.
            alone = file.value.histogram or file.kind not in (None, Aggregate.SUM)
            return file if alone or file in layout.covered else (file.array, file.kind)

        self._text = _format(files)
        self._files = files
        self._layout = layout
        self._spans = [_Span(list(span)) for _, span in groupby(files, key)]
        # Nearly all sources have one array and show all of it: their row is what is filled in.
        (first, *others) = self._spans or (None,)
        plain = first is not None and first.whole and first.own and not others
        self._whole = first.array if first is not None and plain else None

    def fill(self, directory: SnapshotDirectory) -> str:
        if self._whole is not None and (whole := directory.own.get(self._whole)) is not None:
            return self._text % whole
        row: list[Any] = []
        for span in self._spans:
            items = span.items(directory)
            if items is None:
                sound = [file for file in self._files if directory.number(file) is not None]
                return _Template(sound, self._layout).fill(directory)
            row += items
        return self._text % tuple(row)


def _format(files: Sequence[File]) -> str:
    items = [
        quote(file.name).replace("%", "%%") + (": [%s]" if file.value.histogram else ": %d")
        for file in files
    ]
    return f'{{"values": {{{", ".join(items)}}}, "subordinates": {{'


def _make_fill(mask: int, names: frozenset[str] | None) -> Callable[[SnapshotDirectory], str]:
    @cache
    def find_template(layout: Layout) -> _Template:
        return _Template(choose_files(layout, mask, names), layout)

    return lambda directory: find_template(directory.layout).fill(directory)


def choose_files(layout: Layout, mask: int | None, names: frozenset[str] | None) -> list[File]:
    """Return the files of a directory that have one of the bits, and one of the names, if given."""
    files = layout.files.values()
    shown = [file for file in files if mask is None or file.value.mode & mask]
    return shown if names is None else [file for file in shown if file.name in names]


def render(
    snapshot: Snapshot,
    *,
    mask: Mask = 0o444,
    depth: int | None = None,
    names: frozenset[str] | None = None,
) -> bytes:
    """Return a snapshot as JSON: `{"values": {name: int}, "subordinates": {name: {…the same…}}}`.

    A histogram is a list of its buckets' counts.

    Args:
        snapshot: of a source or of a registry.
        mask: only values whose mode has one of these bits; or for which reader.
        depth: as for `nest`.
        names: only values of these names; None for all.
    """
    root = make_directories(snapshot)
    masks = find_masks(mask, snapshot)
    fills = {bits: _make_fill(bits, names) for bits in (masks.common, *masks.others.values())}
    if not masks.others:
        return nest(root, fills[masks.common], snapshot.lineage, depth)

    def fill(directory: SnapshotDirectory) -> str:
        return fills[masks.of(directory.source)](directory)

    return nest(root, fill, snapshot.lineage, depth)


def nest(
    root: SnapshotDirectory,
    head: Callable[[SnapshotDirectory], str],
    lineage: Sequence[Source] = (),
    depth: int | None = None,
) -> bytes:
    """Return objects in objects, as the directories are.

    What is too much of a user is left out, directory by directory, and the last member of the
    outermost object says how many: `"left_out": {"1000": 17}`, by user.

    Args:
        root: the outermost directory.
        head: returns, from the top down, the text of each up to where its subordinates begin.
        lineage: the sources from the top-level one to the root; none for a registry.
        depth: how many levels below the root are shown, None for all. Of a directory on the last
            one, `subordinates` is how many it has, unless it has none.
    """
    # It grows in place: joining megabytes at the end would hold up other threads.
    text = io.BytesIO()
    if depth == 0 and root.subordinates:
        return f"{_cut(head(root), root)}\n".encode()
    pieces = [head(root)]
    user = find_bounded_user(lineage[0]) if lineage else None
    sizes, left_out = Counter[int](), Counter[int]()
    # No recursion: a tree may be deeper than Python's stack.
    ways = [iter(root.subordinates)]
    separator = ""
    while ways:
        child = next(ways[-1], None)
        if child is None:
            ways.pop()
            pieces.append("}}" if ways else "}")
            separator = ", "
            continue
        if not lineage and len(ways) == 1:
            user = find_bounded_user(child.source)
        if user is not None and sizes[user] >= BYTES_MAX:
            left_out[user] += 1
            continue
        piece = f"{separator}{quote(child.source.name)}: {head(child)}"
        separator = ", "
        if not child.subordinates:
            piece += "}}"
        elif len(ways) == depth:
            piece = _cut(piece, child)
        else:
            ways.append(iter(child.subordinates))
            separator = ""
        pieces.append(piece)
        if user is not None:
            sizes[user] += len(piece)  # all of ASCII
        if len(pieces) >= _CHUNK:
            text.write("".join(pieces).encode())
            pieces.clear()
            pause()
    if left_out:
        counts = ", ".join(f'"{user}": {count}' for user, count in left_out.items())
        pieces.append(f', "left_out": {{{counts}}}')
    pieces.append("}\n")
    text.write("".join(pieces).encode())
    return text.getvalue()


def _cut(head: str, directory: SnapshotDirectory) -> str:
    # The text of a directory, of whose subordinates there is nothing but their number.
    return f"{head.removesuffix('{')}{len(directory.subordinates)}}}"
