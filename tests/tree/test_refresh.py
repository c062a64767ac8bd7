"""Sources that must be asked: when, by whom, and what becomes of those that do not answer."""

import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from statsfs.exceptions import UnavailableError
from statsfs.formats import json, prometheus
from statsfs.model.external import Numbers
from statsfs.model.locking import Flag
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree import refresh
from statsfs.tree.refresh import Read, current_reads, find_refreshing
from statsfs.tree.registry import Registry
from statsfs.tree.snapshot_directories import make_directory
from statsfs.tree.source import Source, directory_of
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.forking import run_forking
from tests.support.trees import refresher_of, subordinate

VALUES = (Value("exits", aggregate=Aggregate.SUM), Value("pages", aggregate=Aggregate.SUM))
BY_NAME = {value.name: value for value in VALUES}


class Elsewhere:
    """Who must be asked: counts, answers at once, late, never or with an error."""

    def __init__(self, exits: int = 7) -> None:
        self.exits = exits
        self.numbers = Numbers(BY_NAME)
        self.asked = 0
        self.threads: set[int] = set()
        self.reads: list[frozenset[Read] | None] = []
        self.answers = threading.Event()
        self.answers.set()
        self.error: BaseException | None = None

    def refresh(self) -> None:
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.reads.append(current_reads())
        self.answers.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        self.numbers.take((self.exits, self.asked))


def make_source(name: str, elsewhere: Elsewhere, *, blocking: bool = True) -> Source:
    """A source that asks."""
    source = Source(name, refresh=elsewhere.refresh, blocking=blocking)
    source.add_values(VALUES, elsewhere.numbers)
    return source


@contextmanager
def short_deadline(seconds: float = 0.05) -> Iterator[None]:
    """So that tests of sources that do not answer need not take a second each, or wait for ever."""
    before = refresh.DEADLINE
    refresh.DEADLINE = seconds  # type: ignore[misc]  # final, but for this
    try:
        yield
    finally:
        refresh.DEADLINE = before  # type: ignore[misc]


blocking_or_not = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "quick"])


