"""An app that is driven: its thread does not run, each tick is the test's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from textual.pilot import Pilot

from statsfs.top.app import TopApp
from statsfs.top.feed import Feed
from tests.support.top_place import MadePlace

__all__ = ["Driven", "driving", "text_of"]


class Driven:
    """The app, and what moves it.

    Attributes:
        pilot: presses its keys.
    """

    def __init__(self, app: TopApp, place: MadePlace, pilot: Pilot[Any]) -> None:
        self.app = app
        self.place = place
        self.pilot = pilot

    async def tick(self, count: int = 1) -> None:
        """Let it have the next samples, or why there is none."""
        for _ in range(count):
            self.app._feed._read()
        await self.pilot.pause()

    async def press(self, *keys: str) -> str:
        """Press keys; return what is then on the screen."""
        await self.pilot.press(*keys)
        await self.pilot.pause()
        return self.screen

    @property
    def told(self) -> list[str]:
        """What it notified of."""
        return [one.message for one in self.app._notifications]

    @property
    def screen(self) -> str:
        """The lines on the screen."""
        return text_of(self.app)


def text_of(app: TopApp) -> str:
    """What an app shows, as text."""
    lines = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in line).rstrip() for line in lines)


@asynccontextmanager
async def driving(
    monkeypatch: Any,
    place: MadePlace | None = None,
    size: tuple[int, int] = (150, 36),
    **arguments: Any,
) -> AsyncIterator[Driven]:
    """An app with two samples."""
    made = MadePlace() if place is None else place
    monkeypatch.setattr(Feed, "start", lambda self: None)
    app = TopApp(made, **arguments)
    async with app.run_test(size=size) as pilot:
        driven = Driven(app, made, pilot)
        await driven.tick(2)
        await driven.tick()
        yield driven
