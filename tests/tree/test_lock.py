"""The lock of the tree, what is queued behind a change, and who is told of it."""

import gc
import logging
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from statsfs.exceptions import DuplicateNameError
from statsfs.model.values import Aggregate, Value
from statsfs.tree.lock import ChangeNotice, Listening, TreeChange, apply_change, lock_tree
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.interrupts import interrupted_everywhere

N = [Value("n", aggregate=Aggregate.SUM)]


class Listener(Listening):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[ChangeNotice] = []

    def notify(self, change: ChangeNotice) -> None:
        self.told.append(change)


def test_collection_is_off_under_the_lock_and_on_again_afterwards() -> None:
    """A finalizer must not run in the middle of a change or of a sample."""
    assert gc.isenabled()
    assert lock_tree(lambda: (gc.isenabled(), lock_tree(gc.isenabled), gc.isenabled())) == (
        False, False, False,
    )  # fmt: skip
    assert gc.isenabled()
    apply_change(lambda operation: collecting.append(gc.isenabled()))
    assert collecting == [False]
    assert gc.isenabled()


collecting: list[bool] = []


def test_collection_stays_off_where_the_program_wants_it_off() -> None:
    """Who switched it off finds it so after changes and samples."""
    gc.disable()
    try:
        lock_tree(gc.isenabled)
        apply_change(lambda operation: None)
        Source("s").snapshot()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_change_that_fails_leaves_lock_and_collection_as_they_were() -> None:
    """What it raises reaches the caller; another thread may change the tree."""

    def fail(operation: TreeChange) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        apply_change(fail)
    assert gc.isenabled()
    done = threading.Thread(target=apply_change, args=[lambda operation: None], daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()


def test_listeners_are_told_once_of_all_that_one_change_touched() -> None:
    """Names by place, what left, and nobody else than who listens."""
    listener, other = Listener(), Listener()

    def change(operation: TreeChange) -> None:
        operation.touch(listener, 1, "a")
        operation.touch(listener, 1, "b")
        operation.touch(listener, 2)
        operation.leave(listener, 7)
        operation.touch(other, 3)
        operation.touch(None, 4, "nobody")
        operation.leave(None, 5)

    apply_change(change)
    assert listener.told == [ChangeNotice({1: {"a", "b"}, 2: set()}, [7])]
    assert other.told == [ChangeNotice({3: set()}, [])]


def test_who_listens_must_say_how() -> None:
    """`Listening` itself is abstract."""
    with pytest.raises(NotImplementedError):
        Listening().notify(ChangeNotice())


def test_listeners_and_finalizers_run_without_the_lock() -> None:
    """Another thread can change the tree while they run."""
    progress: list[bool] = []

    def let_another_thread_change() -> None:
        thread = threading.Thread(target=apply_change, args=[lambda operation: None], daemon=True)
        thread.start()
        thread.join(10)
        progress.append(not thread.is_alive())

    class Waiting(Listening):
        def notify(self, change: ChangeNotice) -> None:
            let_another_thread_change()

    class Dropped:
        def __del__(self) -> None:
            let_another_thread_change()

    def change(operation: TreeChange) -> None:
        operation.touch(waiting, 1)
        operation.garbage.append(Dropped())

    waiting = Waiting()
    apply_change(change)
    assert progress == [True, True]


def test_a_change_inside_a_change_runs_behind_it() -> None:
    """In the order in which they were asked for, before the outermost returns."""
    order = []

    def outer(operation: TreeChange) -> None:
        order.append("outer begins")
        apply_change(lambda operation: order.append("first"))
        apply_change(second)
        order.append("outer ends")

    def second(operation: TreeChange) -> None:
        order.append("second")
        apply_change(lambda operation: order.append("of the second"))

    apply_change(outer)
    assert order == ["outer begins", "outer ends", "first", "second", "of the second"]


def test_a_change_that_comes_at_the_very_end_of_another_is_made() -> None:
    """A signal handler may run after the last look at what is queued; nothing is left there."""
    order: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code.co_name == "_apply_waiting":
            sys.setprofile(None)
            apply_change(lambda operation: order.append("late"))
            order.append("asked for")

    sys.setprofile(profile)
    try:
        apply_change(lambda operation: order.append("first"))
    finally:
        sys.setprofile(None)
    assert order == ["first", "asked for", "late"]


def test_a_change_that_fails_behind_another_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for its error, and those behind it still have their turn."""
    order = []

    def outer(operation: TreeChange) -> None:
        apply_change(fail)
        apply_change(lambda operation: order.append("next"))

    def fail(operation: TreeChange) -> None:
        raise ZeroDivisionError

    apply_change(outer)
    assert order == ["next"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_error_after_a_queued_change_was_made_costs_no_other() -> None:
    """A signal handler may raise at that moment; what was queued behind it is made."""
    order: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code.co_name == "commit" and order[-1:] == ["first"]:
            sys.setprofile(None)
            raise TimeoutError

    def outer(operation: TreeChange) -> None:
        apply_change(lambda operation: order.append("first"))
        apply_change(lambda operation: order.append("second"))

    sys.setprofile(profile)
    try:
        apply_change(outer)
    finally:
        sys.setprofile(None)
    assert order == ["first", "second"]


def test_what_was_queued_runs_though_the_change_before_it_failed() -> None:
    """The error is the first change's own."""
    order: list[str] = []

    def outer(operation: TreeChange) -> None:
        apply_change(lambda operation: order.append("queued"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        apply_change(outer)
    assert order == ["queued"]


def test_a_finalizer_of_what_a_change_drops_may_change_the_tree(registry: Registry) -> None:
    """A base whose end removes its own source: `remove_subordinate` from `__del__`."""
    top, vm, other = Source("top"), Source("vm"), Source("other")
    registry.register(top)
    top.add_subordinate(vm)
    top.add_subordinate(other)

    class Base:
        n = 1

        def __del__(self) -> None:
            top.remove_subordinate(other)

    vm.add_values(N, Base())
    vm.revoke()
    assert top.subordinates == (vm,)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["add", "remove", "values", "revoke", "put"])
def test_a_signal_handler_may_change_the_tree_at_any_moment(registry: Registry, inner: str) -> None:
    """Wherever in a change the handler runs, both changes are made, whole."""
    top = Source("top")
    registry.register(top)
    count = 0

    def handler() -> None:
        nonlocal count
        count += 1
        source = extra.pop()
        match inner:
            case "add":
                top.add_subordinate(source)
            case "remove":
                top.remove_subordinate(source)
            case "values":
                source.add_values(N, {"n": 1})
            case "revoke":
                source.revoke()
            case "put":
                source.put()

    extra = [Source("extra%d", number) for number in range(5000)]
    for source in extra:
        if inner in ("remove", "revoke"):
            source.add_values(N, {"n": 1})
        if inner != "add" and inner != "put":
            top.add_subordinate(source)
    made = list(extra)
    with interrupted_everywhere(handler) as where:
        vm = Source("vm")
        vm.add_values(N, {"n": 1000})
        top.add_subordinate(vm)
        top.remove_subordinate(vm)
        top.add_subordinate(vm)
        vm.revoke()
        vm.add_values(N, {"n": 2000})
    assert {"add", "remove", "revoke_entries", "exchange", "settle", "leave"} <= set(where)
    changed, rest = made[len(extra) :], made[: len(extra)]
    assert len(changed) == count > 50
    below = set(top.subordinates)
    assert (below == {vm, *changed}) if inner == "add" else True
    assert (below == {vm, *rest}) if inner == "remove" else True
    assert top.get_value("n") == 2000 + {
        "add": 0, "remove": len(rest), "values": count, "revoke": len(rest), "put": 0,
    }[inner]  # fmt: skip
    if inner == "put":
        assert all(source.refcount == 0 for source in changed)
    check_whole(top)


def check_whole(top: Source) -> None:
    """A source's snapshot and files agree with those of a tree built anew from its parts."""
    values = top.snapshot().to_dict()["values"]
    assert values == {name: top.get_value(name) for name in top.names()}
    assert values["n"] == sum(
        source.get_value("n") for source in top.subordinates if source.names()
    )


def test_a_signal_handler_may_read_at_any_moment(registry: Registry) -> None:
    """A dump of statistics on SIGUSR1 works, also where it meets a change half made."""
    top = Source("top")
    registry.register(top)
    base = Source("base")
    base.add_values(N, {"n": 1})
    top.add_subordinate(base)
    seen: list[Any] = []

    def handler() -> None:
        seen.append((top.names(), top.get_value("n"), top.snapshot().to_dict()))

    with interrupted_everywhere(handler) as where:
        vm = Source("vm")
        vm.add_values(N, {"n": 1000})
        top.add_subordinate(vm)
        vm.revoke()
        vm.add_values(N, {"n": 2000})
        top.remove_subordinate(vm)
        vm.put()
    assert {"add", "remove", "exchange", "drop", "settle", "leave"} <= set(where)
    assert len(seen) > 50
    for names, number, found in seen:
        assert names == ["n"]
        assert number in (1, 1001, 2001)
        assert found["values"]["n"] in (1, 1001, 2001)


def test_a_handler_that_is_refused_changes_nothing(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is logged where it was queued, raised where it was not; the tree is the same."""
    top, taken = Source("top"), Source("vm")
    registry.register(top)
    top.add_subordinate(taken)
    raised = 0

    def handler() -> None:
        nonlocal raised
        try:
            top.add_subordinate(Source("vm"))
        except DuplicateNameError:
            raised += 1

    with interrupted_everywhere(handler) as where:
        top.add_subordinate(Source("other"))
    assert 0 < raised < len(where)
    assert len(caplog.records) == len(where) - raised
    assert [source.name for source in top.subordinates] == ["vm", "other"]


def test_an_interrupt_at_any_moment_blocks_nobody_after_it() -> None:
    """After Ctrl-C in the middle of a change or a sample, others are made: nothing is stuck."""
    moments = 0

    def interrupt() -> None:
        nonlocal moments
        moments += 1
        if moments > skipped:
            raise KeyboardInterrupt

    for skipped in range(300):
        moments = 0
        top = Source("top")
        try:
            with interrupted_everywhere(interrupt):
                top.add_subordinate(Source("vm"))
                top.snapshot()
        except KeyboardInterrupt:
            pass
        assert gc.isenabled()
        done: list[int] = []
        thread = threading.Thread(
            target=apply_change, args=[lambda operation, done=done: done.append(1)], daemon=True
        )
        thread.start()
        thread.join(10)
        assert done == [1]
        if moments <= skipped:
            return
    raise AssertionError("it never ended")
