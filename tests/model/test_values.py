"""Types, names and descriptions of values."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.exceptions import InvalidNameError
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value, check_name
from tests.support import model
from tests.support.strategies import BOUNDARIES, numbers, value_types

# Types


@given(numbers, value_types)
def test_converting_is_what_c_does(number: int, type: Type) -> None:
    """BOOL is `!= 0`, the others wrap modulo 2^N with their sign."""
    assert type.convert(number) == model.convert(number, type)


@given(value_types, numbers)
def test_converting_ends_within_the_type(type: Type, number: int) -> None:
    """What was converted is in the type's range, and converting it again changes nothing."""
    converted = type.convert(number)
    assert type.minimum <= converted <= type.maximum
    assert type.convert(converted) == converted


@pytest.mark.parametrize(
    ("type", "number", "converted"),
    [
        (Type.U8, 256, 0),
        (Type.U8, -1, 255),
        (Type.S8, 128, -128),
        (Type.S8, -129, 127),
        (Type.U32, 1 << 32, 0),
        (Type.S32, 1 << 31, -(1 << 31)),
        (Type.U64, -1, (1 << 64) - 1),
        (Type.S64, 1 << 63, -(1 << 63)),
        (Type.BOOL, 256, 1),
        (Type.BOOL, -1, 1),
        (Type.BOOL, 0, 0),
    ],
)
def test_converting_at_the_borders(type: Type, number: int, converted: int) -> None:
    """The numbers one past each end come out at the other end."""
    assert type.convert(number) == converted


@pytest.mark.parametrize(
    ("type", "text", "width", "minimum", "maximum"),
    [
        (Type.BOOL, "bool", 1, 0, 1),
        (Type.U8, "u8", 1, 0, 255),
        (Type.U16, "u16", 2, 0, 65535),
        (Type.U32, "u32", 4, 0, 4294967295),
        (Type.U64, "u64", 8, 0, 18446744073709551615),
        (Type.S8, "s8", 1, -128, 127),
        (Type.S16, "s16", 2, -32768, 32767),
        (Type.S32, "s32", 4, -2147483648, 2147483647),
        (Type.S64, "s64", 8, -9223372036854775808, 9223372036854775807),
    ],
)
def test_what_a_type_is(type: Type, text: str, width: int, minimum: int, maximum: int) -> None:
    """Each type has the name, the width and the range of its C type."""
    assert (str(type), type.width, type.minimum, type.maximum) == (text, width, minimum, maximum)


def test_texts_of_the_enums() -> None:
    """Kinds, units and aggregates are written in lower case wherever they are shown."""
    kinds = ["cumulative", "instant", "peak", "linear_hist", "log_hist", "hist"]
    assert [str(kind) for kind in Kind] == kinds
    assert [str(unit) for unit in Unit] == ["none", "bytes", "seconds", "cycles", "boolean"]
    assert [kind.label for kind in Aggregate] == [
        "sum", "min", "max", "avg", "count_zero", "count_nonzero",
    ]  # fmt: skip
    assert Aggregate.NONE.label == "none"


def test_kinds_and_units_have_the_numbers_of_kvm() -> None:
    """The binary statistics of KVM number them so (api.rst, 4.133)."""
    kinds = [Kind.CUMULATIVE, Kind.INSTANT, Kind.PEAK, Kind.LINEAR_HIST, Kind.LOG_HIST]
    assert [kind.value for kind in kinds] == [0, 1, 2, 3, 4]
    units = [Unit.NONE, Unit.BYTES, Unit.SECONDS, Unit.CYCLES, Unit.BOOLEAN]
    assert [unit.value for unit in units] == [0, 1, 2, 3, 4]


# Names


@pytest.mark.parametrize(
    "name",
    ["a", "exits", "1234-11", "a.min", "a b", "é", "x" * 255, "é" * 127, "~", "-", "%d", "a\u2028"],
)
def test_names_that_a_file_may_have(name: str) -> None:
    """Everything printable that a file may be called is a name, up to 255 bytes of UTF-8."""
    assert check_name(name, "a name") == name
    assert Value(name).name == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "0 bytes"),
        ("x" * 256, "256 bytes"),
        ("é" * 128, "256 bytes"),
        (".", 'starts with "."'),
        ("..", 'starts with "."'),
        (".stats.json", 'starts with "."'),
        ("a/b", '"/"'),
        ("/", '"/"'),
        ("a\0b", "control character"),
        ("a\n", "control character"),
        ("\x1b[m", "control character"),
        ("a\x7f", "control character"),
        ("a\x85", "control character"),
        ("\udc80", "not valid UTF-8"),
        (None, "NoneType"),
        (b"a", "bytes"),
        (5, "int"),
    ],
)
def test_names_that_no_file_may_have(name: Any, why: str) -> None:
    """What is refused is told, together with what the name was meant for."""
    with pytest.raises(InvalidNameError, match="a thing's name") as caught:
        check_name(name, "a thing's name")
    assert why in str(caught.value)
    assert caught.value.offender == name
    with pytest.raises(InvalidNameError, match="a value's name"):
        Value(name)


