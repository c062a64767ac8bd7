"""Floods: what one user does all the time neither fills the log nor holds the others."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.watching import Events, Watch
from statsfs.segments import publish
from statsfs.tree.log_budget import LINES_MAX
from tests.support.collecting import HandMade, collecting, files_in, find, total, wait_for
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.other_users import SUM, USER, put, shared_directory


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How many lines have some words."""
    return len([line for line in caplog.messages if words in line])


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that others may enter, with one in it that is a user's."""
    with shared_directory() as path:
        yield path


# Log lines


@pytest.mark.root
def test_a_user_whose_files_are_refused(
    shared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few lines a minute, and then how many more there were; another's lines are not lost.

    Names that came and went gave 100 lines a second.
    """
    monkeypatch.setattr("statsfs.tree.log_budget._MINUTE", 2.0)
    with collecting(shared) as registry:
        for number in range(5 * LINES_MAX):
            put(shared / "www" / f"{number}.stats", "db/w1", USER).die()
            (shared / "www" / f"{number}.stats").unlink()
        for number in range(5 * LINES_MAX):
            put(shared / "www" / f"{number}.stats", "db/w1", USER).die()
        put(shared / "other.stats", "db/w1", USER)
        wait_until(lambda: said(caplog, "other.stats is refused"))
        put(shared / "www" / "good.stats", "www/w1", USER)
        wait_for(registry, "www/w1")
        wait_until(lambda: said(caplog, f"user {USER}: "))
        assert said(caplog, "not below www/") <= 2 * LINES_MAX
        left_out = [line.split()[2] for line in caplog.messages if "left out" in line]
        assert 3 * LINES_MAX < int(left_out[0]) < 10 * LINES_MAX


FEW = 3


def label(directory: Path, number: int) -> None:
    """Two segments that name a path source by different labels."""
    for name in ("a", "b"):
        file = directory / f"{name}{number}.stats"
        labels = ("app", name, None)
        HandMade.of(file, f"app/{number}/{name}", [1], [SUM], alive=False, labels=labels)


def truncate(directory: Path, number: int) -> None:
    """A dead segment whose numbers cannot be read."""
    made = HandMade.of(directory / f"{number}.stats", f"app/w{number}", [1], [SUM])
    os.truncate(made.file, made.file.stat().st_size - 64)
    made.die()


CAUSES = {
    "label": (label, "the label stays"),
    "truncated": (truncate, "is refused"),
}


@pytest.mark.parametrize("what", CAUSES)
def test_whatever_a_user_causes(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each such line is within the budget."""
    monkeypatch.setattr("statsfs.tree.log_budget.LINES_MAX", FEW)
    cause, words = CAUSES[what]
    for number in range(2 * FEW):
        cause(directory, number)
    with collecting(directory):
        wait_until(lambda: said(caplog, words) == FEW)
        with publish("end/w1", values=[SUM], directory=directory):
            pass
        wait_until(lambda: not list(directory.glob("end*")))
    assert said(caplog, words) == FEW


def test_files_that_cannot_be_removed(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was logged; they count once, and are tried again."""
    unlink = os.unlink

    def refuse(path: str, **more: int) -> None:
        if str(path).endswith(".stats"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, **more)

    for number in range(3 * LINES_MAX):
        HandMade.of(directory / f"{number}.stats", f"app/w{number}", [1], [SUM], alive=False)
    monkeypatch.setattr(os, "unlink", refuse)
    with collecting(directory) as registry:
        assert total(registry, "sum") == 3 * LINES_MAX
    assert 0 < said(caplog, "Operation not permitted") <= LINES_MAX
    monkeypatch.undo()
    with collecting(directory) as registry:
        assert total(registry, "sum") == 3 * LINES_MAX
        assert files_in(directory) == []


# Events


@pytest.mark.parametrize("where", ["", "www/"])
def test_a_directory_with_too_many_events(
    directory: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It is not listened to for a moment, and then scanned: nothing is missed."""
    monkeypatch.setattr("statsfs.collector.watching.FLOOD", 20)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.05)
    (directory / "www").mkdir(mode=0o755)
    with collecting(directory) as registry:
        for number in range(40):
            HandMade.of(
                directory / where / f"{number}.stats", f"www/w{number}", [1], [SUM], alive=False
            )
        with publish("www/living", values=[SUM], directory=directory / where):
            wait_for(registry, "www/living")
            wait_until(lambda: total(registry, "sum", "www") == 40)
        wait_until(lambda: find(registry, "www/living") is None)


def test_a_directory_that_goes_while_it_is_not_listened_to(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segments leave, and it comes back."""
    monkeypatch.setattr("statsfs.collector.watching.FLOOD", 2)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.05)
    www = directory / "www"
    with collecting(directory) as registry:
        for number in range(3):
            www.mkdir(mode=0o755)
            made = HandMade.of(www / "x.stats", f"www/w{number}", [1], [SUM])
            for name in "abc":
                (www / f"{name}.stats").mkdir()
                (www / f"{name}.stats").rmdir()
            wait_for(registry, f"www/w{number}")
            made.file.unlink()
            www.rmdir()
            made.die()
            wait_until(lambda: find(registry, f"www/w{number}") is None)  # noqa: B023  # at once
        assert total(registry, "sum", "www") == 3


def test_a_flood_of_a_directory_that_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to be listened to, nor to be scanned."""
    monkeypatch.setattr("statsfs.collector.watching.FLOOD", 2)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.01)
    told: list[str] = []
    calm = Collector._calm

    def note(self: Collector, prefix: str, **how: bool) -> None:
        calm(self, prefix, **how)
        told.append(prefix)

    monkeypatch.setattr(Collector, "_calm", note)
    waiting, gate, original = threading.Event(), threading.Event(), Watch.wait

    def wait(watch: Watch, seconds: float) -> Events:
        waiting.set()
        assert gate.wait(DEADLINE)
        return original(watch, seconds)

    (directory / "www").mkdir(mode=0o755)
    with collecting(directory) as registry:
        monkeypatch.setattr(Watch, "wait", wait)
        (directory / "other").touch()
        assert waiting.wait(DEADLINE)
        for name in "abc":
            (directory / "www" / name).touch()
        shutil.rmtree(directory / "www")
        gate.set()
        with publish("app/w1", values=[SUM], directory=directory):
            wait_for(registry, "app/w1")
        wait_until(lambda: told.count("www/") == 2)


def test_as_many_wait_as_a_directory_may_have(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one directory do not take the places of another's."""
    monkeypatch.setattr("statsfs.collector.admission._WAITING_MAX", 2)
    for name in ("db", "www"):
        (directory / name).mkdir(mode=0o755)
    with collecting(directory) as registry:
        made = [
            HandMade.of(directory / name / f"{number}.stats", f"{name}/w1", [1], [SUM])
            for name, count in (("db", 5), ("www", 2))
            for number in range(count)
        ]
        wait_for(registry, "www/w1")
        made[5].die()
        wait_until(lambda: len(files_in(directory / "www")) == 1)
        wait_for(registry, "www/w1")
        for each in (*made[:5], made[6]):
            each.die()
        wait_until(lambda: total(registry, "sum", "www") == 2)
