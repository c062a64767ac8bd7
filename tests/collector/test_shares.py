"""What the directories of one user may hold: what needs more folds away, or is refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector import shares
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.collecting import HandMade, collect, collecting, files_in, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import Server, exists, run, serving
from tests.support.other_users import AS_USER, SUM, USER

LEVEL = Value("level", aggregate=Aggregate.SUM, kind=Kind.INSTANT)

_SERIAL = iter(range(1 << 30))


def make_histogram(name: str, size: int = 8) -> Value:
    """A histogram."""
    return Value(name, aggregate=Aggregate.SUM, kind=Kind.LINEAR_HIST, size=size, bucket_size=1)


def put(directory: Path, path: str, *values: Value, alive: bool = False) -> HandMade:
    """Leave a segment in which each number is 1."""
    numbers = [[1] * value.size if value.histogram else 1 for value in values]
    file = directory / f"{next(_SERIAL)}.stats"
    return HandMade.of(file, path, numbers, values, alive)


def weigh(sources: int, *sizes: int) -> int:
    """What so many path sources weigh with arrays of such sizes in all of them together."""
    return 16 * sources + sum(12 + size for size in sizes)


def find_all(registry: Registry) -> set[str]:
    """The paths of all sources."""
    found: list[Source] = list(registry.sources)
    for source in found:
        found += source.subordinates
    return {source.path for source in found}


def test_new_values_are_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can fold: in one line that says what to do. What was counted stays."""
    monkeypatch.setattr(shares, "NUMBERS_MAX", weigh(1, 1, 8, 8))
    with collecting(directory) as registry:
        living = put(directory, "app/w0", SUM, alive=True)
        wait_for(registry, "app/w0")
        for name in "ab":
            put(directory, "app/w1", make_histogram(name))
            wait_until(lambda: len(files_in(directory)) == 1, "the fold")
        refused = put(directory, "app/w1", make_histogram("c"))
        wait_until(lambda: "is refused" in caplog.text)
        has = f"the directories of user {os.geteuid()} have {weigh(1, 1, 8, 8)} numbers"
        (line,) = [line for line in caplog.messages if has in line]
        assert f"it needs 20 more; no more than {weigh(1, 1, 8, 8)}: in the mount, rmdir" in line
        # What they have already is admitted, as often as it comes.
        for name in "ab":
            put(directory, "app/w1", make_histogram(name))
        wait_until(lambda: len(files_in(directory)) == 2)
        wait_until(lambda: total(registry, "b") == [2] * 8)
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    with collecting(directory) as registry:
        assert total(registry, "a") == total(registry, "b") == [2] * 8
        assert "c" not in registry.by_name["app"].names()
        # What is 0 and of no segment gives way; it has one name in the directory and no more.
        registry.by_name["app"].clear_value("a")
        wait_until(lambda: not refused.file.exists())
        wait_until(lambda: total(registry, "c") == [1] * 8)
        assert "a" not in registry.by_name["app"].names()
        assert total(registry, "b") == [2] * 8
    living.die()


