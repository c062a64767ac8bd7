"""Scanning: directories take turns, and what was not looked at yet is not shown."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.top_sources import TopSources
from statsfs.collector.trusted_directory import TrustedDirectory
from statsfs.collector.watching import Events, Watch
from statsfs.model.values import Aggregate, Value
from statsfs.segments import file_format, publish
from statsfs.tree.lock import ChangeNotice
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.collecting import HandMade, collecting, files_in, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import NOBODY, ROOT
from tests.support.other_users import SUM, USER, put, shared_directory


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for nothing."""
    monkeypatch.setattr("statsfs.collector.collector._START", 0)


@pytest.fixture
def www(directory: Path) -> Path:
    """A directory in the collector's."""
    path = directory / "www"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    return path


def leave(directory: Path, path: str, number: int, name: str, id: str | None = None) -> Path:
    """Leave the file of a dead producer."""
    encoded = file_format.encode(path, [SUM], numbers=[number], id=id)
    return HandMade(directory / f"{name}.stats", encoded, alive=False).file


def leave_many(directory: Path, count: int) -> None:
    """Leave files of dead producers that counted 1 each."""
    for number in range(count):
        leave(directory, f"{directory.name}/w{number}", 1, f"dead{number}")


class Seen:
    """What is seen of a top-level name, at each change of a tree."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry, self.name = registry, name
        self.totals: list[object] = []
        registry.add_listener(self._hear)

    def _hear(self, change: ChangeNotice) -> None:
        found = self.registry.by_name.get(self.name)
        if found is not None and "sum" in found.names():
            self.totals.append(found.get_value("sum"))


# Starts


def test_a_name_is_shown_when_all_of_it_was_looked_at(
    directory: Path, www: Path, at_once: None
) -> None:
    """Living, dead and retained: the first total that is seen is the whole one."""
    leave(www, "www/old", 1000, "old")
    with collecting(directory) as registry:
        wait_until(lambda: total(registry, "sum", "www") == 1000)
    leave_many(www, 300)
    with publish("www/living", values=[SUM], directory=www) as segment:
        segment.stats.sum = 50
        registry = Registry()
        seen = Seen(registry, "www")
        with Collector(registry, directory):
            assert registry.sources == ()
            wait_until(lambda: total(registry, "sum", "www") == 1350)
        assert set(seen.totals) == {1350}


def test_one_name_does_not_keep_another_from_being_shown(
    directory: Path,
    www: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Directories take turns: one that is looked at for ever holds no other; the log tells."""
    holding = [True]
    entries = TrustedDirectory.entries

    def go_on(self: TrustedDirectory) -> Iterator["os.DirEntry[str]"]:
        while self.prefix == "www/" and holding[0]:
            yield from entries(self)
        yield from entries(self)

    (directory / "db").mkdir(mode=0o755)
    (directory / "db").chmod(0o755)
    leave_many(www, 1)
    leave_many(directory / "db", 1)
    leave(directory, "app/w1", 1, "app")
    monkeypatch.setattr(TrustedDirectory, "entries", go_on)
    for name in ("_FEW", "_COUNTED_MAX"):
        monkeypatch.setattr(f"statsfs.collector.collector.{name}", 1)
    with collecting(directory) as registry:
        assert [total(registry, "sum", name) for name in ("db", "app", "www")] == [1, 1, None]
        assert f"{www}: 1 or more files are left to look at" in caplog.text
        with publish("db/new", values=[SUM], directory=directory / "db"):
            wait_for(registry, "db/new")
        with publish("www/new", values=[SUM], directory=www) as waiting:
            waiting.stats.sum = 5
            assert "www" not in registry.by_name
            holding[0] = False
            wait_until(lambda: total(registry, "sum", "www") == 6)


