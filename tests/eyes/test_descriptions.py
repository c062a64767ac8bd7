"""Schemas of real snapshots, and what is none."""

import json

import pytest

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Description, parse_schema
from statsfs.formats import schema
from statsfs.model.fields import counter, gauge, hist, log_hist, u64
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Unit
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source


class Both(Stats):
    """Values of several kinds."""

    requests = counter("Requests answered")
    largest = u64(Aggregate.SUM | Aggregate.MAX, unit=Unit.BYTES)
    smallest = u64(Aggregate.MIN)
    level = gauge("A level")
    spread = hist([5, 50], description="Sizes")
    waits = log_hist(size=8, unit=Unit.SECONDS, exponent=-9)


def read_schema(registry: Registry) -> bytes:
    """What a mount's root has."""
    return schema.render(registry.snapshot())


def test_a_schema_is_read_as_it_is_rendered(registry: Registry) -> None:
    """Each file is described; equal sources share their descriptions."""
    app = Source("app", label="app")
    registry.register(app)
    for name in ("values", "subordinates"):  # names that a view has too
        source = Source(name, label="kind")
        source.add_values(Both, Both())
        app.add_subordinate(source)
    read = parse_schema(read_schema(registry))
    assert [path for path, _ in read.walk()] == [
        (), ("app",), ("app", "values"), ("app", "subordinates")
    ]  # fmt: skip
    one = read.find(("app", "values"))
    assert one is read.find(("app", "subordinates"))
    assert one is not None
    assert [*one] == [value.name for value in values_of(Both)]
    assert one["requests"] == Description(
        "requests", aggregate=("sum",), mode=0o644, description="Requests answered"
    )
    assert one["spread"].bounds == (5, 50)
    assert (one["waits"].histogram, one["waits"].size, one["waits"].exponent) == (True, 8, -9)
    assert (one["level"].writable, one["requests"].writable) == (False, True)
    assert read.labels(("app", "values")) == {"kind": "values"}
    assert (read.find(("no",)), read.labels(("no",)), read.below(("no",))) == (None, {}, None)
    below = read.below(("app",))
    assert below is not None
    assert below.find(("values",)) is one


def test_what_counts_has_a_rate_and_what_does_not_has_none(registry: Registry) -> None:
    """Of totals only sums count; a level does not."""
    app = Source("app")
    registry.register(app)
    worker = Source("worker")
    worker.add_values(Both, Both())
    app.add_subordinate(worker)
    read = parse_schema(read_schema(registry))
    counting = {}
    for path, total in ((("app",), True), (("app", "worker"), False)):
        files = read.find(path)
        assert files is not None
        counting[total] = {name for name, what in files.items() if what.counts(files, total)}
    sums = {"spread.sum", "waits.sum", "requests", "largest", "spread", "waits"}
    assert counting == {True: sums, False: sums | {"smallest"}}


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"7", b"{}", b'{"values": [{"name": 1}], "subordinates": {}}', b'{"values": {}',
     b'{"values": 5, "subordinates": {}}',
     b'{"labels": {}, "values": [], "subordinates": {"a": 5}}',
     b'{"labels": {}, "values": [], "subordinates": {"a": {"values": [], "subordinates": {}}}}',
     b'{"labels": {}, "subordinates": {}, '
     b'"values": [{"name": "n", "kind": "", "unit": "", "aggregate": [], "mode": ""}]}',
     *(b'{"labels": {}, "subordinates": {}, "values": [{"name": "n", "kind": "", "unit": "", '
       b'"aggregate": ["sum"], %b}]}' % wrong for wrong in (
           b'"base": 0', b'"base": 16', b'"exponent": 1e2', b'"exponent": 18446744073709551616',
           b'"bounds": [1, "x"]', b'"bounds": [true]', b'"bounds": [18446744073709551616]',
           b'"aggregate": [7]')),
     json.dumps({"values": {"n": 1}}).encode() * 2, b"[" * 100_000, b"\xff"],
)  # fmt: skip
def test_what_is_no_schema_is_refused(text: bytes) -> None:
    """In one line."""
    with pytest.raises(SampleError, match="invalid schema"):
        parse_schema(text)