def test_the_longest_empty_directories_give_way(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fold into their parents, but not the one that the segment is for: no total falls."""
    monkeypatch.setattr(shares, "NUMBERS_MAX", weigh(4, 8, 8, 8, 8))
    hist = make_histogram("hist")
    with collecting(directory) as registry:
        for number, name in enumerate(["g0", "g1", "g2", "g0", "g3", "g4"], 1):
            put(directory, f"app/{name}/w", hist)
            wait_until(lambda: files_in(directory) == [], "the fold")
            assert total(registry, "hist") == [number] * 8
        wait_until(lambda: find_all(registry) == {"app", "app/g0", "app/g3", "app/g4"})
        assert total(registry, "hist", "app/g0") == [2] * 8
        # A segment in a directory that is empty needs no room, whatever else is.
        living = put(directory, "app/g0/w", hist, alive=True)
        wait_for(registry, "app/g0/w")
        put(directory, "app/g5/w", hist)
        wait_until(lambda: len(files_in(directory)) == 1)
        left = {"app", "app/g0", "app/g0/w", "app/g4", "app/g5"}
        wait_until(lambda: find_all(registry) == left)
        living.die()
        wait_until(lambda: files_in(directory) == [])


def test_the_depth_of_a_path_counts(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each directory has its totals, those of levels too, while something lives in it."""
    monkeypatch.setattr(shares, "NUMBERS_MAX", weigh(4, 1, 1, 1, 1))
    with collecting(directory) as registry:
        first = put(directory, "app/a/b/c/w", LEVEL, alive=True)
        wait_for(registry, "app/a/b/c/w")
        second = put(directory, "app/x/w", LEVEL, alive=True)
        wait_until(lambda: "it needs 29 more" in caplog.text)
        put(directory, "app/a/b/w", LEVEL)
        wait_until(lambda: len(files_in(directory)) == 2)
        first.die()
        wait_until(lambda: find(registry, "app/a") is None)
        second.die()
        wait_until(lambda: files_in(directory) == [])


def test_a_segment_at_the_top_needs_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no directory."""
    monkeypatch.setattr(shares, "NUMBERS_MAX", 0)
    with collecting(directory) as registry:
        living = put(directory, "app", SUM, alive=True)
        wait_for(registry, "app")
        living.die()
        wait_until(lambda: find(registry, "app") is None)


def test_records_that_are_over_the_bound(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Are loaded, which one line says; nothing is admitted that needs more until they shrink."""
    with collecting(directory) as registry:
        living = put(directory, "app/w0", make_histogram("a"), alive=True)
        wait_for(registry, "app/w0")
        for name in "abcd":
            put(directory, f"app/{name}/w", make_histogram(name))
        wait_until(lambda: len(files_in(directory)) == 1)
    # Of all directories but the top one, which has them all.
    monkeypatch.setattr(shares, "NUMBERS_MAX", weigh(1, 8, 8, 8))
    monkeypatch.setattr("statsfs.collector.collector._RESCAN", 0.05)
    caplog.clear()
    with collecting(directory) as registry:
        assert find_all(registry) == {"app", "app/w0"}
        assert [total(registry, name) for name in "abcd"] == [[2] * 8, *[[1] * 8] * 3]
        text = f"have {weigh(1, 8, 8, 8, 8)} numbers, more than {weigh(1, 8, 8, 8)}; nothing that"
        wait_until(lambda: text in caplog.text)
        put(directory, "app/w1", make_histogram("b"), make_histogram("d"))
        wait_until(lambda: total(registry, "b") == [2] * 8)
        put(directory, "app/w1", make_histogram("e", 2))
        wait_until(lambda: "it needs 14 more" in caplog.text)
        for name in "abd":
            registry.by_name["app"].clear_value(name)
        wait_until(lambda: "e" in registry.by_name["app"].names())
        assert {*registry.by_name["app"].names()} == {"a", "c", "e"}
        assert len([line for line in caplog.messages if text in line]) == 1
    living.die()


@pytest.mark.root
def test_a_chmod_without_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With other read bits the values are others: the segment ends, and what it counted stays."""
    monkeypatch.setattr(shares, "NUMBERS_MAX", weigh(1, 1))
    with collecting(directory) as registry:
        living = put(directory, "app/w0", SUM, alive=True)
        wait_for(registry, "app/w0")
        living.file.chmod(0o600)
        wait_until(lambda: find(registry, "app/w0") is None)
        assert "it needs 13 more" in caplog.text
        assert total(registry, "sum") == 1
    living.die()


# In a mount, with another user


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    """A mount with a collector."""
    with serving() as server:
        server.call(collect, str(directory))
        yield server


def resident(pid: int) -> int:
    """The megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.slow
def test_what_the_dead_of_one_user_weigh(server: Server, directory: Path) -> None:
    """Less than 200 MB, however many; others and the views go on; and rmdir makes room."""
    directory.parent.chmod(0o755)
    users = directory / "www"
    users.mkdir()
    os.chown(users, USER, USER)

    def publish(path: str, value: Value) -> HandMade:
        made = HandMade.of(
            directory / f".{next(_SERIAL)}", path, [[1 << 60] * value.size], [value], alive=False
        )
        os.chown(made.file, USER, USER)
        made.file = made.file.rename(users / f"{made.file.name[1:]}.stats")
        return made

    before = resident(server.process.pid)
    for number in range(20):
        publish(f"www/w{number}", make_histogram(f"h{number}", 65_535))
    put(directory, "app/w1", SUM)
    wait_until(lambda: exists(server / "app/sum"))
    wait_until(lambda: len(files_in(users)) == 5, "all but 15 to be refused")
    assert resident(server.process.pid) < before + 200
    wait_until(lambda: exists(server / "www"))
    assert len((server / "www/.stats.json").read_bytes()) > 15 * 65_535 * 19
    # Theirs are the directories, and so is the room in them.
    for number in range(3):
        publish(f"www/a{number}/w", make_histogram("h0", 65_535))
    assert (server / "app/sum").read_text() == "1\n"
    for file in users.iterdir():  # what was refused, and would take the room
        file.unlink()
    run(*AS_USER, "sh", "-c", 'echo 0 >"$1"', "sh", server / "www/h7")
    more = publish("www/w", make_histogram("more", 65_535))
    wait_until(lambda: not more.file.exists() and exists(server / "www/more"))
    assert not exists(server / "www/h7")
