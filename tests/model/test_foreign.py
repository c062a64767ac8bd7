"""What is caught around foreign code, and what passes: an interrupt of the program."""

import functools
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from statsfs.exceptions import BaseMismatchError
from statsfs.model.fields import log_hist
from statsfs.model.foreign import call_foreign, describe_error, foreign, is_interrupt
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.source import Source
from tests.support.foreign import ERRORS, Unprintable, broken


def caught(function: Callable[[], object]) -> BaseException | None:
    """Return what is caught around a function."""
    try:
        function()
    except foreign() as error:
        return error
    return None


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Return a function that raises."""

    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@contextmanager
def handler(number: int, function: Any) -> Iterator[None]:
    """Have a handler of a signal."""
    before = signal.signal(number, function)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_foreign_code_may_raise_anything() -> None:
    """All of it is caught; Ctrl-C in the main thread, and there only, may be a real one."""
    for name, error in ERRORS.items():
        if name != "interrupt":
            assert caught(raising(error)) is error
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(caught, raising(error)).result() is error
    assert caught(lambda: None) is None
    assert foreign() is Exception
    with pytest.raises(KeyboardInterrupt):
        caught(raising(KeyboardInterrupt()))


def test_what_a_signal_handler_raises_passes() -> None:
    """Whatever it is but an `Exception`, and however the handler is written."""
    leave = raising(SystemExit(4))
    for function in (leave, functools.partial(leave), SimpleNamespace(leave=leave).leave):
        with handler(signal.SIGTERM, function), pytest.raises(SystemExit):
            caught(lambda: signal.raise_signal(signal.SIGTERM))

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with handler(signal.SIGINT, interrupt):
        with pytest.raises(KeyboardInterrupt):
            caught(lambda: signal.raise_signal(signal.SIGINT))
        # Such a program's Ctrl-C would be its handler's.
        assert isinstance(caught(raising(KeyboardInterrupt())), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        caught(lambda: signal.raise_signal(signal.SIGINT))
    assert not is_interrupt(SystemExit())


def test_errors_of_threads() -> None:
    """What is no `Exception` becomes one, as a thread's owner may wait for it."""
    call_foreign(lambda: None)
    with pytest.raises(KeyError):
        call_foreign(raising(KeyError()))
    with pytest.raises(RuntimeError, match="GeneratorExit") as caught:
        call_foreign(raising(GeneratorExit()))
    assert isinstance(caught.value.__cause__, GeneratorExit)


def test_texts_of_errors() -> None:
    """One that has none, or whose text raises, has its type's name."""
    texts = [describe_error(e) for e in (ValueError("x"), ValueError(), SystemExit(3))]
    assert texts == ["x", "ValueError", "SystemExit(3)"]
    assert describe_error(Unprintable()) == "Unprintable"


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "interrupt"])
def test_a_broken_number_costs_its_own_only(name: str) -> None:
    """In the program's own calls, as in a mount. A StopIteration made totals partial."""
    top = broken("top", ERRORS[name])
    assert top.get_value("a") == 5
    rows = {
        samples.array.values[0].name: samples.rows for samples in top.snapshot().arrays.values()
    }
    assert rows["a"] == [(5,)]
    for source in top.subordinates:
        if source.name in ("property", "attribute", "item", "number"):
            with pytest.raises(BaseMismatchError):
                source.get_value("a")


def test_histograms_and_booleans_that_raise() -> None:
    """In the middle of a list, or of a column."""

    class Lists:
        broken = False

        @property
        def h(self) -> list[int]:
            if self.broken:
                raise StopIteration
            return [1, 2]

    class Shape(Stats):
        h = log_hist(2, Aggregate.SUM)

    value = values_of(Shape)[0]
    top, bases = Source("top"), [Lists(), Lists(), Lists()]
    for number, base in enumerate(bases):
        source = Source("s%d", number)
        source.add_values([value], base)
        top.add_subordinate(source)
    assert top.get_value("h") == [3, 6]
    bases[1].broken = True
    assert top.get_value("h") == [2, 4]

    class Truth:
        def __bool__(self) -> NoReturn:
            raise StopIteration

        def __radd__(self, other: int) -> int:
            return other

        def __hash__(self) -> int:
            return 1

    flags = [Value("f", Type.BOOL, Aggregate.SUM)]
    top = Source("top")
    last: dict[str, object] = {"f": 3}
    for number, held in enumerate(({"f": 1}, {"f": 2}, last)):
        source = Source("s%d", number)
        source.add_values(flags, held)
        top.add_subordinate(source)
    assert top.get_value("f") == 3
    last["f"] = Truth()
    assert top.get_value("f") == 2
