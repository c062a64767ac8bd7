"""The collector: what it shows of segments, and for how long."""

import errno
import logging
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from statsfs.collector import Collector
from statsfs.collector.directories import default_directory
from statsfs.collector.path_sources import PathSources
from statsfs.exceptions import ReadOnlyValueError, SegmentError, UnavailableError
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import file_format, publish
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source, directory_of
from tests.support.collecting import (
    HandMade,
    Producer,
    WorkerStats,
    collecting,
    files_in,
    find,
    total,
    wait_for,
)
from tests.support.deadlines import wait_until


def is_gone(registry: Registry, path: str) -> bool:
    """Tell whether nothing is at a path."""
    return find(registry, path) is None


# Living producers


def test_what_is_published_is_shown(directory: Path) -> None:
    """With its labels, its numbers of this moment and totals above; and gone with its producer."""
    with collecting(directory) as registry, Producer(directory, "app/web/w1") as producer:
        wait_for(registry, "app/web/w1")
        assert producer.count(7) == 7
        assert total(registry, path="app/web/w1") == 7
        assert total(registry) == 7
        producer.count(1)
        assert total(registry) == 8
        producer.kill()
        wait_until(lambda: find(registry, "app/web/w1") is None, "its end")
        assert total(registry) == 8
        assert files_in(directory) == []
        # A component that has nothing on it any more stays with what was counted in it.
        assert find(registry, "app/web") is not None


def test_a_registry_is_needed(directory: Path) -> None:
    """Anything else is refused at once."""
    with pytest.raises(TypeError, match="registry is not a Registry: 'x'"):
        Collector("x", directory)  # type: ignore[arg-type]  # that is the question


@pytest.mark.parametrize("wrong", [5, True, "", b"", "a\0b", b"a\0b", ["a"]])
def test_a_directory_is_a_path(registry: Registry, wrong: Any) -> None:
    """One line names the argument: "" was the current directory."""
    with pytest.raises(TypeError, match="directory must be a path, not ") as raised:
        Collector(registry, wrong)
    assert raised.value.__context__ is None


def test_a_directory_in_bytes(registry: Registry, directory: Path) -> None:
    """As for `publish`."""
    with Collector(registry, os.fsencode(directory)) as collector:
        assert collector.directory == directory


def test_a_path_is_no_format(directory: Path) -> None:
    """A name with a "%d" was refused, as one that lacks its argument."""
    with (
        collecting(directory) as registry,
        publish("100%d/a%s", values=WorkerStats, directory=directory) as segment,
    ):
        segment.stats.requests += 3
        wait_for(registry, "100%d/a%s")
        assert total(registry, path="100%d") == 3
    with collecting(directory) as registry:
        assert total(registry, path="100%d") == 3


def test_what_was_published_before_is_there_when_start_returns(directory: Path) -> None:
    """Whether its producer lives or not."""
    with publish("app/w1", values=WorkerStats, directory=directory) as segment:
        segment.stats.requests = 3
        HandMade.of(directory / "dead.stats", "app/w2", [4], alive=False)
        with collecting(directory) as registry:
            app = wait_for(registry, "app")
            assert [source.name for source in app.subordinates] == ["w1"]
            assert (app.get_value("requests"), app.get_value("a")) == (3, 4)
        assert registry.sources == ()
        assert len(files_in(directory)) == 1
    with collecting(directory) as registry:
        assert (total(registry), total(registry, "a")) == (3, 4)


def test_every_kind_of_value(directory: Path) -> None:
    """Signed integers, histograms, peaks and levels; of the dead sums, buckets and peaks stay."""
    with collecting(directory) as registry:
        for number, name in enumerate(("w1", "w2"), 1):
            with publish(f"app/{name}", values=WorkerStats, directory=directory) as segment:
                source = wait_for(registry, f"app/{name}")
                stats = segment.stats
                stats.balance, stats.deepest, stats.busy = -5 * number, 30 * number, 9
                stats.waits[1] += number
                assert source.get_value("balance") == -5 * number
                assert source.get_value("waits") == [0, number, 0, 0]
                assert source.get_value("busy") == 9
            wait_until(partial(is_gone, registry, f"app/{name}"))
        app = registry.by_name["app"]
        assert app.get_value("balance") == -15
        assert app.get_value("waits") == [0, 3, 0, 0]
        assert app.get_value("deepest") == 60
        assert "busy" not in app.names()


