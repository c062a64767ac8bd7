"""The registry: top-level sources, and what its listeners are told."""

import logging
import threading
from typing import Any

import pytest

from statsfs.exceptions import DuplicateNameError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of

N = [Value("n", aggregate=Aggregate.SUM, description="test_registry")]


def test_registered_sources_are_top_level(registry: Registry) -> None:
    """They are there in order, hidden ones too, and have a reference more."""
    kvm, hidden = Source("kvm"), Source("hidden", hidden=True)
    assert registry.register(kvm) is kvm
    registry.register(hidden)
    assert registry.sources == (kvm, hidden)
    assert dict(registry.by_name) == {"kvm": kvm, "hidden": hidden}
    assert kvm.parent is registry
    assert (kvm.path, kvm.refcount) == ("kvm", 2)
    assert repr(registry) == "<Registry ['kvm', 'hidden']>"
    registry.unregister(kvm)
    assert list(registry.sources) == [hidden]
    assert repr(kvm) == "<Source 'kvm' references=1>"
    assert [kvm.parent, directory_of(kvm).place] == [None, 0]


def test_by_name_is_a_live_view_that_nobody_can_change(registry: Registry) -> None:
    """What is registered later is in it."""
    view: Any = registry.by_name
    registry.register(Source("kvm"))
    assert list(view) == ["kvm"]
    with pytest.raises(TypeError):
        view["vm"] = Source("vm")


def test_a_name_may_be_registered_once(registry: Registry) -> None:
    """Hidden or not; another registry has names of its own."""
    registry.register(Source("kvm"))
    for hidden in (False, True):
        twin = Source("kvm", hidden=hidden)
        with pytest.raises(DuplicateNameError, match=r"the registry.*'kvm'") as caught:
            registry.register(twin)
        assert caught.value.offender == "kvm"
        assert twin.refcount == 1
        Registry().register(twin)


def test_a_source_may_be_registered_again(registry: Registry) -> None:
    """Or somewhere else, or be put below another source."""
    kvm, top = Source("kvm"), Source("top")
    for _ in range(2):
        registry.register(kvm)
        registry.unregister(kvm)
    top.add_subordinate(kvm)
    registry.register(top)
    assert kvm.path == "top/kvm"


def test_the_registrys_reference_may_be_the_last(registry: Registry) -> None:
    """What is unregistered then is released."""
    kvm = Source("kvm")
    registry.register(kvm)
    kvm.put()
    registry.unregister(kvm)
    assert "released" in repr(kvm)


# Listeners


class Told:
    """A listener that keeps what it is told."""

    def __init__(self, registry: Registry) -> None:
        self.changes: list[ChangeNotice] = []
        registry.add_listener(self.changes.append)

    def take(self) -> list[ChangeNotice]:
        """What was told since the last call."""
        changes, self.changes[:] = list(self.changes), []
        return changes


def test_listeners_are_told_which_names_came_and_went(registry: Registry) -> None:
    """By the place of the directory; files that came or went in others are noted without names."""
    told = Told(registry)
    kvm, vm, vcpu = Source("kvm"), Source("vm"), Source("vcpu")
    registry.register(kvm)
    assert told.take() == [ChangeNotice({0: {"kvm"}})]
    kvm.add_subordinate(vm)
    assert told.take() == [ChangeNotice({directory_of(kvm).place: {"vm"}})]
    vm.add_subordinate(vcpu)
    assert told.take() == [ChangeNotice({directory_of(vm).place: {"vcpu"}})]
    vcpu.add_values(N, {"n": 1})
    assert told.take() == [
        ChangeNotice(
            {
                directory_of(kvm).place: set(),
                directory_of(vm).place: set(),
                directory_of(vcpu).place: set(),
            }
        )
    ]
    vcpu.revoke()
    assert told.take() == [ChangeNotice({directory_of(vcpu).place: set()})]
    place = directory_of(vcpu).place
    vm.remove_subordinate(vcpu)
    assert told.take() == [
        ChangeNotice({directory_of(vm).place: {"vcpu"}, directory_of(kvm).place: set()}, [place])
    ]
    place = directory_of(kvm).place
    registry.unregister(kvm)
    assert told.take() == [ChangeNotice({0: {"kvm"}}, [place])]


