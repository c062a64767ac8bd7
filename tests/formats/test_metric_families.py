"""Metric families: what is exported, where, and who gives way; against a naive model."""

import io
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.utils import floatToGoString

from statsfs.formats import metric_families, openmetrics, prometheus
from statsfs.formats.metric_names import _show_edge
from statsfs.model.histograms import make_sum
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.exported import (
    Exported,
    Node,
    build,
    export,
    parse_openmetrics,
    parse_text,
    trees,
)


def check(found: dict[str, Exported], expected: dict[str, Exported], units: bool) -> None:
    """Compare what a view said with the model: every family, every sample."""
    found = dict(found)
    for name, family in expected.items():
        parsed = found.pop(name, None)
        if parsed is None and family.type == "histogram" and f"{name}_bucket" in found:
            # One without sums is not called a histogram.
            parsed, family = found.pop(f"{name}_bucket"), family._replace(type="unknown", unit="")
        if parsed is None:
            parsed = family._replace(samples={})
        assert (parsed.type, parsed.help) == (family.type, family.help)
        assert not units or parsed.unit == family.unit
        samples = dict(parsed.samples)
        if family.type == "histogram" and samples:
            sums = [some for key, some in family.samples.items() if key[0] == f"{name}_sum"]
            assert any(number is not None for some in sums for number in some)
        for key, possible in family.samples.items():
            number = samples.pop(key, None)
            assert number in possible, (key, number, possible)
        assert samples == {}
    assert found == {}


