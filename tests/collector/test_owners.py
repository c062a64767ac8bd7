"""Owners of top-level names: directories that get another one, and those of DynamicUser=yes."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.collector import Collector
from statsfs.tree.registry import Registry
from tests.support.collecting import collect, collecting, find, total, wait_for
from tests.support.deadlines import wait_until
from tests.support.mounts import run, serving
from tests.support.other_users import AS_NOBODY, AS_USER, USER, put, shared_directory

pytestmark = pytest.mark.root

OTHER = 61184  # systemd's first dynamic user
AS_OTHER = ("setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory of segments with one in it that is a user's."""
    with shared_directory() as shared:
        yield shared


def give(directory: Path, user: int) -> None:
    """Give a directory and all in it to a user, as systemd does when User= has changed."""
    for path in (*directory.iterdir(), directory):
        os.chown(path, user, user)


def owners(registry: Registry, *paths: str) -> list[object]:
    """The owners of sources."""
    return [source and source.owner for source in (find(registry, path) for path in paths)]


def test_a_directory_gets_another_owner(shared: Path) -> None:
    """All path sources of the name are the new one's at once, with what they weigh."""
    directory = shared / "www"
    registry = Registry()
    with Collector(registry, shared) as collector:
        made = put(directory / "x.stats", "www/a/w1", USER, number=5)
        wait_for(registry, "www/a/w1")
        made.die()
        wait_until(lambda: find(registry, "www/a/w1") is None)
        held = put(directory / "y.stats", "www/b/w2", USER, number=7)
        wait_for(registry, "www/b/w2")
        weights = collector._journal.path_sources._shares
        before = weights.weigh_user(USER)
        assert before > 0
        paths = ("www", "www/a", "www/b", "www/b/w2")
        assert owners(registry, *paths) == 4 * [(USER, USER)]
        give(directory, OTHER)
        wait_until(lambda: owners(registry, *paths) == 4 * [(OTHER, OTHER)], "the new owner")
        assert (weights.weigh_user(USER), weights.weigh_user(OTHER)) == (0, before)
        assert total(registry, "sum", "www") == 12
        held.die()
        wait_until(lambda: find(registry, "www/b/w2") is None)
        assert total(registry, "sum", "www") == 12
    with collecting(shared) as registry:
        assert owners(registry, "www", "www/a") == 2 * [(OTHER, OTHER)]


def test_a_directory_that_comes_later(shared: Path) -> None:
    """A name that was root's, by a file, is then its directory's owner's."""
    with collecting(shared) as registry:
        put(shared / "x.stats", "app/w1", 0, number=5)
        wait_for(registry, "app/w1")
        assert owners(registry, "app") == [(0, 0)]
        (shared / ".app").mkdir()
        os.chown(shared / ".app", USER, USER)
        (shared / ".app").rename(shared / "app")
        wait_until(lambda: owners(registry, "app", "app/w1") == [(USER, USER), (0, 0)])
        # A segment at the top has the owner of its file.
        put(shared / "y.stats", "one", 0, number=5)
        wait_for(registry, "one")
        (shared / "one").mkdir()
        os.chown(shared / "one", USER, USER)
        put(shared / "z.stats", "two", 0, number=5)
        wait_for(registry, "two")
        assert owners(registry, "one") == [(0, 0)]


@pytest.mark.mount
def test_who_may_clear(shared: Path) -> None:
    """In a mount: the old owner may not any more, the new one may, while others hold files open."""
    with serving() as server:
        server.call(collect, str(shared))
        put(shared / "www" / "x.stats", "www/a/w1", USER, number=5)
        file = server / "www/a/sum"
        wait_until(file.exists)
        clear = ("sh", "-c", f"echo 0 > {file}")
        run(*AS_USER, *clear)
        with open(file):
            give(shared / "www", OTHER)
            wait_until(lambda: os.stat(file).st_uid == OTHER)
            assert "Permission denied" in run(*AS_USER, *clear, status=2).stderr
            run(*AS_OTHER, *clear)
            assert file.read_text() == "0\n"
        assert [os.stat(server / path).st_uid for path in ("www", "www/a")] == [OTHER, OTHER]
        run(*AS_NOBODY, "cat", file)


