"""The JSON view: what the directories show, as `names`, `get_value` and `to_dict` say it."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.formats import json as json_view
from statsfs.formats import schema
from statsfs.formats.json import nest, render
from statsfs.model.fields import boolean, s64, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot_directories import make_directories
from statsfs.tree.source import Source, directory_of
from tests.support.bare import bare_log_hist
from tests.support.strategies import Plain
from tests.tree.test_tree import AGES, Pair, trees

EVERY = Aggregate(sum(kind.value for kind in Aggregate))
# Names that a template, a string of JSON or an f-string could mistake for something of its own.
NAMES = (
    '"',
    "\\",
    "%",
    "%d",
    "%%",
    "{0}",
    "}",
    "é",
    "日本",
    "a b",
    "\u2028",
    "\U0001f600",
    "\\u0041",
)


class Cpu(Stats):
    """What a CPU of these tests counts."""

    exits = u64(Aggregate.SUM)
    depth = s64(EVERY)
    busy = boolean(Aggregate.SUM)


class Disk(Stats):
    """Integers around a histogram."""

    reads = u64(Aggregate.SUM)
    latency = bare_log_hist(3, Aggregate.SUM)
    writes = u64(Aggregate.SUM)


def make_vm(cpus: int = 2) -> tuple[Source, list[Cpu]]:
    """A VM with CPUs that have counted something."""
    vm, stats = Source("vm"), []
    for number in range(cpus):
        cpu, counters = Source("cpu%d", number), Cpu()
        counters.exits, counters.depth, counters.busy = number + 1, -number, number
        cpu.add_values(Cpu, counters)
        vm.add_subordinate(cpu)
        stats.append(counters)
    return vm, stats


def load(source: Source | Registry, **arguments: Any) -> dict[str, Any]:
    """Render and parse."""
    parsed: dict[str, Any] = json.loads(render(source.snapshot(), **arguments))
    return parsed


def test_the_text() -> None:
    """Values before subordinates, in the order of a listing; ASCII; one line."""
    vm, _ = make_vm(1)
    text = (
        '{"values": {"exits": 1, "depth": 0, "depth.min": 0, "depth.max": 0, "depth.avg": 0, '
        '"depth.count_zero": 1, "depth.count_nonzero": 0, "busy": 0}, "subordinates": {"cpu0": '
        '{"values": {"exits": 1, "depth": 0, "busy": 0}, "subordinates": {}}}}\n'
    )
    assert render(vm.snapshot()) == text.encode()
    assert render(Source("empty").snapshot()) == b'{"values": {}, "subordinates": {}}\n'
    assert render(Registry().snapshot()) == b'{"values": {}, "subordinates": {}}\n'


@settings(max_examples=40, deadline=None)
@given(trees())
def test_every_directory_is_what_the_model_says(pairs: list[Pair]) -> None:
    """Names in their order and numbers, whether or not anybody asked for the names before."""
    for source, model in pairs:
        expected = model.to_dict(AGES)
        assert load(source) == expected == source.snapshot().to_dict()
        shown = load(source)["values"]
        assert list(shown) == source.names()
        assert shown == {name: source.get_value(name) for name in source.names()}
        assert load(source) == expected


def test_the_root_has_all_that_is_registered(registry: Registry) -> None:
    """And no values of its own; hidden sources are not there."""
    vm, _ = make_vm()
    registry.register(vm)
    registry.register(Source("net"))
    registry.register(Source("ghost", hidden=True))
    net: dict[str, Any] = {"values": {}, "subordinates": {}}
    assert load(registry) == {"values": {}, "subordinates": {"vm": load(vm), "net": net}}


@pytest.mark.parametrize("number", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, 1 << 70])
def test_numbers_at_the_edges(number: int) -> None:
    """Sums wrap where the files' do, also among others that do not."""
    top = Source("top")
    values = [Value("small", Type.U64, Aggregate.SUM), Value("n", Type.U64, Aggregate.SUM)]
    signed = [Value("m", Type.S64, Aggregate.SUM), Value("l", Type.S64, Aggregate.SUM)]
    for index in range(3):
        source = Source("s%d", index)
        source.add_values(values, {"small": 1, "n": number})
        source.add_values(signed, {"m": number, "l": -number})
        top.add_subordinate(source)
    shown = load(top)
    assert shown["values"] == {name: top.get_value(name) for name in ("small", "n", "m", "l")}
    assert shown["subordinates"]["s0"]["values"]["n"] == number % 2**64


def test_histograms_are_lists() -> None:
    """Own and total, between other values; booleans are 0 or 1."""
    top, disk, counters = Source("top"), Source("disk"), Disk()
    disk.add_values(Disk, counters)
    top.add_subordinate(disk)
    counters.reads, counters.writes = 4, 5
    for bucket in range(3):
        counters.latency[bucket] = bucket + 1
    expected = {"reads": 4, "latency": [1, 2, 3], "writes": 5}
    assert load(top) == {
        "values": expected,
        "subordinates": {"disk": {"values": expected, "subordinates": {}}},
    }
    vm, stats = make_vm(1)
    stats[0].busy = 7
    assert render(vm.snapshot()).count(b'"busy": 1}') == 2


