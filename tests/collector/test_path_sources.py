"""Path sources: names that others take, and sources that others put below them."""

import pytest

from statsfs.collector.path_sources import PathSources
from statsfs.collector.trusted_directory import TrustedDirectory
from statsfs.exceptions import DuplicateNameError
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.collecting import make_segment


def make_path_sources(registry: Registry) -> PathSources:
    """None yet, of root."""
    path_sources = PathSources(registry, lambda parts, clear: clear(), lambda name: None)
    path_sources.find_owner = lambda name: (0, 0)
    return path_sources


@pytest.mark.parametrize("path", ["app", "app/w1", "app/a/b/w1"])
def test_a_name_that_is_taken_at_the_last_moment(trusted: TrustedDirectory, path: str) -> None:
    """Is refused, and nothing is left; later it is let in."""
    registry = Registry()
    path_sources = make_path_sources(registry)
    segment = make_segment(trusted, path)
    with Source("app") as taken:
        registry.register(taken)
        with pytest.raises(DuplicateNameError):
            path_sources.add(segment)
        assert path_sources.tops == []
        registry.unregister(taken)
    segment = make_segment(trusted, path)
    path_sources.add(segment)
    assert segment.source.path == path
    path_sources.clear()
    assert registry.sources == ()


def test_a_name_that_is_taken_below(trusted: TrustedDirectory) -> None:
    """Segments at it and below it are refused, and nothing is left of them."""
    registry = Registry()
    path_sources = make_path_sources(registry)
    path_sources.add(make_segment(trusted, "app/w1"))
    with Source("w2") as other:
        registry.by_name["app"].add_subordinate(other)
    for path in ("app/w2", "app/w2/x"):
        with pytest.raises(DuplicateNameError):
            path_sources.add(make_segment(trusted, path))
        assert path_sources.find_holder(("app", "w2")) is None
    assert path_sources.find_holder(("app", "w1")) is not None


def test_a_source_that_is_put_below(trusted: TrustedDirectory) -> None:
    """Its parent stays as long as it is there, when the last segment has left."""
    registry = Registry()
    path_sources = make_path_sources(registry)
    segment = make_segment(trusted, "app/group/w1")
    segment.numbers.refresh()
    path_sources.add(segment)
    app = registry.by_name["app"]
    (group,) = app.subordinates
    with Source("own") as own:
        group.add_subordinate(own)
    assert [one.path for one in path_sources.look("app")] == [("app",), ("app", "group")]
    assert path_sources.is_in_tree(segment)
    path_sources.remove(segment.source)
    assert group.subordinates == (own,)
    assert app.get_value("sum") == group.get_value("sum") == 5
    assert not path_sources.remove_directory(group)
    group.remove_subordinate(own)
    for _ in range(2):  # whoever comes second finds it gone, which is what was wanted
        assert path_sources.remove_directory(group)
    assert app.subordinates == ()
    assert app.get_value("sum") == 5
