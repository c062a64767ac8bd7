"""The schema: what every file is, in one text; the files' extended attributes say the same."""

import json
import stat
from typing import Any

from hypothesis import given, settings

from statsfs.filesystem.known import ROOT
from statsfs.filesystem.vfs import Vfs
from statsfs.formats.schema import describe_value, render
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel
from tests.tree.test_tree import Pair, trees

EVERY = Aggregate(sum(kind.value for kind in Aggregate))


def make_every_kind() -> list[Value]:
    """Values of all types, kinds, units, bases, exponents, aggregates and modes."""
    values = [Value(f"type_{type}", type, EVERY) for type in Type]
    for kind in (Kind.CUMULATIVE, Kind.INSTANT, Kind.PEAK):
        values.append(Value(f"kind_{kind}", kind=kind, aggregate=Aggregate.MAX))
    values.append(Value("log", kind=Kind.LOG_HIST, size=5, aggregate=Aggregate.SUM))
    values.append(Value("linear", kind=Kind.LINEAR_HIST, size=4, bucket_size=100))
    values.append(Value("own", kind=Kind.HIST, bounds=[1, 100, (1 << 64) - 1]))
    for unit in Unit:
        if unit is Unit.BOOLEAN:
            values.append(Value("unit_boolean", Type.BOOL, kind=Kind.INSTANT, unit=unit))
            continue
        for base, exponent in ((10, -9), (2, 10)):
            values.append(
                Value(f"{unit}_{base}_{exponent}", unit=unit, base=base, exponent=exponent)
            )
    for aggregate in Aggregate:
        values.append(Value(f"aggregate_{aggregate.label}", aggregate=aggregate))
    values += [Value(f"mode_{mode:o}", mode=mode) for mode in (0o600, 0o444, 0o200, 0o666)]
    values.append(Value("described", description='ü "%d" \\ {} \n'))
    return values


def hold(values: list[Value]) -> dict[str, Any]:
    """A base for them."""
    return {value.name: [0] * value.size if value.histogram else 0 for value in values}


def load(source: Source | Registry, **arguments: Any) -> dict[str, Any]:
    """Render and parse."""
    parsed: dict[str, Any] = json.loads(render(source.snapshot(), **arguments))
    return parsed


def read_attributes(kernel: Kernel, inode: int) -> dict[str, Any]:
    """What the attributes of a file say, in the words of the schema."""
    found = kernel.vfs.extended_attributes(inode)
    texts: dict[str, Any] = {}
    for attribute, text in found.items():
        assert kernel.vfs.extended_attribute(inode, attribute) == text
        prefix, _, name = attribute.decode().rpartition(".")
        assert prefix == "user.statsfs"
        is_number = name in ("base", "exponent", "size", "bucket_size")
        texts[name] = int(text) if is_number else text.decode()
    if "bounds" in texts:
        texts["bounds"] = list(map(int, texts["bounds"].split(",")))
    kinds = texts["aggregate"]
    texts["aggregate"] = [] if kinds == "none" else kinds.split(",")
    return texts


def check(kernel: Kernel, inode: int, described: dict[str, Any]) -> int:
    """Compare a directory and all below it with its part of a schema; count the files."""
    entries = {name.decode(): child for name, child in kernel.entries(inode).items()}
    files = {name: child for name, child in entries.items() if not kernel.is_directory(child)}
    assert [value["name"] for value in described["values"]] == list(files)
    assert set(described["subordinates"]) == set(entries) - set(files)
    for value in described["values"]:
        child = files[value["name"]]
        mode = kernel.vfs.attributes(child).mode
        assert stat.S_ISREG(mode)
        expected = {"name": value["name"], "mode": stat.S_IMODE(mode)}
        assert value == {**read_attributes(kernel, child), **expected}
    below = described["subordinates"].items()
    return len(files) + sum(check(kernel, entries[name], found) for name, found in below)


def test_attributes_and_schema_agree_on_values_of_every_kind(
    kernel: Kernel, registry: Registry
) -> None:
    """Each file of a tree, own values and aggregates, in each directory."""
    values = make_every_kind()
    top, vm = Source("top", label="top"), Source("vm", label="vm")
    registry.register(top)
    top.add_subordinate(vm)
    for number in range(2):
        cpu = Source("cpu%d", number)
        cpu.add_values(values, hold(values))
        vm.add_subordinate(cpu)
    top.add_values([Value("declared", Type.S8, Aggregate.AVG | Aggregate.MIN)], None)
    totals = sum(len(value.aggregate_names) for value in values)
    assert check(kernel, ROOT, load(registry)) == 2 * len(values) + 2 * totals + 2
    check(kernel, kernel.find("top/vm"), load(vm))


@settings(max_examples=40, deadline=None)
@given(trees())
def test_attributes_and_schema_agree_on_any_tree(pairs: list[Pair]) -> None:
    """Whatever wins where names meet is what both describe."""
    registry, (top, _) = Registry(), pairs[0]
    registry.register(top)
    kernel = Kernel(Vfs(registry))
    check(kernel, ROOT, load(registry))
    if not top.hidden:
        check(kernel, kernel.find(top.name), load(top))


