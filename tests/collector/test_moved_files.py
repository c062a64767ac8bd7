"""Files that go and come back: each counts once, wherever it was and whatever it is called."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statsfs.collector.counted_files import FOLDED_MAX, REMOVED_MAX, CountedFiles
from statsfs.collector.journal_file import decode_record
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import file_format, publish
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, collecting, files_in, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import ROOT

SUM = Value("sum", aggregate=Aggregate.SUM)

PATH = "www/w1"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was moved is folded at once, not in a second."""
    monkeypatch.setattr("statsfs.collector.liveness._PATIENCE", 0.02)


def make(directory: Path, number: int, id: str | None, name: str = "x") -> HandMade:
    """A living segment with an id or without."""
    encoded = file_format.encode(PATH, [SUM], numbers=[number], id=id)
    return HandMade(directory / f"{name}.stats", encoded)


def count(made: HandMade, number: int) -> None:
    """Count, as its producer."""
    head = file_format.decode(os.pread(made.fd, file_format.FILE_MAX, 0))
    assert head is not None
    os.pwrite(made.fd, number.to_bytes(8, sys.byteorder), head.data_offset)


def shown(registry: Registry) -> object:
    """The total."""
    return total(registry, "sum", "www")


# How it goes, and how it comes back.
MOVES: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "the file": (
        lambda top: os.rename(top / "x.stats", top.with_name("away")),
        lambda top: os.rename(top.with_name("away"), top / "x.stats"),
    ),
    "another name": (
        lambda top: os.rename(top / "x.stats", top.with_name("away")),
        lambda top: os.rename(top.with_name("away"), top / "y.stats"),
    ),
    "another suffix": (
        lambda top: os.rename(top / "x.stats", top / "x.stats.old"),
        lambda top: os.rename(top / "x.stats.old", top / "x.stats"),
    ),
    "another directory": (
        lambda top: os.rename(top / "x.stats", top.with_name("away")),
        lambda top: os.rename(top.with_name("away"), top / "www" / "x.stats"),
    ),
    "only renamed": (
        lambda top: os.rename(top / "x.stats", top / "y.stats"),
        lambda top: None,
    ),
    "the directory": (
        lambda top: os.rename(top, top.with_name("away")),
        lambda top: os.rename(top.with_name("away"), top),
    ),
}  # fmt: skip


@pytest.mark.parametrize("id", ["0123456789abcdef", None], ids=["id", "no id"])
@pytest.mark.parametrize("dies", [False, True], ids=["alive", "dead"])
@pytest.mark.parametrize("stops", ["never", "before", "after"])
@pytest.mark.parametrize("what", MOVES)
def test_what_comes_back_counts_once(
    directory: Path, what: str, stops: str, dies: bool, id: str | None
) -> None:
    """A file that was moved away while its producer died counted twice: 201 of 101.

    The collector goes on, or it is another one that sees the file come back; the first one saw the
    producer die, or did not. A collector writes nothing at its end, so that is as if it was killed.
    """
    go, come = MOVES[what]
    (directory / "www").mkdir()
    made = make(directory, 100, id)
    with contextlib.ExitStack() as collectors:
        registry = collectors.enter_context(collecting(directory))
        go(directory)
        count(made, 101)
        if stops == "before":
            collectors.close()
        if dies:
            made.die()
        if dies and stops != "before":
            wait_until(lambda: find(registry, PATH) is None)
            assert shown(registry) == 101
        if stops != "never":
            collectors.close()
            if what == "the directory":
                come(directory)
            registry = collectors.enter_context(collecting(directory))
        if not (stops != "never" and what == "the directory"):
            come(directory)
        if not dies:
            wait_for(registry, PATH)
            wait_until(lambda: shown(registry) == 101)
            count(made, 102)
            assert shown(registry) == 102
            made.die()
        wait_until(lambda: not all_files(directory))
        wait_until(lambda: find(registry, PATH) is None)
        assert shown(registry) == (101 if dies else 102)
    with collecting(directory) as registry:
        assert shown(registry) == (101 if dies else 102)


def all_files(directory: Path) -> list[str]:
    """The names of all files."""
    below = directory / "www"
    return files_in(directory) + (files_in(below) if below.exists() else [])


