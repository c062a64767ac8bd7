"""The rows of a source: values, rates, units, orders, and what scripts get."""

import csv
import io
import re

import pytest

from statsfs.eyes.descriptions import Description, Path
from statsfs.eyes.rates import Rates
from statsfs.eyes.samples import Sample
from statsfs.top.detail import LINES, describe_entry
from statsfs.top.plain import CSV_HEADER, format_csv, format_table, list_all
from statsfs.top.table import Find, describe_unit, list_entries, sort_entries
from tests.support.top_place import MadePlace

VCPU = ("kvm", "3287789-11", "vcpu0")


@pytest.fixture
def place() -> MadePlace:
    """Two VMs."""
    return MadePlace(vms=2, vcpus=2)


@pytest.fixture
def rates(place: MadePlace) -> Rates:
    """Its first two samples."""
    rates = Rates()
    rates.add(place.read_sample())
    rates.add(place.read_sample())
    return rates


def make_find(place: MadePlace) -> Find:
    """What files are."""
    schema = place.read_schema()
    return lambda path, name: (schema.find(path) or {}).get(name)


def test_entries_have_values_and_rates_of_what_counts(place: MadePlace, rates: Rates) -> None:
    """A level and a maximum have none; since a reset each counter has what moved."""
    entries = {entry.name: entry for entry in list_entries(VCPU, rates, make_find(place))}
    assert rates.before is not None
    assert (entries["exits"].text, entries["exits"].rate_text) == ("3,228", "1,614/s")
    assert entries["halt_wait_ns"].text == "31.1 ms"
    assert entries["halt_wait_hist"].text.startswith("p50 ")
    assert entries["halt_wait_hist"].rate_text.endswith("/s")
    assert [entries[name].rate for name in ("resident", "guest_mode", "rmap_max")] == [None] * 3
    assert entries["exits"].moved_text == ""
    later = list_entries(VCPU, rates, make_find(place), since=rates.before)
    moved = {entry.name: entry.moved_text for entry in later}
    assert (moved["exits"], moved["halt_wait_ns"]) == ("+1,614", "+15.6 ms")
    assert moved["halt_wait_hist"].startswith("+")
    assert moved["resident"] == ""


def test_what_is_not_described_yet_is_shown_as_it_is(rates: Rates) -> None:
    """Without a unit, and without a rate."""
    entries = {entry.name: entry for entry in list_entries(VCPU, rates, lambda *_: None)}
    assert (entries["exits"].text, entries["exits"].rate_text) == ("3,228", "")
    assert entries["halt_wait_hist"].text.isdecimal()
    assert describe_entry(entries["exits"], 80) == ["/".join((*VCPU, "exits"))]


def test_a_source_that_is_not_there_has_no_entries(rates: Rates) -> None:
    """Nor has one before the first sample."""
    assert list_entries(("kvm", "none"), rates, lambda *_: None) == []
    assert list_entries((), Rates(), lambda *_: None) == []


def test_entries_are_filtered_by_their_paths_and_sorted(place: MadePlace, rates: Rates) -> None:
    """In the order of the program, by name, by value, by rate; and turned round."""
    entries = list_entries(VCPU, rates, make_find(place), pattern=re.compile("vcpu0/.*exits"))
    assert [entry.name for entry in entries] == ["exits", "io_exits", "halt_exits"]
    for order, reverse, names in (
        ("schema", True, ["halt_exits", "io_exits", "exits"]),
        ("name", False, ["exits", "halt_exits", "io_exits"]),
        ("value", False, ["exits", "io_exits", "halt_exits"]),
        ("rate", True, ["halt_exits", "io_exits", "exits"]),
    ):
        found = sort_entries(entries, order, reverse)
        assert [entry.name for entry in found] == names
    everything = list_entries(VCPU, rates, make_find(place))
    by_rate = [entry.name for entry in sort_entries(everything, "rate", False)]
    assert by_rate[0] == "halt_wait_ns"
    assert set(by_rate[-3:]) == {"resident", "guest_mode", "rmap_max"}
    assert len(sort_entries(everything, "value", False)) == len(everything)


@pytest.mark.parametrize(
    ("what", "unit"),
    [
        (Description("n"), ""),
        (Description("n", unit="seconds"), "s"),
        (Description("n", unit="seconds", exponent=-9), "ns"),
        (Description("n", unit="seconds", exponent=-7), "10^-7 seconds"),
        (Description("n", unit="bytes", base=2, exponent=20), "MiB"),
        (Description("n", unit="bytes", exponent=3), "10^3 bytes"),
        (Description("n", unit="cycles"), "cycles"),
        (Description("n", unit="boolean"), "bool"),
        (Description("n", exponent=-2), "10^-2"),
    ],
)
def test_units_are_short(what: Description, unit: str) -> None:
    """As they are written by people, where they have a name."""
    assert describe_unit(what) == unit


def test_an_entry_is_described_whole(place: MadePlace, rates: Rates) -> None:
    """Its number, what it is, and the buckets of a histogram, which fit into the lines."""
    entries = {entry.name: entry for entry in list_entries(VCPU, rates, make_find(place))}
    assert describe_entry(entries["exits"], 80) == [
        "kvm/3287789-11/vcpu0/exits = 3,228  (cumulative, u64)", "VM exits of every kind"
    ]  # fmt: skip
    assert describe_entry(entries["resident"], 80)[0].endswith(" B  (instant, u64, read-only)")
    assert len(describe_entry(entries["rmap_max"], 80)) == 2
    lines = describe_entry(entries["halt_wait_hist"], 60)
    assert lines[0].startswith("kvm/3287789-11/vcpu0/halt_wait_hist = 643 observations")
    assert lines[2].startswith("p50 ")
    assert [len(lines), max(map(len, lines[3:]))] == [9, 58]
    assert "█" in lines[6]
    linear = Description("h", kind="linear_hist", bucket_size=10, size=40)
    rates.add(Sample(0, 3, {"values": {"h": [1] * 40, "e": [0]}, "subordinates": {}}))
    found = {entry.name: entry for entry in list_entries((), rates, lambda *_: linear)}
    lines = describe_entry(found["h"], 20)
    assert len(lines) <= LINES
    assert lines[-1].split()[:2] == ["350", "…"]
    assert len(describe_entry(found["e"], 20)) == 1


def test_scripts_get_all_sources(place: MadePlace, rates: Rates) -> None:
    """A line for each file, or a row of CSV with numbers as they are counted."""

    def find(path: Path, name: str) -> Description | None:
        return make_find(place)(path, name)

    entries = list_all(rates, find, re.compile("vcpu1/(exits|halt_wait_hist|resident)$"))
    lines = format_table(entries).splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["kvm/3287789-11/vcpu1/exits", "2,974", "1,487/s"]
    assert {line[-1] == " " for line in lines} == {False}
    assert format_table([]) == ""
    rows = list(csv.DictReader(io.StringIO(CSV_HEADER + format_csv(12.5, entries))))
    assert rows[0] == {
        "time": "12.500", "path": "kvm/3287789-11/vcpu1", "name": "exits", "value": "2974",
        "rate": "1487",
    }  # fmt: skip
    assert len(rows[1]["value"].split()) == 24
    assert rows[2]["rate"] == ""