@pytest.mark.parametrize("name", NAMES)
def test_names_of_all_kinds(name: str) -> None:
    """Nothing in a name is taken for anything but a name."""
    top, source = Source("top"), Source("s%s", name)
    source.add_values([Value(name, aggregate=Aggregate.SUM), Value("other")], {name: 3, "other": 4})
    source.add_values([Value(f"h{name}", kind=Kind.LOG_HIST, size=2)], {f"h{name}": [1, 0]})
    top.add_subordinate(source)
    text = render(top.snapshot())
    assert text.isascii()
    own = {name: 3, "other": 4, f"h{name}": [1, 0]}
    below = {f"s{name}": {"values": own, "subordinates": {}}}
    assert json.loads(text) == {"values": {name: 3}, "subordinates": below}


def break_base(source: Source) -> None:
    """Take the base of a source's first array its integers."""
    entry = next(iter(directory_of(source).entries.values()))
    entry.base.__dict__.clear()


def test_a_broken_base_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Its numbers are missing; its other arrays are there, and totals are of the rest."""
    caplog.set_level(logging.ERROR)
    top = Source("top")
    values = [Value("a", aggregate=Aggregate.SUM), Value("b")]
    for index in range(3):
        source = Source("s%d", index)
        source.add_values(values, Plain({"a": index + 1, "b": 5}))
        source.add_values([Value("c")], {"c": 7})
        top.add_subordinate(source)
    break_base(top.subordinates[1])
    shown = load(top)
    assert shown["values"] == {"a": 4}
    assert [below["values"] for below in shown["subordinates"].values()] == [
        {"a": 1, "b": 5, "c": 7},
        {"c": 7},
        {"a": 3, "b": 5, "c": 7},
    ]
    alone = Source("alone")
    alone.add_values(values, Plain({"a": 1, "b": 2}))
    break_base(alone)
    assert load(alone) == {"values": {}, "subordinates": {}}


def test_declared_hidden_and_revoked() -> None:
    """What has no base is 0; what is hidden counts; what was revoked reads 0 and stays."""
    top, vm, ghost = Source("top"), Source("vm"), Source("ghost", hidden=True)
    top.add_values(Cpu, None)
    zeros = dict.fromkeys(top.names(), 0)
    assert load(top) == {"values": zeros, "subordinates": {}}
    top.add_subordinate(vm)
    vm.add_subordinate(ghost)
    counters = Cpu()
    counters.exits = 5
    ghost.add_values(Cpu, counters)
    assert load(vm)["subordinates"] == {}
    assert load(vm)["values"]["exits"] == load(top)["values"]["exits"] == 5
    ghost.revoke()
    assert load(top)["values"] == zeros == load(vm)["values"]
    # An array that a source declares and also has hidden: it shows the total of itself.
    vm.add_values([Value("n", aggregate=Aggregate.SUM)], None)
    vm.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 9}, hidden=True)
    assert load(vm)["values"]["n"] == load(top)["values"]["n"] == vm.get_value("n") == 9


@pytest.mark.parametrize("mask", [0o444, 0o400, 0o040, 0o004])
def test_a_mask(mask: int) -> None:
    """What the reader may not read is not there, in no directory; all else is."""
    modes = (0o644, 0o444, 0o640, 0o600, 0o200, 0o060, 0o606)
    top, source = Source("top"), Source("s")
    values = [
        Value(f"m{mode:o}", aggregate=Aggregate.SUM | Aggregate.MAX, mode=mode) for mode in modes
    ]
    source.add_values(values, {value.name: 1 for value in values})
    top.add_subordinate(source)
    shown = load(top, mask=mask)
    readable = {f"m{mode:o}" for mode in modes if mode & mask}
    assert set(shown["subordinates"]["s"]["values"]) == readable
    totals = readable | {f"{name}.max" for name in readable}
    assert set(shown["values"]) == totals


def rename(vm: Source, cpu: Source) -> None:
    vm.remove_subordinate(cpu)
    vm.add_subordinate(Source("new"))


def take_names(vm: Source, cpu: Source) -> None:
    for source in (vm, cpu):
        source.add_subordinate(Source("exits"))


def revoke(vm: Source, cpu: Source) -> None:
    cpu.revoke()


def fill(vm: Source, cpu: Source) -> None:
    for source in (vm, cpu):
        source.add_values([Value("new", aggregate=Aggregate.SUM)], {"new": 1})


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("change", [rename, take_names, revoke, fill])
def test_a_tree_that_changes_after_the_sample(
    change: Callable[[Source, Source], None], known: bool
) -> None:
    """The text is of the moment of the sample, whether the names were known then or not."""
    vm, stats = make_vm(3)
    expected = load(make_vm(3)[0])
    if known:
        assert load(vm) == expected
    snapshot = vm.snapshot()
    change(vm, vm.subordinates[1])
    stats[0].exits = 99
    assert json.loads(render(snapshot)) == expected


def test_a_deep_tree() -> None:
    """More levels than Python's stack has, and no walk up again for each."""
    # From below: adding something to the end of a long line takes as long as that is.
    top = Source("s")
    top.add_values([Value("n", aggregate=Aggregate.SUM)], {"n": 3})
    for _ in range(1050):
        below, top = top, Source("s")
        top.add_subordinate(below)
    head = '{"values": {"n": 3}, "subordinates": {'
    expected = (head + '"s": ') * 1050 + head + "}}" * 1051 + "\n"
    pauses: list[None] = []
    with pausing(lambda: pauses.append(None)):
        assert render(top.snapshot()) == expected.encode()
    assert len(pauses) > 100


