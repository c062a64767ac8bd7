"""Owners and views: a view tells its reader exactly what the files would, in every directory."""

import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.filesystem.known import ROOT, Attributes
from statsfs.filesystem.vfs import Vfs
from statsfs.formats import binary
from statsfs.formats.views import VIEWS, Rendering
from statsfs.model.values import Aggregate, Value
from statsfs.tree.access import Access, Owner
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.exported import parse_openmetrics, parse_text
from tests.support.kernel import Kernel, prepare_read

ALICE: Owner = (1234, 4321)
BOB: Owner = (77, 88)
USERS = ((0, 0), ALICE, BOB, (9, 4321), (9, 88), (9, 9))
MODES = (0o600, 0o640, 0o440, 0o644, 0o604, 0o060, 0o200)
# Each source with its parent; the last is hidden.
TREE = {"top": "", "a": "top", "b": "top", "c": "a", "d": "c", "ghost": "d"}

Modes = list[int]


def make_values(modes: Modes, kind: str) -> list[Value]:
    """An array with a value of each mode."""
    return [
        Value(f"{kind}{index}", aggregate=Aggregate.SUM | Aggregate.MAX, mode=mode)
        for index, mode in enumerate(modes)
    ]


def build(owners: Mapping[str, Owner | None], modes: Modes) -> Registry:
    """Make a tree: all but the top count, the hidden one something of its own."""
    registry, sources = Registry(), {}
    shown, hidden = make_values(modes, "n"), make_values(modes, "h")
    for name, parent in TREE.items():
        source = Source(name, owner=owners.get(name), label=name, hidden=name == "ghost")
        sources[name] = source
        values = hidden if name == "ghost" else shown
        if parent:
            source.add_values(values, {value.name: 1 for value in values})
            sources[parent].add_subordinate(source)
        else:
            registry.register(source)
    return registry


def may_read(attributes: Attributes, user: Owner) -> bool:
    """What the kernel says to a user without further groups."""
    uid, gid = user
    if uid == 0:
        return bool(attributes.mode & 0o444)
    if uid == attributes.owner[0]:
        return bool(attributes.mode & 0o400)
    return bool(attributes.mode & (0o040 if gid == attributes.owner[1] else 0o004))


def walk(kernel: Kernel, inode: int, user: Owner) -> dict[str, Any]:
    """The names of the files that a user may read, in the shape of the JSON view."""
    found: dict[str, Any] = {"values": set(), "subordinates": {}}
    for name, child in kernel.entries(inode).items():
        if kernel.is_directory(child):
            found["subordinates"][name.decode()] = walk(kernel, child, user)
        elif may_read(kernel.vfs.attributes(child), user):
            found["values"].add(name.decode())
    return found


def names_of(shown: dict[str, Any]) -> dict[str, Any]:
    """A JSON view without its numbers."""
    below = {name: names_of(child) for name, child in shown["subordinates"].items()}
    return {"values": set(shown["values"]), "subordinates": below}


def read(vfs: Vfs, directory: int, name: str, user: Owner) -> bytes:
    """What a view tells a user."""
    inode = vfs.lookup(directory, name.encode()).inode
    handle = vfs.open(inode, os.O_RDONLY, user=user)
    assert prepare_read(vfs, handle)
    text = vfs.read(handle, 0, 1 << 20)
    vfs.close(handle)
    vfs.forget(inode, 1)
    return text


def samples_of(expected: dict[str, Any], path: tuple[str, ...]) -> set[tuple[str, tuple[str, ...]]]:
    """What a user may read of what was counted: names, and the sources on the path."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    if path:
        found = {(name, path) for name in expected["values"] if name in NUMBERS[path[-1]]}
    for name, child in expected["subordinates"].items():
        found |= samples_of(child, (*path, name))
    return found


PLAIN = {f"n{index}" for index in range(len(MODES))}
# What the sources themselves counted, or a hidden one below them: not totals of what is shown.
NUMBERS = {"top": set(), "a": PLAIN, "b": PLAIN, "c": PLAIN} | {
    "d": PLAIN | {f"h{index}" for index in range(len(MODES))}
}


def exported(families: Mapping[str, Any]) -> set[tuple[str, tuple[str, ...]]]:
    """The names and paths of what a Prometheus view has."""
    found = set()
    for metric, family in families.items():
        for _, labels in family.samples:
            path = [name for name in TREE if name in dict(labels).values()]
            found.add((metric.removeprefix("top_").removesuffix("_total"), ("top", *path)))
    return found


OWNERS = st.fixed_dictionaries({name: st.sampled_from([None, None, ALICE, BOB]) for name in TREE})


@settings(max_examples=20)
@given(
    OWNERS,
    st.lists(st.sampled_from(MODES), min_size=1, max_size=len(MODES)),
    st.sampled_from([(0, 0), ALICE]),
)
def test_views_are_as_files(owners: dict[str, Owner | None], modes: Modes, mounts: Owner) -> None:
    """Whoever reads, from whichever directory, with whichever owners and modes."""
    kernel = Kernel(Vfs(build(owners, modes), owner=mounts))
    vfs = kernel.vfs
    for user in USERS:
        for path in ("", "top", "top/a", "top/a/c", "top/a/c/d"):
            inode = kernel.find(path) if path else ROOT
            expected = walk(kernel, inode, user)
            assert names_of(json.loads(read(vfs, inode, ".stats.json", user))) == expected
            above = tuple(path.split("/")) if path else ()
            counted = samples_of(expected, above)
            prom = parse_text(read(vfs, inode, ".stats.prom", user))
            assert exported(prom) == counted
            assert exported(parse_openmetrics(read(vfs, inode, ".stats.openmetrics", user))) == (
                counted
            )
            if path:
                found = binary.decode(read(vfs, inode, ".stats.bin", user))
                assert {one.name for one in found.descriptors} == expected["values"]


def test_a_directory_that_was_removed_keeps_its_owner() -> None:
    """A view that is held open tells no more when it is read anew, torn off from what owned it."""
    registry = build({"a": ALICE}, [0o600, 0o644])
    vfs = Vfs(registry, owner=BOB)
    kernel = Kernel(vfs)
    handles = {
        user: vfs.open(kernel.find("top/a/c/.stats.json"), os.O_RDONLY, user=user)
        for user in (ALICE, BOB)
    }
    a = registry.sources[0].subordinates[0]
    c = a.subordinates[0]
    a.remove_subordinate(c)
    for user, names in ((ALICE, {"n0", "n1"}), (BOB, {"n1"})):
        assert prepare_read(vfs, handles[user])
        text = vfs.read(handles[user], 0, 1 << 20)
        shown = json.loads(text)["subordinates"]["d"]["values"]
        assert {name for name in shown if name in PLAIN} == names


@pytest.mark.parametrize("name", VIEWS)
def test_everybody(name: str) -> None:
    """Who is nobody in particular, as a scrape over HTTP, sees what all may, whosever it is."""
    registry = build({"a": ALICE, "d": BOB}, [0o640, 0o604])
    for top in (registry, registry.sources[0]):
        texts = []
        for mask in (0o004, Access(9, 9, (0, 0))):
            rendering = Rendering(
                VIEWS[name], registry.sources[0] if name == ".stats.bin" else top, mask
            )
            rendering.run()
            texts.append(rendering.text)
        assert texts[0] == texts[1]
        assert b"n1" in texts[0]
        assert (b"n0" in texts[0]) == (name == ".schema.json")
