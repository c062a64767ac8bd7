"""Descriptions that are read when they are asked for."""

from collections.abc import Callable
from typing import Any

import pytest

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path, Schema
from statsfs.top.known import Known
from tests.support.top_place import MadePlace

VM = ("kvm", "3287789-11")


class CountingPlace(MadePlace):
    """One that notes whose schema is read.

    Attributes:
        change: what its schemas are turned into.
    """

    def __init__(self, *, partial: bool) -> None:
        super().__init__(vms=1)
        self.partial = partial
        self.asked: list[Path] = []
        self.change: Callable[[Schema], Schema] = lambda schema: schema

    def read_schema(self, path: Path = ()) -> Schema:
        """Note it."""
        self.asked.append(path)
        return self.change(super().read_schema(path))


def empty(_: Schema) -> Schema:
    """A schema of nothing."""
    return Schema({"labels": {}, "values": {}, "subordinates": {}})


def description(known: Known, path: Path = VM) -> str:
    """What the exits of a VM are."""
    what = known.find(path, "exits")
    return "" if what is None else what.description


def test_the_schema_of_a_source_that_came_is_read_alone() -> None:
    """Once, when it is shown; not of one that has gone since, and not of all."""
    place = CountingPlace(partial=True)
    place.change = empty
    known = Known(place)
    assert description(known) == ""
    assert known.read(1)
    assert not known.read(2)
    place.change = lambda schema: schema
    assert description(known) == ""
    assert description(known, ("kvm", "gone")) == ""
    assert known.read(3)
    assert description(known) == "VM exits of every kind"
    assert not known.read(4)
    assert place.asked[0] == ()
    assert sorted(place.asked[1:]) == [("kvm", VM[1]), ("kvm", "gone")]


def test_a_server_is_asked_for_the_whole_schema_now_and_then() -> None:
    """When something is shown that it lacks, and not at each tick."""
    place: Any = CountingPlace(partial=False)
    place.change = empty
    known = Known(place)
    assert known.read(1)
    assert not known.read(100)
    assert description(known) == ""
    assert not known.read(2)
    place.change = lambda schema: schema
    assert known.read(101)
    assert description(known) == "VM exits of every kind"
    assert place.asked == [(), ()]


def test_a_schema_that_cannot_be_read_is_read_again() -> None:
    """The first read tells why."""
    place = CountingPlace(partial=True)
    place.change = lambda schema: (_ for _ in ()).throw(SampleError("gone"))
    known = Known(place)
    for _ in range(2):
        with pytest.raises(SampleError, match="gone"):
            known.read(1)
    place.change = lambda schema: schema
    assert known.read(2)
    assert description(known) == "VM exits of every kind"


class EndlessPlace(CountingPlace):
    """Sources of every name come, and are as the VM."""

    def read_schema(self, path: Path = ()) -> Schema:
        """That of the VM."""
        self.asked.append(path)
        return empty(MadePlace.read_schema(self)) if not path else MadePlace.read_schema(self, VM)


def test_sources_that_come_for_days_are_forgotten() -> None:
    """The oldest; one that is shown again is asked for again."""
    place = EndlessPlace(partial=True)
    known = Known(place)
    assert known.read(1)
    shown = ("kvm", "shown")
    first = [("kvm", f"first{number}") for number in range(100)]
    for path in (*first, shown, *(("kvm", f"vm{number}") for number in range(1000))):
        assert description(known, path) == ""
        assert known.read(2)
    assert {description(known, path) for path in first[:70]} == {""}
    assert description(known, shown) == "VM exits of every kind"
    while known.read(3):
        pass
    assert {description(known, path) for path in first[:70]} == {"VM exits of every kind"}
