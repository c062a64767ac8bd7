"""The reductions, against the naive model."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsfs.model import values
from statsfs.model.columns import clean_integers, convert_column, reduce_column, wrap_sum
from statsfs.model.values import Aggregate, Type
from tests.support import model
from tests.support.strategies import Indexed, numbers, value_types

columns = st.lists(numbers, max_size=12)
kinds = st.sampled_from(list(Aggregate))


def test_aggregate_is_the_one_of_values() -> None:
    """The flags stand in `values`, because a value has them, and are found here too."""
    assert Aggregate is values.Aggregate


@given(columns, value_types)
def test_a_column_is_converted_as_each_of_its_numbers(column: list[int], type: Type) -> None:
    """Converting many at once is converting each."""
    assert list(convert_column(column, type)) == [model.convert(n, type) for n in column]


@given(st.data(), value_types)
def test_a_column_in_range_is_not_copied(data: st.DataObject, type: Type) -> None:
    """What fits its type costs no copy; booleans are made 0 and 1 in any case."""
    column = data.draw(st.lists(st.integers(type.minimum, type.maximum)))
    converted = convert_column(column, type)
    assert list(converted) == column
    assert converted is column or type is Type.BOOL


@given(columns, value_types, kinds)
def test_a_reduction_is_what_the_model_says(column: list[int], type: Type, kind: Aggregate) -> None:
    """Each kind of aggregate of each type agrees with the naive one."""
    converted = [model.convert(number, type) for number in column]
    assert reduce_column(converted, type, kind) == model.aggregate(converted, type, kind)


@pytest.mark.parametrize("kind", list(Aggregate))
@pytest.mark.parametrize("type", list(Type))
def test_an_aggregate_of_nothing_is_0(type: Type, kind: Aggregate) -> None:
    """There is no "no value": an empty directory's aggregates read 0."""
    assert reduce_column([], type, kind) == 0


@pytest.mark.parametrize(
    ("column", "average"),
    [([-1, -2], -1), ([1, 2], 1), ([-7, 0], -3), ([7, 0], 3), ([-3], -3), ([-1, 0, 0], 0)],
)
def test_an_average_is_divided_toward_zero(column: list[int], average: int) -> None:
    """C divides toward zero, Python toward minus infinity."""
    assert reduce_column(column, Type.S64, Aggregate.AVG) == average


def test_an_average_is_that_of_the_exact_sum() -> None:
    """The sum under an average does not wrap, however many numbers there are."""
    most = Type.U64.maximum
    assert reduce_column([most] * 5, Type.U64, Aggregate.AVG) == most
    assert reduce_column([most] * 5, Type.U64, Aggregate.SUM) == (most * 5) % (1 << 64)


def test_a_sum_is_never_narrowed_to_its_type() -> None:
    """Two hundred u8s of 200 are 40,000, and the sum of booleans is how many are true."""
    assert reduce_column([200] * 200, Type.U8, Aggregate.SUM) == 40_000
    assert reduce_column([1, 0, 1, 1], Type.BOOL, Aggregate.SUM) == 3


@pytest.mark.parametrize(
    ("total", "type", "wrapped"),
    [
        (1 << 64, Type.U64, 0),
        (-1, Type.U64, (1 << 64) - 1),
        (1 << 63, Type.S64, -(1 << 63)),
        (1 << 63, Type.S8, -(1 << 63)),
        (-(1 << 63) - 1, Type.S16, (1 << 63) - 1),
        (1 << 63, Type.U8, 1 << 63),
        (5, Type.BOOL, 5),
    ],
)
def test_a_sum_wraps_as_64_bits_do(total: int, type: Type, wrapped: int) -> None:
    """A signed type's sum is an S64, any other a U64."""
    assert wrap_sum(total, type) == wrapped


@pytest.mark.parametrize("kind", [Aggregate.NONE, Aggregate.SUM | Aggregate.MIN])
def test_a_reduction_is_of_one_kind(kind: Aggregate) -> None:
    """None and several at once are refused."""
    with pytest.raises(ValueError, match="one kind"):
        reduce_column([1], Type.U64, kind)


class Quarrelsome:
    """An integer whose addition fails in a way of its own."""

    def __index__(self) -> int:
        return 1

    def __radd__(self, other: Any) -> int:
        raise ArithmeticError("no")


@pytest.mark.parametrize(
    ("column", "clean"),
    [
        ([], True),
        ([1, -(1 << 90)], True),
        ([True, 2], True),
        ([1, 0.5], False),
        ([1, 2.0], False),
        ([1, None], False),
        (["1"], False),
        ([Indexed(1)], False),
        ([Quarrelsome()], False),
    ],
)
def test_a_column_of_integers_is_told_from_others(column: list[Any], clean: bool) -> None:
    """Only ints are clean; whatever else is there is found, and nothing is raised."""
    assert clean_integers(column) is clean
