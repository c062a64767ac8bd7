"""The pace of vCPUs, by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from statsfs.demo import machines
from statsfs.demo.machines import Vcpu


class Clock:
    """The time of one vCPU: each wait for its end takes as long as the test says."""

    def __init__(self, *ticks: float) -> None:
        self.now = 0.0
        self._ticks = list(ticks)

    def wait(self, _seconds: float) -> bool:
        """Let the next tick go by; the end has come when there is none."""
        if not self._ticks:
            return True
        self.now += self._ticks.pop(0)
        return False


class Counting(Vcpu):
    """A vCPU that only counts its exits, batch by batch."""

    def __init__(self, rate: float) -> None:
        super().__init__("vcpu0")
        self.rate = rate
        self.batches: list[int] = []

    def make_exits(self, exits: int) -> None:
        self.batches.append(exits)


class Broken(Counting):
    """A vCPU that cannot run."""

    def make_exits(self, exits: int) -> None:
        raise OSError("no exits")


def batches(monkeypatch: pytest.MonkeyPatch, rate: float, *ticks: float) -> list[int]:
    """What a vCPU makes in some ticks."""
    vcpu, clock = Counting(rate), Clock(*ticks)
    monkeypatch.setattr(machines, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(vcpu, "ended", clock)
    vcpu.run()
    return vcpu.batches


@pytest.mark.parametrize(
    ("rate", "ticks", "expected"),
    [
        (1000, (0.25, 0.25, 0.5), [250, 250, 500]),
        (10, (0.25, 0.25, 0.25, 0.25), [2, 3, 2, 3]),
        (0.5, (0.5, 0.5, 0.5, 0.5, 0.5), [0, 0, 0, 1, 0]),
    ],
)
def test_the_pace_is_the_rate(
    monkeypatch: pytest.MonkeyPatch, rate: float, ticks: tuple[float, ...], expected: list[int]
) -> None:
    """Each tick makes what its time asks for; parts of an exit are kept for the next."""
    assert batches(monkeypatch, rate, *ticks) == expected


def test_a_vcpu_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread ends, which is logged once."""
    vcpu = Broken(1000)
    monkeypatch.setattr(vcpu, "ended", Clock(0.25, 0.25))
    vcpu.run()
    assert caplog.messages == ["vcpu0 stopped: no exits"]


def test_a_machine_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It catches up one second, and the rest is forgotten."""
    assert batches(monkeypatch, 1000, 0.25, 60, 0.25) == [250, 1000, 250]
    assert batches(monkeypatch, 0.5, 60, 0.5, 0.5) == [1, 0, 0]