def test_the_suffix_of_an_aggregate_counts_in_its_length() -> None:
    """A value whose aggregates' names would be too long is refused as such."""
    Value("x" * 251, aggregate=Aggregate.SUM | Aggregate.MIN)
    with pytest.raises(InvalidNameError, match="an aggregate's name"):
        Value("x" * 252, aggregate=Aggregate.SUM | Aggregate.MIN)
    Value("x" * 255, aggregate=Aggregate.MIN)


@pytest.mark.parametrize(
    ("aggregate", "names"),
    [
        (Aggregate.NONE, []),
        (Aggregate.SUM, ["n"]),
        (Aggregate.MIN, ["n"]),
        (Aggregate.COUNT_ZERO, ["n"]),
        (Aggregate.SUM | Aggregate.MIN, ["n", "n.min"]),
        (Aggregate.MIN | Aggregate.MAX, ["n.min", "n.max"]),
        (
            Aggregate.SUM | Aggregate.MIN | Aggregate.MAX | Aggregate.AVG
            | Aggregate.COUNT_ZERO | Aggregate.COUNT_NONZERO,
            ["n", "n.min", "n.max", "n.avg", "n.count_zero", "n.count_nonzero"],
        ),
    ],
)  # fmt: skip
def test_names_of_aggregates(aggregate: Aggregate, names: list[str]) -> None:
    """The sum or the only kind has the plain name, each other kind a suffix."""
    made = Value("n", aggregate=aggregate).aggregate_names
    assert [name for _, name in made] == names
    assert [kind for kind, _ in made] == list(aggregate)


# Values


def test_the_defaults_of_a_value() -> None:
    """A value of which only the name is given is a writable, cumulative u64 without a total."""
    value = Value("n")
    assert (value.type, value.aggregate, value.mode) == (Type.U64, Aggregate.NONE, 0o644)
    assert (value.offset, value.kind, value.unit) == (None, Kind.CUMULATIVE, Unit.NONE)
    assert (value.base, value.exponent, value.description) == (10, 0, "")
    assert (value.hidden, value.show, value.writable) == (False, None, True)
    assert (value.size, value.bucket_size, value.histogram, value.zero) == (1, 0, False, 0)


def test_positional_arguments_of_a_value() -> None:
    """The first five arguments may be given by position, in the order of the proposal."""
    value = Value("n", Type.S8, Aggregate.SUM, 0o600, 8)
    assert value == Value(name="n", type=Type.S8, aggregate=Aggregate.SUM, mode=0o600, offset=8)