@settings(max_examples=50)
@given(trees(), st.sampled_from((0o444, 0o400, 0o040, 0o004)))
def test_both_views_are_what_the_model_says(tops: list[Node], mask: int) -> None:
    """Names, types, helps, labels and numbers; both formats, read by others' parsers."""
    snapshot = build(tops).snapshot()
    expected = export(tops, mask)
    check(parse_text(prometheus.render(snapshot, mask=mask)), expected, units=False)
    check(parse_openmetrics(openmetrics.render(snapshot, mask=mask)), expected, units=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, and by whom it must be."""
    assert {record.name for record in caplog.records} <= {"statsfs.formats.metric_families"}
    return [record.getMessage() for record in caplog.records]


def source(
    parent: Registry | Source, name: str, *fields: tuple[Value, Any], **options: Any
) -> Source:
    """Add a source with an array of values over a dictionary; options of the array are hidden=."""
    made = Source(
        "%s",
        name,
        label=options.get("label"),
        label_value=options.get("label_value"),
        hidden=options.get("secret", False),
    )
    if fields:
        base = {value.name: number for value, number in fields}
        made.add_values([value for value, _ in fields], base, hidden=options.get("hidden", False))
    if isinstance(parent, Registry):
        parent.register(made)
    else:
        parent.add_subordinate(made)
    made.put()
    return made


def lines(shown: Registry | Source, mask: int = 0o444) -> list[str]:
    """The samples of the text format."""
    text = prometheus.render(shown.snapshot(), mask=mask).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("n", {}, "kvm_n_total"),
        ("n_total", {}, "kvm_n_total"),
        ("total", {}, "kvm_total"),
        ("n_total", {"kind": Kind.INSTANT}, "kvm_n_total"),
        ("n", {"kind": Kind.PEAK}, "kvm_n"),
        ("n", {"type": Type.BOOL}, "kvm_n"),
        ("n.max-é:x", {"kind": Kind.INSTANT}, "kvm_n_max___x"),
        ("wait_ns", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_wait_seconds_total"),
        ("wait_ns_total", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_wait_seconds_total"),
        ("ns", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_seconds_total"),
        ("wait_us", {"unit": Unit.SECONDS, "exponent": -6}, "kvm_wait_seconds_total"),
        ("wait_ms", {"unit": Unit.SECONDS, "exponent": -3}, "kvm_wait_seconds_total"),
        ("wait_sec", {"unit": Unit.SECONDS}, "kvm_wait_seconds_total"),
        ("wait_sec", {"unit": Unit.SECONDS, "base": 2}, "kvm_wait_seconds_total"),
        ("wait_seconds", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_wait_seconds_total"),
        ("wait_us", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_wait_us_seconds_total"),
        ("wait", {"unit": Unit.SECONDS, "exponent": -9}, "kvm_wait_seconds_total"),
        ("wait_ns", {}, "kvm_wait_ns_total"),
        ("sent", {"unit": Unit.BYTES}, "kvm_sent_bytes_total"),
        ("sent_bytes", {"unit": Unit.BYTES, "exponent": 3}, "kvm_sent_bytes_total"),
        ("held_kB", {"unit": Unit.BYTES, "base": 2, "exponent": 10}, "kvm_held_bytes_total"),
        ("held_KiB", {"unit": Unit.BYTES, "base": 2, "exponent": 10}, "kvm_held_bytes_total"),
        ("held_MiB", {"unit": Unit.BYTES, "exponent": 6}, "kvm_held_MiB_bytes_total"),
        ("run_cycles", {"unit": Unit.CYCLES, "exponent": 3}, "kvm_run_cycles_total"),
    ],
)
def test_names(registry: Registry, name: str, options: Any, expected: str) -> None:
    """The type and the unit are said once, at the end, in the base unit."""
    source(registry, "kvm", (Value(name, **options), 1))
    assert [line.partition(" ")[0] for line in lines(registry)] == [expected]


@pytest.mark.parametrize(
    ("number", "base", "exponent", "expected"),
    [
        (123456789, 10, -9, "0.123456789"),
        (3, 10, -9, "3e-09"),
        (0, 10, -9, "0.0"),
        (2_000_000_000, 10, -9, "2.0"),
        (2**64 - 1, 10, -9, repr((2**64 - 1) / 10**9)),
        (7, 2, -1, "3.5"),
        (7, 10, 3, "7000"),
        (2**64 - 1, 2, 10, str((2**64 - 1) << 10)),
        (1, 10, 270, "1" + "0" * 270),
        (1, 10, 300, "1e+300"),
        (1, 10, 400, "inf"),
        (0, 10, 400, "0.0"),
        (1, 10, -400, "0.0"),
    ],
)
def test_scales(registry: Registry, number: int, base: int, exponent: int, expected: str) -> None:
    """A number is rounded once if at all, and integers stay what they are."""
    source(registry, "top", (Value("n", kind=Kind.PEAK, base=base, exponent=exponent), number))
    assert lines(registry) == [f"top_n {expected}"]


def test_a_negative_gauge_may_be_infinite(registry: Registry) -> None:
    """What no float holds is infinite, on both sides."""
    source(registry, "top", (Value("n", Type.S64, kind=Kind.PEAK, exponent=400), -1))
    assert lines(registry) == ["top_n -inf"]


def test_labels(registry: Registry) -> None:
    """Names of sources by their labels, without the top-level one; others joined into one."""
    value = Value("n", kind=Kind.PEAK)
    top = source(registry, "top", (value, 0), label="module")
    vm = source(top, "12-3", (value, 1), label="vm")
    vcpu = source(vm, "vcpu0", (value, 2), label="vcpu")
    plain = source(vcpu, "x", (value, 3))
    source(source(plain, "y", label="vm"), "z", (value, 4))
    source(top, 'q"\\%d', (value, 8), label="vm")
    assert lines(registry) == [
        "top_n 0",
        'top_n{vm="12-3"} 1',
        'top_n{vcpu="vcpu0",vm="12-3"} 2',
        'top_n{source="x",vcpu="vcpu0",vm="12-3"} 3',
        'top_n{source="x/z",vcpu="vcpu0",vm="12-3/y"} 4',
        'top_n{vm="q\\"\\\\%d"} 8',
    ]


def test_the_value_of_a_label(registry: Registry) -> None:
    """It is the name, or what the source says in its place; without a label it means nothing."""
    value = Value("n", kind=Kind.PEAK)
    top = source(registry, "top", (value, 0))
    vm = source(top, "12-3", (value, 1), label="vm", label_value="web")
    source(vm, "vcpu0", (value, 2), label="vcpu")
    source(vm, "x", (value, 3), label_value="y")
    assert lines(registry) == [
        "top_n 0",
        'top_n{vm="web"} 1',
        'top_n{vcpu="vcpu0",vm="web"} 2',
        'top_n{source="x",vm="web"} 3',
    ]


def test_what_else_is_known_of_a_source(registry: Registry) -> None:
    """It is a metric of its own, always 1; names with a dot are for extended attributes alone."""
    value = Value("n", kind=Kind.PEAK)
    top = source(registry, "top", (value, 0))
    top.info = {"version": "1.2"}
    for number in (3, 4):
        vm = source(top, f"12-{number}", (value, 1), label="vm")
        vm.info = {"uuid": f"0-{number}", "vm": "lost", "kvm.source": "bpf"}
        source(vm, "vcpu0", (value, 2), label="vcpu").info = {"kvm.source": "bpf"}
    assert [line for line in lines(registry) if "info" in line] == [
        'top_info{version="1.2"} 1',
        'top_vm_info{uuid="0-3",vm="12-3"} 1',
        'top_vm_info{uuid="0-4",vm="12-4"} 1',
    ]
    with Source("kept", retain=True) as kept:
        registry.register(kept)
        source(kept, "below", (value, 0)).info = {"x": "y"}  # it has no series
    assert not [line for line in lines(registry) if "kept" in line and "info" in line]


def test_a_view_of_a_subtree_is_part_of_the_whole(registry: Registry) -> None:
    """Names and labels are the same wherever one looks."""
    value = Value("n", aggregate=Aggregate.SUM, kind=Kind.PEAK)
    top = source(registry, "top", (value, 0))
    vm = source(top, "a", (value, 1), label="vm")
    hidden = source(vm, "h", (value, 7), secret=True)
    source(hidden, "below", (value, 9), label="vcpu")
    cpu = source(vm, "b", (value, 2), label="vcpu")
    assert lines(cpu) == ['top_n{vcpu="b",vm="a"} 2']
    assert lines(vm) == ['top_n{vm="a"} 9', 'top_n{vcpu="b",vm="a"} 2']
    assert lines(top) == ["top_n 0", *lines(vm)] == lines(registry)
    # What is hidden has no directory, but its owner may ask.
    assert lines(hidden) == ['top_n{vm="a"} 9']


def test_hidden_sources_are_added_up_where_they_are_seen(registry: Registry) -> None:
    """The threads of a daemon make one sample; peaks are the highest, sums wrap."""
    fields = (
        Value("requests", aggregate=Aggregate.SUM),
        Value("slowest", aggregate=Aggregate.MAX, kind=Kind.PEAK),
        Value("balance", Type.S64, Aggregate.SUM, kind=Kind.INSTANT),
        Value("sizes", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=2),
        Value("sizes.sum", aggregate=Aggregate.SUM),
        Value("own"),
    )
    top = source(registry, "app")
    for number in range(1, 1001):
        counts = (1 << 62, number, -(1 << 62), [number, 1], 3 * number, number)
        source(top, f"w{number}", *zip(fields, counts, strict=True), secret=True)
    assert lines(registry) == [
        f"app_requests_total {1000 * (1 << 62) % (1 << 64)}",
        "app_slowest 1000",
        "app_balance 0",
        'app_sizes_bucket{le="0.0"} 500500',
        'app_sizes_bucket{le="+Inf"} 501500',
        "app_sizes_sum 1501500",
        "app_sizes_count 501500",
    ]


def test_several_bases_of_one_source_make_one_sample(registry: Registry) -> None:
    """What a source shows, and hidden bases and sources with it; what nothing adds up, as shown."""
    summed, own = Value("n", aggregate=Aggregate.SUM), Value("own")
    top = source(registry, "top", (summed, 1), (own, 10))
    top.add_values([summed, own], {"n": 2, "own": 20}, hidden=True)
    source(top, "h", (summed, 4), (own, 40), secret=True)
    assert lines(registry) == ["top_n_total 7", "top_own_total 10"]


def test_hidden_values(registry: Registry) -> None:
    """One that is in an aggregate is exported where it was counted; else nowhere."""
    shown = Value("shown", aggregate=Aggregate.MAX, hidden=True)
    source(registry, "top", (shown, 1), (Value("secret", hidden=True), 2))
    assert lines(registry) == ["top_shown_total 1"]


def test_nothing_below_a_hidden_top_level_source(registry: Registry) -> None:
    """It has no directory, so no name."""
    value = Value("n", aggregate=Aggregate.SUM)
    top = source(registry, "top", (value, 1), secret=True)
    child = source(top, "a", (value, 1))
    assert lines(registry) == lines(top) == lines(child) == []
    assert openmetrics.render(registry.snapshot()) == b"# EOF\n"


def test_totals_and_declared_arrays_are_not_exported(registry: Registry) -> None:
    """A query makes the totals; what only declares them has no samples."""
    value = Value("n", aggregate=Aggregate.SUM)
    top = source(registry, "top")
    top.add_values([value], None)
    assert prometheus.render(registry.snapshot()) == b""
    source(top, "a", (value, 1))
    assert lines(registry) == ['top_n_total{source="a"} 1']


def test_who_may_read_what(registry: Registry) -> None:
    """A view has what the files have for the same reader."""
    source(registry, "top", (Value("all", mode=0o444), 1), (Value("own", mode=0o600), 2))
    assert lines(registry) == lines(registry, 0o400) == ["top_all_total 1", "top_own_total 2"]
    assert lines(registry, 0o040) == lines(registry, 0o004) == ["top_all_total 1"]


def test_arrays_that_share_a_metric(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest has the help and the unit; samples with labels of others are left out."""
    first = Value("lag_seconds", kind=Kind.PEAK, description="older")
    second = Value("lag_ns", kind=Kind.PEAK, unit=Unit.SECONDS, exponent=-9, description="newer")
    other = Value("n", kind=Kind.PEAK)
    top = source(registry, "top", (second, 10**9), (other, 5))
    source(top, "a", (first, 1), (other, 6))
    source(top, "b", (second, 2 * 10**9), (other, 7))
    top.add_values([first, other], {"lag_seconds": 9, "n": 8})
    # The array that came first anywhere is the one of `second`.
    text = prometheus.render(registry.snapshot()).decode()
    assert text.startswith("# HELP top_lag_seconds newer\n# TYPE top_lag_seconds gauge\n")
    assert b"# UNIT top_lag_seconds seconds\n" in openmetrics.render(registry.snapshot())
    assert lines(registry) == [
        "top_lag_seconds 1.0",
        'top_lag_seconds{source="b"} 2.0',
        'top_lag_seconds{source="a"} 1',
        "top_n 5",
        'top_n{source="b"} 7',
        'top_n{source="a"} 6',
    ]
    assert len(warnings(caplog)) == 2  # once for each metric, however often it is rendered
    assert "top_lag_seconds" in caplog.text


def test_arrays_that_share_a_metric_and_no_labels(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """They make one family, and nothing is left out."""
    top = source(registry, "top")
    source(top, "a", (Value("n"), 1))
    source(top, "b", (Value("n", Type.U32), 2), (Value("m"), 3))
    assert sorted(lines(registry)) == [
        'top_m_total{source="b"} 3',
        'top_n_total{source="a"} 1',
        'top_n_total{source="b"} 2',
    ]
    assert len(re.findall("# TYPE", prometheus.render(registry.snapshot()).decode())) == 2
    assert warnings(caplog) == []


def test_sources_with_the_same_labels(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """Labels do not tell in which order they are; the first one is exported."""
    value = Value("n", kind=Kind.PEAK)
    top = source(registry, "top")
    source(source(top, "a", label="x"), "b", (value, 1), label="y")
    source(source(top, "b", label="y"), "a", (value, 2), label="x")
    assert lines(registry) == ['top_n{x="a",y="b"} 1']
    assert len(warnings(caplog)) == 1


def test_top_level_sources_that_are_called_the_same(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Where names differ only by what the format forbids, the first one is exported."""
    value = Value("n", kind=Kind.PEAK)
    source(registry, "a.b", (value, 1))
    source(registry, "a-b", (value, 2))
    assert lines(registry) == ["a_b_n 1"]
    assert len(warnings(caplog)) == 1


HISTOGRAM: dict[str, Any] = {"kind": Kind.LOG_HIST, "size": 2}


@pytest.mark.parametrize(
    ("older", "newer", "kept"),
    [
        (Value("n"), Value("n", kind=Kind.INSTANT), "n_total"),
        (Value("n"), Value("n_total", kind=Kind.PEAK), "n_total"),
        (Value("n", kind=Kind.PEAK), Value("n_total"), "n"),
        (Value("n_created", kind=Kind.PEAK), Value("n"), "n_created"),
        (Value("n_sum", kind=Kind.PEAK), Value("n", **HISTOGRAM), "n_sum"),
        (Value("n_bucket", kind=Kind.PEAK), Value("n", **HISTOGRAM), "n_bucket"),
    ],
)
def test_metrics_that_clash(
    registry: Registry, caplog: pytest.LogCaptureFixture, older: Value, newer: Value, kept: str
) -> None:
    """A newer array's metric gives way, whether it is its name or those of its samples."""
    # No other test has an equal array, so that these are as old as they look.
    older, newer = (replace(one, description=f"of {kept}") for one in (older, newer))
    number = [1, 2] if newer.histogram else 2
    source(registry, "top", (older, 1))
    top = registry.sources[0]
    source(top, "x", (newer, number))
    for _ in range(2):
        assert lines(registry) == [f"top_{kept} 1"]
        assert parse_openmetrics(openmetrics.render(registry.snapshot()))
    assert len(warnings(caplog)) == 1


def test_counts_below_zero(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """No counter, no histogram is negative: such samples are left out, and others are not."""
    count = Value("n", Type.S32)
    gauge = Value("level", Type.S32, kind=Kind.INSTANT)
    hist = Value("h", Type.S32, kind=Kind.LINEAR_HIST, size=2, bucket_size=5)
    top = source(registry, "top", (count, -1), (gauge, -1), (hist, [1, -1]))
    assert lines(registry) == ["top_level -1"]
    source(top, "a", (count, 1), (gauge, 1), (hist, [1, 1]))
    assert [line for line in lines(registry) if "level" not in line] == [
        'top_n_total{source="a"} 1',
        'top_h_bucket{source="a",le="4.0"} 1',
        'top_h_bucket{source="a",le="+Inf"} 2',
    ]
    assert len(warnings(caplog)) == 2


def test_complaints_have_an_end(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A program whose names never repeat does not fill its log, nor its memory."""
    top = source(registry, "top")
    for number in range(metric_families._COMPLAINTS + 10):
        metric_families.complain(top, f"n{number}", "is wrong")
    (known,) = metric_families._complaints.values()
    assert len(warnings(caplog)) == len(known) == metric_families._COMPLAINTS


def test_edges_of_histograms(registry: Registry) -> None:
    """Buckets end with their largest integer, in the base unit, as OpenMetrics writes floats."""
    wide = Value("lin", kind=Kind.LINEAR_HIST, size=5, bucket_size=500_001)
    fine = Value("log", kind=Kind.LOG_HIST, size=5, unit=Unit.SECONDS, exponent=-6)
    one = Value("one", kind=Kind.LOG_HIST, size=1)
    own = Value("own", kind=Kind.HIST, bounds=[100, 300, 2000], unit=Unit.SECONDS, exponent=-3)
    source(
        registry, "top", (wide, [1, 0, 2, 0, 3]), (fine, [1, 2, 3, 4, 5]), (one, [7]),
        (own, [1, 1, 1, 1]),
    )  # fmt: skip
    assert lines(registry) == [
        'top_lin_bucket{le="500000.0"} 1',
        'top_lin_bucket{le="1.000001e+06"} 1',
        'top_lin_bucket{le="1.500002e+06"} 3',
        'top_lin_bucket{le="2.000003e+06"} 3',
        'top_lin_bucket{le="+Inf"} 6',
        'top_log_seconds_bucket{le="0.0"} 1',
        'top_log_seconds_bucket{le="1e-06"} 3',
        'top_log_seconds_bucket{le="3e-06"} 6',
        'top_log_seconds_bucket{le="7e-06"} 10',
        'top_log_seconds_bucket{le="+Inf"} 15',
        'top_one_bucket{le="+Inf"} 7',
        'top_own_seconds_bucket{le="0.1"} 1',
        'top_own_seconds_bucket{le="0.3"} 2',
        'top_own_seconds_bucket{le="2.0"} 3',
        'top_own_seconds_bucket{le="+Inf"} 4',
    ]


LATENCY = Value("lat", kind=Kind.LOG_HIST, size=2, unit=Unit.SECONDS, exponent=-3)
LATENCIES = (LATENCY, make_sum(LATENCY))


def test_sums_of_histograms(registry: Registry) -> None:
    """They are exported with their histograms, in the base unit, and not as other metrics."""
    plain = Value("sizes", kind=Kind.LOG_HIST, size=2, description="Sizes")
    lone = Value("other.sum")
    source(
        registry, "top", *zip(LATENCIES, ([1, 2], 2500), strict=True), (plain, [3, 4]),
        (make_sum(plain), 77), (lone, 5),
    )  # fmt: skip
    text = prometheus.render(registry.snapshot()).decode()
    assert text == (
        "# TYPE top_lat_seconds histogram\n"
        'top_lat_seconds_bucket{le="0.0"} 1\n'
        'top_lat_seconds_bucket{le="+Inf"} 3\n'
        "top_lat_seconds_sum 2.5\n"
        "top_lat_seconds_count 3\n"
        "# HELP top_sizes Sizes\n"
        "# TYPE top_sizes histogram\n"
        'top_sizes_bucket{le="0.0"} 3\n'
        'top_sizes_bucket{le="+Inf"} 7\n'
        "top_sizes_sum 77\n"
        "top_sizes_count 7\n"
        "# TYPE top_other_sum_total counter\n"
        "top_other_sum_total 5\n"
    )


def test_histograms_of_which_only_some_have_sums(registry: Registry) -> None:
    """Each series has all that is known of it; one that is partly without a sum has none."""
    app = source(registry, "app")
    summed = [replace(value, aggregate=Aggregate.SUM) for value in LATENCIES]
    bare = summed[:1]
    for name, values in (("a", bare), ("b", summed)):
        made = source(app, name)
        made.add_values(values, {"lat": [1, 1], "lat.sum": 1500})
    assert lines(registry) == [
        'app_lat_seconds_bucket{source="a",le="0.0"} 1',
        'app_lat_seconds_bucket{source="a",le="+Inf"} 2',
        'app_lat_seconds_bucket{source="b",le="0.0"} 1',
        'app_lat_seconds_bucket{source="b",le="+Inf"} 2',
        'app_lat_seconds_sum{source="b"} 1.5',
        'app_lat_seconds_count{source="b"} 2',
    ]
    assert parse_openmetrics(openmetrics.render(app.snapshot()))["app_lat_seconds"].unit
    made.add_values(bare, {"lat": [1, 1]}, hidden=True)
    assert lines(made) == [
        'app_lat_seconds_bucket{source="b",le="0.0"} 2',
        'app_lat_seconds_bucket{source="b",le="+Inf"} 4',
    ]
    text = openmetrics.render(registry.snapshot()).decode()
    assert text.startswith("# TYPE app_lat_seconds_bucket unknown\napp_lat_seconds_bucket{")


def test_edges_that_no_float_tells_apart(registry: Registry) -> None:
    """Buckets whose ends are the same float are one."""
    huge = Value("huge", kind=Kind.LINEAR_HIST, size=4, bucket_size=9, exponent=400)
    tiny = Value("tiny", kind=Kind.LINEAR_HIST, size=4, bucket_size=9, exponent=-400)
    log = Value("log", kind=Kind.LOG_HIST, size=65)
    source(registry, "top", (huge, [1, 2, 3, 4]), (tiny, [1, 2, 3, 4]), (log, [1] * 65))
    found = lines(registry)
    assert found[0] == 'top_huge_bucket{le="+Inf"} 10'
    assert found[1:3] == ['top_tiny_bucket{le="0.0"} 6', 'top_tiny_bucket{le="+Inf"} 10']
    # Beyond 53 bits the largest integer of a bucket is, as a float, where the next one begins.
    assert found[-2] == 'top_log_bucket{le="9.223372036854776e+18"} 64'
    assert found[-1] == 'top_log_bucket{le="+Inf"} 65'
    assert parse_openmetrics(openmetrics.render(registry.snapshot()))


@pytest.mark.parametrize("number", [0.0, 1e-10, 1e-5, 1e-4, 0.1, 1.0, 1e5, 1e6, 1.5e6, 1e10])
def test_edges_are_canonical(number: float) -> None:
    """As prometheus_client writes them, after Go."""
    assert _show_edge(number) == floatToGoString(number)  # type: ignore[no-untyped-call]  # theirs


def test_pauses_are_frequent(registry: Registry) -> None:
    """Between two pauses come at most 500 lines, and a few hundred sources."""
    values = [Value(f"n{number}") for number in range(3)]
    buckets = Value("h", kind=Kind.LOG_HIST, size=60)
    top = source(registry, "top")
    for number in range(600):
        fields: list[Any] = [(value, number) for value in values]
        source(top, f"s{number}", *fields, (buckets, [1] * 60), (make_sum(buckets), 1))
    texts: list[io.BytesIO] = []

    class Remembered(io.BytesIO):
        def __init__(self) -> None:
            super().__init__()
            texts.append(self)

    grown = [0]

    def pause() -> None:
        grown.append(texts[0].getvalue().count(b"\n") if texts else 0)

    snapshot = registry.snapshot()
    with pytest.MonkeyPatch.context() as patch, pausing(pause):
        patch.setattr(io, "BytesIO", Remembered)
        text = prometheus.render(snapshot)
    assert text.count(b"\n") == 600 * (3 + 60 + 2) + 4
    steps = [after - before for before, after in pairwise(grown)]
    assert max(steps) <= 500
    assert len(grown) > 600 * 64 / 500


def test_conflicts_are_resolved_alike_in_chunks(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Many sources whose labels are taken by an older array's: the rest is exported."""
    older, newer = Value("n", description="older"), Value("n", description="newer")
    top = source(registry, "top")
    for number in range(600):
        made = source(top, f"s{number}", (older, 1))
        if number < 300:
            made.add_values([newer, Value("m")], {"n": 2, "m": 2}, hidden=False)
    for number in range(300):
        source(top, f"t{number}", (newer, 3), (Value("m"), 3))
    found = lines(registry)
    assert len(found) == 1500
    assert sum(line.endswith(" 1") for line in found) == 600
    assert len(warnings(caplog)) == 1