def test_a_directory_in_it_that_comes_back(directory: Path) -> None:
    """With segments of which one dies meanwhile."""
    (directory / "www").mkdir()
    one = make(directory / "www", 100, None)
    two = publish("www/w2", values=[SUM], directory=directory / "www")
    two.stats.sum = 10
    with collecting(directory) as registry:
        os.rename(directory / "www", directory.with_name("away"))
        one.die()
        wait_until(lambda: find(registry, PATH) is None)
        assert shown(registry) == 110
        os.rename(directory.with_name("away"), directory / "www")
        wait_until(lambda: len(files_in(directory / "www")) == 1)
        assert shown(registry) == 110
        two.close()
        wait_until(lambda: all_files(directory) == [])
        assert shown(registry) == 110


@pytest.mark.parametrize("id", ["0123456789abcdef", None], ids=["id", "no id"])
@pytest.mark.parametrize("cleared", [0, 100])
def test_a_new_file_under_an_old_name(directory: Path, id: str | None, cleared: int) -> None:
    """It inherits nothing, though the filesystem may give it the old one's inode."""
    old = make(directory, 100, id)
    with collecting(directory) as registry:
        if cleared:
            registry.by_name["www"].clear_value("sum")
    old.die()
    old.file.unlink()
    new = make(directory, 150, id and id[::-1])
    with collecting(directory) as registry:
        assert shown(registry) == 150
        new.die()
        wait_until(lambda: files_in(directory) == [])
        newest = make(directory, 7, id and id[::2] * 2)
        wait_for(registry, PATH)
        assert shown(registry) == 157
        newest.die()
        wait_until(lambda: files_in(directory) == [])
        assert shown(registry) == 157
    with collecting(directory) as registry:
        assert shown(registry) == 157


def test_what_was_cleared_goes_and_comes_back(directory: Path) -> None:
    """It stays cleared, under another name and by another collector."""
    waits = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
    with publish("www/w1", values=[SUM, waits], directory=directory) as segment:
        segment.stats.sum = 100
        segment.stats.waits[1] = 5
        away = directory.with_name("away")
        with collecting(directory) as registry:
            for name in ("sum", "waits"):
                registry.by_name["www"].clear_value(name)
        os.rename(segment.file, away)
        with collecting(directory) as registry:
            assert shown(registry) in (None, 0)
        segment.stats.sum += 1
        os.rename(away, directory / "other.stats")
        for _ in range(2):
            with collecting(directory) as registry:
                assert shown(registry) == 1
                assert total(registry, "waits", "www") == [0, 0, 0]


# Hard links

LINKS: dict[str, Callable[[Path], Path]] = {
    "beside it": lambda top: top / "a.stats",
    "behind it": lambda top: top / "z.stats",
    "below": lambda top: top / "www" / "z.stats",
    "outside": lambda top: top.with_name("outside"),
}


@pytest.mark.parametrize("id", ["0123456789abcdef", None], ids=["id", "no id"])
@pytest.mark.parametrize("where", LINKS)
def test_a_link_of_a_living_segment(directory: Path, where: str, id: str | None) -> None:
    """Is the same segment: it counted twice."""
    (directory / "www").mkdir()
    link = LINKS[where](directory)
    made = make(directory, 100, id)
    with collecting(directory) as registry:
        os.link(made.file, link)
        with publish("app/w1", values=[SUM], directory=directory) as other:
            wait_for(registry, "app/w1")
        wait_until(lambda: not other.file.exists())
        assert shown(registry) == 100
        made.die()
        wait_until(lambda: find(registry, PATH) is None)
        wait_until(lambda: not all_files(directory))
        assert shown(registry) == 100
        if link.exists():
            os.rename(link, directory / "b.stats")
            wait_until(lambda: not all_files(directory))
        assert shown(registry) == 100
    with collecting(directory) as registry:
        assert shown(registry) == 100


@pytest.mark.parametrize("id", ["0123456789abcdef", None], ids=["id", "no id"])
@pytest.mark.parametrize("dies", [False, True], ids=["alive", "dead"])
@pytest.mark.parametrize("where", ["beside it", "behind it", "below"])
def test_a_link_that_was_made_while_no_collector_ran(
    directory: Path, where: str, dies: bool, id: str | None
) -> None:
    """All names are in directories that are read, so it is one segment."""
    (directory / "www").mkdir()
    made = make(directory, 100, id)
    os.link(made.file, LINKS[where](directory))
    if dies:
        made.die()
    with collecting(directory) as registry:
        assert shown(registry) == 100
        if not dies:
            made.die()
        wait_until(lambda: not all_files(directory))
        assert shown(registry) == 100
    with collecting(directory) as registry:
        assert shown(registry) == 100


