"""A COMMAND that runs while something is measured."""

import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from statsfs.cli.measured import Command


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_while_the_command_is_started_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """It was not: the command ran to its end."""
    real = subprocess.Popen

    def start(words: list[str]) -> Any:
        if early:
            signal.raise_signal(signal.SIGTERM)
        child = real(words)
        if not early:
            signal.raise_signal(signal.SIGTERM)
        return child

    program = Command(["sleep", "3600"])
    monkeypatch.setattr(subprocess, "Popen", start)
    status, _ = program.run()
    assert status == 128 + signal.SIGTERM
    assert program.told == signal.SIGTERM
