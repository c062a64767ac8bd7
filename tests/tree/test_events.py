"""Events: a line for each source that comes and leaves, in the order of the changes."""

import json
import threading
import time
from typing import Any

import pytest

from statsfs.exceptions import DuplicateNameError
from statsfs.tree import events as module
from statsfs.tree.events import Events
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.trees import Cpu, add_below, make_kvm, subordinate


@pytest.fixture
def events(registry: Registry) -> Events:
    """What is told of the test's registry."""
    made = Events()
    registry.events = (made,)
    return made


def found(events: Events) -> list[dict[str, Any]]:
    """The lines that are kept."""
    return [json.loads(line.text) for line in events._lines]


def told(events: Events) -> list[str]:
    """The lines that are kept, as "event path"."""
    return [f"{line['event']} {line['path']}" for line in found(events)]


def test_each_source_that_comes_and_leaves(registry: Registry, events: Events) -> None:
    """Above before below where they come, below before above where they leave."""
    kvm = Source("kvm")
    vm = Source("vm")
    for name in ("vcpu0", "vcpu1"):
        add_below(vm, name, Cpu, Cpu())
    kvm.add_subordinate(vm)
    assert told(events) == []
    registry.register(kvm)
    down = ["kvm", "kvm/vm", "kvm/vm/vcpu0", "kvm/vm/vcpu1"]
    assert told(events) == [f"added {path}" for path in down]
    vm.remove_subordinate(subordinate(vm, "vcpu1"))
    assert told(events)[4:] == ["removed kvm/vm/vcpu1"]
    kvm.remove_subordinate(vm)
    kvm.add_subordinate(vm)
    registry.unregister(kvm)
    assert told(events)[5:] == [
        "removed kvm/vm/vcpu0", "removed kvm/vm",
        "added kvm/vm", "added kvm/vm/vcpu0",
        "removed kvm/vm/vcpu0", "removed kvm/vm", "removed kvm",
    ]  # fmt: skip
    kvm.add_subordinate(Source("late"))
    assert len(told(events)) == 12


def test_what_is_hidden_is_not_told(registry: Registry, events: Events) -> None:
    """Neither hidden sources, nor those below one, however they come."""
    kvm = Source("kvm")
    registry.register(kvm)
    thread = Source("thread", hidden=True)
    thread.add_subordinate(Source("before"))
    kvm.add_subordinate(thread)
    thread.add_subordinate(Source("after"))
    below = subordinate(thread, "after")
    below.add_subordinate(Source("deep"))
    thread.remove_subordinate(below)
    kvm.remove_subordinate(thread)
    secret = Source("secret", hidden=True)
    registry.register(secret)
    registry.unregister(secret)
    assert told(events) == ["added kvm"]


def test_one_root(registry: Registry) -> None:
    """What is in it, by the path from there; not itself, nor one with a longer name."""
    events = Events("kvm")
    registry.events = (events,)
    kvm = make_kvm(registry, cpus=1)
    registry.register(Source("kvm2")).add_subordinate(Source("other"))
    kvm.remove_subordinate(subordinate(kvm, "cpu0"))
    registry.unregister(kvm)
    assert told(events) == ["added cpu0", "removed cpu0"]


def test_changes_of_many_at_once(registry: Registry, events: Events) -> None:
    """`sync` makes one change of several sources that come and leave."""
    disks = registry.register(Source("disks"))
    for names in (["sda", "sdb"], ["sdb", "sdc", "sdd"]):
        disks.sync({name: {"exits": 1, "wait": 1, "busy": 1} for name in names}, Cpu)
    assert sorted(told(events)) == sorted(
        ["added disks"]
        + [f"added disks/{name}" for name in ("sda", "sdb", "sdc", "sdd")]
        + ["removed disks/sda"]
    )
    numbers = [line.number for line in events._lines]
    assert numbers == list(range(6))


def test_a_refused_change_is_not_told(registry: Registry, events: Events) -> None:
    """Nothing came."""
    kvm = make_kvm(registry)
    before = told(events)
    for refused in (Source("cpu0"), Source("cpu1")):
        with pytest.raises(DuplicateNameError):
            kvm.add_subordinate(refused)
    with pytest.raises(DuplicateNameError):
        registry.register(Source("kvm"))
    assert told(events) == before


@pytest.mark.parametrize("name", ['"', "a\\b", "é", "日本", " "])
def test_any_name(registry: Registry, events: Events, name: str) -> None:
    """Each line is one line of JSON, in ASCII."""
    registry.register(Source(name))
    assert told(events) == [f"added {name}"]
    text = events._lines[0].text
    assert text.isascii()
    assert text.count(b"\n") == 1


def test_the_moment(registry: Registry, events: Events) -> None:
    """Seconds since the epoch, to the microsecond; the same of all in one subtree."""
    before = time.time_ns()
    make_kvm(registry, cpus=0)
    after = time.time_ns()
    line, newest = found(events)[0], events.newest
    assert newest is not None
    assert before <= newest.moment <= after
    assert round(line["time"] * 1e6) == newest.moment // 1000
    assert list(line) == ["time", "event", "path"]


def test_lines_are_dropped(
    registry: Registry, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go; each line says how many bytes and lines were before it."""
    monkeypatch.setattr(module, "TEXT_MAX", 1000)
    kvm = make_kvm(registry, cpus=0)
    texts = []
    for number in range(100):
        kvm.add_subordinate(Source("%d", number))
        texts.append(events._lines[-1].text)
        lines = events._lines
        assert lines[-1].end - lines[0].start <= 1000
        assert [line.text for line in lines][-min(10, number + 1) :] == texts[-10:]
    first, *_, last = events._lines
    assert (first.number, last.number) == (101 - len(events._lines), 100)
    assert sum(map(len, texts)) < last.end < sum(map(len, texts)) + 70


def test_one_change_of_too_many(
    registry: Registry, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one change the newest lines are kept, and one at least, however long it is."""
    monkeypatch.setattr(module, "TEXT_MAX", 500)
    make_kvm(registry, cpus=100)
    lines = events._lines
    assert lines[-1].number == 100
    assert lines[-1].end - lines[0].start <= 500
    monkeypatch.setattr(module, "TEXT_MAX", 10)
    registry.unregister(registry.by_name["kvm"])
    (line,) = events._lines
    assert line.number == 201
    assert line.text.endswith(b'"removed","path":"kvm"}\n')


def test_many_threads(registry: Registry, events: Events) -> None:
    """The lines are in the order of the changes: what leaves came before."""
    kvm = make_kvm(registry, cpus=0)

    def churn(number: int) -> None:
        for turn in range(100):
            source = Source("%d-%d", number, turn)
            kvm.add_subordinate(source)
            kvm.remove_subordinate(source)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there: set[str] = set()
    for line in found(events)[1:]:
        if line["event"] == "added":
            there.add(line["path"])
        else:
            there.remove(line["path"])
    assert not there
    assert [line.number for line in events._lines] == list(range(801))
