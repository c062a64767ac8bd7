"""The demo's rates, by a clock of the test's own."""

import re
from typing import Any, cast

import pytest

from statsfs.cli import demo_screen
from statsfs.cli.demo_screen import Screen

STEP = 1000


class Kvm:
    """One that makes 1000 exits a second; it is its own source, and has no VMs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.exits = 12_345.0
        self.vms: list[object] = []

    @property
    def source(self) -> "Kvm":
        """The source of all."""
        return self

    def names(self) -> list[str]:
        """What it has."""
        return ["exits"]

    def get_value(self, name: str) -> int:
        """Its exits."""
        return int(self.exits)

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def go_on(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds
        self.exits += seconds * STEP


def test_rates_after_a_clear(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The second in which it was cleared is left out: it made three lines wrong."""
    kvm = Kvm()
    monkeypatch.setattr(demo_screen, "time", kvm)
    screen = Screen(cast(Any, kvm))
    for second in range(12):
        kvm.go_on(0.75)
        if second in (4, 9):
            kvm.exits = 0
        kvm.go_on(0.25)
        screen.show()
    screen.close()
    rates = re.findall(r"exits \d+ \(\+(\d+)/s\)", capsys.readouterr().out)
    assert rates == [str(STEP)] * 12


def test_rates_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """With the first line, if it was just cleared, or without any time."""
    kvm = Kvm()
    monkeypatch.setattr(demo_screen, "time", kvm)
    screen = Screen(cast(Any, kvm))
    screen.show()
    kvm.go_on(1)
    kvm.exits = 5
    screen.show()
    screen.close()
    assert re.findall(r"\(\+(.*)/s\)", capsys.readouterr().out) == ["0", "0"]
