"""Folds: nobody sees a total fall or count twice, and no user's code runs under the lock."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from statsfs.model.fields import u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree import retained, retention
from statsfs.tree.index import ArrayIndex
from statsfs.tree.lock import TreeChange, apply_change, lock_tree
from statsfs.tree.source import Source
from tests.support.bare import bare_log_hist
from tests.support.deadlines import wait_until

WORK = (
    Value("jobs", aggregate=Aggregate.SUM),
    Value("narrow", Type.U32, Aggregate.SUM),
    Value("deepest", aggregate=Aggregate.MAX, kind=Kind.PEAK),
    Value("sizes", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=2),
    Value("now", aggregate=Aggregate.SUM | Aggregate.COUNT_NONZERO, kind=Kind.INSTANT),
)


def make_work(jobs: int) -> dict[str, Any]:
    """A base that has counted something."""
    return {"jobs": jobs, "narrow": jobs, "deepest": jobs, "sizes": [jobs, jobs], "now": 1}


def add(parent: Source, name: str, base: object, values: Any = WORK) -> Source:
    """Put a source with a base below another; the tree has the only reference."""
    source = Source(name)
    source.add_values(values, base)
    parent.add_subordinate(source)
    source.put()
    return source


@pytest.fixture
def app() -> Source:
    """A source that retains, and another above it."""
    host, app = Source("host"), Source("app", retain=True)
    host.add_subordinate(app)
    app.put()
    return app


def above(app: Source) -> Source:
    """The source above."""
    assert isinstance(app.parent, Source)
    return app.parent


@pytest.fixture
def switching() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_another_thread(operation: Callable[[], object]) -> bool:
    """Do something in a thread of its own; tell whether it was done in time."""
    thread = threading.Thread(target=operation, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


# Readers meanwhile

ROUNDS = 400
IDLE = 30  # sources that stay, so that a total takes some time


class Watch:
    """Reads totals again and again, and notes what cannot have been."""

    def __init__(self, read: Callable[[], int], most: Callable[[], int]) -> None:
        self.wrong: list[tuple[int, int, int]] = []
        self.looks = 0
        self._read, self._most = read, most
        self._last = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _look(self) -> None:
        while not self._stop.is_set():
            seen = self._read()
            most = self._most()
            if not self._last <= seen <= most:
                self.wrong.append((self._last, seen, most))
            self._last = seen
            self.looks += 1


@pytest.mark.usefixtures("switching")
@pytest.mark.parametrize("back", [False, True], ids=["gone for good", "back again"])
@pytest.mark.parametrize("name", ["jobs", "narrow", "deepest", "sizes"])
def test_no_reader_sees_a_total_fall_or_double(app: Source, name: str, back: bool) -> None:
    """While sources come, count and leave, totals only grow, and never beyond what was counted."""
    for number in range(IDLE):
        add(app, f"idle{number}", make_work(0))
    counted = 0

    def read(source: Source) -> int:
        found = source.get_value(name)
        return int(found[1]) if isinstance(found, list) else int(found)

    with (
        Watch(lambda: read(app), lambda: counted) as near,
        Watch(lambda: read(above(app)), lambda: counted) as far,
    ):
        work = make_work(0)
        source = add(app, "s", work).get()
        for number in range(ROUNDS):
            counted += 1
            last = counted if name == "deepest" or back else 1
            work["jobs"] = work["narrow"] = work["deepest"] = last
            work["sizes"][1] = last
            app.remove_subordinate(source)
            if back:
                app.add_subordinate(source)
            else:
                work = make_work(0)
                source = add(app, f"s{number}", work)
    assert near.wrong == far.wrong == []
    assert min(near.looks, far.looks) > 0
    assert read(app) == read(above(app)) == ROUNDS


def test_snapshots_do_not_see_it_either(app: Source) -> None:
    """A pass is made before a fold or after it."""
    totals: list[int] = []

    def look() -> None:
        for _ in range(200):
            totals.append(app.snapshot().to_dict()["values"]["jobs"])

    add(app, "first", make_work(1))
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    number = 0
    while thread.is_alive():
        app.remove_subordinate(add(app, f"s{number}", make_work(1)))
        number += 1
    assert totals == sorted(totals)
    assert app.get_value("jobs") == number + 1


class Interrupted:
    """Does something in the middle of a change, in the same thread, as a signal handler does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.actions: list[Callable[[], object]] = []
        self.seen: list[object] = []
        # "count" is before the bases are read; the others are when steps are added.
        owner: Any = retention.Folding if name == "count" else ArrayIndex
        name = "_add_up" if name == "count" else name
        original = getattr(owner, name)

        def interrupt(*arguments: Any) -> object:
            for action in self.actions:
                self.seen.append(action())
            return original(*arguments)

        monkeypatch.setattr(owner, name, interrupt)


