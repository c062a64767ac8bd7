"""Directories of segments that are empty: they stay with what was counted in them, until rmdir."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector import path_sources
from statsfs.collector.journal_file import decode_record
from statsfs.formats import prometheus
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import publish
from statsfs.tree.registry import Registry
from tests.support.collecting import HandMade, collect, collecting, files_in, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import Server, as_nobody, exists, run, serving

SUM = Value("sum", aggregate=Aggregate.SUM)
PEAK = Value("peak", aggregate=Aggregate.MAX, kind=Kind.PEAK)
LEVEL = Value("level", aggregate=Aggregate.SUM, kind=Kind.INSTANT)


def count(directory: Path, path: str, number: int) -> HandMade:
    """Publish a sum, by hand; it lives until it is told to die."""
    name = f"{path.replace('/', '_')}-{os.urandom(8).hex()}.stats"
    return HandMade.of(directory / name, path, [number], [SUM])


def live(directory: Path, registry: Registry, path: str, number: int) -> None:
    """Have a producer live, count and die."""
    made = count(directory, path, number)
    wait_for(registry, path)
    made.die()
    wait_until(lambda: not made.file.exists(), "the fold")
    wait_until(lambda: find(registry, path) is None)


def tree(registry: Registry) -> dict[str, int]:
    """The sum of each path source."""
    found = list(registry.sources)
    for source in found:
        found += source.subordinates
    return {source.path: source.get_value("sum") for source in found}


def test_a_rolling_restart(directory: Path) -> None:
    """The total never falls, and the file is always there: not 4000, ENOENT, 1200."""
    with collecting(directory) as registry:
        for number, expected in ((4000, 4000), (1200, 5200), (0, 5200)):
            live(directory, registry, "web/root/w1", number)
            assert tree(registry) == {"web": expected, "web/root": expected}
            made = count(directory, "web/root/w2", 1)
            wait_for(registry, "web/root/w2")
            assert total(registry, "sum", "web/root") == expected + 1
            made.file.unlink()
            made.die()
            wait_until(lambda: find(registry, "web/root/w2") is None)
            registry.by_name["web"].clear_value("sum")
            assert tree(registry) == {"web": 0, "web/root": 0}
            live(directory, registry, "web/root/w1", expected)


def test_the_next_collector_has_them_too(directory: Path) -> None:
    """Nested ones, those at the top, and of each what is its own, its label and its series."""
    labels = ("web", "site", None)
    for _ in range(2):
        with collecting(directory) as registry:
            for path, number in (("web/root/w1", 1), ("web/api/w1", 10)):
                with publish(path, values=[SUM, PEAK], directory=directory, labels=labels) as one:
                    wait_for(registry, path)
                    one.stats.sum = one.stats.peak = number
            wait_until(lambda: files_in(directory) == [], "the fold")
            live(directory, registry, "app/w1", 100)
            live(directory, registry, "deep/a/b/c/d/w1", 1000)
            before = tree(registry)
            text = prometheus.render(registry.snapshot())
    deep = {"deep", "deep/a", "deep/a/b", "deep/a/b/c", "deep/a/b/c/d"}
    assert before == {
        "web": 22, "web/root": 2, "web/api": 20, "app": 200, **dict.fromkeys(deep, 2000),
    }  # fmt: skip
    assert b'web_sum_total{site="api"} 20\n' in text
    with collecting(directory) as registry:
        assert tree(registry) == before
        assert prometheus.render(registry.snapshot()) == text
        assert total(registry, "peak", "web/api") == 10


def test_what_counted_nothing_leaves(directory: Path) -> None:
    """Levels are retained by nobody; the directories above go with the last that has something."""
    with collecting(directory) as registry:
        with publish("app/a/b/w1", values=[LEVEL], directory=directory):
            wait_for(registry, "app/a/b/w1")
            live(directory, registry, "app/w2", 5)
        wait_until(lambda: find(registry, "app/a") is None)
        assert tree(registry) == {"app": 5}
        with publish("other/a/w1", values=[LEVEL], directory=directory):
            wait_for(registry, "other/a/w1")
        wait_until(lambda: find(registry, "other") is None)
        # A sum that is 0 may have been something, and been cleared.
        live(directory, registry, "app/a/w1", 0)
        assert tree(registry) == {"app": 5, "app/a": 0}


def test_a_segment_in_the_place_of_an_empty_directory(directory: Path) -> None:
    """The directory gives way, with all that is in it; the one above retains what it had."""
    with collecting(directory) as registry:
        live(directory, registry, "web/root/x/w1", 4000)
        living = count(directory, "web/root", 7)
        wait_until(lambda: total(registry, "sum", "web/root") == 7)
        assert tree(registry) == {"web": 4007, "web/root": 7}
    with collecting(directory) as registry:
        assert tree(registry) == {"web": 4007, "web/root": 7}
        living.die()
        wait_until(lambda: find(registry, "web/root") is None)
        live(directory, registry, "web/root/x/w1", 10)
        assert tree(registry) == {"web": 4017, "web/root": 10, "web/root/x": 10}


def test_a_segment_waits_for_a_directory_that_is_not_empty(directory: Path) -> None:
    """Until the last segment in it has left."""
    with collecting(directory) as registry:
        first = count(directory, "web/root/w1", 5)
        wait_for(registry, "web/root/w1")
        second = count(directory, "web/root", 7)
        live(directory, registry, "web/w2", 100)
        assert total(registry, "sum", "web/root") == 5
        first.die()
        wait_until(lambda: total(registry, "sum", "web/root") == 7)
        assert total(registry, "sum", "web") == 112
        second.die()
        wait_until(lambda: files_in(directory) == [])


def test_a_segment_waits_for_a_directory_at_the_top(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There nothing would retain what it had; a new one is shown when the directory is removed."""
    with collecting(directory) as registry:
        live(directory, registry, "app/w1", 5)
        second = count(directory, "app", 7)
        wait_until(lambda: "app is a directory of segments; waiting for it" in caplog.text)
        app = registry.by_name["app"]
        registry.unregister(app)
        wait_until(lambda: tree(registry) == {"app": 7})
        second.die()
        wait_until(lambda: files_in(directory) == [])


