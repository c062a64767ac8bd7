"""What a signal handler raises comes before a change or after it, never in the middle."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import pytest

from statsfs.model.values import Aggregate, Value
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.interrupts import interrupted_everywhere

N = [Value("n", aggregate=Aggregate.SUM)]


class Tree:
    """A directory that retains, one source in it, and one that may come."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.top, self.here, self.other = Source("top", retain=True), Source("here"), Source("new")
        self.base, self.told = {"n": 1}, list[ChangeNotice]()
        self.registry.register(self.top)
        self.top.add_subordinate(self.here)
        for source, base in ((self.here, self.base), (self.other, {"n": 10})):
            source.add_values(N, base)
        self.registry.add_listener(self.told.append)


CHANGES: dict[str, tuple[Callable[[Tree], object], Callable[[Tree], bool], tuple[int, int]]] = {
    # The change, whether it was made, and the total before and after.
    "add": (
        lambda tree: tree.top.add_subordinate(tree.other),
        lambda tree: tree.other.parent is tree.top,
        (1, 11),
    ),
    "remove": (
        lambda tree: tree.top.remove_subordinate(tree.here),
        lambda tree: tree.here.parent is None,
        (1, 1),
    ),
    "revoke": (lambda tree: tree.here.revoke(), lambda tree: tree.here.get_value("n") == 0, (1, 1)),
    "values": (
        lambda tree: tree.here.add_values(N, {"n": 100}, hidden=True),
        lambda tree: tree.top.get_value("n") == 101,
        (1, 101),
    ),
    "clear": (
        lambda tree: tree.top.clear_value("n"),
        lambda tree: tree.top.get_value("n") == 0,
        (1, 0),
    ),
    "unregister": (
        lambda tree: tree.registry.unregister(tree.top),
        lambda tree: tree.top.parent is None,
        (1, 1),
    ),
}


# In the callback of a weak reference an interrupt is printed, and goes no further.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_whole_or_not_at_all(name: str) -> None:
    """Wherever a handler raises, totals are those of before or after; the change can be made."""
    change, is_made, totals = CHANGES[name]
    for skipped in count():
        moments = 0

        def interrupt(skipped: int = skipped) -> None:
            nonlocal moments
            moments += 1
            if moments > skipped:
                raise KeyboardInterrupt

        tree = Tree()
        try:
            with interrupted_everywhere(interrupt):
                change(tree)
        except KeyboardInterrupt:
            pass
        assert gc.isenabled()
        assert tree.top.get_value("n") == totals[is_made(tree)]
        check(tree)
        if not is_made(tree):
            change(tree)
        assert is_made(tree)
        assert tree.top.get_value("n") == totals[1]
        check(tree)
        if moments <= skipped:
            break
    assert skipped > 10


def check(tree: Tree) -> None:
    """What is read in two ways is the same."""
    found = tree.top.snapshot().to_dict()["values"]
    assert found == {"n": tree.top.get_value("n")}


def test_listeners_that_an_interrupt_passed_over_are_told_later() -> None:
    """With the next change of the thread, before that one's own."""
    tree = Tree()
    raised = False

    def interrupt(notice: ChangeNotice) -> None:
        nonlocal raised
        if not raised:
            raised = True
            raise KeyboardInterrupt

    tree.registry.add_listener(interrupt)
    tree.registry._listeners = tree.registry._listeners[::-1]
    with pytest.raises(KeyboardInterrupt):
        tree.top.remove_subordinate(tree.here)
    assert tree.told == []
    tree.top.add_subordinate(tree.other)
    assert [{*names} for notice in tree.told for names in notice.touched.values()] == [
        {"here"}, {"new"},
    ]  # fmt: skip


@pytest.mark.slow
def test_a_storm_of_interrupts_leaves_trees_whole() -> None:
    """Tens of thousands of raises: no total is wrong, and every source can be removed."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.storm", "2", "7"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found = json.loads(ran.stdout)
    assert found["wrong"] == []
    assert found["raised"] > 1000