# DynamicUser=yes


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A directory like /run: with statsfs in it, and a private one, which only root may enter."""
    for name, mode in (("statsfs", 0o755), ("private", 0o700), ("private/statsfs", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    return tmp_path


def start(run_directory: Path, user: int = OTHER) -> Path:
    """Make what systemd makes for RuntimeDirectory=statsfs/app of a dynamic user."""
    private = run_directory / "private/statsfs/app"
    private.mkdir(exist_ok=True)
    os.chown(private, user, user)
    link = run_directory / "statsfs/app"
    if not link.is_symlink():
        link.symlink_to("../private/statsfs/app")
    return private


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_dynamic_user(run_directory: Path, when: str) -> None:
    """What it publishes is shown, and its own; it may come, go and come again."""
    directory = run_directory / "statsfs"
    if when == "before":
        start(run_directory)
    with collecting(directory) as registry:
        for number in range(1, 3):
            private = start(run_directory)
            made = put(private / "x.stats", "app/w1", OTHER, number=5)
            wait_for(registry, "app/w1")
            assert owners(registry, "app", "app/w1") == 2 * [(OTHER, OTHER)]
            made.die()
            wait_until(lambda: find(registry, "app/w1") is None)
            assert total(registry, "sum") == 5 * number
            # systemd removes the link first.
            (directory / "app").unlink()
            shutil.rmtree(private)
    with collecting(directory) as registry:
        assert total(registry, "sum") == 10


def test_another_dynamic_user(run_directory: Path) -> None:
    """The new owner of a directory outside of the collector's is noticed."""
    private = start(run_directory)
    with collecting(run_directory / "statsfs") as registry:
        put(private / "x.stats", "app/w1", OTHER, number=5)
        wait_for(registry, "app/w1")
        give(private, OTHER + 1)
        wait_until(lambda: owners(registry, "app") == [(OTHER + 1, OTHER + 1)])
        # It is a user of its own from now on, with a directory that is moved.
        (run_directory / "statsfs/app").unlink()
        private.rename(run_directory / "statsfs/app")
        give(run_directory / "statsfs/app", USER)
        wait_until(lambda: owners(registry, "app", "app/w1") == 2 * [(USER, USER)])
        assert total(registry, "sum") == 5


def test_links_that_are_not_followed(run_directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only root's link to the one place is; others are logged once, and change nothing else."""
    directory = run_directory / "statsfs"
    private = start(run_directory)
    put(private / "x.stats", "app/w1", OTHER, number=5)
    elsewhere = run_directory / "elsewhere"
    elsewhere.mkdir()
    put(elsewhere / "x.stats", "evil/w1", 0, number=5)
    (directory / "evil").symlink_to("../elsewhere")
    (directory / "theirs").symlink_to("../private/statsfs/theirs")
    os.chown(directory / "theirs", USER, USER, follow_symlinks=False)
    (run_directory / "private/statsfs/theirs").mkdir()
    (directory / "gone").symlink_to("../private/statsfs/gone")
    (directory / "file.stats").symlink_to(private / "x.stats")
    with collecting(directory) as registry:
        wait_for(registry, "app/w1")
        assert [source.name for source in registry.sources] == ["app"]
    said = sorted(caplog.messages)
    not_ours = "is a link, and not root's to ../private/statsfs"
    assert said == [
        f"{directory}/evil is not read: {directory}/evil {not_ours}/evil (DynamicUser=yes)",
        f"{directory}/file.stats is refused: not a regular file",
        f"{directory}/gone is not read: No such file or directory",
        f"{directory}/theirs is not read: {directory}/theirs {not_ours}/theirs (DynamicUser=yes)",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("private", "private, which is not root's"),
        ("private/statsfs", "statsfs, which is not root's"),
    ],
)
def test_a_way_that_others_could_change(
    run_directory: Path, name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A link through it is not followed; nor through one that others may write, or a link."""
    put(start(run_directory) / "x.stats", "app/w1", OTHER, number=5)
    directory, way = run_directory / "statsfs", run_directory / name
    os.chown(way, USER, USER)
    with collecting(directory) as registry:
        assert registry.sources == ()
    os.chown(way, 0, 0)
    way.chmod(0o777)
    with collecting(directory) as registry:
        assert registry.sources == ()
    way.chmod(0o755)
    way.rename(f"{way}.moved")
    way.symlink_to(f"{way.name}.moved")
    with collecting(directory) as registry:
        assert registry.sources == ()
    first, second, third = caplog.messages
    assert words in first
    assert "others than its owner may write" in second
    assert third == f"{directory}/app is not read: Not a directory"
