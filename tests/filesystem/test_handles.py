"""Handles: what is open, counted by inode, and what the texts of views may take."""

from collections import Counter

import pytest

from statsfs.filesystem import handles
from statsfs.filesystem.handles import Handles, OpenDirectory, OpenFile, OpenView
from statsfs.filesystem.known import Known
from statsfs.filesystem.shares import ShareUsedUpError
from statsfs.filesystem.texts import Text, read_text
from statsfs.formats.views import VIEWS
from statsfs.tree.access import Access
from statsfs.tree.registry import Registry
from statsfs.tree.source import directory_of
from tests.support.trees import make_kvm

JSON, PROM = VIEWS[".stats.json"], VIEWS[".stats.prom"]
READER = Access(0, 0, (0, 0))


@pytest.fixture
def known(registry: Registry) -> Known:
    """A directory that the kernel knows."""
    kvm = make_kvm(registry)
    return Known(kvm, directory_of(kvm).place, None, "kvm")


def open_view(opened: Handles, known: Known, client: int = 0) -> tuple[int, OpenView]:
    """Open a view."""
    view = OpenView(known, known.source, JSON, READER, client)
    return opened.add(view), view


def shown(view: OpenView) -> bytes:
    """Return what a view shows."""
    return read_text(view.text, 0, 1 << 20)


def test_each_has_a_handle_of_its_own(known: Known) -> None:
    """Files, views and directories; what is closed is forgotten."""
    opened = Handles()
    assert known.source is not None
    exits = directory_of(known.source).files["exits"]
    directory = directory_of(known.source)
    file = OpenFile(known, known.source, directory, exits, directory.entry_of(exits))
    first, second = opened.add(file), opened.add(file)
    view, _ = open_view(opened, known)
    listing = opened.add_directory(OpenDirectory(known))
    assert len({first, second, view, listing}) == 4
    assert Counter(known.opened.values()) == {exits.number: 2, JSON.number: 1}
    assert opened.remove(first) is file
    assert Counter(known.opened.values()) == {exits.number: 1, JSON.number: 1}
    for handle in (second, view):
        opened.remove(handle)
    assert (opened.files, known.opened) == ({}, {})
    assert list(opened.directories) == [listing]


def test_texts_have_an_end(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused leaves everything as it was; closing one makes room."""
    monkeypatch.setattr(handles, "TEXTS_MAX", 20)
    opened = Handles()
    (first, one), (second, two) = (open_view(opened, known) for _ in range(2))
    opened.set_view(first, one, Text(b"123456"), 1)
    with pytest.raises(ShareUsedUpError):
        opened.set_view(second, two, Text(b"12345"), 2)
    assert two.text is None
    opened.set_view(second, two, Text(b"1234"), 3)
    with pytest.raises(ShareUsedUpError):
        opened.set_view(second, two, Text(b"12345"), 4)
    assert shown(two) == b"1234"
    assert opened.find_rendered(known, JSON, 0) == (4, 3)
    opened.set_view(first, one, Text(b"12"), 5)
    opened.set_view(second, two, Text(b"12345678"), 6)
    opened.remove(first)
    # What a user has alone may be of any size.
    opened.set_view(second, two, Text(b"1" * 20), 7)
    assert shown(two) == b"1" * 20
    opened.remove(second)
    assert (opened._memory.used, opened._shares.used) == (0, 0)


def test_a_text_that_several_show_counts_once(known: Known) -> None:
    """Until the last of them is closed, or shows another."""
    opened, text = Handles(), Text(b"1234")
    views = [open_view(opened, known) for _ in range(3)]
    for handle, view in views:
        opened.set_view(handle, view, text, 1)
    assert opened._memory.used == 4
    opened.remove(views[0][0])
    opened.set_view(*views[1], Text(b"12"), 2)
    assert opened._memory.used == 6
    opened.remove(views[2][0])
    assert opened._memory.used == 2


def test_small_texts_and_few_names_are_not_counted(known: Known) -> None:
    """The number of handles bounds them."""
    assert known.source is not None
    opened, directory = Handles(), directory_of(known.source)
    exits = directory.files["exits"]
    file, listing = OpenFile(known, known.source, directory, exits, None), OpenDirectory(known)
    first, second = opened.add(file), opened.add_directory(listing)
    opened.set_text(file, b"1" * 1000)
    opened.set_names(listing, [b"name"])
    assert opened._memory.used == 0
    opened.set_text(file, b"1" * 2000)
    opened.set_names(listing, [b"name"] * 1000)
    assert opened._memory.used == 47_000
    assert isinstance(file.text, Text)
    opened.remove(first)
    assert opened._memory.used == 45_000
    opened.remove_directory(second)
    assert (opened._memory.used, opened._shares.used) == (0, 0)


def test_names_that_are_refused(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory keeps those that it had."""
    monkeypatch.setattr(handles, "TEXTS_MAX", 100_000)
    opened, (one, two) = Handles(), (OpenDirectory(known), OpenDirectory(known))
    opened.set_names(one, [b"name"] * 1000)
    with pytest.raises(ShareUsedUpError):
        opened.set_names(two, [b"name"] * 1000)
    assert (two.names, two.weight) == (None, 0)
    opened.set_names(one, [])
    opened.set_names(two, [b"name"] * 1000)
    assert two.names == [b"name"] * 1000


def test_handles_have_an_end(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user has a share; what is refused is not there."""
    monkeypatch.setattr(handles, "HANDLES_MAX", 4)
    opened = Handles()
    first = opened.add_directory(OpenDirectory(known, 1))
    open_view(opened, known)
    with pytest.raises(ShareUsedUpError):
        opened.add_directory(OpenDirectory(known, 1))
    with pytest.raises(ShareUsedUpError):
        open_view(opened, known)
    assert (len(opened.files), len(opened.directories), len(known.opened)) == (1, 1, 1)
    opened.remove_directory(first)
    opened.add_directory(OpenDirectory(known, 2))


def test_what_a_client_is_told(known: Known) -> None:
    """The size and moment of its own newest text; of others' only if it has none."""
    opened = Handles()
    assert opened.find_rendered(known, JSON, 1) is None
    (handle, one), (other, two) = open_view(opened, known, 1), open_view(opened, known, 2)
    assert opened.find_rendered(known, JSON, 1) is None
    opened.set_view(handle, one, Text(b"1"), 10)
    opened.set_view(other, two, Text(b"22"), 20)
    assert opened.find_rendered(known, JSON, 1) == (1, 10)
    assert opened.find_rendered(known, JSON, 2) == (2, 20)
    for client in (3, None):
        assert opened.find_rendered(known, JSON, client) == (2, 20)
    assert opened.find_rendered(known, PROM, 1) is None
    opened.remove(handle)
    assert opened.find_rendered(known, JSON, 1) == (2, 20)
