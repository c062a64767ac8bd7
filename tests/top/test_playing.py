"""A recording in `top`: keys play, stop and search it."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.recordings.playing import Playback
from tests.support.registry_place import BEGUN, Tree
from tests.top.driving import Driven, driving


@pytest.fixture
def player(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Playback:
    """A recording of 200 seconds, in which time passes with each look at the clock."""
    tree = Tree(tmp_path / "r.parquet")
    for _ in range(200):
        tree.workers[0].requests += 10
        tree.tick()
    tree.recorder.close()
    now = iter(range(10_000))
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("statsfs.recordings.playing.time", clock)
    return Playback(str(tmp_path / "r.parquet"))


def run(monkeypatch: Any, player: Playback, test: Any) -> None:
    """Run a test with an app that plays."""

    async def main() -> None:
        async with driving(monkeypatch, player, size=(200, 40)) as driven:  # type: ignore[arg-type]
            await test(driven)

    asyncio.run(main())


def second(driven: Driven) -> float:
    """What is shown, in seconds since the beginning."""
    sample = driven.app._rates.after
    assert sample is not None
    return sample.time - BEGUN


def test_keys_search_a_recording(monkeypatch: Any, player: Playback) -> None:
    """Each jump shows its sample, with the rate of the interval before it."""

    async def test(driven: Driven) -> None:
        assert second(driven) == 2
        for key, seconds in (
            ("full_stop", 3), ("full_stop", 4), ("comma", 3), ("right_curly_bracket", 63),
            ("left_curly_bracket", 3), ("5", 99), ("ctrl+end", 199), ("ctrl+home", 0), ("9", 179),
        ):  # fmt: skip
            await driven.press(key)
            await driven.tick()
            assert second(driven) == seconds, key
            rate = driven.app._rates.rate(("app",), "requests")
            assert rate == (10 if seconds else None), key
        assert "PAUSED" in driven.screen
        assert "r.parquet" in driven.screen
        assert "90% of 3:19" in driven.screen

    run(monkeypatch, player, test)


def test_a_recording_is_paused_and_played_faster(monkeypatch: Any, player: Playback) -> None:
    """At its end, the line at the top says so."""

    async def test(driven: Driven) -> None:
        assert "PAUSED" in await driven.press("p")
        await driven.tick(5)
        assert second(driven) == 2
        assert driven.app._rates.rate(("app",), "requests") == 10
        await driven.press("p")
        for _ in range(3):
            await driven.press("right_square_bracket")
        await driven.tick()
        assert second(driven) == 10
        assert "8x" in driven.screen
        await driven.press("left_square_bracket")
        assert "4x" in driven.screen
        assert "END OF THE RECORDING" not in driven.screen
        await driven.tick(60)
        assert "END OF THE RECORDING" in driven.screen
        await driven.press("comma")
        await driven.tick()
        assert second(driven) == 198
        assert "END OF THE RECORDING" not in driven.screen

    run(monkeypatch, player, test)


def test_what_is_live_cannot_be_searched(monkeypatch: Any) -> None:
    """It says so."""

    async def test(driven: Driven) -> None:
        await driven.press("full_stop")
        assert driven.told == ["/run/stats is live, not a recording"]

    async def main() -> None:
        async with driving(monkeypatch) as driven:
            await test(driven)

    asyncio.run(main())
