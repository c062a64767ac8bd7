"""A chmod or chown of a living segment: it takes effect at once, and no number changes."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.formats import prometheus
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import publish
from statsfs.tree.registry import Registry
from statsfs.tree.source import directory_of
from tests.support.collecting import collect, collecting, files_in, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import Server, run, serving
from tests.support.other_users import (
    AS_NOBODY,
    AS_USER,
    SUM,
    USER,
    put,
    shared_directory,
)
from tests.support.repeating import repeating

WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
LEVEL = Value("level", aggregate=Aggregate.SUM, kind=Kind.INSTANT)
PEAK = Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK)
VALUES = (SUM, WAITS, LEVEL, PEAK)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that others may enter, with one in it that is a user's."""
    with shared_directory() as path:
        yield path


def modes(registry: Registry, path: str) -> dict[str, int]:
    """The modes of the files of a source."""
    source = find(registry, path)
    assert source is not None
    return {name: file.value.mode for name, file in directory_of(source).files.items()}


@contextmanager
def watching(registry: Registry, path: str, wanted: int) -> Iterator[None]:
    """Read a total all the time; it must always be the same."""
    seen: set[object] = set()
    with repeating(lambda: seen.add(total(registry, "sum", path)), 0):
        yield
    assert seen == {wanted}


@pytest.mark.parametrize("path", ["app/w1", "w1"])
def test_a_chmod(directory: Path, path: str) -> None:
    """The files have the new read bits, here and above; numbers and what was cleared stay."""
    with (
        collecting(directory) as registry,
        publish(path, values=VALUES, directory=directory) as segment,
    ):
        source = wait_for(registry, path)
        segment.stats.sum = 3
        registry.by_name[path.split("/")[0]].clear_value("sum")
        segment.stats.sum, segment.stats.level, segment.stats.peak = 108, 7, 9
        segment.stats.waits[1] = 2
        for mode in (0o600, 0o640, 0o604, 0o644) * 3:
            with watching(registry, "app" if path == "app/w1" else path, 105):
                segment.file.chmod(mode)
                for where in {path, path.split("/")[0]}:
                    wait_until(lambda: modes(registry, where)["sum"] == mode)  # noqa: B023  # at once
            for where in {path, path.split("/")[0]}:
                assert modes(registry, where) == {
                    "sum": mode, "waits": mode, "peak": mode, "level": mode & 0o444
                }  # fmt: skip
                numbers = [total(registry, value.name, where) for value in VALUES]
                assert numbers == [105, [0, 2, 0], 7, 9]
            assert find(registry, path) is source


def test_what_is_exported_meanwhile(directory: Path) -> None:
    """One series with one number, in every scrape."""
    with collecting(directory) as registry:
        segment = publish("app/w1", values=[SUM], directory=directory)
        wait_for(registry, "app/w1")
        segment.stats.sum = 5
        for mode in (0o600, 0o644) * 20:
            segment.file.chmod(mode)
            while modes(registry, "app/w1")["sum"] != mode:
                lines = prometheus.render(registry.snapshot()).decode().splitlines()
                assert [line for line in lines if line[0] != "#"] == ["app_sum_total 5"]
        segment.close()


def test_it_shares_the_totals_of_its_new_mode(directory: Path) -> None:
    """As if it had been admitted with it: with those of the same mode, living and retained."""
    with collecting(directory) as registry:
        with publish("app/w1", values=[SUM], directory=directory) as segment:
            with publish("app/w2", values=[SUM], directory=directory, mode=0o640) as other:
                segment.stats.sum, other.stats.sum = 5, 1000
                wait_for(registry, "app/w1")
                wait_for(registry, "app/w2")
                segment.file.chmod(0o640)
                wait_until(lambda: total(registry, "sum") == 1005)
            wait_until(lambda: len(files_in(directory)) == 1)
            segment.stats.sum = 6
            assert total(registry, "sum") == 1006
        wait_until(lambda: files_in(directory) == [])
        assert total(registry, "sum") == 1006
    with collecting(directory) as registry:
        assert total(registry, "sum") == 1006


def test_a_chmod_that_nobody_saw(directory: Path) -> None:
    """As the file was away: it is seen when the file is back."""
    with (
        publish("app/w1", values=[SUM], directory=directory) as segment,
        collecting(directory) as registry,
    ):
        wait_for(registry, "app/w1")
        away = segment.file.rename(directory.with_name("away"))
        segment.stats.sum = 5
        away.chmod(0o600)
        away.rename(segment.file)
        wait_until(lambda: modes(registry, "app/w1") == {"sum": 0o600})
        assert total(registry, "sum") == 5


