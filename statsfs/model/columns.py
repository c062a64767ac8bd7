"""Columns: many integers of one value, converted to its type and reduced to an aggregate.

Threading: pure functions.
"""

from array import array
from collections.abc import Sequence
from typing import Final

from statsfs.model.foreign import foreign
from statsfs.model.values import Aggregate, Type

__all__ = ["clean_integers", "convert_column", "divide", "reduce_column", "wrap_sum"]

_U64: Final = (1 << 64) - 1


def wrap_sum(total: int, type: Type) -> int:
    """Wrap an exact sum as a 64-bit accumulator does; that of a signed type is an S64."""
    return Type.S64.convert(total) if type.signed else total & _U64


def divide(total: int, count: int) -> int:
    """Divide as C does, toward zero; Python's own division goes toward minus infinity."""
    return total // count if total >= 0 else -(-total // count)


def clean_integers(column: Sequence[object]) -> bool:
    """Tell whether a column holds only integers, at C speed: else its sum is not an int."""
    try:
        return type(sum(column)) is int  # type: ignore[arg-type]  # that is the question
    except foreign():  # foreign objects may raise anything when they are added
        return False


def convert_column(column: Sequence[int], type: Type) -> Sequence[int]:
    """Convert a column of integers to a type, as C does."""
    # First an array of the type is made, which fails if an integer is out of range. Nearly always
    # none is, and that takes a fraction of the time of converting each integer.
    if type is Type.BOOL:
        return bytes([bool(number) for number in column]) if {*column} - {0, 1} else column
    try:
        array(type.code, column)
    except OverflowError:
        wrapped = list(map((type.maximum - type.minimum).__and__, column))
    else:
        return column
    if not type.signed:
        return wrapped
    # Unsigned memory, read again as signed.
    unsigned = bytes(wrapped) if type.width == 1 else array(type.code.upper(), wrapped).tobytes()
    return array(type.code, unsigned).tolist()


def reduce_column(column: Sequence[int], type: Type, kind: Aggregate) -> int:
    """Reduce integers of a type to one kind of aggregate; of nothing it is 0.

    SUM is modulo 2^64, signed or not as the type, and never narrowed to it; AVG is the exact sum
    divided toward zero.
    """
    if not column:
        return 0
    match kind:
        case Aggregate.SUM:
            return wrap_sum(sum(column), type)
        case Aggregate.MIN:
            return int(min(column))
        case Aggregate.MAX:
            return int(max(column))
        case Aggregate.AVG:
            return divide(sum(column), len(column))
        case Aggregate.COUNT_ZERO:
            return column.count(0)
        case Aggregate.COUNT_NONZERO:
            return len(column) - column.count(0)
        case _:
            raise ValueError(f"not one kind of aggregate: {kind!r}")