def test_labels_are_those_of_the_first(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another label for a component is said once."""
    with collecting(directory) as registry:
        labels = [("app", "worker"), ("program", "worker"), (None, None)]
        segments = [
            publish("app/w%d", i, values=WorkerStats, labels=each, directory=directory)
            for i, each in enumerate(labels)
        ]
        wait_until(lambda: len(wait_for(registry, "app").subordinates) == 3)
        app = registry.by_name["app"]
        assert app.label == "app"
        assert [find(registry, f"app/w{i}").label for i in range(3)] == ["worker", "worker", None]  # type: ignore[union-attr]  # they are there
        assert len([line for line in caplog.messages if "label" in line]) == 1
        for segment in segments:
            segment.close()


def test_one_component(directory: Path) -> None:
    """A segment at the top goes with all that it counted."""
    with collecting(directory) as registry:
        with publish("single", values=WorkerStats, directory=directory) as segment:
            wait_for(registry, "single")
            segment.stats.requests = 3
            assert total(registry, path="single") == 3
        wait_until(lambda: find(registry, "single") is None)
        wait_until(lambda: files_in(directory) == [])
        wait_until(lambda: os.listdir(directory / ".retained") == [])


def test_what_retains_nothing_leaves(directory: Path) -> None:
    """A top-level component stays for what it retains, and for nothing else."""
    level = (Value("level", aggregate=Aggregate.SUM, kind=Kind.INSTANT),)
    with collecting(directory) as registry:
        with publish("app/w1", values=level, directory=directory):
            wait_for(registry, "app/w1")
        wait_until(lambda: find(registry, "app") is None)
        wait_until(lambda: os.listdir(directory / ".retained") == [])


def test_a_rolling_upgrade_shares_its_totals(directory: Path) -> None:
    """Of a release with one more value and another text beside the old; the first text stays."""
    old = (Value("requests", aggregate=Aggregate.SUM, description="Requests"),)
    new = (
        Value("requests", aggregate=Aggregate.SUM, description="Requests that were answered"),
        Value("errors", aggregate=Aggregate.SUM),
    )
    with collecting(directory) as registry:
        with publish("app/w1", values=old, directory=directory) as first:
            wait_for(registry, "app/w1")
            with publish("app/w2", values=new, directory=directory) as second:
                wait_for(registry, "app/w2")
                first.stats.requests, second.stats.requests, second.stats.errors = 1, 2, 3
                app = registry.by_name["app"]
                assert (total(registry), total(registry, "errors")) == (3, 3)
                shown = directory_of(app).files["requests"].value
                assert shown.description == "Requests"
        wait_until(lambda: not app.subordinates)
        assert (total(registry), total(registry, "errors")) == (3, 3)
    with collecting(directory) as registry:
        assert (
            directory_of(registry.by_name["app"]).files["requests"].value.description == "Requests"
        )


def test_rights_and_owners(directory: Path) -> None:
    """Files have the read bits of the segment, and its owner; clearing is the owner's."""
    values = [
        Value("all", mode=0o666, aggregate=Aggregate.SUM),
        Value("mine", mode=0o600, aggregate=Aggregate.SUM),
        Value("level", kind=Kind.INSTANT, aggregate=Aggregate.SUM),
    ]
    with (
        collecting(directory) as registry,
        publish("app/w1", values=values, directory=directory, mode=0o640) as segment,
    ):
        source = wait_for(registry, "app/w1")
        modes = {name: directory_of(source).files[name].value.mode for name in source.names()}
        assert modes == {"all": 0o640, "mine": 0o600, "level": 0o440}
        status = segment.file.stat()
        assert source.owner == (status.st_uid, status.st_gid)
        status = directory.stat()
        assert registry.by_name["app"].owner == (status.st_uid, status.st_gid)


# Clearing


def test_clearing_is_subtracted(directory: Path) -> None:
    """A live segment is not written, but for its peaks."""
    with (
        collecting(directory) as registry,
        publish("app/w1", values=WorkerStats, directory=directory) as segment,
    ):
        source = wait_for(registry, "app/w1")
        stats = segment.stats
        stats.requests, stats.deepest, stats.balance = 5, 7, -3
        stats.waits[2] = 4
        for name in ("requests", "deepest", "balance", "waits"):
            registry.by_name["app"].clear_value(name)
        assert [source.get_value(n) for n in ("requests", "deepest", "balance")] == [0, 0, 0]
        assert source.get_value("waits") == [0, 0, 0, 0]
        assert (stats.requests, stats.deepest, stats.balance, stats.waits[2]) == (5, 0, -3, 4)
        stats.requests += 1
        stats.waits[2] += 1
        assert source.get_value("requests") == 1
        assert source.get_value("waits") == [0, 0, 1, 0]
        # The producer may put back at once what was there.
        source.clear_value("deepest")
        stats.deepest = 7
        assert source.get_value("deepest") == 7
        with pytest.raises(ReadOnlyValueError):
            source.clear_value("busy")


def test_a_peak_of_what_cannot_be_written(directory: Path) -> None:
    """Is refused: what is in the place of its file is another one, or nothing at all."""
    with (
        collecting(directory) as registry,
        publish("app/w1", values=WorkerStats, directory=directory) as segment,
    ):
        source = wait_for(registry, "app/w1")
        segment.stats.deepest = 7
        encoded = segment.file.read_bytes()
        other = directory / ".other"
        other.write_bytes(encoded)
        os.rename(other, segment.file)
        with pytest.raises(ReadOnlyValueError, match="another file now"):
            source.clear_value("deepest")
        assert segment.file.read_bytes() == encoded
        segment.file.unlink()
        with pytest.raises(ReadOnlyValueError, match="No such file"):
            source.clear_value("deepest")
        assert source.get_value("deepest") == 7


def test_a_cleared_segment_that_counts_anew(directory: Path) -> None:
    """What is below its baseline was counted from 0 again."""
    segment = HandMade.of(directory / "x.stats", "app/w1", [9])
    with collecting(directory) as registry:
        wait_for(registry, "app/w1").clear_value("a")
        offset = file_format.decode(segment.file.read_bytes()).data_offset
        os.pwrite(segment.fd, (4).to_bytes(8, sys.byteorder), offset)
        assert total(registry, "a") == 4
        segment.die()


# Paths that are taken


@pytest.mark.parametrize(
    ("first", "second"),
    [("app/w1", "app/w1"), ("app", "app/w1"), ("app/w1", "app/w1/x"), ("app/w1/x", "app/w1")],
)
def test_a_taken_path_is_waited_for(
    directory: Path, caplog: pytest.LogCaptureFixture, first: str, second: str
) -> None:
    """A path is a segment or a directory of them; the second is let in when the first leaves."""
    with collecting(directory) as registry:
        one = publish(first, values=WorkerStats, directory=directory)
        wait_for(registry, first)
        two = publish(second, values=WorkerStats, directory=directory)
        wait_until(lambda: "waiting for it" in caplog.text)
        one.stats.requests, two.stats.requests = 1, 10
        assert total(registry, path=first) == 1
        one.close()
        wait_until(lambda: total(registry, path=second) == 10, "the second")
        two.close()
        wait_until(lambda: files_in(directory) == [])
        (line,) = [line for line in caplog.messages if "waiting for it" in line]
        assert " is not shown yet: " in line
        assert "refused" not in line


def test_one_who_waited_and_gave_up(directory: Path) -> None:
    """Its end is the end of the waiting."""
    with collecting(directory) as registry:
        with publish("app/w1", values=WorkerStats, directory=directory) as one:
            wait_for(registry, "app/w1")
            publish("app/w1", values=WorkerStats, directory=directory).file.unlink()
            os.rename(
                publish("app/w1", values=WorkerStats, directory=directory).file,
                directory / "elsewhere.txt",
            )
            one.stats.requests = 1
        wait_until(lambda: find(registry, "app/w1") is None)
        assert total(registry) == 1


def test_one_who_waited_in_vain(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file went at the very moment when the path was free."""
    remove = PathSources.remove
    with collecting(directory) as registry:
        one = publish("app/w1", values=WorkerStats, directory=directory)
        wait_for(registry, "app/w1")
        HandMade.of(directory / "x.stats", "app/w1", [1])
        with publish("app/w2", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w2")

            def remove_both(self: PathSources, source: Source) -> None:
                (directory / "x.stats").unlink(missing_ok=True)
                remove(self, source)

            monkeypatch.setattr(PathSources, "remove", remove_both)
            one.close()
            wait_until(partial(is_gone, registry, "app/w1"))
        wait_until(partial(is_gone, registry, "app/w2"))
        assert total(registry) == 0


@pytest.mark.slow
def test_published_again_at_once(directory: Path) -> None:
    """After a SIGKILL the same path is shown again, and nothing is lost or counted twice."""
    with collecting(directory) as registry:
        for round in range(3):
            with Producer(directory, "app/w1") as producer:
                wait_for(registry, "app/w1")
                producer.count(2)
                assert total(registry) == 2 * round + 2
            with Producer(directory, "app/w1"):
                wait_until(lambda: len(files_in(directory)) == 1, "the fold")
                wait_for(registry, "app/w1")
                assert total(registry, path="app/w1") == 0
            wait_until(lambda: files_in(directory) == [])
        assert total(registry) == 6


def test_a_name_that_the_program_has(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A top-level name belongs to the source that was registered first, until it leaves."""
    registry = Registry()
    own = Source("app")
    registry.register(own)
    with (
        Collector(registry, directory),
        publish("app/w1", values=WorkerStats, directory=directory),
    ):
        wait_until(lambda: "waiting for it" in caplog.text)
        assert registry.by_name["app"] is own
        registry.unregister(own)
        wait_for(registry, "app/w1")


def test_a_name_that_becomes_free(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All that waited for it is shown at once: no total is that of some alone."""
    registry, own = Registry(), Source("app")
    registry.register(own)
    values = [Value("sum", aggregate=Aggregate.SUM)]
    for number in range(5):
        file = directory / f"w{number}.stats"
        HandMade.of(file, f"app/w{number}", [5], values, alive=False)
    totals: list[object] = []
    with Collector(registry, directory):
        wait_until(lambda: caplog.text.count("waiting for it") == 5)
        registry.add_listener(lambda _: totals.append(total(registry, "sum")))
        registry.unregister(own)
        wait_until(lambda: total(registry, "sum") == 25)
    assert {*totals} <= {None, 25}


def test_two_directories_in_one_registry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each top-level name comes from one of them; the other waits, with what it retains."""
    registry = Registry()
    one, two = tmp_path / "one", tmp_path / "two"
    with (
        collecting(two) as alone,
        publish("app/w2", values=WorkerStats, directory=two) as segment,
    ):
        wait_for(alone, "app/w2")
        segment.stats.requests = 5
    level = (Value("level", kind=Kind.INSTANT),)
    with Collector(registry, one), publish("app/w1", values=level, directory=one) as first:
        wait_for(registry, "app/w1")
        with Collector(registry, two), publish("app/w3", values=WorkerStats, directory=two):
            wait_until(lambda: "waiting for it" in caplog.text)
            assert find(registry, "app/w3") is None
            first.close()
            wait_for(registry, "app/w3")
            assert total(registry) == 5


# Starting and ending


def test_it_is_idle_when_nothing_happens(directory: Path) -> None:
    """Its thread sleeps until there is something, and is gone at the end."""
    with collecting(directory), publish("app/w1", values=WorkerStats, directory=directory):
        (thread,) = (t for t in threading.enumerate() if t.name == "statsfs-collector")
        assert thread.daemon
    assert not thread.is_alive()


def test_starting_twice_and_closing_twice(directory: Path) -> None:
    """Does no harm, and it may begin again."""
    registry = Registry()
    collector = Collector(registry, directory)
    collector.close()
    assert repr(collector) == f"<Collector {str(directory)!r} closed>"
    for _ in range(2):
        collector.start()
        collector.start()
        assert repr(collector) == f"<Collector {str(directory)!r} collecting>"
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")
            collector.close()
            collector.close()
        assert registry.sources == ()


def test_a_second_collector_is_refused(directory: Path) -> None:
    """By a line that names the other process; when that collector is closed the next may start."""
    with collecting(directory):
        with pytest.raises(SegmentError, match=f"a collector already: process {os.getpid()}$"):
            Collector(Registry(), directory).start()
        (directory / ".collector").write_text("?")
        with pytest.raises(SegmentError, match=r"a collector already: another process$"):
            Collector(Registry(), directory).start()
    with collecting(directory):
        pass


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_directory_that_others_may_write(directory: Path, mode: int) -> None:
    """It is refused: any of them could put segments there."""
    directory.chmod(mode)
    with pytest.raises(SegmentError, match="chmod go-w"):
        Collector(Registry(), directory).start()
    assert os.listdir(directory) == []


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    """For its owner alone to write, and all to read, whatever the umask is."""
    umask = os.umask(0o077)
    try:
        with collecting(tmp_path / "missing"):
            assert (tmp_path / "missing").stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(umask)


def test_what_is_no_directory(tmp_path: Path) -> None:
    """One line says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SegmentError, match="Not a directory") as caught:
        Collector(Registry(), tmp_path / "file").start()
    assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(SegmentError, match="No such file"):
        Collector(Registry(), tmp_path / "missing" / "directory").start()


def test_records_that_somebody_else_could_write(directory: Path) -> None:
    """Are not read."""
    (directory / ".retained").mkdir(mode=0o755)
    with pytest.raises(SegmentError, match="with mode 755"):
        Collector(Registry(), directory).start()


def test_where_it_looks_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's directory for root, one's own for others, or none."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == Path("/run/statsfs")
    assert Collector(Registry()).directory == Path("/run/statsfs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_directory() == tmp_path / "statsfs"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(SegmentError, match="name one"):
        Collector(Registry())


WITHOUT = """
import sys
sys.modules["inotify_simple"] = None
from statsfs import Collector, Registry, SegmentError
try:
    Collector(Registry(), sys.argv[1]).start()
except SegmentError as error:
    print(error)
"""


def test_without_its_library(directory: Path) -> None:
    """One line says what to install; importing needs nothing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, directory], capture_output=True, text=True, check=True
    )
    assert done.stdout == "inotify_simple is missing: pip install 'statsfs[segments]'\n"


def test_no_more_inotify_instances(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says which limit it is."""
    import inotify_simple  # type: ignore[import-untyped]  # it says nothing of its types

    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(inotify_simple, "INotify", refuse)
    with pytest.raises(SegmentError, match="max_user_instances"):
        Collector(Registry(), directory).start()


def test_a_truncated_segment(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Has no numbers from then on; the totals keep the last, now and after its producer's end."""
    with collecting(directory) as registry:
        segment = HandMade.of(directory / "x.stats", "app/w1", [9])
        source = wait_for(registry, "app/w1")
        assert total(registry, "a") == 9
        encoded = segment.file.read_bytes()
        os.truncate(segment.file, len(encoded) - 8)
        with pytest.raises(UnavailableError, match="truncated"):
            source.get_value("a")
        assert total(registry, "a") == 9
        # It stays so, whatever its producer does.
        os.truncate(segment.file, len(encoded))
        with pytest.raises(UnavailableError, match="truncated"):
            source.get_value("a")
        segment.die()
        wait_until(lambda: find(registry, "app/w1") is None)
        assert total(registry, "a") == 9
        assert "its last numbers cannot be read" in caplog.text
        assert not [r for r in caplog.records if r.levelno > logging.WARNING]


def test_a_segment_that_grew(directory: Path) -> None:
    """Is none any more either."""
    with collecting(directory) as registry:
        segment = HandMade.of(directory / "x.stats", "app/w1", [9])
        source = wait_for(registry, "app/w1")
        with segment.file.open("ab") as file:
            file.write(b"more")
        with pytest.raises(UnavailableError, match="grew"):
            source.get_value("a")
        segment.die()
        wait_until(lambda: find(registry, "app/w1") is None)


def test_a_file_that_is_longer_than_its_data(directory: Path) -> None:
    """It is accepted: a producer may make its file a page long."""
    with collecting(directory) as registry:
        values = [Value("a", aggregate=Aggregate.SUM)]
        encoded = file_format.encode("app/w1", values, numbers=[3]).ljust(4096, b"\0")
        segment = HandMade(directory / "x.stats", encoded)
        wait_for(registry, "app/w1")
        assert total(registry, "a") == 3
        segment.die()
        wait_until(lambda: files_in(directory) == [])