def test_the_longest_empty_are_folded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Past the bound, into their parents; those at the top are forgotten, with one line each."""
    monkeypatch.setattr(path_sources, "EMPTY_MAX", 4)
    with collecting(directory) as registry:
        for number in range(4):
            live(directory, registry, f"app/g{number}/w1", 10**number)
        # `app` is empty too, but the youngest.
        kept = {"app": 1111, "app/g1": 10, "app/g2": 100, "app/g3": 1000}
        wait_until(lambda: tree(registry) == kept)
        living = count(directory, "app/g1/w1", 1)
        wait_for(registry, "app/g1/w1")
        live(directory, registry, "app/g5/w1", 10000)
        assert [*tree(registry)] == [
            "app", "app/g1", "app/g2", "app/g3", "app/g5", "app/g1/w1",
        ]  # fmt: skip
        living.die()
        wait_until(lambda: find(registry, "app/g2") is None)
        after = {"app": 11112, "app/g1": 11, "app/g3": 1000, "app/g5": 10000}
        wait_until(lambda: tree(registry) == after)
        assert "is forgotten" not in caplog.text
    with collecting(directory) as registry:
        assert tree(registry) == after
        for number in range(5):
            live(directory, registry, f"top{number}/w1", 1)
        wait_until(lambda: {*tree(registry)} == {"top1", "top2", "top3", "top4"})
        lines = [line for line in caplog.messages if "is forgotten" in line]
        assert len(lines) == 2
        why = f"user {os.geteuid()} has too many empty directories"
        assert lines[0] == f"app: what it retains is forgotten: {why}"
    assert sorted(os.listdir(directory / ".retained")) == ["top1", "top2", "top3", "top4"]


def test_a_start_with_more_than_are_kept(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in which something lives are not empty, and are left alone."""
    with collecting(directory) as registry:
        for number in range(6):
            live(directory, registry, f"app/g{number}/w1", 10**number)
    living = [count(directory, f"app/g{number}/w1", 1) for number in range(4)]
    monkeypatch.setattr(path_sources, "EMPTY_MAX", 1)
    with collecting(directory) as registry:
        assert total(registry, "sum") == 111115
        assert [total(registry, "sum", f"app/g{n}") for n in range(4)] == [2, 11, 101, 1001]
    for one in living:
        one.die()
    with collecting(directory) as registry:
        assert tree(registry) == {"app": 111115}


# In a mount


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    """A mount with a collector."""
    with serving() as server:
        server.call(collect, str(directory))
        yield server


def leave(server: Server, directory: Path, path: str, number: int) -> None:
    """Have a producer live, count and die."""
    made = count(directory, path, number)
    wait_until(lambda: exists(server / path))
    made.die()
    wait_until(lambda: not made.file.exists() and not exists(server / path), "the fold")


def read(path: Path) -> int:
    """The number in a file."""
    return int(path.read_text())


def error_of(path: Path) -> str:
    """What `rmdir` says."""
    return run("rmdir", path, status=1).stderr.strip().rpartition(": ")[2]


