"""Rights: a source in the tree gets other read bits and another owner, and counts on."""

from dataclasses import replace

import pytest

from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.rights import change_rights
from statsfs.tree.source import Source, directory_of

SUM = Value("sum", aggregate=Aggregate.SUM)
OTHER = Value("other", aggregate=Aggregate.SUM, mode=0o600)


@pytest.fixture
def registry() -> Registry:
    """A registry with a source in one that retains."""
    registry = Registry()
    app = Source("app", retain=True)
    registry.register(app)
    worker = Source("w1")
    base = {"sum": 5, "other": 7}
    worker.add_values([SUM], base)
    worker.add_values([OTHER], base)
    app.add_subordinate(worker)
    return registry


def test_a_source_counts_on(registry: Registry) -> None:
    """Listeners hear that one left and one came; nothing is retained, nothing counted twice."""
    app, worker = registry.by_name["app"], registry.find("app/w1")
    assert worker is not None
    place, references = directory_of(worker).place, worker.refcount
    notices: list[ChangeNotice] = []
    registry.add_listener(notices.append)
    base = {"sum": 6, "other": 8}
    changed = replace(SUM, mode=0o600)
    change_rights(worker, [(changed,), (OTHER,)], base, (1, 2))
    assert (worker.owner, worker.refcount) == ((1, 2), references)
    (notice,) = notices
    assert notice.left == [place]
    assert notice.touched[directory_of(app).place] == {"w1"}
    for source in (app, worker):
        assert [source.get_value(name) for name in ("sum", "other")] == [6, 7]
        assert directory_of(source).files["sum"].value.mode == 0o600
    worker.put()
    app.remove_subordinate(worker)
    assert app.get_value("sum") == 6


def test_a_value_that_was_found_just_before(registry: Registry) -> None:
    """Its entry is another one by now: it read 0. Of a revoked source it does."""
    worker = registry.find("app/w1")
    assert worker is not None
    directory = directory_of(worker)
    found = directory.files["sum"]
    change_rights(worker, [(replace(SUM, mode=0o600),)], {"sum": 6}, None)
    assert directory.read(found, directory.entry_of(found)) == 6
    worker.revoke()
    assert directory.read(found, directory.entry_of(found)) == 0


def test_an_open_total_goes_on_with_the_new_values(registry: Registry) -> None:
    """Until something else has its name, or nothing."""
    app, worker = registry.by_name["app"], registry.find("app/w1")
    assert worker is not None
    directory = directory_of(app)
    opened = directory.files["sum"]
    base = {"sum": 6}
    change_rights(worker, [(replace(SUM, mode=0o600),)], base, None)
    assert directory.read(opened, None) == 6
    change_rights(worker, [(replace(SUM, kind=Kind.INSTANT, mode=0o400),)], base, None)
    assert directory.read(opened, None) == 0
    change_rights(worker, [(replace(SUM, aggregate=Aggregate.MAX),)], base, None)
    assert directory.read(opened, None) == 0
    change_rights(worker, [], base, None)
    assert directory.read(opened, None) == 0


def test_another_one_of_the_same_values_stays(registry: Registry) -> None:
    """Its total is that of those that have its read bits."""
    app, worker = registry.by_name["app"], registry.find("app/w1")
    assert worker is not None
    other = Source("w2")
    other.add_values([SUM], {"sum": 10})
    app.add_subordinate(other)
    opened = directory_of(app).files["sum"]
    change_rights(worker, [(replace(SUM, mode=0o600),)], {"sum": 6}, None)
    assert directory_of(app).read(opened, None) == 10
    change_rights(worker, [(SUM,)], {"sum": 6}, None)
    assert app.get_value("sum") == 16


def test_a_source_outside_of_a_tree_and_at_its_top() -> None:
    """It has them there too."""
    source = Source("top")
    source.add_values([SUM], {"sum": 1})
    change_rights(source, [(replace(SUM, mode=0o600),)], {"sum": 2}, (1, 1))
    assert (source.get_value("sum"), source.owner) == (2, (1, 1))
    registry = Registry()
    registry.register(source)
    place = directory_of(source).place
    change_rights(source, [(SUM,)], {"sum": 3}, None)
    assert (source.get_value("sum"), source.owner) == (3, None)
    assert directory_of(source).place not in (0, place)
    with pytest.raises(TypeError):
        change_rights(source, [(SUM,)], {"sum": 3}, "root")  # type: ignore[arg-type]  # what it refuses
