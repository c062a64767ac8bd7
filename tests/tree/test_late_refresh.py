"""A refresh for a source that is there already."""

import pytest

from statsfs.exceptions import ReleasedError, TreeError, UnavailableError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.late_refresh import set_refresh
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

VALUES = (Value("n", aggregate=Aggregate.SUM),)


@pytest.mark.parametrize("late", [False, True])
def test_it_is_called_as_any_refresh(registry: Registry, late: bool) -> None:
    """Before a read of the source, above it and in it; whether the tree has the source already."""
    numbers = {"n": 0}

    def ask() -> None:
        numbers["n"] += 1

    top, middle, leaf = Source("top"), Source("middle"), Source("leaf")
    leaf.add_values(VALUES, numbers)
    for above, below in ((top, middle), (middle, leaf)):
        above.add_subordinate(below)
    registry.register(top)
    if not late:
        top.remove_subordinate(middle)
    set_refresh(middle, ask)
    if not late:
        top.add_subordinate(middle)
    assert [source.get_value("n") for source in (top, middle, leaf)] == [1, 2, 3]
    assert registry.snapshot().to_dict()["subordinates"]["top"]["values"] == {"n": 4}
    top.remove_subordinate(middle)
    top.snapshot()
    assert numbers["n"] == 4
    assert leaf.get_value("n") == 5


def test_where_it_fails(registry: Registry) -> None:
    """The files below it have no data; those above keep theirs."""

    def fail() -> None:
        raise ValueError("not today")

    with Source("top") as top, Source("below") as below:
        registry.register(top)
        below.add_values(VALUES, {"n": 5})
        top.add_subordinate(below)
        set_refresh(below, fail)
        with pytest.raises(UnavailableError, match="not today"):
            below.get_value("n")
        assert top.get_value("n") == 5


def test_what_is_refused() -> None:
    """A second refresh, and a source that was released."""
    source = Source("a", refresh=lambda: None)
    with pytest.raises(TreeError, match="a: it has a refresh already"):
        set_refresh(source, lambda: None)
    late = Source("b")
    set_refresh(late, lambda: None)
    with pytest.raises(TreeError, match="b: it has a refresh already"):
        set_refresh(late, lambda: None)
    late.put()
    with pytest.raises(ReleasedError):
        set_refresh(late, lambda: None)
