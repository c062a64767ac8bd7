"""Other users: what they may publish, read and clear, and what they may not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.segments import file_format, publish
from statsfs.tree.source import directory_of
from tests.support.collecting import (
    Producer,
    WorkerStats,
    collect,
    collecting,
    files_in,
    find,
    total,
    wait_for,
)
from tests.support.deadlines import wait_until
from tests.support.mounts import NOBODY, ROOT, Server, run, serving
from tests.support.other_users import AS_NOBODY, AS_USER, SUM, USER, put, shared_directory

pytestmark = pytest.mark.root


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that others may enter, with one in it that is a user's."""
    with shared_directory() as path:
        yield path


def test_a_directory_is_left_to_its_owner(directory: Path) -> None:
    """With the names below its own; the totals have the same owner."""
    with collecting(directory) as registry:
        with Producer(directory / "www", "www/w1", 0o640, USER) as producer:
            source = wait_for(registry, "www/w1")
            producer.count(3)
            assert total(registry, path="www") == 3
            assert source.owner == (USER, USER)
            assert directory_of(source).files["requests"].value.mode == 0o640
        wait_until(lambda: find(registry, "www/w1") is None)
        assert total(registry, path="www") == 3
        # Whichever user takes the name first.
        assert registry.by_name["www"].owner == (USER, USER)
        assert files_in(directory / "www") == []
    with collecting(directory) as registry:
        assert total(registry, path="www") == 3
        assert registry.by_name["www"].owner == (USER, USER)


def test_a_directory_that_is_made_later(directory: Path) -> None:
    """And given away after that; and removed, and made again."""
    with collecting(directory) as registry:
        for _ in range(2):
            (directory / "db").mkdir()
            os.chown(directory / "db", USER, USER)
            made = put(directory / "db" / "x.stats", "db/w1", USER)
            wait_for(registry, "db/w1")
            shutil.rmtree(directory / "db")
            made.die()
            wait_until(lambda: find(registry, "db/w1") is None)
        assert total(registry, "sum", "db") == 2


