"""Directories: which files they show, reading and clearing them, and what is logged."""

import logging
import threading
from typing import Any

import pytest

from statsfs.exceptions import BaseMismatchError, ReadOnlyValueError
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.tree.directory import Directory
from statsfs.tree.source import Source, directory_of
from tests.support.strategies import Plain, property_base


def array(*names: str, text: str, aggregate: Aggregate = Aggregate.SUM) -> list[Value]:
    """An array of these names, told from others by a text."""
    return [Value(name, aggregate=aggregate, description=text) for name in names]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_every_loser_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """With its path, its name, and who has the name; reading again does not repeat it."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    top.add_subordinate(Source("lost"))
    vm.add_values(array("lost", text="loser"), {"lost": 1})
    top.add_values(array("own", text="winner"), {"own": 1})
    vm.add_values([Value("own", aggregate=Aggregate.SUM, unit=Unit.BYTES)], {"own": 1})
    for _ in range(3):
        assert top.names() == ["own"]
    vm.revoke()
    assert top.names() == ["own"]
    assert sorted(messages(caplog)) == [
        "top: 'lost' is not shown: a subdirectory has 'lost'",
        "top: 'own' is not shown: another array has 'own'",
    ]


def test_losing_to_ones_own_array_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A source that counts itself what its subordinates count is normal."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    for number, source in enumerate((top, vm)):
        source.add_values(array("n", text="normal"), {"n": number + 1})
    assert top.get_value("n") == 1
    assert messages(caplog) == []


def test_a_name_follows_what_claims_it() -> None:
    """A subdirectory takes a value's name when it comes, and gives it back when it goes."""
    top, vm = Source("top"), Source("n")
    top.add_values(array("n", text="follows"), {"n": 1})
    assert top.names() == ["n"]
    top.add_subordinate(vm)
    assert top.names() == []
    top.remove_subordinate(vm)
    assert top.names() == ["n"]
    hidden = Source("n", hidden=True)
    top.add_subordinate(hidden)
    assert top.names() == ["n"]


def test_a_subdirectory_that_comes_while_the_files_are_worked_out_is_seen() -> None:
    """A reader that looked just before must not leave what it found for those after it."""
    looking, looked = threading.Event(), threading.Event()

    class Slow(Directory):
        """A directory of which one thread looks at the subdirectories slowly."""

        __slots__ = ()

        def shows_directory(self, name: str) -> bool:
            found = super().shows_directory(name)
            if threading.current_thread() is reader:
                looking.set()
                looked.wait(10)
            return found

    top = Source("top")
    directory_of(top).__class__ = Slow
    reader = threading.Thread(target=top.names)
    assert top.names() == []
    top.add_values(array("n", text="slowly"), {"n": 1})
    reader.start()
    assert looking.wait(10)
    top.add_subordinate(Source("n"))
    looked.set()
    reader.join(10)
    assert top.names() == []


def test_a_file_that_was_found_is_read_when_it_is_shown_no_longer() -> None:
    """As an open file does: what it showed when it was found, 0 once that is gone."""
    top, vm = Source("top"), Source("vm")
    base = {"n": 5}
    vm.add_values(array("n", text="found"), base)
    top.add_subordinate(vm)
    own, entry = directory_of(vm).files["n"], directory_of(vm).entry_of(directory_of(vm).files["n"])
    total = directory_of(top).files["n"]
    assert entry is not None
    assert directory_of(top).entry_of(total) is None
    top.remove_subordinate(vm)
    assert directory_of(top).read(total, None) == 0
    directory_of(top).clear(total, None)
    assert base == {"n": 5}
    assert directory_of(vm).read(own, entry) == 5
    vm.revoke()
    assert directory_of(vm).read(own, entry) == 0
    directory_of(vm).clear(own, entry)
    assert directory_of(vm).entry_of(own) is None
    assert directory_of(vm).read(own, None) == 0
    assert base == {"n": 5}


def test_an_own_value_that_is_no_integer_any_more() -> None:
    """The error names path and value, keeps the base and what was wrong with it."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    base = Plain({"n": 1})
    vm.add_values(array("n", text="broken own"), base)
    base.__dict__["n"] = None
    with pytest.raises(BaseMismatchError, match="top/vm: 'n' holds no integer") as caught:
        vm.get_value("n")
    assert caught.value.offender is base
    del base.__dict__["n"]
    with pytest.raises(BaseMismatchError, match="top/vm: 'n'"):
        vm.get_value("n")
    base.__dict__["n"] = 2
    assert vm.get_value("n") == 2


def test_an_aggregate_leaves_out_what_is_broken_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often it is read, and with the path of the broken source."""
    top, sound, broken = Source("top"), Source("sound"), Source("broken")
    base = {"n": 1}
    for source, held in ((sound, {"n": 3}), (broken, base)):
        source.add_values(array("n", text="broken below"), held)
        top.add_subordinate(source)
    base["n"] = None  # type: ignore[assignment]  # that is what is wrong with it
    for _ in range(3):
        assert top.get_value("n") == 3
    (message,) = messages(caplog)
    assert "top/broken" in message
    assert "'n'" in message


def test_clearing_an_aggregate_skips_what_refuses_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line each time, with the first that refused and how many did."""
    top = Source("top")
    bases: list[Any] = [{"n": 1}, property_base({"n": 2}, False), property_base({"n": 4}, False)]
    for number, base in enumerate(bases):
        source = Source("s%d", number)
        source.add_values(array("n", text="refusing"), base)
        top.add_subordinate(source)
    top.clear_value("n")
    assert top.get_value("n") == 6
    (message,) = messages(caplog)
    assert message.startswith("top: clearing 'n': 2 bases refused, first that of top/s1:")


def test_clearing_an_own_value_whose_base_refuses() -> None:
    """The error names path and value; nothing was written."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    vm.add_values(array("n", text="refusing own"), property_base({"n": 2}, False))
    with pytest.raises(ReadOnlyValueError, match=r"top/vm: .*'n' cannot be cleared") as caught:
        vm.clear_value("n")
    assert caught.value.offender == "n"
    assert vm.get_value("n") == 2


@pytest.mark.parametrize(
    "value",
    [Value("n", mode=0o444), Value("n", kind=Kind.INSTANT), Value("n", mode=0)],
)
def test_clearing_a_value_without_a_write_bit(value: Value) -> None:
    """Neither the value nor its aggregate can be cleared; the error names path and value."""
    top, vm = Source("top"), Source("vm")
    top.add_subordinate(vm)
    made = Value(value.name, Type.U64, Aggregate.SUM, value.mode, kind=value.kind)
    vm.add_values([made], {"n": 3})
    for source, path in ((vm, "top/vm"), (top, "top")):
        with pytest.raises(ReadOnlyValueError, match=f"{path}: 'n' cannot be cleared") as caught:
            source.clear_value("n")
        assert caught.value.offender == "n"
        assert source.get_value("n") == 3
