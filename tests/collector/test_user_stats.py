"""The numbers of each user in a collector, and the reasons of refusals."""

import os
from collections import Counter
from pathlib import Path

import pytest

from statsfs.collector import Collector, refusals
from statsfs.collector.live_segment import weigh
from statsfs.segments import file_format, publish
from statsfs.tree.registry import Registry
from tests.support.collecting import WorkerStats
from tests.support.deadlines import wait_until
from tests.support.segment_files import segments_in

ME = os.geteuid()


def test_what_a_user_has(directory: Path) -> None:
    """Segments, their weight, and empty directories."""
    with Collector(Registry(), directory) as collector:
        assert collector.users.count() == {}
        with publish("app/a/one", values=WorkerStats, directory=directory) as segment:
            segment.stats.requests += 1

            def segments() -> int:
                return collector.users.count().get(ME, Counter[str]())["segments"]

            wait_until(lambda: segments() == 1, "the segment")
            (file,) = segments_in(directory)
            metadata = file_format.decode(file.read_bytes())
            counted = collector.users.count()[ME]
            assert (counted["segments"], counted["segment_integers"]) == (1, weigh(metadata))
            assert counted["empty_directories"] == 0
            numbers = counted["directory_numbers"]
            assert numbers > 2 * len(metadata.values)
        wait_until(lambda: segments() == 0, "its end")
        left = collector.users.count()[ME]
        assert left["empty_directories"] == 2
        assert 0 < left["directory_numbers"] <= numbers


def test_refused_files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest first; a file that is removed or mended is refused no more, and was, once."""
    monkeypatch.setattr(refusals, "_PAUSE", 0.01)
    with Collector(Registry(), directory) as collector:

        def refused() -> int:
            return collector.users.count().get(ME, Counter[str]())["refused_files"]

        for number in range(3):
            (directory / ".made").write_bytes(b"x")
            (directory / ".made").rename(directory / f"{number}.stats")
            wait_until(lambda: refused() == number + 1, "the refusal")  # noqa: B023  # at once
        lines = collector.users.find_reasons(ME, 2)
        assert [line.split()[0] for line in lines] == [f"{directory}/{n}.stats" for n in (2, 1)]
        (directory / "1.stats").unlink()
        wait_until(lambda: refused() == 2, "the removal")
        with publish("app/one", values=WorkerStats, directory=directory):
            (file,) = (one for one in segments_in(directory) if one.stem not in "0123")
            os.rename(file, directory / "2.stats")
            wait_until(lambda: refused() == 1, "the segment in its place")
            assert [line.split()[0] for line in collector.users.find_reasons(ME, 9)] == [
                f"{directory}/0.stats"
            ]
        assert collector.users.count()[ME]["refusals"] == 3


def test_refused_directories(directory: Path) -> None:
    """They are among the files, and their reasons come first; so is one that is left."""
    (directory / "open").mkdir()
    (directory / "open").chmod(0o777)
    (directory / "broken.stats").write_bytes(b"x")
    with Collector(Registry(), directory) as collector:
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 2, "the refusals")
        first, second = collector.users.find_reasons(ME, 9)
        assert first.startswith(f"{directory}/open is not read: ")
        assert second.startswith(f"{directory}/broken.stats is refused: ")
        assert collector.users.find_reasons(ME, 1) == [first]
        assert collector.users.find_reasons(ME + 1, 9) == []
        (directory / "open").chmod(0o755)
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 1, "the chmod")
        (directory / "open" / "x.stats").write_bytes(b"x")
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 2, "the file")
        (directory / "open" / "x.stats").unlink()
        (directory / "open").rmdir()
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 1, "the removal")


def test_more_refusals_than_are_remembered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is of those that are remembered, and long reasons are cut."""
    monkeypatch.setattr(refusals, "_KNOWN_MAX", 3)
    monkeypatch.setattr(refusals, "_REASON_MAX", 30)
    for number in range(5):
        (directory / f"{number}.stats").write_bytes(b"x")
    with Collector(Registry(), directory) as collector:
        wait_until(lambda: collector.users.count()[ME]["refusals"] == 5, "the refusals")
        assert collector.users.count()[ME]["refused_files"] == 3
        assert {len(line) for line in collector.users.find_reasons(ME, 9)} == {30}


def test_a_directory_that_is_gone(directory: Path) -> None:
    """Its refusals go with it."""
    (directory / "broken.stats").write_bytes(b"x")
    with Collector(Registry(), directory) as collector:
        wait_until(lambda: ME in collector.users.count(), "the refusal")
        directory.rename(directory.with_name("away"))
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 0, "the end")
        assert collector.users.find_reasons(ME, 9) == []
        directory.with_name("away").rename(directory)
        wait_until(lambda: collector.users.count()[ME]["refused_files"] == 1, "the return")