@pytest.mark.mount
def test_rmdir_forgets(server: Server, directory: Path) -> None:
    """The directory and its record, before it returns; those above keep their totals."""
    leave(server, directory, "web/root/w1", 4000)
    leave(server, directory, "web/api/w1", 10)
    record = directory / ".retained" / "web"
    with open(server / "web/root/sum") as file:
        run("rmdir", server / "web/root")
        sources = decode_record("web", record.read_bytes()).sources
        assert [one.path for one in sources] == [("web",), ("web", "api")]
        assert not exists(server / "web/root")
        assert file.read() == "4000\n"
    assert read(server / "web/sum") == 4010
    assert read(server / "web/api/sum") == 10
    leave(server, directory, "web/root/w1", 1)
    assert (read(server / "web/root/sum"), read(server / "web/sum")) == (1, 4011)
    run("rmdir", server / "web/root", server / "web/api", server / "web")
    assert os.listdir(server.mountpoint) == []
    assert not record.exists()
    server.end()
    with collecting(directory) as registry:
        assert registry.sources == ()
        live(directory, registry, "web/w1", 3)
        assert tree(registry) == {"web": 3}


@pytest.mark.mount
def test_rmdir_of_what_is_in_use(server: Server, directory: Path) -> None:
    """Because of living producers, at any depth, or a directory in it; nor are segments removed."""
    leave(server, directory, "web/a/b/w1", 5)
    living = count(directory, "web/a/w2", 6)
    wait_until(lambda: exists(server / "web/a/w2"))
    for path in ("web", "web/a"):
        assert error_of(server / path) == os.strerror(errno.EBUSY)
    assert error_of(server / "web/a/w2") == os.strerror(errno.EPERM)
    assert error_of(server / "web/a/sum") == os.strerror(errno.ENOTDIR)
    run("rmdir", server / "web/a/b")
    assert read(server / "web/a/sum") == 11
    living.die()
    wait_until(lambda: not exists(server / "web/a/w2"))
    run("rmdir", "-p", "web/a", cwd=server.mountpoint)
    assert os.listdir(server.mountpoint) == []


@pytest.mark.mount
def test_a_segment_comes_when_a_directory_at_the_top_is_removed(
    server: Server, directory: Path
) -> None:
    """It has waited for the name."""
    leave(server, directory, "app/w1", 5)
    living = count(directory, "app", 7)
    leave(server, directory, "other/w1", 7)
    assert read(server / "app/sum") == 5
    run("rmdir", server / "app")
    wait_until(lambda: exists(server / "app/sum") and read(server / "app/sum") == 7)
    assert error_of(server / "app") == os.strerror(errno.EPERM)
    living.die()


@pytest.mark.mount
@pytest.mark.root
def test_who_may_remove(server: Server, directory: Path) -> None:
    """Nobody but the owner and root."""
    user = ("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups")
    directory.parent.chmod(0o755)
    (directory / "www").mkdir()
    os.chown(directory / "www", 1234, 1234)
    for path in ("www/a/w1", "www/b/w1", "app/a/w1"):
        file = directory / ".made"
        made = HandMade.of(file, path, [1], [SUM])
        if path.startswith("www"):
            os.chown(file, 1234, 1234)
            file.rename(directory / "www" / "x.stats")
        else:
            file.rename(directory / "x.stats")
        wait_until(lambda: exists(server / path))  # noqa: B023  # at once
        made.die()
        wait_until(lambda: not exists(server / path))  # noqa: B023
    denied = os.strerror(errno.EACCES)
    for path in ("www/a", "app/a", "app"):
        assert denied in as_nobody("rmdir", server / path, status=1).stderr
    assert denied in run(*user, "rmdir", server / "app/a", status=1).stderr
    run(*user, "rmdir", server / "www/a")
    # Its name is in a directory of root's.
    assert denied in run(*user, "rmdir", server / "www", status=1).stderr
    run("rmdir", server / "www/b", server / "www", server / "app/a", server / "app")


@pytest.mark.mount
def remove_directory(path: Path) -> bool:
    """Whether a directory can be removed."""
    return run("rmdir", path, status=None).returncode == 0


def test_removing_while_segments_come_and_go(server: Server, directory: Path) -> None:
    """Nobody waits for ever, and nothing that was counted is missing above."""
    ended, seen = threading.Event(), {"removed": 0}

    def remove() -> None:
        while not ended.is_set():
            done = run("sh", "-c", f"rmdir {server / 'app'}/g*", status=None)
            seen["removed"] += "failed" not in done.stderr

    remover = threading.Thread(target=remove)
    leave(server, directory, "app/w0", 1)
    remover.start()
    try:
        for number in range(200):
            count(directory, f"app/g{number % 3}/w{number}", 10).die()
        wait_until(lambda: files_in(directory) == [], "the folds")
        wait_until(lambda: read(server / "app/sum") == 2001)
    finally:
        ended.set()
        remover.join()
    # A file is removed before its source has left.
    left = sorted((server / "app").glob("g*"))
    wait_until(lambda: [one for one in left if one.exists() and not remove_directory(one)] == [])
    assert read(server / "app/sum") == 2001
    assert json.loads((server / "app/.stats.json").read_text())["subordinates"] == {}
    server.end()
    with collecting(directory) as registry:
        assert tree(registry) == {"app": 2001}
