"""Liveness: which segments are to be folded."""

import contextlib

from statsfs.collector.live_segment import weigh
from statsfs.collector.liveness import Liveness
from statsfs.collector.timers import Timers
from statsfs.collector.trusted_directory import TrustedDirectory
from statsfs.collector.turns import Turns
from tests.support.collecting import make_segment


def test_some_of_the_dead(trusted: TrustedDirectory) -> None:
    """They are taken in order, and once, by the top-level name."""
    liveness = Liveness(Timers(), Turns())
    with contextlib.closing(liveness):
        segments = [make_segment(trusted, f"app/w{number}") for number in range(3)]
        other = make_segment(trusted, "db/w1")
        for segment in (*segments, other):
            liveness.add(segment, alive=False)
        assert liveness.is_dead(segments[2])
        assert liveness.take_dead("app", 2, 1000) == segments[:2]
        assert not liveness.is_dead(segments[0])
        assert liveness.take_dead("app", 2, 1000) == segments[2:]
        assert liveness.take_dead("app", 2, 1000) == []
        assert list(liveness.dead) == ["db"]


def test_heavy_ones_are_few(trusted: TrustedDirectory) -> None:
    """One at least, whatever it weighs."""
    liveness = Liveness(Timers(), Turns())
    with contextlib.closing(liveness):
        segments = [make_segment(trusted, f"app/w{number}") for number in range(4)]
        for segment in segments:
            liveness.add(segment, alive=False)
        weight = weigh(segments[0].metadata)
        assert liveness.take_dead("app", 9, 2 * weight) == segments[:2]
        assert liveness.take_dead("app", 9, 2 * weight - 1) == segments[2:3]
        assert liveness.take_dead("app", 9, 0) == segments[3:]
