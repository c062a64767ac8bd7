"""Handles: what is open, counted by inode, and what the texts of views may take."""

from collections import Counter

import pytest

from statsfs.filesystem import handles
from statsfs.filesystem.handles import Handles, OpenDirectory, OpenFile, OpenView, TooMuchOpenError
from statsfs.filesystem.known import Known
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
    monkeypatch.setattr(handles, "_TEXTS_MAX", 10)
    opened = Handles()
    (first, one), (_, two) = (open_view(opened, known) for _ in range(2))
    opened.set_text(one, b"123456", 1)
    with pytest.raises(TooMuchOpenError):
        opened.set_text(two, b"12345", 2)
    assert (two.text, two.moment) == (b"", 0)
    opened.set_text(two, b"1234", 3)
    opened.set_text(one, b"12", 4)
    opened.set_text(two, b"12345678", 5)
    opened.remove(first)
    opened.set_text(two, b"1234567890", 6)
    assert two.text == b"1234567890"


def test_what_a_client_is_told(known: Known) -> None:
    """The size and moment of its own newest text; of others' only if it has none."""
    opened = Handles()
    assert opened.find_rendered(known, JSON, 1) is None
    (handle, one), (_, two) = open_view(opened, known, 1), open_view(opened, known, 2)
    assert opened.find_rendered(known, JSON, 1) is None
    opened.set_text(one, b"1", 10)
    opened.set_text(two, b"22", 20)
    assert opened.find_rendered(known, JSON, 1) == (1, 10)
    assert opened.find_rendered(known, JSON, 2) == (2, 20)
    for client in (3, None):
        assert opened.find_rendered(known, JSON, client) == (2, 20)
    assert opened.find_rendered(known, PROM, 1) is None
    opened.remove(handle)
    assert opened.find_rendered(known, JSON, 1) == (2, 20)
