"""References, parents and releases as a state machine, against a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from statsfs.exceptions import (
    BaseMismatchError,
    DuplicateNameError,
    ReleasedError,
    StatsfsError,
    TreeError,
)
from statsfs.model.values import Aggregate, Value
from statsfs.tree.lock import TreeChange, apply_change
from statsfs.tree.references import hold, unhold
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

NAMES = ("a", "b", "c")


def array() -> list[Value]:
    """The one array of these tests, made anew."""
    return [Value("n", aggregate=Aggregate.SUM | Aggregate.MAX, description="references")]


@dataclass(eq=False)
class Model:
    """What a source should be."""

    source: Source
    name: str
    hidden: bool
    owned: int = 1
    opened: int = 0
    released: bool = False
    parent: Model | ModelRegistry | None = None
    below: list[Model] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    declared: bool = False
    revoked: bool = False

    @property
    def references(self) -> int:
        return self.owned + self.opened + (self.parent is not None)

    def ancestors(self) -> list[Model]:
        """This one and all above it."""
        above = self.parent.ancestors() if isinstance(self.parent, Model) else []
        return [self, *above]

    def release_unused(self) -> None:
        """Release this one if nobody refers to it, then what only it referred to."""
        if self.references or self.released:
            return
        self.released = True
        self.numbers, self.declared, self.revoked = [], False, False
        below, self.below = self.below, []
        for model in below:
            model.parent = None
            model.release_unused()

    def total(self) -> list[int]:
        """All numbers in the subtree."""
        return sum((model.total() for model in self.below), list(self.numbers))

    def names(self) -> set[str]:
        """The files of its directory, which has no subdirectory named as one of them."""
        if self.numbers:
            return {"n"}
        return {"n", "n.max"} if self.has_array() else set()

    def has_array(self) -> bool:
        """Whether the array is here or anywhere below, with a base or without."""
        here = bool(self.numbers) or self.declared or self.revoked
        return here or any(model.has_array() for model in self.below)


@dataclass(eq=False)
class ModelRegistry:
    """What a registry should be."""

    registry: Registry
    below: list[Model] = field(default_factory=list)


Place = Model | ModelRegistry


class References(RuleBasedStateMachine):
    """Sources that are made, placed, taken and given back, in every order, allowed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Model] = []
        self.registries = [ModelRegistry(Registry()), ModelRegistry(Registry())]

    # What the model says of an operation, and doing it

    def state(self) -> list[object]:
        """Everything that a refused operation must leave as it was."""
        found: list[object] = [registry.registry.sources for registry in self.registries]
        for model in self.models:
            source = model.source
            found.append(
                (
                    source.refcount,
                    source.parent,
                    directory_of(source).place,
                    directory_of(source).placed,
                )
            )
            found.append((directory_of(source).changed, directory_of(source).visible, repr(source)))
            if not model.released:
                found.append((source.subordinates, source.names()))
                found.append(source.snapshot().to_dict())
        return found

    def expect(self, refusal: type[StatsfsError] | None, operation: Callable[[], Any]) -> bool:
        """Do something; tell whether it was done, as the model said it would."""
        if refusal is None:
            operation()
            return True
        before = self.state()
        with pytest.raises(refusal):
            operation()
        assert self.state() == before
        return False

    def pick(self, data: st.DataObject) -> Model:
        return data.draw(st.sampled_from(self.models))

    # Operations

    @rule(name=st.sampled_from(NAMES), hidden=st.sampled_from([False, False, True]))
    def create(self, name: str, hidden: bool) -> None:
        if len(self.models) < 8:
            self.models.append(Model(Source(name, hidden=hidden), name, hidden))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        model = self.pick(data)
        if self.expect(ReleasedError if model.released else None, model.source.get):
            model.owned += 1

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        model = self.pick(data)
        refused = model.released or not model.owned
        if self.expect(ReleasedError if refused else None, model.source.put):
            model.owned -= 1
            model.release_unused()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        model = self.pick(data)
        if self.expect(ReleasedError if model.released else None, lambda: hold(model.source)):
            model.opened += 1

    @precondition(lambda self: any(model.opened for model in self.models))
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([model for model in self.models if model.opened]))
        unhold(model.source)
        model.opened -= 1
        model.release_unused()

    def refusal_of_placing(self, to: Place, model: Model) -> type[StatsfsError] | None:
        """Why a source cannot be placed somewhere: docs/architecture.md, "One parent"."""
        if model.released or (isinstance(to, Model) and to.released):
            return ReleasedError
        if model.parent is not None or (isinstance(to, Model) and model in to.ancestors()):
            return TreeError
        if any(sibling.name == model.name for sibling in to.below):
            return DuplicateNameError
        return None

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def add_subordinate(self, data: st.DataObject) -> None:
        to, model = self.pick(data), self.pick(data)
        refusal = self.refusal_of_placing(to, model)
        if self.expect(refusal, lambda: to.source.add_subordinate(model.source)):
            model.parent = to
            to.below.append(model)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        to, model = data.draw(st.sampled_from(self.registries)), self.pick(data)
        refusal = self.refusal_of_placing(to, model)
        if self.expect(refusal, lambda: to.registry.register(model.source)):
            model.parent = to
            to.below.append(model)

    def refusal_of_taking(self, place: Place, model: Model) -> type[StatsfsError] | None:
        """Why a source cannot be taken from somewhere: docs/architecture.md, "One parent"."""
        if model.released or (isinstance(place, Model) and place.released):
            return ReleasedError
        return None if model.parent is place else TreeError

    def draw_place(self, data: st.DataObject, model: Model, others: list[Any]) -> Any:
        """Mostly the place where a source is, sometimes another."""
        if model.parent in others and data.draw(st.booleans()):
            return model.parent
        return data.draw(st.sampled_from(others))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove_subordinate(self, data: st.DataObject) -> None:
        model = self.pick(data)
        place = self.draw_place(data, model, self.models)
        refusal = self.refusal_of_taking(place, model)
        if self.expect(refusal, lambda: place.source.remove_subordinate(model.source)):
            self.take(model)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def unregister(self, data: st.DataObject) -> None:
        model = self.pick(data)
        place = self.draw_place(data, model, self.registries)
        refusal = self.refusal_of_taking(place, model)
        if self.expect(refusal, lambda: place.registry.unregister(model.source)):
            self.take(model)

    def take(self, model: Model) -> None:
        assert model.parent is not None
        model.parent.below.remove(model)
        model.parent = None
        model.release_unused()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), number=st.integers(0, 9), base=st.sampled_from(["dict", "bad", "none"]))
    def add_values(self, data: st.DataObject, number: int, base: str) -> None:
        model = self.pick(data)
        refusal: type[StatsfsError] | None = None
        if model.released:
            refusal = ReleasedError
        elif base == "bad":
            refusal = BaseMismatchError
        elif model.numbers if base == "dict" else model.declared:
            refusal = DuplicateNameError
        made = {"dict": {"n": number}, "bad": {"m": number}, "none": None}[base]
        if self.expect(refusal, lambda: model.source.add_values(array(), made)):
            model.revoked = False
            if base == "dict":
                model.numbers = [number]
            else:
                model.declared = True

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        model = self.pick(data)
        if self.expect(ReleasedError if model.released else None, model.source.revoke):
            model.revoked = model.revoked or bool(model.numbers)
            model.numbers = []

    # What is always true

    @invariant()
    def the_tree_is_that_of_the_model(self) -> None:
        for registry in self.registries:
            assert registry.registry.sources == tuple(m.source for m in registry.below)
        for model in self.models:
            source, parent = model.source, model.parent
            expected = parent.source if isinstance(parent, Model) else parent and parent.registry
            assert source.parent is expected
            assert source.refcount == model.references
            if model.released:
                self.check_released(source)
            else:
                assert source.subordinates == tuple(m.source for m in model.below)
                assert set(source.names()) == model.names()
                if model.names():
                    numbers = model.numbers or model.total()
                    assert source.get_value("n") == sum(numbers)

    def check_released(self, source: Source) -> None:
        """Every use of a released source raises, and names it."""
        uses: list[Callable[[], Any]] = [
            source.names,
            source.snapshot,
            source.revoke,
            source.get,
            source.put,
            lambda: hold(source),
            source.__enter__,
            lambda: source.subordinates,
            lambda: source.get_value("n"),
            lambda: source.clear_value("n"),
            lambda: source.add_values(array(), {"n": 1}),
        ]
        for use in uses:
            with pytest.raises(ReleasedError, match=source.name) as caught:
                use()
            assert caught.value.offender is source


TestReferences = References.TestCase
TestReferences.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_references_that_a_change_inside_a_change_takes_and_gives_back() -> None:
    """A signal handler's `get` and `put` wait for the change that they came in."""
    source = Source("s")

    def change(change: TreeChange) -> None:
        source.get()
        source.get()
        source.put()
        assert source.refcount == 1

    apply_change(change)
    assert source.refcount == 2