def test_a_directory_moved_away_and_back(directory: Path) -> None:
    """The segments in it are the same ones, and count once."""
    with collecting(directory) as registry:
        made = put(directory / "www" / "x.stats", "www/w1", USER, number=5)
        put(directory / "www" / "y.stats", "www/w2", USER, number=1)
        wait_for(registry, "www/w2")
        (directory / "www").rename(directory / ".away")
        with publish("app/w1", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w1")
        (directory / ".away").rename(directory / "www")
        with publish("app/w2", values=WorkerStats, directory=directory):
            wait_for(registry, "app/w2")
        made.die()
        wait_until(lambda: find(registry, "www/w1") is None)
        wait_until(lambda: files_in(directory / "www") == ["y.stats"])
        assert total(registry, "sum", "www") == 6


REFUSED = {
    "a name at the top": ("www/x.stats", "app/w1", USER, "its path is 'app/w1', not below www/"),
    "the directory's name": ("www/x.stats", "www", USER, "its path is 'www', not below www/"),
    "another beginning": ("www/x.stats", "wwwx/w1", USER, "not below www/"),
    "a third user's file": ("www/x.stats", "www/w1", NOBODY, f"user {NOBODY} may not publish"),
    "even root's": ("www/x.stats", "www/w1", 0, "user 0 may not publish"),
    "a stranger's at the top": ("x.stats", "app/w1", NOBODY, f"user {NOBODY} may not publish"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_names_that_are_not_theirs(
    directory: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """A user cannot take a name that was not delegated to that user."""
    file, path, uid, why = REFUSED[what]
    with collecting(directory) as registry:
        put(directory / file, path, uid)
        wait_until(lambda: why in caplog.text)
        assert registry.sources == ()


def test_only_one_level(directory: Path) -> None:
    """A directory in such a directory is not read."""
    (directory / "www" / "deep").mkdir()
    with collecting(directory) as registry:
        put(directory / "www" / "deep" / "x.stats", "www/w1", USER)
        put(directory / "www" / "y.stats", "www/w2", USER)
        wait_for(registry, "www/w2")
        assert find(registry, "www/w1") is None


def test_who_has_a_path_first(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the host's own segments nor the owner's of a delegated name come before others."""
    with collecting(directory) as registry:
        with publish("www/w1", values=WorkerStats, directory=directory) as first:
            wait_for(registry, "www/w1")
            second = put(directory / "www" / "x.stats", "www/w1", USER)
            wait_until(lambda: "waiting for it" in caplog.text)
            first.stats.requests = 5
            assert total(registry, path="www/w1") == 5
        wait_until(lambda: "sum" in registry.by_name["www"].names())
        assert total(registry, "sum", "www") == 1
        second.die()


@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [(0o775, USER, "chmod go-w"), (0o777, USER, "chmod go-w"), (0o1777, 0, "chmod go-w")],
)
def test_a_directory_that_others_may_write(
    directory: Path, caplog: pytest.LogCaptureFixture, mode: int, owner: int, why: str
) -> None:
    """Nothing new in it is let in until that is mended; what is there already goes on."""
    with collecting(directory) as registry:
        first = put(directory / "www" / "x.stats", "www/w1", USER)
        wait_for(registry, "www/w1")
        os.chown(directory / "www", owner, owner)
        (directory / "www").chmod(mode)
        wait_until(lambda: why in caplog.text)
        second = put(directory / "www" / "y.stats", "www/w2", USER)
        wait_until(lambda: "y.stats is refused" in caplog.text or "y.stats" not in caplog.text)
        assert find(registry, "www/w2") is None
        os.chown(directory / "www", USER, USER)
        (directory / "www").chmod(0o755)
        third = put(directory / "www" / "z.stats", "www/w3", USER)
        wait_for(registry, "www/w3")
        first.die()
        third.die()
        second.die()


def test_a_directory_that_is_none(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Links to directories and mount points are not read."""
    shutil.rmtree(directory / "www")
    (directory / "www").symlink_to("/tmp")
    (directory / "db").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "db", directory / "db")
    try:
        with collecting(directory) as registry:
            put(directory / "db" / "x.stats", "db/w1", 0).die()
            with publish("app/w1", values=WorkerStats, directory=directory):
                wait_for(registry, "app/w1")
            assert find(registry, "db/w1") is None
        assert "db is on another device" in caplog.text
    finally:
        run("umount", directory / "db")


def test_no_reading_for_others(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon does not read for a user what that user may not read."""
    secret = directory / ".secret"
    secret.write_bytes(file_format.encode("www/w1", [SUM], numbers=[42]))
    secret.chmod(0o600)
    (directory / "www" / "link.stats").symlink_to(secret)
    os.link(secret, directory / "www" / "hard.stats")
    with collecting(directory) as registry:
        wait_until(lambda: "link.stats is refused: " in caplog.text)
        wait_until(lambda: "hard.stats is refused: " in caplog.text)
        assert registry.sources == ()


LOCK = f"""
import fcntl, struct, sys, time
from tests.support.collecting import become
become({NOBODY})
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_SH)
print("locked", flush=True)
fcntl.fcntl(file, 38, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
time.sleep(60)
"""


def test_no_stranger_keeps_the_dead_alive(directory: Path) -> None:
    """A reader's lock does not count."""
    with collecting(directory) as registry:
        with Producer(directory, "app/w1") as producer:
            wait_for(registry, "app/w1")
            (name,) = files_in(directory)
            stranger = subprocess.Popen(
                [sys.executable, "-c", LOCK, directory / name], stdout=subprocess.PIPE, cwd=ROOT
            )
            with stranger:
                assert stranger.stdout is not None
                assert stranger.stdout.readline() == b"locked\n"
                producer.kill()
                wait_until(lambda: find(registry, "app/w1") is None)
                stranger.kill()
        assert files_in(directory) == []


def test_a_collector_of_a_users_own(directory: Path) -> None:
    """It is refused root's directory and a third user's, and gets its owner's."""
    program = (
        "import sys, inotify_simple\n"
        "from statsfs import Collector, Registry, SegmentError\n"
        "from tests.support.collecting import become\n"
        "become(int(sys.argv[2]))\n"
        "try:\n"
        "    with Collector(Registry(), sys.argv[1]): print('ok')\n"
        "except SegmentError as error: print(error)\n"
    )

    def ask(user: int, path: Path) -> str:
        return run(sys.executable, "-c", program, path, str(user), cwd=ROOT).stdout.strip()

    assert "Permission denied" in ask(USER, directory)
    assert ask(USER, directory / "www") == "ok"
    assert ask(NOBODY, directory / "www") == (
        f"{directory}/www is user {USER}'s, neither root's nor ours: chown it"
    )


# In a mount


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    """A mount of root's with a collector."""
    with serving() as server:
        server.call(collect, str(directory))
        yield server


CLEAR = ("sh", "-c", 'echo 0 >"$1"', "sh")


@pytest.mark.mount
def test_files_carry_owner_and_rights(server: Server, directory: Path) -> None:
    """They are those of the segment; its owner and root may clear, its readers may read."""
    made = [
        put(directory / "www" / "x.stats", "www/w1", USER, 0o640, 5),
        put(directory / "www" / "y.stats", "www/w2", USER, 0o640, 6),
        put(directory / "z.stats", "app/w1", 0, 0o644, 7),
    ]
    wait_until((server / "www/w2/sum").exists)
    wait_until((server / "app/w1/sum").exists)
    for path in ("www", "www/sum", "www/w1", "www/w1/sum"):
        status = os.stat(server / path)
        assert (status.st_uid, status.st_gid) == (USER, USER)
    assert os.stat(server / "app/sum").st_uid == 0
    for path in ("www/sum", "www/w1/sum"):
        assert "Permission denied" in run(*AS_NOBODY, "cat", server / path, status=1).stderr
        assert "Permission denied" in run(*AS_NOBODY, *CLEAR, server / path, status=2).stderr
    assert run(*AS_NOBODY, "cat", server / "app/sum").stdout == "7\n"
    for path in ("app/sum", "app/w1/sum"):
        assert "Permission denied" in run(*AS_USER, *CLEAR, server / path, status=2).stderr
    assert run(*AS_USER, "cat", server / "www/sum").stdout == "11\n"
    run(*AS_USER, *CLEAR, server / "www/w1/sum")
    assert run("cat", server / "www/sum").stdout == "6\n"
    run(*CLEAR, server / "www/sum")
    assert run("cat", server / "www/sum").stdout == "0\n"
    for each in made:
        each.die()
    wait_until(lambda: not (server / "www/w1").exists())
    assert run("cat", server / "www/sum").stdout == "0\n"
    assert run("cat", server / "app/sum").stdout == "7\n"


@pytest.mark.mount
def test_a_truncated_segment_in_a_mount(server: Server, directory: Path) -> None:
    """Its files say that there are no data; the total is that of before."""
    made = put(directory / "x.stats", "app/w1", 0, number=5)
    wait_until((server / "app/w1/sum").exists)
    assert run("cat", server / "app/sum").stdout == "5\n"
    os.truncate(made.file, 100)
    assert "No data available" in run("cat", server / "app/w1/sum", status=1).stderr
    assert run("cat", server / "app/sum").stdout == "5\n"
    made.die()
