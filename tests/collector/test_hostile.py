"""Hostile and broken files, and directories that go: the collector is harmed by none of them."""

import errno
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.collector.admission import SEGMENTS_MAX
from statsfs.collector.directories import Directories
from statsfs.collector.journal_file import JournalFiles, JournalRecord
from statsfs.collector.watching import Events, Watch
from statsfs.model.values import Aggregate, Value
from statsfs.segments import file_format, locks, publish
from statsfs.tree.log_budget import LINES_MAX
from statsfs.tree.registry import Registry
from tests.support.collecting import (
    HandMade,
    WorkerStats,
    collecting,
    files_in,
    find,
    lose_events,
    remove,
    total,
    wait_for,
)
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import run

DUMP = Path(__file__).parent.parent / "data" / "kvm_vm.stats.bin"
SUM = Value("sum", aggregate=Aggregate.SUM)


def segment(path: str = "app/w1", number: int = 1) -> bytes:
    """A whole file."""
    return file_format.encode(path, [SUM], numbers=[number])


def patched(offset: int, *numbers: int) -> bytes:
    """A file with other numbers in its header."""
    encoded = bytearray(segment())
    struct.pack_into(f"={len(numbers)}I", encoded, offset, *numbers)
    return bytes(encoded)


def renamed(path: bytes) -> bytes:
    """A file with a path that a segment cannot have."""
    return segment("x" * len(path)).replace(b"x" * len(path), path)


def put(encoded: bytes) -> Callable[[Path], object]:
    """Return what makes a file with such contents."""
    return lambda file: HandMade(file, encoded, alive=False)


def make_socket(file: Path) -> None:
    """Put a socket there."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(file))


def make_links(file: Path) -> None:
    """Put a file there that has another name too."""
    hidden = file.with_name(".hidden")
    hidden.write_bytes(segment())
    file.hardlink_to(hidden)


def make_link(file: Path) -> None:
    """Put a symbolic link to a sound segment there."""
    hidden = file.with_name(".hidden")
    hidden.write_bytes(segment())
    file.symlink_to(hidden)


def make_others(file: Path) -> None:
    """Put another user's segment there."""
    file.with_name(".hidden").write_bytes(segment())
    os.chown(file.with_name(".hidden"), 1234, 1234)
    file.with_name(".hidden").rename(file)


