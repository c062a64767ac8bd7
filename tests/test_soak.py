"""The short form of `make soak`: each scenario of load and faults, for a moment."""

import pytest

from tests.soak.__main__ import main
from tests.soak.scenarios import SCENARIOS

pytestmark = pytest.mark.mount

SECONDS = 0.3
# What needs longer to say something.
LONGER = {"load": 1.0, "fuzz": 0.7, "segments": 1.5, "cleared_segments": 1.5}


# Where others' files are played with.
AS_ROOT = {"locked_files", "mutated_segments", "renamed_files"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.root] * (name in AS_ROOT)) for name in SCENARIOS],
)
def test_scenario(name: str) -> None:
    """It raises if anything is wrong."""
    assert SCENARIOS[name](LONGER.get(name, SECONDS))


def test_a_scenario_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the others run all the same; a name that there is not is a mistake."""

    def failing(seconds: float) -> str:
        raise AssertionError(f"not in {seconds} s")

    monkeypatch.setitem(SCENARIOS, "load", failing)
    monkeypatch.setitem(SCENARIOS, "fuzz", lambda seconds: "well done")
    assert main(["--seconds", "3", "load", "fuzz"]) == 1
    output = capsys.readouterr().out
    assert "AssertionError: not in 3.0 s" in output
    assert "fuzz (0 s): well done\nfailed: load\n" in output
    assert main(["fuzz"]) == 0
    with pytest.raises(SystemExit):
        main(["lod"])