@pytest.mark.parametrize("step", ["count", "retain", "subtract", "update"])
@pytest.mark.parametrize("name", ["jobs", "deepest", "sizes", "now"])
def test_a_signal_handler_sees_totals_as_they_are(
    app: Source, name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot wait for what it interrupted: it sees the tree as it was before."""
    add(app, "stays", make_work(3))
    add(app, "dynamic", Dynamic(make_work(2)))
    pool = Source("pool", retain=True)
    app.add_subordinate(pool)
    for number in range(2):
        app.remove_subordinate(add(app, f"s{number}", make_work(5)))
        pool.remove_subordinate(add(pool, "a", make_work(1)))
    add(pool, "b", make_work(4))
    expected = app.get_value(name)
    handler = Interrupted(monkeypatch, step)
    handler.actions += [lambda: app.get_value(name), lambda: above(app).get_value(name)]
    app.remove_subordinate(pool)
    assert handler.seen == [expected] * len(handler.seen)
    handler.seen.clear()
    between = app.get_value(name)
    app.add_subordinate(pool)
    assert handler.seen == [between] * len(handler.seen)
    assert handler.seen or step in ("retain", "subtract")
    assert between == expected or name == "now"
    assert app.get_value(name) == expected


class Dynamic:
    """Attributes that are properties."""

    def __init__(self, held: dict[str, Any]) -> None:
        self.held = held

    jobs = property(lambda self: self.held["jobs"])
    narrow = property(lambda self: self.held["narrow"])
    deepest = property(lambda self: self.held["deepest"])
    sizes = property(lambda self: self.held["sizes"])
    now = property(lambda self: self.held["now"])


def test_what_a_producer_still_counts_does_not_fall(
    app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader saw before the fold began is in it: bases are read after that."""
    work = make_work(5)
    add(app, "a", work)
    handler = Interrupted(monkeypatch, "count")

    def count() -> int:
        work["jobs"] += 1
        return int(app.get_value("jobs"))

    handler.actions.append(count)
    app.remove_subordinate(app.subordinates[0])
    assert handler.seen == [6]
    assert app.get_value("jobs") == 6


def test_a_total_that_the_first_fold_meets_is_read_again(app: Source) -> None:
    """Before anything was ever retained, too."""

    class Removing(Dynamic):
        @property
        def jobs(self) -> int:
            if reading and len(app.subordinates) > 1:
                app.remove_subordinate(app.subordinates[1])
            return 2

    reading = False
    add(app, "first", Removing(make_work(2)))
    add(app, "leaves", make_work(5))
    reading = True
    assert app.get_value("jobs") == 7
    assert len(app.subordinates) == 1


def test_a_signal_handler_that_clears_has_its_turn_after(
    app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being folded is cleared as well."""
    add(app, "a", make_work(5))
    app.remove_subordinate(add(app, "b", make_work(7)))
    handler = Interrupted(monkeypatch, "subtract")
    handler.actions.append(lambda: app.clear_value("jobs"))
    app.remove_subordinate(app.subordinates[0])
    assert handler.seen
    assert (app.get_value("jobs"), app.get_value("narrow")) == (0, 12)


def test_a_fold_that_fails_leaves_readers_alone(
    app: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the middle (Ctrl-C) does not have them wait for ever."""
    add(app, "a", make_work(5))
    handler = Interrupted(monkeypatch, "count")

    def fail() -> None:
        raise KeyboardInterrupt

    handler.actions.append(fail)
    with pytest.raises(KeyboardInterrupt):
        app.remove_subordinate(app.subordinates[0])
    handler.actions.clear()
    assert in_another_thread(lambda: app.get_value("jobs"))
    app.remove_subordinate(app.subordinates[0])
    assert app.get_value("jobs") == 5


# The user's code


class Counted(Stats):
    """One of each that is read in a way of its own."""

    jobs = u64(Aggregate.SUM)
    deepest = u64(Aggregate.MAX, kind=Kind.PEAK)
    sizes = bare_log_hist(2, Aggregate.SUM)


class Integer:
    """An integer of a foreign library, which wants the tree when it is asked."""

    def __init__(self, number: int, ask: Callable[[], object]) -> None:
        self.number, self.ask = number, ask

    def __index__(self) -> int:
        self.ask()
        return self.number


def want_the_tree() -> None:
    """Fail where the thread that asks has the lock."""
    assert in_another_thread(lambda: lock_tree(lambda: None))


@pytest.mark.parametrize("value", ["jobs", "deepest", "sizes"])
def test_foreign_integers_are_asked_outside_of_the_lock(app: Source, value: str) -> None:
    """Also in a base that is plain, and beside others that are read inside."""
    ask = want_the_tree
    base: dict[str, Any] = {"jobs": 5, "deepest": 9, "sizes": [1, 2]}
    base[value] = [1, Integer(2, ask)] if value == "sizes" else Integer(base[value], ask)
    pool = Source("pool")
    app.add_subordinate(pool)
    add(pool, "a", base, Counted)
    add(pool, "b", {"jobs": 1, "deepest": 1, "sizes": [1, 1]}, Counted)
    app.remove_subordinate(pool)
    assert [app.get_value(name) for name in ("jobs", "deepest", "sizes")] == [6, 9, [2, 3]]


def test_properties_are_asked_outside_of_the_lock(app: Source) -> None:
    """When a source leaves, when it is revoked, and when it comes back."""

    class Asking(Dynamic):
        @property
        def jobs(self) -> int:
            want_the_tree()
            return 5

    source = add(app, "a", Asking(make_work(5))).get()
    app.remove_subordinate(source)
    app.add_subordinate(source)
    assert app.get_value("jobs") == 5
    source.revoke()
    assert app.get_value("jobs") == 5


def test_a_source_that_always_has_more_to_be_asked_leaves(app: Source) -> None:
    """Each time it is read it gets another base: what cannot be read in time is left out."""
    leaving = False

    class Growing(Dynamic):
        @property
        def jobs(self) -> int:
            if leaving and not self.held.pop("read", True):
                more = Growing(make_work(1))
                add(pool, f"more{len(pool.subordinates)}", more)
                more.held["read"] = False
            return 1

    pool = Source("pool")
    app.add_subordinate(pool)
    add(pool, "a", Growing(make_work(1) | {"read": False}))
    leaving = True
    app.remove_subordinate(pool)
    assert pool.parent is None
    assert (app.get_value("jobs"), len(pool.subordinates)) == (1, 2)


BROKEN: dict[str, Callable[[], Any]] = {
    "no attribute": dict,
    "no integer": lambda: make_work(5) | {"jobs": "many"},
    "no list": lambda: make_work(5) | {"sizes": 5},
    "no bucket": lambda: make_work(5) | {"sizes": [1]},
    "no integer in a bucket": lambda: make_work(5) | {"sizes": [1, None]},
    "property": lambda: Dynamic({"jobs": 5}),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_base_is_left_out_and_logged_once(
    app: Source, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sound values are kept, and so are its siblings; it leaves all the same."""
    base = BROKEN[broken]()
    pool = Source("pool").get()
    app.add_subordinate(pool)
    add(pool, "sound", make_work(3))
    source = Source("broken")
    held = Dynamic(make_work(0)) if isinstance(base, Dynamic) else make_work(0)
    source.add_values(WORK, held)
    pool.add_subordinate(source)
    if isinstance(held, Dynamic):
        held.held = base.held
    else:
        held.clear()
        held.update(base)
    sound = base.held if isinstance(base, Dynamic) else base
    with caplog.at_level(logging.WARNING):
        app.remove_subordinate(pool)
    assert source.path == "pool/broken"
    messages = [record.getMessage() for record in caplog.records]
    assert all("broken: left out of what is retained" in message for message in messages)
    assert len(messages) == len(set(messages)) > 0
    jobs = sound.get("jobs", 0)
    assert app.get_value("jobs") == 3 + (jobs if isinstance(jobs, int) else 0)


def test_a_removal_inside_another_change_is_folded(app: Source) -> None:
    """A signal handler's change waits for the one it came in, and takes what can be read then."""
    plain, dynamic = add(app, "a", make_work(5)), add(app, "b", Dynamic(make_work(7)))

    def change(operation: TreeChange) -> None:
        app.remove_subordinate(plain)
        app.remove_subordinate(dynamic)
        assert app.subordinates == (plain, dynamic)

    apply_change(change)
    assert app.subordinates == ()
    assert app.get_value("jobs") == 5


def test_a_clear_that_the_first_fold_meets(app: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before it was cleared, and is retained after, is cleared too."""
    base = make_work(5)
    worker = add(app, "worker", base)
    clears: list[threading.Thread] = []
    place = retained.find_record

    def clear_meanwhile(change: Any, source: Any, array: Any) -> Any:
        # The base is read, and nothing is retained yet. The other thread waits for this one.
        clears.append(threading.Thread(target=app.clear_value, args=("jobs",)))
        clears[0].start()
        wait_until(lambda: base["jobs"] == 0)
        return place(change, source, array)

    with monkeypatch.context() as patcher:
        patcher.setattr(retention, "find_record", clear_meanwhile)
        app.remove_subordinate(worker)
    clears[0].join()
    assert app.get_value("jobs") == 0
    assert app.get_value("narrow") == 5