REFUSED = {
    "a descriptor beyond the end": (put(patched(8, 1 << 28)), "at 136, but 268435456 descriptors"),
    "no descriptors": (put(patched(8, 0)), "the magic is at "),
    "data beyond the end": (put(patched(20, 0xFFFFFFC0)), "data"),
    "cut off": (put(segment()[:-32]), "data ends at"),
    "a path that goes up": (put(renamed(b"../../w1")), "path"),
    "an absolute path": (put(renamed(b"/app/w1")), "path"),
    "a hidden path": (put(renamed(b".retained/x")), "path"),
    "too deep a path": (put(renamed(b"a/b/c/d/e/f/g/h/i")), "path"),
    "a path that is no text": (put(renamed(b"app/\xff")), "path"),
    "too large": (put(segment().ljust((1 << 20) + 1, b"\0")), "bytes, not"),
    "a link": (make_link, "not a regular file"),
    "two links": (make_links, "2 links"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a socket": (make_socket, "not a regular file"),
    "a device": (lambda file: os.mknod(file, 0o20600, os.makedev(1, 5)), "not a regular file"),
    "a terminal": (lambda file: os.mknod(file, 0o20666, os.makedev(5, 0)), "not a regular file"),
    "somebody else's": (make_others, "user 1234 may not publish here"),
    "a kernel's dump": (put(DUMP.read_bytes()), "not a segment: no magic at "),
    "nothing": (put(b""), "0 bytes, fewer than"),
    "a text": (put(b"x" * 4000), "truncated: "),
    "another version": (put(segment().replace(file_format.MAGIC, b"statsfs\2")), "version 2, not"),
}


@pytest.mark.root
@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_refused(
    directory: Path, caplog: pytest.LogCaptureFixture, what: str, when: str
) -> None:
    """It stays there, and is logged once, in a line, if it is a segment; others are read."""
    make, why = REFUSED[what]
    file = directory / "hostile.stats"
    if when == "before":
        make(file)
    with collecting(directory) as registry:
        if when == "after":
            make(file.with_name(".made"))
            file.with_name(".made").rename(file)
        for _ in range(2):
            with publish("fine/w1", values=WorkerStats, directory=directory):
                wait_for(registry, "fine/w1")
            wait_until(lambda: find(registry, "fine/w1") is None)
        assert [source.name for source in registry.sources] == ["fine"]
    assert os.path.lexists(file)
    said = [record for record in caplog.records if "hostile" in record.getMessage()]
    assert [record.exc_info for record in said] == [None]
    assert why in said[0].getMessage()
    assert "\n" not in said[0].getMessage()


def test_a_malformed_file_is_logged_again_when_it_changes(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A producer that is mended bit by bit is told each time; else nothing is said twice."""
    monkeypatch.setattr("statsfs.collector.refusals._PAUSE", 0.01)
    scans: list[Directories] = []
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.02)
    look_around = Directories.look_around

    def count_scans(self: Directories) -> None:
        scans.append(self)
        look_around(self)

    monkeypatch.setattr(Directories, "look_around", count_scans)
    file, made = directory / "x.stats", directory / ".x.stats"
    stages = (
        (b"", "0 bytes, fewer than the 24 of the header"),
        (segment()[:100], "truncated: 1 descriptor ends at 136, the file at 100"),
        (segment().replace(file_format.MAGIC, b"statsfs\2"), "version 2, not 1"),
        (segment().replace(file_format.MAGIC, b"statsfs\2"), "version 2, not 1"),
    )
    with collecting(directory) as registry:
        for number, (encoded, words) in enumerate(stages, 1):
            made.write_bytes(encoded)  # under a name of a file that is being made
            seen = len(scans)
            wait_until(lambda: len(scans) > seen + 2)  # noqa: B023  # at once
            assert len(caplog.messages) == number - 1
            made.rename(file)
            wait_until(lambda: len(caplog.messages) == number)  # noqa: B023  # at once
            assert caplog.messages[-1] == f"{file} is refused: {words}"
        seen = len(scans)
        os.chmod(file, 0o600)
        wait_until(lambda: len(scans) > seen + 3)
        assert len(caplog.messages) == len(stages)
        HandMade(file, segment(number=5), alive=True)
        wait_until(lambda: total(registry, "sum") == 5)
        assert len(caplog.messages) == len(stages)


def test_files_that_are_being_made_are_not_malformed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Producers rename what is whole; nor is anything said of other names."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.02)
    with collecting(directory) as registry:
        for name in (".x-0123456789abcdef", ".x.stats", "x.stats.tmp", "x"):
            (directory / name).write_bytes(segment()[:50])
        with open(directory / "slow.stats", "wb") as slow:
            # As `cp` makes it: the notice of its creation is not yet a reason to look.
            for at in range(0, len(segment()), 100):
                slow.write(segment()[at : at + 100])
            for number in range(3):
                with publish("fine/w%d", number, values=WorkerStats, directory=directory):
                    wait_for(registry, f"fine/w{number}")
    assert [line for line in caplog.messages if "slow" not in line] == []


def test_malformed_files_are_within_the_budget(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are, they are ten lines."""
    with collecting(directory) as registry:
        for number in range(5 * LINES_MAX):
            (directory / f"{number}.stats").write_bytes(b"x" * number)
        with publish("fine/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "fine/w1")
        wait_until(lambda: len(caplog.messages) == LINES_MAX)
    assert all("is refused: " in line for line in caplog.messages)


def test_a_million_values(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Are refused by their number, before any is made."""
    encoded = bytearray(patched(8, 1_000_000))
    start = struct.unpack_from("=I", encoded, 16)[0] + 1_000_000 * 64
    encoded += bytes(1 << 20)
    with collecting(directory) as registry:
        (directory / "x.stats").write_bytes(encoded[: 1 << 20])
        assert start > len(encoded)
        HandMade.of(directory / "y.stats", "app/w1", [1])
        wait_for(registry, "app/w1")
    (line,) = caplog.messages
    assert f"the magic is at 136, but 1000000 descriptors end at {start}" in line


@pytest.mark.slow
def test_a_file_that_changes_its_mind(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused is looked at again when it changed, a second later."""
    looks: list[float] = []

    def look(encoded: bytes) -> file_format.SegmentMetadata:
        looks.append(time.monotonic())
        return file_format.decode(encoded)

    monkeypatch.setattr("statsfs.collector.admission.decode", look)
    with collecting(directory) as registry:
        file = directory / "x.stats"
        file.write_bytes(segment()[:-32])
        wait_until(lambda: looks)
        for _ in range(3):
            file.write_bytes(segment(number=5))
        wait_until(lambda: total(registry, "sum") == 5)
        # Between two looks, however long this took.
        assert all(after - before > 0.5 for before, after in pairwise(looks))
        wait_until(lambda: files_in(directory) == [])


def test_a_file_that_changes_all_the_time(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was refused is not looked at again before its time: here never."""
    monkeypatch.setattr("statsfs.collector.refusals._PAUSE", 1000.0)
    with collecting(directory) as registry:
        file = directory / "x.stats"
        file.write_bytes(segment()[:-32])
        for number in range(3):
            # By when this one is shown, what the file was before has been looked at.
            with publish(f"fine/w{number}", values=WorkerStats, directory=directory):
                wait_for(registry, f"fine/w{number}")
            file.write_bytes(segment(number=5))
        with publish("fine/last", values=WorkerStats, directory=directory):
            wait_for(registry, "fine/last")
        assert find(registry, "app") is None
        assert "x.stats" in files_in(directory)


def test_a_writer_that_keeps_writing(directory: Path) -> None:
    """Other segments come and go in time, and its own file is read as far as it is valid."""
    ended = threading.Event()
    with collecting(directory) as registry:
        hostile = HandMade.of(directory / "hostile.stats", "app/hostile", [1])
        wait_for(registry, "app/hostile")

        def write() -> None:
            while not ended.is_set():
                with open(hostile.file, "r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(os.urandom(8))
                (directory / "other.stats").write_bytes(os.urandom(100))

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(5):
                with publish("fine/w1", values=WorkerStats, directory=directory):
                    wait_for(registry, "fine/w1")
                    assert total(registry, "a", "app/hostile") == 1
                wait_until(lambda: find(registry, "fine/w1") is None)
        finally:
            ended.set()
            thread.join()
        hostile.die()
        wait_until(lambda: find(registry, "app/hostile") is None)
        assert files_in(directory) == ["other.stats"]


def test_names_that_are_no_text(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No record could name them; they are refused, and directories too."""
    os.mkdir(os.fsencode(directory) + b"/\xff")
    with collecting(directory) as registry:
        HandMade(Path(os.fsdecode(os.fsencode(directory) + b"/\xff.stats")), segment())
        wait_until(lambda: "not UTF-8" in caplog.text)
        assert registry.sources == ()
    assert "is not read" in caplog.text


def test_an_unexpected_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one file must not end the collector: it is logged, with where it happened."""

    def fail(encoded: bytes) -> None:
        raise RecursionError("as deep as it goes")

    with collecting(directory) as registry, monkeypatch.context() as patcher:
        patcher.setattr("statsfs.collector.admission.decode", fail)
        HandMade(directory / "x.stats", segment(), alive=False)
        wait_until(lambda: "as deep as it goes" in caplog.text)
        patcher.undo()
        HandMade(directory / "y.stats", segment())
        wait_for(registry, "app/w1")
    assert "Traceback" in caplog.text


def test_a_filesystem_without_locks(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in it can be told alive: a segment there is refused."""

    def fail(fd: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("statsfs.collector.live_segment.is_alive", fail)
    with collecting(directory) as registry:
        HandMade(directory / "x.stats", segment())
        wait_until(lambda: "No locks available" in caplog.text)
        assert registry.sources == ()


# Limits


def test_too_many_segments(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one user: more are refused, and let in when others left and all is looked at again."""
    assert SEGMENTS_MAX == 10_000
    monkeypatch.setattr("statsfs.collector.admission.SEGMENTS_MAX", 2)
    for number in range(3):
        HandMade.of(directory / f"{number}.stats", f"app/w{number}", [1], alive=number == 1)
    with collecting(directory):
        wait_until(lambda: "no more than 2" in caplog.text)
    with collecting(directory) as registry:
        assert total(registry, "a") == 3


def test_too_many_integers(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one user, in all segments."""
    monkeypatch.setattr("statsfs.collector.admission.WEIGHT_MAX", 100)
    HandMade.of(directory / "x.stats", "app/w1", list(range(8)))
    HandMade.of(directory / "y.stats", "app/w2", list(range(8)), alive=True)
    HandMade.of(directory / "z.stats", "app/w3", list(range(8)))
    with collecting(directory) as registry:
        assert len(registry.by_name["app"].subordinates) == 2
        assert "no more than" in caplog.text


def test_too_many_different_values(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one user, for they stay in memory: a new one is refused, a known one is not."""
    monkeypatch.setattr("statsfs.collector.known_values.BROUGHT_MAX", 3)
    monkeypatch.setattr("statsfs.collector.known_values._CACHED_MAX", 1)
    with collecting(directory) as registry:
        HandMade.of(directory / "x.stats", "app/w1", [1, 2, 3])
        wait_for(registry, "app/w1")
        HandMade.of(directory / "y.stats", "app/w2", [1], [SUM])
        wait_until(lambda: "different values" in caplog.text)
        HandMade.of(directory / "z.stats", "app/w3", [1, 2])
        wait_for(registry, "app/w3")
        assert find(registry, "app/w2") is None


def test_too_many_open_files(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Segments leave some to the rest of the process; the message says what to raise."""
    with collecting(directory) as registry, monkeypatch.context() as patcher:
        patcher.setattr(resource, "getrlimit", lambda _: (64, 64))
        HandMade(directory / "x.stats", segment())
        wait_until(lambda: "raise LimitNOFILE" in caplog.text)
        assert registry.sources == ()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    with collecting(directory) as registry:
        wait_for(registry, "app/w1")


def test_what_was_refused_is_forgotten_in_the_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So many are known, and no more; and those that are gone are forgotten."""
    monkeypatch.setattr("statsfs.collector.refusals._KNOWN_MAX", 2)
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    for name in "abcd":
        (directory / f"{name}.stats").write_bytes(segment()[:-32])
    with collecting(directory) as registry:
        wait_until(lambda: len(caplog.messages) > 8)
        for name in "abcd":
            (directory / f"{name}.stats").unlink()
        HandMade(directory / "a.stats", segment())
        wait_for(registry, "app/w1")


def test_what_was_refused_and_removed(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is forgotten: another file of that name is refused anew."""
    with collecting(directory) as registry:
        for count in (1, 2):
            (directory / "x.stats").write_bytes(segment()[:-32])
            wait_until(partial(said, caplog, "x.stats is refused", count))
            (directory / "x.stats").unlink()
            with publish("fine/w1", values=WorkerStats, directory=directory):
                wait_for(registry, "fine/w1")
            wait_until(lambda: find(registry, "fine/w1") is None)


def test_what_was_removed_and_nobody_saw(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That it was refused is forgotten when all is looked at: another file is logged again."""
    lose_events(monkeypatch)
    with collecting(directory) as registry:
        for count in (1, 2):
            HandMade(directory / "x.stats", segment()[:-32], alive=False)
            wait_until(lambda: said(caplog, "x.stats is refused", count))  # noqa: B023  # at once
            (directory / "x.stats").unlink()
            with publish("app/w1", values=WorkerStats, directory=directory):
                wait_for(registry, "app/w1")


def test_what_is_refused_is_not_read_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it stays as it is, however often all is looked at."""
    decoded: list[int] = []
    scans: list[Directories] = []
    decode = file_format.decode
    look_around = Directories.look_around
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.02)

    def count_decoded(encoded: bytes) -> file_format.SegmentMetadata:
        decoded.append(len(encoded))
        return decode(encoded)

    def count_scans(self: Directories) -> None:
        scans.append(self)
        look_around(self)

    monkeypatch.setattr("statsfs.collector.admission.decode", count_decoded)
    monkeypatch.setattr(Directories, "look_around", count_scans)
    (directory / "x.stats").write_bytes(segment()[:-32])
    (directory / "y.stats").write_bytes(DUMP.read_bytes())
    with collecting(directory):
        wait_until(lambda: len(scans) > 3)
    assert len(decoded) == 2


def said(caplog: pytest.LogCaptureFixture, words: str, count: int) -> bool:
    """Tell whether something was said so many times."""
    return len([line for line in caplog.messages if words in line]) == count


# Directories


@pytest.mark.slow
def test_a_directory_removed_and_made_again(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The counts stay, living segments go on, and new ones are shown."""
    with collecting(directory) as registry:
        one = publish("app/w1", values=WorkerStats, directory=directory)
        wait_for(registry, "app/w1")
        one.stats.requests = 5
        remove(directory)
        wait_until(lambda: "is gone" in caplog.text)
        assert total(registry) == 5
        one.stats.requests = 6
        registry.by_name["app"].clear_value("waits")
        one.close()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert total(registry) == 6
        directory.mkdir(mode=0o777)
        directory.chmod(0o777)
        wait_until(lambda: "chmod go-w" in caplog.text)
        directory.chmod(0o755)
        wait_until(lambda: "is there again" in caplog.text)
        with publish("app/w1", values=WorkerStats, directory=directory) as two:
            wait_for(registry, "app/w1")
            two.stats.requests = 1
            assert total(registry) == 7
        wait_until(lambda: files_in(directory) == [])
    assert len([line for line in caplog.messages if "chmod go-w" in line]) == 1
    with collecting(directory) as registry:
        assert total(registry) == 7


@pytest.mark.slow
def test_a_directory_moved_away_and_back(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The segments in it are the same ones."""
    with collecting(directory) as registry:
        one = publish("app/w1", values=WorkerStats, directory=directory)
        wait_for(registry, "app/w1")
        one.stats.requests = 5
        directory.rename(directory.with_name("elsewhere"))
        wait_until(lambda: "is gone" in caplog.text)
        directory.with_name("elsewhere").rename(directory)
        wait_until(lambda: "is there again" in caplog.text)
        one.close()
        wait_until(lambda: files_in(directory) == [])
        wait_until(lambda: find(registry, "app/w1") is None)
        assert total(registry) == 5


def test_a_directory_that_comes_back_broken(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again until it works; meanwhile what was looked for is not there."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.02)
    monkeypatch.setattr("statsfs.collector.collector._PAUSE", 0.05)
    failed: list[JournalFiles] = []
    load = JournalFiles.load

    def fail(self: JournalFiles) -> dict[str, JournalRecord]:
        if len(failed) < 2:
            failed.append(self)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return load(self)

    with collecting(directory) as registry:
        HandMade.of(directory / "x.stats", "app/w1", [5], alive=False)
        wait_until(lambda: total(registry, "a") == 5)
        wait_until(lambda: files_in(directory) == [])
        monkeypatch.setattr(JournalFiles, "load", fail)
        (directory / ".collector").unlink()
        wait_until(lambda: "is there again" in caplog.text)
        assert len(failed) == 2
        assert total(registry, "a") == 5


@pytest.mark.slow
def test_its_lock_removed(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It begins anew, with a lock that others see."""
    with collecting(directory) as registry:
        (directory / ".unrelated").touch()
        (directory / ".collector").unlink()
        wait_until(lambda: "is there again" in caplog.text)
        assert (directory / ".collector").exists()
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")


def test_closed_while_its_directory_is_gone(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as ever."""
    with collecting(directory) as registry:
        wait_until(lambda: registry.sources == ())
        remove(directory)
        wait_until(lambda: "is gone" in caplog.text)


def test_events_of_a_directory_that_has_gone_meanwhile(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not looked for any more, and all else goes on."""
    waiting, gate, original = threading.Event(), threading.Event(), Watch.wait

    def wait(watch: Watch, seconds: float) -> Events:
        waiting.set()
        assert gate.wait(DEADLINE)
        return original(watch, seconds)

    (directory / "sub").mkdir()
    with collecting(directory) as registry:
        monkeypatch.setattr(Watch, "wait", wait)
        (directory / "other").touch()
        assert waiting.wait(DEADLINE)
        # In one turn, and first something in the directory above: that is looked at first.
        for name in ("another", "sub/x.stats"):
            (directory / name).touch()
        run("rm", "-r", directory / "sub")
        gate.set()
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")


def test_all_is_looked_at_again_from_time_to_time(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What inotify did not tell is found nevertheless: new ones, deaths, a directory that went."""
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    monkeypatch.setattr(Watch, "_sort", lambda self, told: Events())
    with collecting(directory) as registry:
        with publish("app/w1", values=WorkerStats, directory=directory) as segment:
            wait_for(registry, "app/w1")
            segment.stats.requests = 5
        wait_until(lambda: find(registry, "app/w1") is None)
        assert total(registry) == 5
        (directory / "sub").mkdir()
        with publish("sub/w1", values=WorkerStats, directory=directory / "sub"):
            wait_for(registry, "sub/w1")
        remove(directory)
        wait_until(lambda: "is gone" in caplog.text)


def test_more_events_than_the_kernel_keeps(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all is looked at."""
    lose_events(monkeypatch)
    with collecting(directory) as registry:
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")
        wait_until(lambda: find(registry, "app/w1") is None)


def test_a_directory_that_cannot_be_listed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and tried again."""
    scandir = os.scandir

    def refuse(fd: int) -> object:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.02)
    HandMade(directory / "x.stats", segment())
    with collecting(directory) as registry, monkeypatch.context() as patcher:
        wait_for(registry, "app/w1")
        patcher.setattr(os, "scandir", refuse)
        patcher.setattr(os, "listdir", refuse)
        wait_until(lambda: "Permission denied" in caplog.text)
        patcher.setattr(os, "scandir", scandir)
        HandMade(directory / "y.stats", segment("app/w2"))
        wait_for(registry, "app/w2")


def test_what_was_never_finished(directory: Path) -> None:
    """A producer died between making its file and naming it: that is removed after a minute."""
    old = time.time() - 100
    names = [f".app_w1-{number:016x}" for number in range(4)]
    for name in (*names, ".unrelated", ".profile-x"):
        (directory / name).write_bytes(segment())
    living = os.open(directory / names[1], os.O_RDWR)
    assert locks.hold(living)
    (directory / names[2]).unlink()
    (directory / names[2]).symlink_to("elsewhere")
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(time, "time", lambda: old + 200)
        with Collector(Registry(), directory):
            assert files_in(directory) == [names[1], names[2], ".profile-x"]
    with Collector(Registry(), directory):
        (directory / names[0]).touch()
    assert names[0] in files_in(directory)
    os.close(living)