def test_an_instant_value_cannot_be_cleared() -> None:
    """Its default mode has no write bit, and one that has is refused."""
    assert Value("n", kind=Kind.INSTANT).mode == 0o444
    assert not Value("n", kind=Kind.INSTANT).writable
    assert Value("n", kind=Kind.INSTANT, mode=0o400).mode == 0o400
    for mode in (0o644, 0o446, 0o464, 0o222):
        with pytest.raises(ValueError, match="'n' is INSTANT"):
            Value("n", kind=Kind.INSTANT, mode=mode)


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o644, 0o666, 0o200, 0])
def test_modes_of_read_and_write_bits(mode: int) -> None:
    """Any read and write bits may be asked for; the write bits say whether it can be cleared."""
    assert Value("n", mode=mode).mode == mode
    assert Value("n", mode=mode).writable == bool(mode & 0o222)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"mode": 0o755}, ValueError, "mode 0o755"),
        ({"mode": 0o4644}, ValueError, "mode 0o4644"),
        ({"mode": -1}, ValueError, "mode"),
        ({"mode": "rw"}, TypeError, "mode"),
        ({"mode": True}, TypeError, "mode"),
        ({"offset": -8}, ValueError, "offset -8"),
        ({"offset": "8"}, TypeError, "offset"),
        ({"offset": False}, TypeError, "offset"),
        ({"base": 8}, ValueError, "base is 8"),
        ({"base": "10"}, TypeError, "base"),
        ({"exponent": 1.5}, TypeError, "exponent"),
        ({"exponent": True}, TypeError, "exponent"),
        ({"exponent": 40000}, ValueError, "exponent 40000"),
        ({"exponent": -40000}, ValueError, "exponent -40000"),
        ({"type": "u64"}, TypeError, "type"),
        ({"aggregate": "sum"}, TypeError, "aggregate"),
        ({"kind": 0}, TypeError, "kind"),
        ({"unit": "bytes"}, TypeError, "unit"),
        ({"description": None}, TypeError, "description"),
        ({"hidden": 1}, TypeError, "hidden"),
        ({"show": "on"}, TypeError, "show"),
        ({"size": 2}, ValueError, "only histograms have a size"),
        ({"size": 0}, ValueError, "only histograms have a size"),
        ({"bucket_size": 1}, ValueError, "only histograms have a size"),
        ({"size": "2"}, TypeError, "size"),
        ({"size": True}, TypeError, "size"),
        ({"bucket_size": 1.5}, TypeError, "bucket_size"),
        ({"kind": Kind.LOG_HIST, "size": 0}, ValueError, "size is 0, not 1 to 65"),
        ({"kind": Kind.LOG_HIST, "size": 66}, ValueError, "size is 66"),
        ({"kind": Kind.LINEAR_HIST, "size": 65536}, ValueError, "size is 65536, not 1 to 65535"),
        ({"kind": Kind.LOG_HIST, "size": 2, "bucket_size": 1}, ValueError, "bucket_size 1 of log"),
        ({"kind": Kind.LINEAR_HIST, "size": 2}, ValueError, "bucket_size 0 of linear_hist"),
        (
            {"kind": Kind.LINEAR_HIST, "size": 2, "bucket_size": 1 << 32},
            ValueError,
            "bucket_size 4294967296",
        ),
        ({"kind": Kind.LINEAR_HIST, "size": 2, "bucket_size": -1}, ValueError, "bucket_size -1"),
        (
            {"kind": Kind.LOG_HIST, "size": 2, "type": Type.BOOL},
            ValueError,
            "a histogram has counts",
        ),
        ({"kind": Kind.LOG_HIST, "size": 2, "show": str}, ValueError, "a histogram has counts"),
        ({"bounds": [1]}, ValueError, "cumulative has no bounds"),
        ({"kind": Kind.LOG_HIST, "bounds": [1]}, ValueError, "log_hist has no bounds"),
        ({"kind": Kind.HIST}, ValueError, "0 bounds, not 1 to 1024"),
        ({"kind": Kind.HIST, "bounds": list(range(1025))}, ValueError, "1025 bounds, not 1 to"),
        ({"kind": Kind.HIST, "bounds": [1, 1]}, ValueError, "bounds do not grow"),
        ({"kind": Kind.HIST, "bounds": [2, 1]}, ValueError, "bounds do not grow"),
        ({"kind": Kind.HIST, "bounds": [-1, 1]}, ValueError, "bounds do not grow from 0"),
        ({"kind": Kind.HIST, "bounds": [1, 1 << 64]}, ValueError, "bounds do not grow from 0 to"),
        ({"kind": Kind.HIST, "bounds": [0.5]}, TypeError, "bounds are not a list of integers"),
        ({"kind": Kind.HIST, "bounds": [True]}, TypeError, "bounds are not a list of integers"),
        ({"kind": Kind.HIST, "bounds": 5}, TypeError, "bounds are not a list of integers"),
        ({"kind": Kind.HIST, "bounds": [1, 2], "size": 2}, ValueError, "size is 2, not 3 to 3"),
        ({"kind": Kind.HIST, "bounds": [1], "bucket_size": 1}, ValueError, "bucket_size 1 of hist"),
        (
            {"kind": Kind.LOG_HIST, "size": 2, "aggregate": Aggregate.MAX},
            ValueError,
            "the only aggregate of a histogram is SUM",
        ),
        (
            {"kind": Kind.LOG_HIST, "size": 2, "aggregate": Aggregate.SUM | Aggregate.MIN},
            ValueError,
            "the only aggregate of a histogram is SUM",
        ),
    ],
)
def test_values_that_are_refused(
    arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    """Every argument is checked when the value is made, and the message names the value."""
    with pytest.raises(error, match=match) as caught:
        Value("exits", **arguments)
    assert "'exits'" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "size", "bucket_size", "starts"),
    [
        (Kind.LOG_HIST, 1, 0, (0,)),
        (Kind.LOG_HIST, 2, 0, (0, 1)),
        (Kind.LOG_HIST, 6, 0, (0, 1, 2, 4, 8, 16)),
        (Kind.LINEAR_HIST, 1, 5, (0,)),
        (Kind.LINEAR_HIST, 4, 5, (0, 5, 10, 15)),
        (Kind.LINEAR_HIST, 2, (1 << 32) - 1, (0, (1 << 32) - 1)),
    ],
)
def test_a_histogram_tells_where_its_buckets_begin(
    kind: Kind, size: int, bucket_size: int, starts: tuple[int, ...]
) -> None:
    """One start a bucket, the first at 0; a histogram can be cleared, and starts empty."""
    value = Value("n", Type.U16, Aggregate.SUM, kind=kind, size=size, bucket_size=bucket_size)
    assert value.histogram
    assert value.starts == starts
    assert value.width == 2 * size
    assert value.zero == [0] * size
    assert value.zero is not value.zero
    assert (value.mode, value.writable) == (0o644, True)
    assert value.aggregate_names == ((Aggregate.SUM, "n"),)


