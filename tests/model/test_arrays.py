"""Arrays: equal ones are one, and who gets which name where several meet."""

import gc
import threading
from collections.abc import Callable

import pytest

from statsfs.exceptions import BaseMismatchError, DuplicateNameError, ExhaustedError
from statsfs.model.arrays import FILE_NUMBERS, Array, intern_array
from statsfs.model.fields import u64
from statsfs.model.layout import make_layout
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Type, Value
from statsfs.tree.index import Entry
from statsfs.tree.source import Source
from tests.support.forking import run_forking

ALL = (
    Aggregate.SUM | Aggregate.MIN | Aggregate.MAX | Aggregate.AVG
    | Aggregate.COUNT_ZERO | Aggregate.COUNT_NONZERO
)  # fmt: skip


def array(*names: str, aggregate: Aggregate = Aggregate.SUM, hidden: bool = False) -> Array:
    """An array of these names that no other test has, and no value of which belongs to another."""
    array.made += 1  # type: ignore[attr-defined]  # a counter of the function's own
    made: int = array.made  # type: ignore[attr-defined]
    return intern_array(
        [Value(name, aggregate=aggregate, hidden=hidden, exponent=made) for name in names]
    )


array.made = 0  # type: ignore[attr-defined]


def nothing(name: str) -> bool:
    """No subdirectory has any name."""
    return False


def is_in(*names: str) -> Callable[[str], bool]:
    """Subdirectories have these names."""
    return names.__contains__


# Interning


def test_equal_arrays_are_one() -> None:
    """However they were made: a list, a tuple, a class."""

    class Counters(Stats):
        """One value."""

        interned = u64(Aggregate.SUM)

    one = intern_array([Value("interned", aggregate=Aggregate.SUM)])
    assert intern_array((Value("interned", aggregate=Aggregate.SUM),)) is one
    assert intern_array(values_of(Counters)) is one
    assert intern_array(one.values) is one
    assert intern_array([Value("interned", Type.U32, Aggregate.SUM)]) is not one


def test_arrays_are_numbered_in_the_order_they_came() -> None:
    """The older array has the smaller serial, and keeps it when it comes again."""
    older, newer = array("a"), array("a", "b")
    assert older.serial < newer.serial
    assert intern_array(list(older.values)) is older


def test_the_numbers_of_files_are_unique() -> None:
    """Inode numbers are made of them: each file of each array has its own."""
    arrays = [array("a", "b", aggregate=ALL) for _ in range(3)]
    files = [file for made in arrays for file in made.own]
    files += [file for made in arrays for kinds in made.aggregates for file in kinds]
    assert len({file.number for file in files}) == len(files) == 3 * 2 * 7
    assert all(8 <= file.number < FILE_NUMBERS for file in files)