def test_a_link_in_the_place_of_the_first_name(directory: Path) -> None:
    """The segment goes on."""
    made = make(directory, 100, None)
    with collecting(directory) as registry:
        os.link(made.file, directory / "y.stats")
        os.unlink(made.file)
        count(made, 101)
        assert shown(registry) == 101
        made.die()
        wait_until(lambda: not all_files(directory))
        wait_until(lambda: find(registry, PATH) is None)
        assert shown(registry) == 101


def test_names_that_come_back_one_by_one(directory: Path) -> None:
    """Each is removed; the file is remembered as long as it may have another."""
    made = make(directory, 100, None)
    outside = [directory.with_name(name) for name in "ab"]
    with collecting(directory) as registry:
        for path in outside:
            os.link(made.file, path)
        made.die()
        wait_until(lambda: files_in(directory) == [])
        for path in outside:
            os.rename(path, directory / "x.stats")
            wait_until(lambda: files_in(directory) == [])
        assert shown(registry) == 100
    with collecting(directory) as registry:
        assert shown(registry) == 100


def test_a_link_of_a_segment_that_other_code_removed(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its path is free, but it is no new segment."""
    made = make(directory, 100, None)
    with collecting(directory) as registry:
        os.link(made.file, directory / "y.stats")
        with publish("app/w1", values=[SUM], directory=directory):
            wait_for(registry, "app/w1")
        registry.unregister(registry.by_name["www"])
        with publish("app/w2", values=[SUM], directory=directory):
            wait_for(registry, "app/w2")
        assert shown(registry) is None
        made.die()
        wait_until(lambda: not [name for name in files_in(directory) if name[0] in "xy"])
    assert "collecting failed" not in caplog.text


# Copies


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("name", ["a.stats", "z.stats", "www/z.stats"])
def test_a_copy_of_a_living_segment(directory: Path, name: str, restarts: bool) -> None:
    """It is dead, and what it counted is the living one's."""
    (directory / "www").mkdir()
    made = make(directory, 100, "0123456789abcdef")
    with contextlib.ExitStack() as collectors:
        registry = collectors.enter_context(collecting(directory))
        if restarts:
            collectors.close()
        shutil.copy2(made.file, directory / name)
        count(made, 101)
        if restarts:
            registry = collectors.enter_context(collecting(directory))
        with publish("app/w1", values=[SUM], directory=directory):
            wait_for(registry, "app/w1")
        assert shown(registry) == 101
        made.die()
        wait_until(lambda: not all_files(directory))
        assert shown(registry) == 101
    with collecting(directory) as registry:
        assert shown(registry) == 101


@pytest.mark.parametrize("restarts", [False, True], ids=["running", "restarted"])
def test_a_copy_of_a_dead_segment(directory: Path, restarts: bool) -> None:
    """As when it was moved to another filesystem and back: it is counted already."""
    away = directory.with_name("away")
    made = make(directory, 100, "0123456789abcdef")
    with contextlib.ExitStack() as collectors:
        registry = collectors.enter_context(collecting(directory))
        shutil.copy2(made.file, away)
        made.die()
        wait_until(lambda: files_in(directory) == [])
        if restarts:
            collectors.close()
            registry = collectors.enter_context(collecting(directory))
        for name in ("a.stats", "b.stats"):
            shutil.copy2(away, directory / f".{name}")
            os.rename(directory / f".{name}", directory / name)
            wait_until(lambda: files_in(directory) == [])
            assert shown(registry) == 100


def test_a_copy_that_was_never_counted(directory: Path) -> None:
    """It is all that is left of a segment: it counts, and once."""
    made = make(directory, 100, "0123456789abcdef")
    for name in ("a.stats", "b.stats"):
        shutil.copy2(made.file, directory / name)
    made.die()
    made.file.unlink()
    for _ in range(2):
        with collecting(directory) as registry:
            assert shown(registry) == 100
            assert files_in(directory) == []


def test_an_original_after_its_copy(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not counted a second time, and the log says why."""
    made = make(directory, 100, "0123456789abcdef")
    away = directory.with_name("away")
    os.rename(made.file, away)
    shutil.copy2(away, directory / "copy.stats")
    with collecting(directory) as registry:
        assert shown(registry) == 100
        os.rename(away, directory / "x.stats")
        wait_until(lambda: "it is counted already, as another file with its id" in caplog.text)
        assert shown(registry) == 100
        made.die()
        wait_until(lambda: files_in(directory) == [])
        assert shown(registry) == 100


# The daemon is killed

DAEMON = """
import logging, sys
from statsfs import Collector, Registry
from tests.support.collecting import total

registry = Registry()
with Collector(registry, sys.argv[1]):
    for line in sys.stdin:
        print(total(registry, "sum", "www"), flush=True)
"""


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[Callable[[], int | None]]:
    """Run a collector that is killed in the end; give what asks it for the total."""
    command = [sys.executable, "-c", DAEMON, str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def ask() -> int | None:
            stdin.write("\n")
            stdin.flush()
            answer = stdout.readline().strip()
            return None if answer == "None" else int(answer)

        try:
            yield ask
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_daemons_that_are_killed_at_every_turn(directory: Path) -> None:
    """The file goes, the producer dies, the file comes back, as a link and as a copy too."""
    away = directory.with_name("away")
    made = make(directory, 100, "0123456789abcdef")
    with daemon(directory) as ask:
        assert ask() == 100
        os.rename(made.file, away)
        count(made, 101)
        assert ask() == 101
    with daemon(directory) as ask:
        assert ask() is None
        os.rename(away, directory / "y.stats")
        wait_until(lambda: ask() == 101)
    os.link(directory / "y.stats", directory / "z.stats")
    with daemon(directory) as ask:
        assert ask() == 101
        for name in ("y.stats", "z.stats"):
            os.rename(directory / name, away.with_name(name))
        made.die()
        wait_until(lambda: decode_record_of(directory)[0] == ["0123456789abcdef"])
        assert ask() == 101
    with daemon(directory) as ask:
        assert ask() == 101
        shutil.copyfile(away.with_name("y.stats"), directory / "copy.stats")
        for name in ("y.stats", "z.stats"):
            os.rename(away.with_name(name), directory / name)
        wait_until(lambda: files_in(directory) == [])
        assert ask() == 101


def decode_record_of(directory: Path) -> tuple[list[str], list[str]]:
    """What the record says of files: folded and removed."""
    try:
        record = decode_record("www", (directory / ".retained" / "www").read_bytes())
    except FileNotFoundError:
        return [], []
    return record.folded, record.removed


# Records


def test_a_record_of_version_2_is_taken_over(directory: Path) -> None:
    """It has names. A file that it counts is removed, a new one of that name is not."""
    made = {
        name: HandMade.of(directory / f"{name}.stats", f"www/{name}", [number], [SUM], alive)
        for name, number, alive in (("dead", 5, False), ("new", 7, True), ("cleared", 9, True))
    }
    (directory / ".retained").mkdir(mode=0o700)
    record = directory / ".retained" / "www"
    described = {
        "version": 2, "name": "www", "values": [], "sources": [],
        "baselines": {"cleared.stats": {"sum": 8}, "gone.stats": {"sum": 8}},
        "folded": ["dead.stats", "new.stats", "none/gone.stats"],
    }  # fmt: skip
    record.write_text(json.dumps(described))
    for _ in range(2):
        with collecting(directory) as registry:
            assert shown(registry) == 8
            assert files_in(directory) == ["cleared.stats", "new.stats"]
    assert json.loads(record.read_bytes())["version"] == 3
    made["new"].die()
    made["cleared"].die()
    with collecting(directory) as registry:
        assert shown(registry) == 8


def test_what_is_remembered_is_bounded() -> None:
    """The oldest are forgotten; a file without an id of its producer's cannot have copies."""
    counted = CountedFiles()
    counted.add(map(str, range(FOLDED_MAX + 3)))
    counted.add_baselines({str(number): {"sum": 1} for number in range(FOLDED_MAX + 3)})
    assert "2" not in counted
    assert "3" in counted
    assert next(iter(counted.baselines)) == "3"
    for number in range(3, REMOVED_MAX + 5):
        counted.note_removed(str(number))
    assert len(counted.removed) == REMOVED_MAX
    assert ("4" in counted, "5" in counted) == (False, True)
    counted.add(["64:12:1:0"])
    counted.note_removed("64:12:1:0")
    assert "64:12:1:0" not in counted