@pytest.mark.parametrize("shape", ["wide", "grouped", "deep"])
def test_others_have_their_turn(shape: str) -> None:
    """Between two pauses are at most 16 directories, however they lie."""
    top = parent = Source("top")
    for number in range(400):
        source = Source("s%d", number)
        if shape == "deep" or (shape == "grouped" and number % 10 == 0):
            parent.add_subordinate(source)
            parent = source if shape == "deep" or parent is top else top
        else:
            parent.add_subordinate(source)
    since, most = 0, 0

    def head(content: Any) -> str:
        nonlocal since, most
        since += 1
        most = max(most, since)
        return '{"values": {}, "subordinates": {'

    def pause() -> None:
        nonlocal since
        since = 0

    contents = make_directories(top.snapshot())
    with pausing(pause):
        text = nest(contents, head)
    assert 1 < most <= 16
    assert text == nest(contents, lambda content: '{"values": {}, "subordinates": {')
    assert text.count(b"values") == 401


@pytest.mark.parametrize("view", [render, schema.render])
def test_a_user_has_so_much_room(
    registry: Registry, view: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much of one user is left out, and said; the others have all of theirs."""
    monkeypatch.setattr(json_view, "BYTES_MAX", 3_000)
    long = Value("long", aggregate=Aggregate.SUM, description="x" * 1_000, kind=Kind.INSTANT)
    many = Value("many", aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=400, bucket_size=1)
    base = {"long": 1, "many": [7] * 400}
    for name, owner in (("mine", None), ("web", (1001, 0)), ("b", (1002, 0)), ("web2", (1001, 0))):
        top = Source(name, owner=owner)
        registry.register(top)
        for number in range(1 if name == "b" else 5):
            group, leaf = Source("group%d", number), Source("leaf")
            leaf.add_values([long, many], base)
            group.add_subordinate(leaf)
            top.add_subordinate(group)
    shown = json.loads(view(registry.snapshot()))
    found = {name: len(one["subordinates"]) for name, one in shown["subordinates"].items()}
    assert found["mine"] == 5
    assert found["b"] == 1
    assert 0 < found["web"] < 5
    assert "web2" not in found
    # One of `web2` and the groups that are missing; some leaf may be, too.
    missing = shown["left_out"]["1001"] - 1 - (5 - found["web"])
    assert 0 <= missing <= 1
    assert shown["left_out"].keys() == {"1001"}
    own = json.loads(view(registry.by_name["web"].snapshot()))
    assert list(own)[-1] == "left_out"
    assert "left_out" not in json.loads(view(registry.by_name["mine"].snapshot()))
    assert own["left_out"]["1001"] >= 5 - found["web"]
    assert len(view(registry.by_name["web"].snapshot())) < 3_000 * 3


def cut(shown: dict[str, Any], depth: int) -> dict[str, Any]:
    """What is left of a text's object down to a depth."""
    below = shown["subordinates"]
    if not depth and below:
        return {**shown, "subordinates": len(below)}
    return {**shown, "subordinates": {name: cut(one, depth - 1) for name, one in below.items()}}


@pytest.mark.parametrize("view", [render, schema.render])
@given(pairs=trees(), depth=st.integers(0, 4))
def test_no_deeper(view: Callable[..., bytes], pairs: list[Pair], depth: int) -> None:
    """Of directories at a depth there is how many subordinates they have."""
    for source, _ in pairs:
        snapshot = source.snapshot()
        whole = json.loads(view(snapshot))
        assert json.loads(view(snapshot, depth=depth)) == cut(whole, depth)


@given(trees())
def test_some_names(pairs: list[Pair]) -> None:
    """Only values of these names are shown, in each directory."""
    for source, _ in pairs:
        snapshot = source.snapshot()
        whole = json.loads(render(snapshot, depth=0))["values"]
        names = frozenset({*list(whole)[::2], "nothing"})
        some = json.loads(render(snapshot, depth=0, names=names))["values"]
        assert some == {name: number for name, number in whole.items() if name in names}
        described = json.loads(schema.render(snapshot, depth=0, names=names))["values"]
        assert {value["name"] for value in described} >= some.keys()
        assert {value["name"] for value in described} <= names
