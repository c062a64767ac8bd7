"""Random trees, random changes, a kernel that caches all it can: nothing stale is ever left."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.exceptions import StatsfsError
from statsfs.filesystem.known import ROOT, NoSuchFileError
from statsfs.filesystem.vfs import Vfs
from statsfs.model.arrays import FILE_NUMBERS
from statsfs.model.values import Aggregate, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel

# Few names, so that directories, values and aggregates meet.
NAMES = ("a", "b", "a.min", "c")
ARRAYS = (
    (Value("a", aggregate=Aggregate.SUM, description="test_caches"),),
    (Value("a", aggregate=Aggregate.SUM | Aggregate.MIN, description="test_caches"),),
    (Value("b", description="test_caches"), Value("c", aggregate=Aggregate.MAX)),
    (Value("b", aggregate=Aggregate.SUM, hidden=True), Value("a.min")),
)


class Tree:
    """Some sources, in a tree that a kernel looks at.

    Every method takes whatever numbers are drawn, and does nothing where they make no sense.
    """

    def __init__(self, top: str | None = None) -> None:
        self.registry = Registry()
        self.kernel = Kernel(Vfs(self.registry, top=top))
        self.registry.add_listener(self.kernel)
        self.sources = [Source(NAMES[n % 4], hidden=n == 7) for n in range(8)]

    def place(self, child: int, parent: int, *_: int) -> None:
        """Take a source out, and put it below another or at the top, perhaps where it was."""
        source = self.sources[child % 8]
        self.take_out(child)
        try:
            if parent % 9 == 8:
                self.registry.register(source)
            else:
                self.sources[parent % 9].add_subordinate(source)
        except StatsfsError:
            pass

    def take_out(self, child: int, *_: int) -> None:
        """Take a source, and what is below it, out of the tree."""
        source = self.sources[child % 8]
        match source.parent:
            case Source() as parent:
                parent.remove_subordinate(source)
            case Registry() as registry:
                registry.unregister(source)

    def add(self, number: int, array: int, base: int) -> None:
        """Add an array over a base, or hidden, or declare it."""
        values = ARRAYS[array % 4]
        numbers = None if base % 3 == 0 else {value.name: 1 for value in values}
        try:
            self.sources[number % 8].add_values(values, numbers, hidden=base % 3 == 2)
        except StatsfsError:
            pass

    def revoke(self, number: int, *_: int) -> None:
        """Revoke what a source has."""
        self.sources[number % 8].revoke()

    def open(self, choice: int, *_: int) -> None:
        """Open one of the files whose names are cached."""
        files = sorted(i for i in self.kernel.names.values() if not self.kernel.is_directory(i))
        if files:
            self.kernel.open(files[choice % len(files)])

    def close(self, choice: int, *_: int) -> None:
        """Read and close one of the open files."""
        handles = sorted(self.kernel.opened)
        if handles:
            handle = handles[choice % len(handles)]
            assert self.kernel.vfs.read(handle, 0, 99).endswith(b"\n")
            self.kernel.close(handle)

    def hold(self, choice: int, *_: int) -> None:
        """Stand in a directory whose name is cached."""
        cached = sorted(i for i in self.kernel.names.values() if self.kernel.is_directory(i))
        if cached:
            self.kernel.hold(cached[choice % len(cached)])

    def leave(self, choice: int, *_: int) -> None:
        """Look around in one of the directories that somebody stands in, and leave it."""
        held = sorted(inode for inode, count in self.kernel.held.items() if count)
        if held:
            inode = held[choice % len(held)]
            try:
                self.kernel.entries(inode)
            except NoSuchFileError:
                assert self.kernel.vfs.attributes(inode).links == 0
            self.kernel.release(inode)

    def miss(self) -> None:
        """Look for every name in every directory that is known, there or not."""
        directories = {inode for inode in self.kernel.names.values() if not inode % FILE_NUMBERS}
        for inode in (ROOT, *directories):
            for name in NAMES:
                try:
                    self.kernel.lookup(inode, name.encode())
                except NoSuchFileError:
                    pass

    def drop_caches(self, *_: int) -> None:
        """Forget what is not in use."""
        self.kernel.drop_caches()

    def check(self) -> None:
        """Every cached name leads where it should, every reachable link count is right."""
        assert self.kernel.stale_names() == []
        assert self.kernel.stale_links() == []


class Step(NamedTuple):
    """One change, and whether the kernel has looked at everything before it."""

    method: str
    numbers: tuple[int, int, int]
    warm: bool


def steps(*methods: str, size: int) -> st.SearchStrategy[list[Step]]:
    """Draw steps of some methods of `Tree`.

    A step is five bytes: drawing its parts one by one took five times as long as all the rest.
    """

    def decode(drawn: bytes) -> Step:
        method, warm, *numbers = drawn
        first, second, third = (number % 72 for number in numbers)
        return Step(methods[method % len(methods)], (first, second, third), warm % 2 == 1)

    one = st.binary(min_size=5, max_size=5).map(decode)
    return st.lists(one, min_size=size, max_size=3 * size)


@pytest.mark.parametrize("top", [None, "a"])
@settings(max_examples=150)
@given(
    first=steps("place", "add", size=10),
    then=steps(
        "place", "take_out", "add", "revoke", "open", "close", "hold", "leave", "drop_caches",
        size=10,
    ),
)  # fmt: skip
def test_no_change_leaves_anything_stale(
    top: str | None, first: list[Step], then: list[Step]
) -> None:
    """Whatever changed, no cached name leads elsewhere; in the end all that was known is free.

    Nor is any cached as missing that is there, where one source is the root.
    """
    tree = Tree(top)
    tree.place(0, 8)
    for step in first:
        getattr(tree, step.method)(*step.numbers)
    known = set()
    for step in then:
        if step.warm:
            tree.kernel.walk()
            tree.miss()
        known |= set(tree.kernel.names.values())
        getattr(tree, step.method)(*step.numbers)
        tree.check()
    for inode in range(72):
        tree.close(inode)
        tree.leave(inode)
    tree.kernel.drop_caches()
    for inode in known:
        try:
            tree.kernel.vfs.attributes(inode)
        except NoSuchFileError:
            continue
        raise AssertionError(f"inode {inode} was leaked")
    assert tree.kernel.vfs.attributes(ROOT).inode == ROOT
