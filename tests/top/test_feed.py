"""The thread that reads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from statsfs.exceptions import SampleError
from statsfs.eyes.samples import Sample
from statsfs.top.feed import Feed
from statsfs.top.known import Known
from tests.support.deadlines import wait_until
from tests.support.top_place import MadePlace


class Heard:
    """What a feed told."""

    def __init__(self) -> None:
        self.samples: list[Sample | None] = []
        self.errors: list[str] = []
        self.refusals: list[str] = []

    def hear(self, sample: Sample | None, error: SampleError | None) -> None:
        """A sample, or why there is none."""
        if error is None:
            self.samples.append(sample)
        else:
            self.errors.append(error.message)

    def refuse(self, error: SampleError) -> None:
        """Why it was not cleared."""
        self.refusals.append(error.message)


@contextmanager
def feeding(place: Any, heard: Heard, interval: float = 0.01) -> Iterator[Feed]:
    """A feed, which ends."""
    feed = Feed(place, Known(place), interval, heard.hear, heard.refuse)
    with running(feed):
        yield feed


@contextmanager
def running(feed: Feed) -> Iterator[None]:
    """Its thread, which ends."""
    feed.start()
    (thread,) = (one for one in threading.enumerate() if one.name == "statsfs-top")
    try:
        yield
    finally:
        feed.stop()
        thread.join()


def test_samples_are_told_until_it_stops() -> None:
    """One after the other; what goes wrong too, and then it goes on."""
    place, heard = MadePlace(), Heard()
    with feeding(place, heard):
        wait_until(lambda: len(heard.samples) > 2)
        place.error = "gone"
        wait_until(lambda: "gone" in heard.errors)
        place.error = ""
        count = len(heard.samples)
        wait_until(lambda: len(heard.samples) > count)
    moments = [sample.moment for sample in heard.samples if sample is not None]
    assert moments == sorted(moments)


def test_values_are_cleared_and_read_at_once() -> None:
    """Also while it is held; what is refused is told, and no end of it."""
    place, heard = MadePlace(), Heard()
    with feeding(place, heard, 1000) as feed:
        wait_until(lambda: len(heard.samples) == 1)
        feed.held = True
        feed.clear(("kvm",), "exits")
        wait_until(lambda: place.cleared == [(("kvm",), "exits")])
        wait_until(lambda: len(heard.samples) == 2)
        feed.clear(("kvm",), "hypercalls")
        wait_until(lambda: heard.refusals == ["/run/stats/kvm/hypercalls: Permission denied"])
        wait_until(lambda: len(heard.samples) == 3)
        feed.held = False
        feed.wake()
        wait_until(lambda: len(heard.samples) == 4)


def test_where_reading_costs_much_ticks_are_rarer() -> None:
    """Top takes little of a CPU."""

    class Large(MadePlace):
        def read_sample(self) -> Sample:
            sum(range(200_000))
            return super().read_sample()

    heard = Heard()
    with feeding(Large(), heard, 0.001) as feed:
        wait_until(lambda: bool(heard.samples))
        wait_until(lambda: feed.pace > 0.01)


def test_how_long_there_is_no_answer() -> None:
    """It grows while a read hangs, and is 0 between reads."""
    hangs, goes_on = threading.Event(), threading.Event()

    class Hanging(MadePlace):
        def read_sample(self) -> Sample:
            hangs.set()
            goes_on.wait()
            return super().read_sample()

    heard = Heard()
    with feeding(Hanging(), heard, interval=60) as feed:
        hangs.wait()
        first = feed.waited
        wait_until(lambda: feed.waited > first)
        goes_on.set()
        wait_until(lambda: feed.waited == 0.0)
    assert len(heard.samples) == 1


def test_a_held_feed_does_not_read() -> None:
    """It goes on when it is told to."""
    place, heard = MadePlace(), Heard()
    with feeding(place, heard, 1000) as feed:
        wait_until(lambda: bool(heard.samples))
        feed.held = True
        feed.wake()
        wait_until(lambda: not feed._woken.is_set())  # it looked, and did not read
        assert place.second == 1
        feed.held = False
        feed.wake()
        wait_until(lambda: place.second == 2)


def test_reads_that_were_asked_for_do_not_put_off_the_next() -> None:
    """Each key of a recording once put the next sample off by an interval."""
    waits: list[float | None] = []

    class Waking(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(timeout)

    def wait_for_waits(count: int) -> None:
        wait_until(lambda: len(waits) == count)

    place, heard = MadePlace(), Heard()
    feed = Feed(place, Known(place), 1000, heard.hear, heard.refuse)
    feed._woken = Waking()
    with running(feed):
        wait_for_waits(1)
        for count in range(2, 6):
            feed.wake()
            wait_for_waits(count)
    assert len(heard.samples) == 5
    assert all(wait is not None and 0 < wait <= 1000 for wait in waits)