def test_numbers_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array for whose files none are left is refused; it takes none, and others go on."""
    monkeypatch.setattr("statsfs.model.arrays._next_serial", FILE_NUMBERS - 3)
    known = intern_array([Value("a", description="the last but two")])
    assert known.own[0].number == FILE_NUMBERS - 3
    # Arrays that no other test has declared before.
    new = Value("n", aggregate=ALL, description="beyond the end")
    for values in ([new], [new, Value("m"), Value("o")]):
        for _ in range(2):
            with pytest.raises(ExhaustedError, match=r"too many values .* files of 'n'"):
                intern_array(values)
    assert intern_array(known.values) is known
    last = intern_array([Value("n", aggregate=Aggregate.SUM, description="last")])
    numbers = [last.own[0].number, last.aggregates[0][0].number]
    assert numbers == [FILE_NUMBERS - 2, FILE_NUMBERS - 1]
    with pytest.raises(ExhaustedError):
        Source("source").add_values([Value("p", description="too late")], {"p": 1})


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ([], ValueError, "at least one value"),
        (["exits"], TypeError, "not str"),
        ("exits", TypeError, "not str"),
        ([Value("a"), None], TypeError, "not NoneType"),
        (5, TypeError, "a Stats class or Values, not int"),
        ([Value("a"), Value("b"), Value("a", Type.U8)], DuplicateNameError, "'a' is twice"),
        ([Value("a", offset=0), Value("b")], BaseMismatchError, "'b' has no offset"),
        ([Value("a", offset=4)], BaseMismatchError, "'a' .* not aligned"),
    ],
)
def test_arrays_that_are_refused(values: list[Value], error: type[Exception], match: str) -> None:
    """What is no array is refused each time it is offered."""
    for _ in range(2):
        with pytest.raises(error, match=match):
            intern_array(values)


def test_a_hidden_value_may_repeat_a_name() -> None:
    """Only what has a file needs a name of its own."""
    values = [Value("a"), Value("a", hidden=True), Value("a", Type.U8, hidden=True)]
    assert len(intern_array(values).own) == 3


def test_an_array_made_while_another_is_being_made_has_a_number_of_its_own() -> None:
    """Collecting garbage may run a finalizer that brings an array, just then."""
    threshold = gc.get_threshold()
    made: list[Array] = []

    class Garbage:
        """Interns an array when it is collected."""

        def __init__(self, number: int) -> None:
            self.number = number
            self.cycle = self

        def __del__(self) -> None:
            made.append(intern_array([Value(f"reentrant{self.number}")]))

    try:
        for number in range(1, 120):
            gc.collect(0)
            Garbage(number)
            # At whichever allocation the collection matters, one of these rounds has it there.
            gc.set_threshold(number)
            made.append(array(f"outer{number}", "b"))
            gc.set_threshold(*threshold)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(made) == 2 * 119
    numbers = [file.number for found in made for file in found.own]
    assert len(set(numbers)) == len(numbers)


def bring_array(number: int, barrier: threading.Barrier, found: list[Array]) -> None:
    """Bring an array when all are ready to."""
    values = [Value(f"contended{number}")]
    barrier.wait()
    found.append(intern_array(values))


def test_threads_that_bring_one_array_at_once_bring_one() -> None:
    """Interning is atomic: all threads get the same array."""
    for attempt in range(20):
        found: list[Array] = []
        arguments = (attempt, threading.Barrier(4), found)
        threads = [threading.Thread(target=bring_array, args=arguments) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(set(map(id, found))) == 1


def test_a_child_that_was_forked_while_arrays_came_can_bring_some() -> None:
    """The lock of another thread, which the child does not have, is not waited for."""
    program = """
import os, signal, sys, threading
from statsfs import Value
from statsfs.model import arrays
held = threading.Event()
def hold():
    with arrays._intern_lock:
        held.set()
        signal.pause()