def test_a_histogram_with_bounds_of_its_own() -> None:
    """A bound is the largest number of its bucket; there is one bucket more than bounds."""
    value = Value("n", kind=Kind.HIST, bounds=[100, 300, 1000])
    assert (value.size, value.bounds, value.bucket_size) == (4, (100, 300, 1000), 0)
    assert value.starts == (0, 101, 301, 1001)
    assert value.zero == [0, 0, 0, 0]
    assert (value.histogram, value.cumulative, value.writable) == (True, True, True)
    assert hash(value) == hash(Value("n", kind=Kind.HIST, bounds=(100, 300, 1000)))
    assert replace(value, description="d").size == 4
    other = Value("n", kind=Kind.HIST, bounds=[100, 300, 2000])
    assert value != other
    assert value.identity != other.identity
    said = value.describe_difference(other)
    assert said == "bounds is (100, 300, 2000), not (100, 300, 1000)"
    assert Value("n", kind=Kind.HIST, bounds=list(range(1024))).size == 1025


def test_what_only_grows() -> None:
    """Counters and histograms are cumulative; levels and peaks are not."""
    shapes: dict[Kind, dict[str, Any]] = {
        Kind.LINEAR_HIST: {"bucket_size": 1},
        Kind.HIST: {"bounds": [1]},
    }
    cumulative = [kind for kind in Kind if Value("n", kind=kind, **shapes.get(kind, {})).cumulative]
    assert cumulative == [Kind.CUMULATIVE, Kind.LINEAR_HIST, Kind.LOG_HIST, Kind.HIST]


def test_the_largest_histogram() -> None:
    """KVM's descriptors have 16 bits for the number of buckets."""
    assert len(Value("n", kind=Kind.LINEAR_HIST, size=65535, bucket_size=1).zero) == 65535
    assert Value("n", kind=Kind.LOG_HIST, size=65).starts[-1] == 1 << 63


def test_histograms_of_other_sizes_are_other_values() -> None:
    """The buckets count where values are compared."""
    made = [
        Value("n", kind=Kind.LINEAR_HIST, size=size, bucket_size=width)
        for size in (2, 3)
        for width in (5, 6)
    ]
    assert len(set(made)) == 4
    assert made[0] == Value("n", kind=Kind.LINEAR_HIST, size=2, bucket_size=5)


def test_a_value_never_changes() -> None:
    """Values are hashed and shared, so they are frozen."""
    value = Value("n")
    with pytest.raises(FrozenInstanceError):
        value.name = "m"  # type: ignore[misc]  # that is the question


FIELDS: dict[str, Any] = {
    "name": "m", "type": Type.U8, "aggregate": Aggregate.SUM, "mode": 0o600, "offset": 8,
    "kind": Kind.PEAK, "unit": Unit.BYTES, "base": 2, "exponent": 3, "description": "d",
    "hidden": True, "show": str,
}  # fmt: skip


def test_values_are_compared_by_content() -> None:
    """Equal values are equal and hash alike wherever they were made; each argument counts."""
    one, other = Value(**FIELDS), Value(**FIELDS)
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other, copy.copy(one), copy.deepcopy(one)}) == 1
    other_thing: object = "m"
    assert one != other_thing


@pytest.mark.parametrize("field", list(FIELDS))
def test_each_argument_tells_values_apart(field: str) -> None:
    """Values that differ in one argument only are not equal."""
    default = Value("n")
    changed = Value(**{"name": "n", field: FIELDS[field]})
    assert default != changed
    assert len({default, changed}) == 2


def test_a_value_may_go_to_another_process() -> None:
    """A hash that another process computed is not believed: those of strings differ there."""
    value = Value("n", aggregate=Aggregate.SUM)
    hash(value)
    program = (
        "import pickle, sys; from statsfs import Aggregate, Value;"
        "value = pickle.loads(sys.stdin.buffer.read());"
        "print(value in {Value('n', aggregate=Aggregate.SUM)})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(value), capture_output=True, env=environment, check=True,
    )  # fmt: skip
    assert done.stdout == b"True\n"


@given(st.sampled_from(BOUNDARIES))
def test_show_is_kept_as_it_is(number: int) -> None:
    """The function of an enum is the user's own, and called by nobody here."""
    value = Value("state", show=hex)
    assert value.show is hex
    assert value.show(number) == hex(number)