@pytest.mark.root
def test_a_chown(shared: Path) -> None:
    """The source has the new owner, and the quotas count it as that one's."""
    registry = Registry()
    with Collector(registry, shared) as collector:
        made = put(shared / "x.stats", "app/w1", 0, number=5)
        source = wait_for(registry, "app/w1")
        with watching(registry, "app", 5):
            os.chown(made.file, -1, USER)
            wait_until(lambda: source.owner == (0, USER))
        assert collector._liveness.counts == {0: 1}
        made.die()
        wait_until(lambda: files_in(shared) == [])


@pytest.mark.root
def test_a_chown_to_somebody_who_may_not_publish(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The segment ends, and what it counted stays. Given back, it counts what it did since."""
    with collecting(shared) as registry:
        made = put(shared / "www" / "x.stats", "www/w1", USER, number=5)
        wait_for(registry, "www/w1")
        os.chown(made.file, 0, 0)
        wait_until(lambda: find(registry, "www/w1") is None)
        assert total(registry, "sum", "www") == 5
        assert len([line for line in caplog.messages if "user 0 may not publish here" in line]) == 1
    for _ in range(2):
        with collecting(shared) as registry:
            assert total(registry, "sum", "www") == 5
            assert find(registry, "www/w1") is None
    with collecting(shared) as registry:
        os.chown(made.file, USER, USER)
        wait_for(registry, "www/w1")
        assert total(registry, "sum", "www") == 5
    made.die()
    with collecting(shared) as registry:
        assert total(registry, "sum", "www") == 5
        assert files_in(shared / "www") == []


@pytest.mark.root
def test_a_chown_in_a_directory_that_others_may_write(shared: Path) -> None:
    """Nobody may publish there, but what is there goes on."""
    with collecting(shared) as registry:
        made = put(shared / "www" / "x.stats", "www/w1", USER, number=5)
        source = wait_for(registry, "www/w1")
        (shared / "www").chmod(0o777)
        for number in range(2):  # that what was done before is seen
            with publish(f"app/w{number}", values=[SUM], directory=shared):
                wait_for(registry, f"app/w{number}")
            os.chown(made.file, USER, 0)
        assert (source.owner, total(registry, "sum", "www")) == ((USER, USER), 5)
        (shared / "www").chmod(0o755)
        wait_until(lambda: source.owner == (USER, 0))
        made.die()


@pytest.mark.root
def test_more_values_than_a_user_may_bring(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With other read bits they are others: the segment ends, rather than be read by others."""
    monkeypatch.setattr("statsfs.collector.known_values.BROUGHT_MAX", 1)
    with (
        publish("app/w1", values=[SUM], directory=directory) as segment,
        collecting(directory) as registry,
    ):
        wait_for(registry, "app/w1")
        segment.stats.sum = 5
        segment.file.chmod(0o600)
        wait_until(lambda: find(registry, "app/w1") is None)
        assert "brought 1 different values" in caplog.text
        assert total(registry, "sum") == 5


@pytest.fixture
def server(shared: Path) -> Iterator[Server]:
    """A mount of root's with a collector."""
    with serving() as server:
        server.call(collect, str(shared))
        yield server


@pytest.mark.root
@pytest.mark.mount
def test_in_a_mount(server: Server, shared: Path) -> None:
    """Modes and owners of the files, and who may read, at once; the kernel keeps nothing old."""
    made = put(shared / "www" / "x.stats", "www/w1", USER, 0o644, 5)
    paths = [server / "www/w1/sum", server / "www/sum"]
    wait_until(paths[0].exists)
    for path in paths:
        assert run(*AS_NOBODY, "cat", path).stdout == "5\n"
    with open(paths[0], "rb", 0) as file:
        for mode in (0o640, 0o600):
            made.file.chmod(mode)
            wait_until(lambda: stat.S_IMODE(os.stat(paths[0]).st_mode) == mode)  # noqa: B023  # at once
            for path in paths:
                assert stat.S_IMODE(os.stat(path).st_mode) == mode
                assert "Permission denied" in run(*AS_NOBODY, "cat", path, status=1).stderr
                assert run(*AS_USER, "cat", path).stdout == "5\n"
        os.chown(made.file, -1, 0)
        wait_until(lambda: os.stat(paths[0]).st_gid == 0)
        assert os.stat(server / "www/w1").st_gid == 0
        assert run("cat", paths[1]).stdout == "5\n"
        assert os.pread(file.fileno(), 100, 0) == b"5\n"
    made.die()
    wait_until(lambda: not (server / "www/w1").exists())
    assert run("cat", server / "www/sum").stdout == "5\n"