threading.Thread(target=hold, daemon=True).start()
held.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    arrays.intern_array([Value("of the child")])
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0, "the child hangs"
"""
    assert run_forking(program, measured=True) == (0, "")


def test_what_files_and_entries_are() -> None:
    """A file tells what it shows; an entry without a reader is only declared."""
    made = array("a", aggregate=Aggregate.SUM | Aggregate.MAX)
    assert repr(made.own[0]) == "<File 'a' own>"
    assert [file.name for file in made.aggregates[0]] == ["a", "a.max"]
    assert "MAX" in repr(made.aggregates[0][1])
    assert Entry(Source("s"), made, None, None, None, False).declared
    assert not Entry(Source("s"), made, made.binder.bind({"a": 1})[0], {}, {}, False).declared


# Layouts


def test_own_values_come_first_and_in_order() -> None:
    """A directory lists its own values as declared, then the aggregates."""
    own, below = array("z", "a"), array("n", aggregate=Aggregate.SUM | Aggregate.MIN)
    layout = make_layout([own], [], [own, below], nothing)
    assert list(layout.files) == ["z", "a", "n", "n.min"]
    assert layout.losses == []


def test_losing_to_an_own_value_of_the_same_array_is_normal() -> None:
    """A VM with exits of its own above vCPUs shows its own, and nobody complains."""
    made = array("a", aggregate=ALL)
    layout = make_layout([made], [], [made], nothing)
    assert layout.files == {"a": made.own[0]}
    assert layout.losses == []


def test_a_subdirectory_wins_over_a_value() -> None:
    """And over an aggregate; both losses are told, without a file that has the name."""
    own, below = array("a", "b"), array("c")
    layout = make_layout([own], [], [below], is_in("a", "c"))
    assert layout.files == {"b": own.own[1]}
    assert [(loss.name, loss.winner) for loss in layout.losses] == [("a", None), ("c", None)]


def test_an_own_value_wins_over_an_older_aggregate() -> None:
    """Which array is older matters among equals only."""
    older, newer = array("a"), array("a")
    layout = make_layout([newer], [older], [older], nothing)
    assert layout.files == {"a": newer.own[0]}
    assert [(loss.files[0].array, loss.winner) for loss in layout.losses] == [(older, newer.own[0])]


def test_a_declared_aggregate_wins_over_an_older_aggregate() -> None:
    """What a source declares with base None is its own wish."""
    older, newer = array("a"), array("a")
    layout = make_layout([], [newer], [older], nothing)
    assert layout.files == {"a": newer.aggregates[0][0]}


@pytest.mark.parametrize("rank", ["own", "declared", "below"])
def test_among_equals_the_older_array_wins(rank: str) -> None:
    """Whatever the order in which they are given."""
    older, newer = array("a"), array("a")
    for both in ([older, newer], [newer, older]):
        given = {"own": [], "declared": [], "below": [], rank: both}
        layout = make_layout(given["own"], given["declared"], given["below"], nothing)
        assert layout.files["a"].array is older
        assert [loss.files[0].array for loss in layout.losses] == [newer]


def test_the_files_of_one_aggregate_stand_or_fall_together() -> None:
    """One name that is taken takes all kinds of the value, and of no other value."""
    made = array("a", "b", aggregate=Aggregate.SUM | Aggregate.MIN)
    layout = make_layout([], [], [made], is_in("a.min"))
    assert list(layout.files) == ["b", "b.min"]
    (loss,) = layout.losses
    assert [file.name for file in loss.files] == ["a", "a.min"]
    assert loss.name == "a.min"


def test_a_value_that_lost_leaves_its_other_names_to_others() -> None:
    """`a` fell with `a.min`, so a younger array may have `a`."""
    older = array("a", aggregate=Aggregate.SUM | Aggregate.MIN)
    younger = array("a")
    layout = make_layout([], [], [older, younger], is_in("a.min"))
    assert layout.files == {"a": younger.aggregates[0][0]}


def test_hidden_values_have_no_file_of_their_own_but_one_above() -> None:
    """Also where the array is only declared: hidden here, shown by whoever has it below."""
    made = array("a", hidden=True)
    assert make_layout([made], [], [], nothing).files == {}
    assert make_layout([], [made], [], nothing).files == {}
    assert list(make_layout([], [], [made], nothing).files) == ["a"]
    assert list(make_layout([made], [], [made], nothing).files) == ["a"]


def test_values_without_an_aggregate_are_not_shown_above() -> None:
    """Nor where they are only declared."""
    made = array("a", aggregate=Aggregate.NONE)
    assert make_layout([], [made], [made], nothing).files == {}


def test_directories_of_the_same_arrays_share_their_layout() -> None:
    """Thousands of leaves cost a pointer each."""
    made = array("a", "b")
    one = make_layout([made], [], [], nothing)
    assert make_layout([made], [], [], is_in("elsewhere")) is one
    assert make_layout([made], [], [], is_in("a")) is not one
    assert make_layout([], [made], [], nothing) is not one
