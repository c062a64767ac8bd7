"""Sources with owners on a real mount: who may read and clear what, in files and in views."""

import json
import os
import sys
from collections.abc import Iterator

import pytest

from statsfs.formats import binary
from tests.support import mount_calls as calls
from tests.support import mount_roots as roots
from tests.support.exported import parse_openmetrics, parse_text
from tests.support.mount_server import mount_here
from tests.support.mounts import Server, run, serving

pytestmark = [pytest.mark.mount, pytest.mark.root]

ALICE = (1234, 4321)
BOB = (2345, 5432)
MATE = (9876, ALICE[1])  # of her group
STRANGER = (7777, 7777)
ROOT = (0, 0)
EVERYBODY = (ALICE, BOB, MATE, STRANGER, ROOT)

# Whose the directories are: `below` has no owner of its own, and is below what has.
OWNERS = {
    "": ROOT,
    "app": ROOT,
    "app/alice": ALICE,
    "app/alice/below": ALICE,
    "app/alice/below/others": BOB,
    "app/free": ROOT,
}
FILES = {"m600", "m640", "m644", "m604"}
FOR_ALL = {"m644", "m604"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of root's; the tests change nothing but numbers."""
    with serving() as server:
        server.call(roots.build_owned, ALICE, BOB)
        yield server


def expected(user: tuple[int, int], owner: tuple[int, int]) -> set[str]:
    """The files of a directory that a user may read, by the rules of Unix."""
    if user == ROOT:
        return FILES
    if user[0] == owner[0]:
        return {"m600", "m640", "m644", "m604"}
    return {"m640", "m644"} if user[1] == owner[1] else FOR_ALL


def as_user(user: tuple[int, int], program: str, *arguments: str | os.PathLike[str]) -> str:
    """Run a Python program as a user without further groups; return what it printed."""
    # It drops its rights by itself: others may not be able to run this Python.
    drop = "import json, os, sys; os.setgroups([]); os.setgid({1}); os.setuid({0})\n"
    return run(sys.executable, "-c", drop.format(*user) + program, *arguments).stdout


WALK = """
found = {}
for path in sys.argv[2:]:
    found[path] = readable = []
    for name in os.listdir(os.path.join(sys.argv[1], path)):
        file = os.path.join(sys.argv[1], path, name)
        if os.path.isfile(file):
            try:
                open(file).read()
            except PermissionError:
                continue
            readable.append(name)
print(json.dumps(found))
"""
READ = """
found = {}
for path in sys.argv[2:]:
    with open(os.path.join(sys.argv[1], path), "rb") as file:
        found[path] = file.read().decode("latin-1")
print(json.dumps(found))
"""
CLEAR = """
try:
    with open(sys.argv[1], "w") as file:
        file.write("0")
except PermissionError:
    print("refused")
"""


@pytest.mark.parametrize("path", OWNERS)
def test_whose_the_files_are(server: Server, path: str) -> None:
    """The directory's, its files' and its views' owner is one."""
    names = [".", ".stats.json", ".schema.json"]
    names += ["m600", ".stats.bin"] if path else []
    for name in names:
        found = os.stat(server / path / name)
        assert (found.st_uid, found.st_gid) == OWNERS[path], name
    assert os.stat(server / path).st_mode & 0o7777 == 0o755


def test_listings_say_so_too(server: Server) -> None:
    """As `find` has it, which asks for each name."""
    theirs = run("find", server / "app", "-uid", str(ALICE[0]), "-type", "d").stdout.split()
    assert theirs == [str(server / "app/alice"), str(server / "app/alice/below")]
    lines = run("ls", "-ln", server / "app").stdout.splitlines()[1:]
    owners = {line.split()[-1]: tuple(map(int, line.split()[2:4])) for line in lines}
    assert owners == {"alice": ALICE, "free": ROOT} | dict.fromkeys(FILES, ROOT)


@pytest.mark.parametrize("user", EVERYBODY, ids=["alice", "bob", "mate", "stranger", "root"])
def test_who_may_read(server: Server, user: tuple[int, int]) -> None:
    """In the files what the kernel grants, and in each view of each directory the same."""
    paths = [path for path in OWNERS if path]
    readable = json.loads(as_user(user, WALK, server.mountpoint, *paths))
    granted = {path: expected(user, OWNERS[path]) for path in paths}
    assert {path: set(names) for path, names in readable.items()} == granted
    names = (".stats.json", ".stats.prom", ".stats.openmetrics", ".stats.bin")
    views = [f"{path}/{name}" for path in paths for name in names]
    texts = json.loads(as_user(user, READ, server.mountpoint, *views, "app/.schema.json"))
    for path in paths:
        json_view, prom, open_metrics, bin_view = (texts[f"{path}/{name}"] for name in names)
        check_tree(json.loads(json_view), path, granted)
        found = binary.decode(bin_view.encode("latin-1"))
        assert {one.name for one in found.descriptors} == granted[path]
        # What the sources counted; `app` only adds up.
        counted = {
            (name, below)
            for below in paths
            if below != "app" and (below == path or below.startswith(f"{path}/"))
            for name in granted[below]
        }
        assert samples(parse_text(prom.encode())) == counted
        assert samples(parse_openmetrics(open_metrics.encode())) == counted
    assert texts["app/.schema.json"].count('"m600"') == len(paths)


def check_tree(
    shown: dict[str, dict[str, object]], path: str, granted: dict[str, set[str]]
) -> None:
    """Compare a JSON view with what is granted in each of its directories."""
    assert set(shown["values"]) == granted[path]
    for name, below in shown["subordinates"].items():
        assert isinstance(below, dict)
        check_tree(below, f"{path}/{name}", granted)


def samples(families: object) -> set[tuple[str, str]]:
    """The values and the directories of what a Prometheus view has."""
    assert isinstance(families, dict)
    found = set()
    for metric, family in families.items():
        for _, labels in family.samples:
            (path,) = (p for p in OWNERS if p.count("/") == len(labels) and p.startswith("app") and
                       set(p.split("/")[1:]) == {label for _, label in labels})  # fmt: skip
            found.add((metric.removeprefix("app_").removesuffix("_total"), path))
    return found


def test_totals(server: Server) -> None:
    """A directory's owner reads its totals: of what is below, whosever that is."""
    for user, path, number in ((ALICE, "app/alice", 1), (ROOT, "app", 4)):
        text = json.loads(as_user(user, READ, server.mountpoint, f"{path}/m600"))
        assert text[f"{path}/m600"] == f"{number}\n"
    assert not {"m600", "m640"} & set(
        json.loads(as_user(ALICE, WALK, server.mountpoint, "app"))["app"]
    )


def test_a_view_at_the_root(server: Server) -> None:
    """Of everything, it has what each directory grants; over HTTP it would be what all may read."""
    for user in EVERYBODY:
        shown = json.loads(
            json.loads(as_user(user, READ, server.mountpoint, ".stats.json"))[".stats.json"]
        )
        granted = {path: expected(user, whose) for path, whose in OWNERS.items() if path}
        check_tree(shown["subordinates"]["app"], "app", granted)


@pytest.mark.parametrize(
    ("path", "name", "mays"),
    [
        ("app/alice", "m644", {ALICE, ROOT}),
        ("app/alice/below", "m600", {ALICE, ROOT}),
        ("app/alice/below/others", "m644", {BOB, ROOT}),
        ("app/free", "m644", {ROOT}),
        ("app", "m644", {ROOT}),
    ],
)
def test_who_may_clear(server: Server, path: str, name: str, mays: set[tuple[int, int]]) -> None:
    """The owner and root, and nobody else; nor may what is granted below clear what is above."""
    file = server / path / name
    for user in EVERYBODY:
        refused = as_user(user, CLEAR, file)
        assert refused == ("" if user in mays else "refused\n"), user


def test_owners_below_a_root_of_its_own() -> None:
    """It has its source's owner; what has none has the mount's."""
    with serving("later") as server:
        server.call(roots.build_owned, ALICE, BOB)
        server.call(mount_here, server.mountpoint, root="app", uid=BOB[0], gid=BOB[1])
        for path, whose in (
            (".", BOB),
            ("free/m600", BOB),
            ("alice", ALICE),
            ("alice/m600", ALICE),
        ):
            found = os.stat(server / path)
            assert (found.st_uid, found.st_gid) == whose
        for user, granted in ((BOB, FILES), (ALICE, FOR_ALL)):
            texts = json.loads(as_user(user, READ, server.mountpoint, ".stats.json"))
            shown = json.loads(texts[".stats.json"])
            assert set(shown["values"]) == set(shown["subordinates"]["free"]["values"]) == granted
        server.call(calls.close)