def test_the_shape_of_a_value() -> None:
    """The keys in their order, numbers as numbers, the mode without the file's type."""
    source = Source("s", label="l")
    source.add_values(
        [
            Value("wait_ns", Type.S64, Aggregate.SUM | Aggregate.MAX, 0o640, unit=Unit.SECONDS,
                  exponent=-9, description="waited"),
            Value("sizes", kind=Kind.LINEAR_HIST, size=3, bucket_size=10),
            Value("times", kind=Kind.HIST, bounds=[100, 300]),
        ],
        {"wait_ns": 1, "sizes": [0, 0, 0], "times": [0, 0, 0]},
    )  # fmt: skip
    wait = {
        "name": "wait_ns", "type": "s64", "kind": "cumulative", "unit": "seconds", "base": 10,
        "exponent": -9, "aggregate": ["sum", "max"], "description": "waited", "mode": 0o640,
    }  # fmt: skip
    sizes = {
        "name": "sizes", "type": "u64", "kind": "linear_hist", "unit": "none", "base": 10,
        "exponent": 0, "aggregate": [], "description": "", "size": 3, "bucket_size": 10,
        "mode": 0o644,
    }  # fmt: skip
    times = {
        "name": "times", "type": "u64", "kind": "hist", "unit": "none", "base": 10,
        "exponent": 0, "aggregate": [], "description": "", "size": 3, "bucket_size": 0,
        "bounds": [100, 300], "mode": 0o644,
    }  # fmt: skip
    found = load(source)
    assert found == {"labels": {}, "values": [wait, sizes, times], "subordinates": {}}
    assert [list(value) for value in found["values"]] == [list(wait), list(sizes), list(times)]
    assert list(found) == ["labels", "values", "subordinates"]
    assert describe_value(Value("n"))["aggregate"] == []


def test_what_a_reader_may_not_read_is_described(registry: Registry) -> None:
    """A name and a mode are no secret: a listing has them too."""
    source = Source("s")
    source.add_values([Value("secret", mode=0o600)], {"secret": 1})
    for mask in (0o444, 0o004):
        (value,) = load(source, mask=mask)["values"]
        assert (value["name"], value["mode"]) == ("secret", 0o600)
    # Over the network nobody has a listing.
    assert load(source, readable=0o004)["values"] == []
    assert len(load(source, readable=0o400)["values"]) == 1


def test_a_broken_base_is_described(registry: Registry) -> None:
    """Its files are there, though they cannot be read."""
    source, base = Source("s"), {"n": 1}
    source.add_values([Value("n")], base)
    base.clear()
    assert [value["name"] for value in load(source)["values"]] == ["n"]


def test_labels(registry: Registry) -> None:
    """Those of a directory's samples in the Prometheus views: from the top, wherever one looks."""
    kvm, vm = Source("kvm", label="module"), Source("1-2", label="vm")
    group, cpu, odd = (
        Source("group"),
        Source("cpu0", label="vcpu"),
        Source("%s", 'q"\\%d é', label="odd"),
    )
    registry.register(kvm)
    kvm.add_subordinate(group)
    group.add_subordinate(vm)
    vm.add_subordinate(cpu)
    cpu.add_subordinate(odd)
    in_cpu = {"source": "group", "vm": "1-2", "vcpu": "cpu0"}
    assert load(cpu)["labels"] == in_cpu
    assert load(cpu)["subordinates"]['q"\\%d é']["labels"] == {**in_cpu, "odd": 'q"\\%d é'}
    whole = load(registry)
    assert whole["labels"] == {}
    assert whole["subordinates"]["kvm"] == load(kvm)
    assert load(kvm)["labels"] == {}
    assert load(kvm)["subordinates"]["group"]["labels"] == {"source": "group"}
    assert load(kvm)["subordinates"]["group"]["subordinates"]["1-2"]["subordinates"]["cpu0"] == (
        load(cpu)
    )


def test_an_empty_registry() -> None:
    """Nothing has labels, values or subordinates."""
    assert render(Registry().snapshot()) == b'{"labels": {}, "values": [], "subordinates": {}}\n'


def test_a_deep_tree() -> None:
    """More levels than Python's stack has; all are described."""
    top = Source("s")
    top.add_values([Value("n")], {"n": 1})
    for number in range(1050):
        below, top = top, Source("s", label=f"level{number % 3}")
        top.add_subordinate(below)
    text = render(top.snapshot())
    assert text.count(b'"subordinates"') == 1051
    assert text.endswith(b"}" * (2 * 1051) + b"\n")
    assert text.count(b'"name": "n"') == 1


def test_views_have_no_attributes(kernel: Kernel, registry: Registry) -> None:
    """They are files like others, but nobody's value."""
    registry.register(Source("s"))
    assert kernel.vfs.extended_attributes(kernel.find("s/.schema.json")) == {}


def test_info(registry: Registry) -> None:
    """What is known of a source beside numbers, as its attributes have it; no key where nothing."""
    info = {"version": '1.2 "é" %d\n', "build-id": "x" * 300, "le": "", "a.b": "c"}
    top = Source("top", info=info)
    below = Source("below", label="unit", info={"model": "m"})
    registry.register(top)
    top.add_subordinate(below)
    below.add_subordinate(Source("plain"))
    below.add_subordinate(Source("ghost", hidden=True, info={"never": "shown"}))
    shown = {**info, "version": '1.2 "é" %d\\n'}
    whole = load(registry)
    assert list(whole) == ["labels", "values", "subordinates"]
    assert whole["subordinates"]["top"]["info"] == load(top)["info"] == shown
    assert list(load(top)) == ["labels", "info", "values", "subordinates"]
    inner = load(top)["subordinates"]["below"]
    assert inner["info"] == load(below)["info"] == {"model": "m"}
    assert list(inner["subordinates"]) == ["plain"]
    assert "info" not in inner["subordinates"]["plain"]
    top.info = {"version": "1.3"}
    assert load(top)["info"] == {"version": "1.3"}
    top.info = {}
    assert "info" not in load(top)