def test_a_second_source_of_an_array_touches_no_files_above(registry: Registry) -> None:
    """Their names are there already; only the new directory is told of."""
    told = Told(registry)
    kvm = Source("kvm")
    registry.register(kvm)
    for number in range(2):
        vm = Source("vm%d", number)
        vm.add_values(N, {"n": 1})
        kvm.add_subordinate(vm)
    assert told.take()[1:] == [
        ChangeNotice({directory_of(kvm).place: {"vm0"}}),
        ChangeNotice({directory_of(kvm).place: {"vm1"}}),
    ]
    kvm.remove_subordinate(kvm.subordinates[0])
    (change,) = told.take()
    assert change.touched == {directory_of(kvm).place: {"vm0"}}


def test_hidden_sources_have_no_names_to_tell_of(registry: Registry) -> None:
    """But the files that they bring above are told of."""
    told = Told(registry)
    kvm, hidden, top = Source("kvm"), Source("hidden", hidden=True), Source("top", hidden=True)
    registry.register(kvm)
    told.take()
    hidden.add_values(N, {"n": 1})
    kvm.add_subordinate(hidden)
    assert told.take() == [ChangeNotice({directory_of(kvm).place: set()})]
    registry.register(top)
    assert told.take() == [ChangeNotice({0: set()})]
    place = directory_of(top).place
    registry.unregister(top)
    assert told.take() == [ChangeNotice({0: set()}, [place])]


def test_what_is_nowhere_is_told_to_nobody(registry: Registry) -> None:
    """Changes of a tree that is not registered, and what was refused."""
    told = Told(registry)
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    vm.add_values(N, {"n": 1})
    top.remove_subordinate(vm)
    top.get()
    top.put()
    with pytest.raises(DuplicateNameError):
        vm.add_values(N, {"n": 1})
    assert told.take() == []


def test_each_registry_tells_of_its_own_tree(registry: Registry) -> None:
    """And of no other's."""
    other = Registry()
    told, others = Told(registry), Told(other)
    kvm, top = Source("kvm"), Source("top")
    registry.register(kvm)
    other.register(top)
    kvm.add_subordinate(Source("vm"))
    assert len(told.take()) == 2
    assert len(others.take()) == 1


def test_listeners_run_in_the_thread_of_the_change_and_before_it_returns(
    registry: Registry,
) -> None:
    """So a mount can take names out of the kernel's cache in time."""
    threads: list[int] = []
    registry.add_listener(lambda change: threads.append(threading.get_ident()))
    registry.register(Source("kvm"))
    assert threads == [threading.get_ident()]


def test_a_listener_that_fails_is_logged(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """The change is made, and the next listener is told."""

    def fail(change: ChangeNotice) -> None:
        raise ZeroDivisionError

    registry.add_listener(fail)
    told = Told(registry)
    registry.register(Source("kvm"))
    assert len(told.take()) == 1
    assert [source.name for source in registry.sources] == ["kvm"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_listener_may_be_taken_away(registry: Registry) -> None:
    """Also one that is none, also by itself."""
    told: list[ChangeNotice] = []

    def once(change: ChangeNotice) -> None:
        told.append(change)
        registry.remove_listener(once)

    registry.add_listener(once)
    registry.remove_listener(told.append)
    registry.register(Source("a"))
    registry.register(Source("b"))
    assert len(told) == 1


def test_a_listener_may_change_the_tree(registry: Registry) -> None:
    """Its change is made and told of before the first returns."""
    top = Source("top")
    registry.register(top)
    told = Told(registry)

    def answer(change: ChangeNotice) -> None:
        if "question" in change.touched.get(directory_of(top).place, set()):
            top.add_subordinate(Source("answer"))

    registry.add_listener(answer)
    top.add_subordinate(Source("question"))
    assert [source.name for source in top.subordinates] == ["question", "answer"]
    assert [change.touched[directory_of(top).place] for change in told.take()] == [
        {"question"},
        {"answer"},
    ]


def test_a_source_is_found_by_its_path(registry: Registry) -> None:
    """From the registry or from a source; hidden ones too; None for what is not there."""
    kvm, vm, vcpu = Source("kvm"), Source("vm", hidden=True), Source("vcpu0")
    registry.register(kvm)
    kvm.add_subordinate(vm)
    vm.add_subordinate(vcpu)
    assert registry.find("kvm") is kvm
    assert registry.find("kvm/vm/vcpu0") is vcpu is kvm.find("vm/vcpu0")
    assert kvm.find("vm") is vm
    for missing in ("", "vm", "kvm/", "kvm/vcpu0", "kvm/vm/vcpu0/exits", "/kvm"):
        assert registry.find(missing) is None, missing