def test_a_name_that_another_source_takes_meanwhile(
    directory: Path, www: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was looked at is shown when that one leaves; it goes on to be collected until then."""
    own = Source("www")
    registry = Registry()
    show = TopSources.show

    def take(self: TopSources) -> None:
        if self.is_withheld("www") and own.parent is None and not caplog.messages:
            registry.register(own)
        show(self)

    leave(www, "www/w1", 5, "dead")
    with publish("www/w2", values=[SUM], directory=www) as segment:
        monkeypatch.setattr(TopSources, "show", take)
        with Collector(registry, directory):
            assert registry.by_name["www"] is own
            wait_until(lambda: "www is there already" in caplog.text)
            segment.stats.sum = 1
            with publish("app/w1", values=[SUM], directory=directory):
                wait_for(registry, "app/w1")
            with publish("www/w3", values=[SUM], directory=www) as another:
                another.stats.sum = 10
            wait_until(lambda: files_in(www) == [segment.file.name])
            assert registry.by_name["www"] is own
            registry.unregister(own)
            wait_until(lambda: total(registry, "sum", "www") == 16)
            registry.unregister(registry.by_name["www"])
    assert len([line for line in caplog.messages if "there already" in line]) == 1


def test_closed_before_all_was_looked_at(
    directory: Path, www: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is shown, nothing lost."""
    leave_many(www, 20)
    monkeypatch.setattr("statsfs.collector.collector.Collector._run", lambda self: None)
    with collecting(directory) as registry:
        pass
    monkeypatch.undo()
    with collecting(directory) as registry:
        wait_until(lambda: total(registry, "sum", "www") == 20)


def test_a_segment_of_one_component(directory: Path, at_once: None) -> None:
    """It is shown after a start, and leaves."""
    with publish("single", values=[SUM], directory=directory), collecting(directory) as registry:
        wait_for(registry, "single")


def test_a_single_segment_that_dies_before_it_is_shown(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is gone with all that it counted."""
    leave(directory, "single", 3, "x")
    with collecting(directory) as registry:
        assert registry.sources == ()
    assert files_in(directory) == []


# What a scan finds


@pytest.mark.parametrize("waiting", [10_000, 0], ids=["", "full"])
def test_many_dead_at_one_path(
    directory: Path, www: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Each is folded, and the next one admitted; if none can wait, it is when all are scanned."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    monkeypatch.setattr("statsfs.collector.admission._WAITING_MAX", waiting)
    monkeypatch.setattr("statsfs.collector.refusals._PAUSE", 0.01)
    for number in range(20):
        leave(www, "www/w1", 1, f"{number}")
    with collecting(directory) as registry:
        wait_until(lambda: files_in(www) == [])
        wait_until(lambda: total(registry, "sum", "www") == 20)


def test_copies_of_what_is_refused(
    directory: Path, www: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Dead copies of a living segment wait; if that is not admitted, one of them counts."""
    wide = Value("sum", aggregate=Aggregate.SUM, mode=0o444)
    made = HandMade(www / "a.stats", file_format.encode("www/w1", [wide], numbers=[7], id="ab"))
    for name in ("b", "c"):
        shutil.copy2(made.file, www / f"{name}.stats")
    os.link(made.file, directory.with_name("outside"))
    with collecting(directory) as registry:
        wait_until(lambda: "it has 2 links" in caplog.text)
        wait_until(lambda: total(registry, "sum", "www") == 7)
        wait_until(lambda: files_in(www) == ["a.stats"])
    made.die()


BOUNDS = ("scanning._LIVING_MAX", "scanning._LINKED_MAX", "scanning._NAMES_MAX")


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_is_too_much(
    directory: Path, www: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    """More living files than are sorted are admitted in any order; of more names all are scanned.

    A file with several names may be refused.
    """
    monkeypatch.setattr(f"statsfs.collector.{bound}", 0)
    with publish("www/w1", values=[SUM], directory=www) as one:
        with collecting(directory) as registry:
            wait_for(registry, "www/w1")
            os.link(one.file, www / "link.stats")
            with publish("www/w2", values=[SUM], directory=www):
                wait_for(registry, "www/w2")
            wait_until(lambda: find(registry, "www/w2") is None)
        with collecting(directory) as registry:
            wait_until(lambda: (find(registry, "www/w1") is None) is (bound == BOUNDS[1]))


def test_files_that_are_no_segments(directory: Path, www: Path) -> None:
    """Directories, pipes and links of any name do no harm, nor does a file that goes meanwhile."""
    (www / "directory.stats").mkdir()
    os.mkfifo(www / "pipe.stats")
    (www / "link.stats").symlink_to("elsewhere")
    for name in ("other", ".hidden"):
        (www / name).write_text("")
    leave(www, "www/w1", 1, "x")
    with collecting(directory) as registry:
        assert total(registry, "sum", "www") == 1


GOES: dict[str, Callable[[Path], object]] = {
    "the directory": shutil.rmtree,
    "the file": lambda www: (www / "x.stats").unlink(missing_ok=True),
}


@pytest.mark.parametrize("what", GOES)
def test_what_goes_while_it_is_listed(
    directory: Path, www: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The scan ends, and the others go on."""
    entries = TrustedDirectory.entries

    def remove(self: TrustedDirectory) -> Iterator["os.DirEntry[str]"]:
        for entry in entries(self):
            if self.prefix and www.exists():
                GOES[what](www)
                if what == "the directory":
                    self.close()
            yield entry

    leave(www, "www/w1", 1, "x")
    leave(directory, "app/w1", 2, "y")
    monkeypatch.setattr(TrustedDirectory, "entries", remove)
    with collecting(directory) as registry:
        wait_until(lambda: total(registry, "sum", "app") == 2)
        wait_until(lambda: "www" not in registry.by_name)


def test_a_scan_that_is_wanted_while_one_goes_on(
    directory: Path, www: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is another one after it, once; a file that nobody told of is found."""
    monkeypatch.setattr(Watch, "_sort", lambda self, told: Events())
    scanned = []
    entries = TrustedDirectory.entries
    collector = Collector(registry := Registry(), directory)

    def want(self: TrustedDirectory) -> Iterator["os.DirEntry[str]"]:
        if self.prefix:
            scanned.append(self.prefix)
            if len(scanned) < 2:
                yield from entries(self)
                for _ in range(3):
                    collector._scanning.scan("www")
                leave(www, "www/w1", 1, "late")
                return
        yield from entries(self)

    monkeypatch.setattr(TrustedDirectory, "entries", want)
    monkeypatch.setattr(
        "statsfs.collector.collector.Collector._say_what_is_left", lambda self: None
    )
    with collector:
        wait_until(lambda: total(registry, "sum", "www") == 1)
        assert len(scanned) == 3  # the second one lists it twice, as it finds something


def test_a_scan_that_is_wanted_of_what_is_gone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scans of one directory have some time between them; by then it may be closed."""
    monkeypatch.setattr("statsfs.collector.scanning._REST", 1e6)
    monkeypatch.setattr(Collector, "_run", lambda self: None)
    with Collector(Registry(), directory) as collector:
        for _ in range(2):
            collector._scanning.scan()
        assert not collector._turns
        collector._scanning.end()
        collector._scanning._scan_again("")
        assert not collector._turns


def test_a_directory_that_cannot_be_listed(
    directory: Path, www: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once why, others are shown, and it is, too, once it can be read."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    entries = TrustedDirectory.entries
    broken = ["www/"]

    def fail(self: TrustedDirectory) -> Iterator["os.DirEntry[str]"]:
        if self.prefix in broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return entries(self)

    monkeypatch.setattr(TrustedDirectory, "entries", fail)
    leave(www, "www/w1", 3, "dead")
    leave(directory, "app/w1", 5, "dead")
    with collecting(directory) as registry:
        wait_until(lambda: total(registry, "sum") == 5)
        wait_until(lambda: "www is not read: Input/output error" in caplog.text)
        assert find(registry, "www") is None
        broken.clear()
        wait_until(lambda: total(registry, "sum", "www") == 3)
    assert caplog.text.count("is not read") == 1


def test_what_was_refused_in_a_directory_that_comes_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is looked at again at once."""
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.05)
    away = directory.with_name("away")
    first = publish("app/w1", values=[SUM], directory=directory)
    with collecting(directory) as registry:
        second = HandMade.of(directory / "x.stats", "app/w1", [5], [SUM])
        wait_until(lambda: "waiting for it" in caplog.text)
        directory.rename(away)
        wait_until(lambda: "is gone" in caplog.text)
        (away / first.file.name).unlink()
        first.close()
        wait_until(lambda: find(registry, "app/w1") is None)
        away.rename(directory)
        wait_until(lambda: total(registry, "sum") == 5)
        second.die()


# Real processes

DAEMON = """
import sys
from statsfs import Collector, Registry

registry = Registry()
with Collector(registry, sys.argv[1]):
    print(*[source.name for source in registry.sources], flush=True)
    for line in sys.stdin:
        source = registry.find(line.strip())
        print(source and source.get_value("sum"), flush=True)
"""


class Daemon:
    """A collector in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        self.shown = self.process.stdout.readline().split()

    def ask(self, path: str) -> str:
        """Return what it has of a path."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
@pytest.mark.root
def test_a_user_with_thousands_of_dead() -> None:
    """Another one's segments come and go meanwhile; the total is seen whole, and never in part.

    The daemon is killed three times in the middle. 220,000 files delayed another user's new segment
    by 80 s, and a start by 39 s.
    """
    count = 6000
    with shared_directory() as directory, ExitStack() as stack:
        www, db = directory / "www", directory / "db"
        db.mkdir(mode=0o755)
        os.chown(db, NOBODY, NOBODY)
        encoded = file_format.encode("www/w00000", [SUM], numbers=[1], id="0" * 16)
        for number in range(count):
            file = www / f"{number}.stats"
            name, id = f"www/w{number:05}".encode(), f"{number:016x}".encode()
            file.write_bytes(encoded.replace(b"www/w00000", name).replace(b"0" * 16, id))
            os.chown(file, USER, USER)
        killed = 0
        for round in range(4):
            daemon = stack.enter_context(Daemon(directory))
            assert ("db" in daemon.shown) is (round > 0)
            made = put(db / f"{round}.stats", f"db/w{round}", NOBODY)
            wait_until(lambda: daemon.ask(f"db/w{round}") == "1")  # noqa: B023  # at once
            made.die()
            wait_until(lambda: daemon.ask(f"db/w{round}") == "None")  # noqa: B023  # at once
            assert daemon.ask("db") == str(round + 1)
            assert daemon.ask("www") in ("None", str(count))
            if round < 3:
                left = len(os.listdir(www))
                wait_until(lambda: len(os.listdir(www)) < max(left, 1))  # noqa: B023  # at once
                stack.close()
                killed += bool(os.listdir(www))
        assert killed, "in the middle"
        wait_until(lambda: daemon.ask("www") != "None")
        assert daemon.ask("www") == str(count)
        assert os.listdir(www) == []
