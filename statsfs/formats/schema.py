"""`.schema.json`: what every file of a subtree is, as nested objects.

Threading: pure.
"""

import json
from functools import cache
from typing import Any

from statsfs.formats.json import choose_files, nest, quote
from statsfs.formats.metric_samples import Home
from statsfs.model.arrays import File
from statsfs.model.layout import Layout
from statsfs.model.values import Value
from statsfs.tree.access import Mask
from statsfs.tree.clearing import list_read_only
from statsfs.tree.snapshot import Snapshot
from statsfs.tree.snapshot_directories import SnapshotDirectory, make_directories
from statsfs.tree.source import Source, directory_of

__all__ = ["describe_value", "render"]


def describe_value(value: Value) -> dict[str, Any]:
    """Return what a value is, but for its name and mode.

    Returns:
        `type`, `kind`, `unit` and `description` as texts, `base` and `exponent` as integers,
        `aggregate` as the list of its kinds; for a histogram also `size` and `bucket_size`, and
        its `bounds` if it has some of its own.
    """
    described = {
        "type": value.type.label,
        "kind": str(value.kind),
        "unit": str(value.unit),
        "base": value.base,
        "exponent": value.exponent,
        "aggregate": [kind.label for kind in value.aggregate],
        "description": value.description,
    }
    if value.histogram:
        described |= {"size": value.size, "bucket_size": value.bucket_size}
    if value.bounds:
        described["bounds"] = list(value.bounds)
    return described


def render(
    snapshot: Snapshot,
    *,
    mask: Mask = 0o444,
    readable: int | None = None,
    depth: int | None = None,
    names: frozenset[str] | None = None,
) -> bytes:
    """Return the schema of a snapshot as JSON.

    It is `{"labels": {label: name}, "values": [{…}], "subordinates": {name: {…the same…}}}`. The
    labels are those that the samples of a directory have in the Prometheus views; an aggregate is
    described as its value, under the name of its file. A source with info has `"info": {name:
    text}` as well.

    Args:
        snapshot: of a source or of a registry.
        mask: has no effect. In a mount the names of values that a reader may not read are not
            secret either.
        readable: only values whose mode has one of these bits; None for all.
        depth: as for `nest`.
        names: only values of these names; None for all.
    """
    root = make_directories(snapshot)
    homes: dict[Any, Home | None] = {root.source: None}
    for source in snapshot.lineage:
        homes[root.source] = _go_down(homes[root.source], source)
    describe = cache(_describe_files)

    def head(directory: SnapshotDirectory) -> str:
        home = homes.pop(directory.source)
        for child in directory.subordinates:
            homes[child.source] = _go_down(home, child.source)
        labels = {} if home is None else home.labels
        pairs = ", ".join([f"{quote(label)}: {quote(name)}" for label, name in labels.items()])
        files = describe(directory.layout, _find_read_only(directory), readable, names)
        known = "" if home is None or not home.source.info else _describe_info(home.source)
        return f'{{"labels": {{{pairs}}}, {known}{files}, "subordinates": {{'

    return nest(root, head, snapshot.lineage, depth)


def _go_down(home: Home | None, source: Any) -> Home:
    return Home(source, source, {}) if home is None else home.below(source)


def _describe_info(source: Source) -> str:
    return f'"info": {json.dumps(dict(source.info))}, '


def _find_read_only(directory: SnapshotDirectory) -> frozenset[File]:
    source = directory.source
    if not isinstance(source, Source):
        return frozenset()
    return list_read_only(directory_of(source), directory.layout.files.values())


def _describe_files(
    layout: Layout, read_only: frozenset[File], readable: int | None, names: frozenset[str] | None
) -> str:
    values = [
        {
            "name": file.name,
            **describe_value(file.value),
            "mode": file.value.mode & (0o444 if file in read_only else 0o777),
        }
        for file in choose_files(layout, readable, names)
    ]
    return f'"values": {json.dumps(values)}'