@blocking_or_not
def test_numbers_that_are_new_enough(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is read within their age asks once; a failure has no age."""
    now = 100.0
    elsewhere = Elsewhere()
    vm = Source("vm", refresh=elsewhere.refresh, blocking=blocking, max_age=0.5)
    vm.add_values(VALUES, elsewhere.numbers)
    monkeypatch.setattr(refresh, "time", SimpleNamespace(monotonic=lambda: now))
    for name in ("exits", "pages"):
        vm.get_value(name)
        vm.snapshot()
    assert elsewhere.asked == 1
    now += 0.5
    vm.clear_value("exits")
    assert vm.get_value("exits") == 0
    assert elsewhere.asked == 2
    now += 0.5
    elsewhere.error = OSError("gone")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="gone"):
            vm.get_value("exits")
    assert elsewhere.asked == 4


@blocking_or_not
def test_every_read_asks(blocking: bool) -> None:
    """A value is what it is now; so is a total, which asks all that is below."""
    host, first, second = Source("kvm"), Elsewhere(3), Elsewhere(4)
    for name, elsewhere in (("a", first), ("b", second)):
        host.add_subordinate(make_source(name, elsewhere, blocking=blocking))
    assert host.get_value("exits") == 7
    first.exits = 10
    assert host.get_value("exits") == 14
    (a, _) = host.subordinates
    assert a.get_value("exits") == 10
    assert (first.asked, second.asked) == (3, 2)
    own = {threading.get_ident()}
    assert (first.threads == own) is not blocking


@blocking_or_not
def test_what_is_above_is_asked_for_what_is_below(blocking: bool) -> None:
    """A refresh brings everything up to date that is in or below its source, and no sibling."""
    elsewhere, sibling = Elsewhere(), Elsewhere()
    host, vm = Source("kvm"), Source("vm", refresh=elsewhere.refresh, blocking=blocking)
    vcpu = Source("vcpu0")
    vcpu.add_values(VALUES, elsewhere.numbers)
    host.add_subordinate(vm)
    vm.add_subordinate(vcpu)
    host.add_subordinate(make_source("other", sibling))
    assert vcpu.get_value("exits") == 7
    assert (elsewhere.asked, sibling.asked) == (1, 0)
    assert vcpu.snapshot().to_dict()["values"] == {"exits": 7, "pages": 2}
    host.remove_subordinate(vm)
    assert host.get_value("exits") == 7
    assert (elsewhere.asked, sibling.asked) == (2, 1)


@blocking_or_not
def test_one_that_rests_is_not_asked(blocking: bool) -> None:
    """What brings the source up to date above is asked all the same."""
    above, elsewhere = Elsewhere(), Elsewhere()
    host = Source("kvm", refresh=above.refresh, blocking=blocking)
    vm = make_source("vm", elsewhere, blocking=blocking)
    host.add_subordinate(vm)
    refresher = directory_of(vm).refresher
    assert refresher is not None
    refresher.idle = True
    assert vm.get_value("exits") == 0
    assert (above.asked, elsewhere.asked) == (1, 0)
    refresher.idle = False
    assert vm.get_value("exits") == 7
    assert (above.asked, elsewhere.asked) == (2, 1)


@blocking_or_not
def test_snapshots_and_clearing_ask_first(blocking: bool) -> None:
    """What is cleared is what it is now, not what it was when somebody last looked."""
    registry, elsewhere = Registry(), Elsewhere()
    host = Source("kvm")
    registry.register(host)
    host.add_subordinate(make_source("vm", elsewhere, blocking=blocking))
    assert registry.snapshot().to_dict()["subordinates"]["kvm"]["values"]["exits"] == 7
    assert host.snapshot().to_dict()["values"]["exits"] == 7
    elsewhere.exits = 10
    host.clear_value("exits")
    elsewhere.exits = 12
    assert host.get_value("exits") == 2


def test_nothing_is_asked_without_need() -> None:
    """Sources beside it, and a registry of others, are nobody's to ask."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    other = Source("other")
    assert find_refreshing([other]) is None
    assert find_refreshing([]) is None
    assert Registry().snapshot().arrays == {}
    source.put()
    assert elsewhere.asked == 0


def test_all_are_asked_at_the_same_time() -> None:
    """Twenty that wait for each other all answer."""
    host, barrier = Source("kvm"), threading.Barrier(20)
    numbers = [Numbers(BY_NAME) for _ in range(20)]

    def make(number: int) -> Callable[[], None]:
        def refresh() -> None:
            barrier.wait(DEADLINE)
            numbers[number].take((1, 0))

        return refresh

    for number in range(20):
        vm = Source("vm%d", number, refresh=make(number))
        vm.add_values(VALUES, numbers[number])
        host.add_subordinate(vm)
    assert host.get_value("exits") == 20


def test_who_comes_during_a_refresh_waits_for_the_next() -> None:
    """It may bring numbers from before; all that come meanwhile share one more."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    elsewhere.answers.clear()
    found: list[int] = []
    readers = [threading.Thread(target=lambda: found.append(source.get_value("exits")))]
    readers[0].start()
    wait_until(lambda: elsewhere.asked == 1)
    elsewhere.exits = 8
    readers += [
        threading.Thread(target=lambda: found.append(source.get_value("exits"))) for _ in range(5)
    ]
    for reader in readers[1:]:
        reader.start()
    wait_until(lambda: waiting_for_the_next(source) == 5)
    elsewhere.answers.set()
    for reader in readers:
        reader.join()
    assert elsewhere.asked == 2
    assert found == [8] * 6


@blocking_or_not
def test_what_is_read(blocking: bool) -> None:
    """A refresh may ask which source is read, here or above or below, and which of its names."""
    elsewhere, host = Elsewhere(), Source("kvm")
    vm = make_source("vm", elsewhere, blocking=blocking)
    vcpu = Source("vcpu")
    vm.add_subordinate(vcpu)
    vcpu.add_values(VALUES, Numbers(BY_NAME))
    host.add_subordinate(vm)
    host.get_value("exits")
    vm.clear_value("pages")
    vcpu.get_value("exits")
    vm.snapshot()
    assert elsewhere.reads == [
        frozenset({one}) for one in [(host, "exits"), (vm, "pages"), (vcpu, "exits"), (vm, None)]
    ]
    assert current_reads() is None


def test_readers_who_share_a_refresh() -> None:
    """It is for all that they read."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    elsewhere.answers.clear()
    names = ["exits", "exits", "pages"]
    readers = [threading.Thread(target=source.get_value, args=(name,)) for name in names]
    readers[0].start()
    wait_until(lambda: elsewhere.asked == 1)
    for reader in readers[1:]:
        reader.start()
    wait_until(lambda: waiting_for_the_next(source) == 2)
    elsewhere.answers.set()
    for reader in readers:
        reader.join()
    first, second = ({(source, "exits")}, {(source, "exits"), (source, "pages")})
    assert elsewhere.reads == [frozenset(first), frozenset(second)]


def waiting_for_the_next(source: Source) -> int:
    """How many readers wait for the refresh after the one that is under way."""
    following = refresher_of(source)._next
    waiting = [
        frame.f_locals["self"]
        for frame in sys._current_frames().values()
        if frame.f_code is Flag.wait.__code__
    ]
    return 0 if following is None else waiting.count(following.done)


@blocking_or_not
def test_an_error_leaves_no_numbers(blocking: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The source's files have none, the totals above keep the last; it is said once."""
    host, elsewhere = Source("kvm"), Elsewhere()
    source = make_source("vm", elsewhere, blocking=blocking)
    host.add_subordinate(source)
    assert host.get_value("exits") == 7
    elsewhere.exits, elsewhere.error = 9, OSError("the socket is gone")
    for _ in range(2):
        with pytest.raises(
            UnavailableError, match=r"kvm/vm: unavailable: the refresh failed: the socket is gone"
        ):
            source.get_value("exits")
        with pytest.raises(UnavailableError):
            source.clear_value("exits")
        assert host.get_value("exits") == 7
    assert [record.message for record in caplog.records] == [
        "kvm/vm: unavailable: the refresh failed: the socket is gone"
    ]
    elsewhere.error = None
    assert source.get_value("exits") == 9
    assert host.get_value("exits") == 9


def test_an_error_without_words_is_named() -> None:
    """A refresh may raise anything, even what would end a thread."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    elsewhere.error = LookupError()
    with pytest.raises(UnavailableError, match="refresh failed: LookupError"):
        source.get_value("exits")
    elsewhere.error = SystemExit(3)
    with pytest.raises(UnavailableError, match=r"refresh failed: SystemExit\(3\)"):
        source.get_value("exits")
    elsewhere.error = None
    assert source.get_value("exits") == 7


def test_one_that_hangs_costs_one_reader_the_deadline_once() -> None:
    """Then its files have no numbers at once, totals keep the last, and it is asked again."""
    host, hanging, other = Source("kvm"), Elsewhere(), Elsewhere(5)
    source = make_source("vm", hanging)
    host.add_subordinate(source)
    host.add_subordinate(make_source("other", other))
    assert host.get_value("exits") == 12
    hanging.answers.clear()
    hanging.exits, other.exits = 100, 6
    with short_deadline():
        assert host.get_value("exits") == 13
    asked = hanging.asked
    # A reader that waited would not come back before the test's time is over.
    with short_deadline(1000):
        for _ in range(50):
            with pytest.raises(UnavailableError, match="no answer within"):
                source.get_value("exits")
            assert host.get_value("exits") == 13
    assert hanging.asked == asked
    hanging.answers.set()
    wait_until(lambda: refresher_of(source) is not None and refresher_of(source).failure is None)
    assert host.get_value("exits") == 106
    assert source.get_value("exits") == 100


def test_a_late_one_that_fails_is_asked_again_in_the_background() -> None:
    """Who reads meanwhile does not wait, and finds the numbers when they are back."""
    hanging = Elsewhere()
    source = make_source("vm", hanging)
    hanging.answers.clear()
    hanging.error = TimeoutError("gave up")
    with short_deadline(), pytest.raises(UnavailableError, match="no answer within"):
        source.get_value("exits")
    hanging.answers.set()
    wait_until(
        lambda: refresher_of(source) is not None and refresher_of(source).failure == "gave up"
    )
    hanging.error = None

    def answers() -> bool:
        try:
            return bool(source.get_value("exits") == 7)
        except UnavailableError:
            return False

    wait_until(answers)
    assert hanging.asked >= 2


def test_whoever_waits_beside_the_first_is_let_go_with_it() -> None:
    """When the first reader's deadline is over, nobody goes on waiting for the same source."""
    hanging = Elsewhere()
    source = make_source("vm", hanging)
    hanging.answers.clear()
    found: list[BaseException] = []

    def read() -> None:
        try:
            source.get_value("exits")
        except UnavailableError as error:
            found.append(error)

    with short_deadline(0.3):
        first = threading.Thread(target=read)
        first.start()
        wait_until(lambda: hanging.asked == 1)
    second = threading.Thread(target=read)
    second.start()
    wait_until(lambda: waiting_for_the_next(source) == 1)
    first.join()
    second.join()
    assert len(found) == 2
    assert hanging.asked == 1
    hanging.answers.set()
    wait_until(lambda: refresher_of(source) is not None and refresher_of(source).failure is None)


def test_who_has_just_answered_is_not_given_up() -> None:
    """A deadline may be over between the answer and the moment in which its reader is told."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    refresher = refresher_of(source)
    assert refresher is not None
    run = refresher.begin()
    assert run is not None
    assert run.done.wait(DEADLINE)
    refresher.give_up(run)
    assert (refresher.late, refresher.failure) == (False, None)


def test_what_is_said_is_said_under_no_lock() -> None:
    """A handler of the log may wait for another thread that reads what must be asked."""
    host, hanging, other = Source("kvm"), Elsewhere(), Elsewhere()
    host.add_subordinate(make_source("vm", hanging))
    fine = make_source("other", other)
    said: list[object] = []

    class Reading(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with ThreadPoolExecutor(1) as pool:
                said.append(pool.submit(fine.get_value, "exits").result(DEADLINE))

    handler = Reading()
    refresh.log.addHandler(handler)
    try:
        hanging.error = OSError("gone")
        assert host.get_value("exits") == 0
        hanging.error = None
        assert host.get_value("exits") == 7
        hanging.answers.clear()
        with short_deadline():
            assert host.get_value("exits") == 7
        hanging.answers.set()
    finally:
        refresh.log.removeHandler(handler)
    assert said == [7, 7]


def test_of_what_is_in_no_tree_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """What was removed, as a VM that ended, is expected to have no numbers any more."""
    host, elsewhere = Source("kvm"), Elsewhere()
    source = make_source("vm", elsewhere)
    host.add_subordinate(source)
    host.remove_subordinate(source)
    elsewhere.error = OSError("gone")
    with pytest.raises(UnavailableError, match="gone"):
        source.get_value("exits")
    assert not caplog.records


def test_an_idle_thread_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that has gone is not kept by the thread that asked last."""
    monkeypatch.setattr(refresh, "_IDLE", 2 * DEADLINE)
    monkeypatch.setattr(refresh, "_workers", refresh._Workers())
    elsewhere = Elsewhere()
    kept = weakref.ref(elsewhere)
    source = make_source("vm", elsewhere)
    assert source.get_value("exits") == 7
    source.put()
    del elsewhere, source
    wait_until(lambda: gc.collect() >= 0 and kept() is None)


def test_views_leave_out_who_does_not_answer() -> None:
    """Neither it nor what is below has numbers; the totals above have the last ones."""
    registry, host, elsewhere = Registry(), Source("kvm"), Elsewhere()
    registry.register(host)
    vm = make_source("vm", elsewhere)
    vcpu = Source("vcpu0", label="vcpu")
    vcpu.add_values((Value("halts", aggregate=Aggregate.SUM),), {"halts": 3})
    host.add_subordinate(vm)
    vm.add_subordinate(vcpu)
    whole = {"exits": 7, "pages": 1, "halts": 3}
    assert host.snapshot().to_dict()["values"] == whole
    elsewhere.error = OSError("gone")
    silent: dict[str, object] = {
        "values": {},
        "subordinates": {"vcpu0": {"values": {}, "subordinates": {}}},
    }
    shown = registry.snapshot()
    assert shown.to_dict()["subordinates"]["kvm"] == {
        "values": whole,
        "subordinates": {"vm": silent},
    }
    assert b"3" not in json.render(shown).partition(b'"vm"')[2]
    assert prometheus.render(shown) == b""
    assert vm.snapshot().to_dict() == silent
    assert vcpu.snapshot().to_dict() == {"values": {}, "subordinates": {}}
    assert list(make_directory(vcpu.snapshot()).files()) == []
    assert b"exits" in json.render(host.snapshot())


def test_a_refresh_may_read_what_it_refreshes() -> None:
    """It does not wait for itself."""
    elsewhere, seen = Elsewhere(), []
    sources: list[Source] = []

    def refresh() -> None:
        elsewhere.numbers.take((5, 0))
        seen.append(sources[0].get_value("exits"))

    source = Source("vm", refresh=refresh)
    source.add_values(VALUES, elsewhere.numbers)
    sources.append(source)
    assert source.get_value("exits") == 5
    assert seen == [5]


def test_few_quick_ones_need_no_thread() -> None:
    """However many there are, all run; a handler of the filesystem makes few in its own thread."""
    host, some = Source("app"), [Elsewhere(1) for _ in range(100)]
    for number, elsewhere in enumerate(some):
        host.add_subordinate(make_source(f"worker{number}", elsewhere, blocking=False))
    refreshing = find_refreshing([host])
    assert refreshing is not None
    assert not refreshing.quick
    refreshing.run()
    assert {one.asked for one in some} == {1}
    assert host.get_value("exits") == 100
    few = find_refreshing([host.subordinates[0]])
    assert few is not None
    assert few.quick


def test_few_that_bring_many_numbers_need_a_thread() -> None:
    """As a segment of a large histogram does, which takes milliseconds."""
    value = Value("h", kind=Kind.LINEAR_HIST, size=20_000, bucket_size=1)
    source = Source("app", refresh=lambda: None, blocking=False)
    refreshing = find_refreshing([source])
    assert refreshing is not None
    assert refreshing.quick
    source.add_values([value], {"h": [0] * 20_000})
    assert not refreshing.quick


def test_without_threads_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started there are no numbers, and a reader is told why."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    monkeypatch.setattr(refresh, "_workers", refresh._Workers())

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(UnavailableError, match="no thread can be started"):
            source.get_value("exits")
    assert source.get_value("exits") == 7


def test_without_threads_those_who_ask_meanwhile_are_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second call that is wanted when the thread of the first is refused fails as well."""
    source = make_source("vm", Elsewhere())
    monkeypatch.setattr(refresh, "_workers", refresh._Workers())
    second = []

    def refuse(self: threading.Thread) -> None:
        second.append(refresher_of(source).begin())
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(UnavailableError, match="no thread can be started"):
            source.get_value("exits")
    assert second[0] is not None
    assert second[0].done.wait(0)
    assert source.get_value("exits") == 7


def test_a_thread_that_cannot_be_started_is_not_missed_if_another_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What another thread took meanwhile has not failed."""
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    workers = refresh._Workers()
    monkeypatch.setattr(refresh, "_workers", workers)

    def refuse(self: threading.Thread) -> None:
        workers._wanted.clear()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with short_deadline(), pytest.raises(UnavailableError, match="no answer within"):
        source.get_value("exits")


def test_idle_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that nobody needs for a while goes; the next read has another."""
    monkeypatch.setattr(refresh, "_IDLE", 0.01)
    monkeypatch.setattr(refresh, "_workers", refresh._Workers())
    elsewhere = Elsewhere()
    source = make_source("vm", elsewhere)
    assert source.get_value("exits") == 7
    (thread,) = elsewhere.threads
    wait_until(lambda: thread not in {one.ident for one in threading.enumerate()})
    assert source.get_value("exits") == 7


FORKING = """
import os, threading
from statsfs import Source, Value
from statsfs.tree.refresh import refresh_all

begun, base = threading.Event(), {"exits": 0}
parent = os.getpid()

def refresh():
    base["exits"] = os.getpid()
    if hangs is not None and os.getpid() == parent:
        begun.set()
        hangs.wait()

hangs = None
source = Source("vm", refresh=refresh)
source.add_values((Value("exits"),), base)
assert source.get_value("exits") == parent
hangs = threading.Event()
reader = threading.Thread(target=refresh_all, args=([source],))
reader.start()
begun.wait()
child = os.fork()
if not child:
    assert source.get_value("exits") == os.getpid()
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
hangs.set()
reader.join()
"""


def test_a_forked_child_asks_by_threads_of_its_own() -> None:
    """Those of its parent are not there, and a refresh that was under way will never end."""
    assert run_forking(FORKING, measured=True) == (0, "")


def test_a_released_source_asks_nobody() -> None:
    """What it had is dropped with it."""
    host, elsewhere = Source("kvm"), Elsewhere()
    source = make_source("vm", elsewhere)
    host.add_subordinate(source)
    source.put()
    host.remove_subordinate(source)
    assert host.names() == []
    assert find_refreshing([host]) is None
    assert directory_of(source).refresher is None
    assert directory_of(source).refreshers is None


def test_refreshes_that_pass_the_deadline_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources whose refresh did not run in time have no numbers, rather than old ones."""
    monkeypatch.setattr(refresh, "DEADLINE", 0.05)
    top, slow = Source("top"), [True]

    def ask() -> None:
        if slow[0]:
            time.sleep(0.002)

    for number in range(200):
        source = Source("s%d", number, refresh=ask, blocking=False)
        source.add_values(VALUES, {"exits": 1, "pages": 1})
        top.add_subordinate(source)
        source.put()
    shown = top.snapshot().to_dict()["subordinates"]
    missing = {name for name, one in shown.items() if not one["values"]}
    # The deadline is looked at now and then.
    assert missing == {f"s{number}" for number in range(63, 200)}
    late = directory_of(subordinate(top, "s199"))
    with pytest.raises(UnavailableError, match=r"no time left within 0\.05 s"):
        late.read(late.files["exits"], late.entry_of(late.files["exits"]))
    slow[0] = False
    assert top.get_value("exits") == 200
    assert all(one["values"] for one in top.snapshot().to_dict()["subordinates"].values())
