"""Other users on a real mount: whose the files are, who may do what, and servers without rights."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from statsfs.model.values import Value
from statsfs.tree.source import Source
from tests.support import mount_calls as calls
from tests.support.mount_server import World, mount_here, try_to_mount
from tests.support.mounts import NOBODY, Server, as_nobody, inside, run, serving
from tests.support.trees import make_kvm

pytestmark = [pytest.mark.mount, pytest.mark.root]

OWNER = 1234
GROUP = 4321


def build(world: World) -> None:
    """Make `kvm` with two CPUs, and files of other modes."""
    make_kvm(world.registry)
    modes = Source("modes")
    values = [Value("private", mode=0o600), Value("group", mode=0o660), Value("all", mode=0o666)]
    modes.add_values(values, {"private": 1, "group": 2, "all": 3})
    world.registry.register(modes)


def owner(path: Path) -> tuple[int, int]:
    """Return whose a file is."""
    found = os.stat(path)
    return found.st_uid, found.st_gid


def as_user(uid: int, gid: int, *command: str | os.PathLike[str], status: int = 0) -> str:
    """Run a client as a user; return what it printed, on stderr too."""
    ids = (f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
    done = run("setpriv", *ids, *command, status=status)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def roots() -> Iterator[Server]:
    """A server of root's, with its defaults."""
    with serving() as server:
        server.call(build)
        yield server


@pytest.fixture(scope="module")
def owned() -> Iterator[Server]:
    """A server whose files are somebody else's."""
    with serving(options={"uid": OWNER, "gid": GROUP}) as server:
        server.call(build)
        yield server


def test_the_server_owns_its_files(roots: Server) -> None:
    """By default, the root of the mount included."""
    for path in ("", "kvm", "kvm/exits", "modes/all"):
        assert owner(roots / path) == (0, 0)


def test_uid_and_gid(owned: Server) -> None:
    """Or whoever it says."""
    for path in ("", "kvm", "kvm/exits", "modes/all"):
        assert owner(owned / path) == (OWNER, GROUP)
    assert as_user(OWNER, OWNER, "find", owned / "kvm", "!", "-uid", str(OWNER)) == ""


def test_others_may_look(roots: Server) -> None:
    """Root's mounts let others in, and the modes allow reading."""
    assert as_nobody("cat", roots / "kvm/exits").stdout == "0\n"
    assert as_nobody("ls", roots.mountpoint).stdout.split() == ["kvm", "modes"]
    lines = as_nobody("grep", "-r", ".", roots / "kvm").stdout.splitlines()
    assert len(lines) == 2 * 3 + 5


@pytest.mark.parametrize("path", ["kvm/exits", "kvm/cpu0/exits", "kvm/busy", "modes/group"])
@pytest.mark.parametrize("how", ['echo 0 >"$1"', 'echo 0 >>"$1"', 'truncate -s 0 "$1"'])
def test_others_may_not_write(roots: Server, path: str, how: str) -> None:
    """Without a mode that allows it."""
    done = as_nobody("sh", "-c", how, "sh", roots / path, status=None)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


def test_modes_hold(roots: Server) -> None:
    """What is not for others cannot be read, and what is for all can be written."""
    for name in ("private", "group"):
        assert "Permission denied" in as_nobody("cat", roots / "modes" / name, status=1).stderr
    assert as_nobody("sh", "-c", 'echo 0 >"$1"', "sh", roots / "modes/all").stderr == ""
    assert run("cat", roots / "modes/all").stdout == "0\n"


def test_the_owner_and_the_group(owned: Server) -> None:
    """Each has its rights, and no more."""
    clear, file = ("sh", "-c", 'echo 0 >"$1"', "sh"), owned / "kvm/exits"
    assert as_user(OWNER, NOBODY, *clear, file) == ""
    assert "Permission denied" in as_user(NOBODY, GROUP, *clear, file, status=2)
    assert as_user(NOBODY, GROUP, *clear, owned / "modes/group") == ""
    assert as_user(OWNER, NOBODY, "cat", owned / "modes/private") == "1\n"
    assert "Permission denied" in as_user(NOBODY, GROUP, "cat", owned / "modes/private", status=1)
    # The owner may change a mode, but no file of ours can be changed.
    denied = as_user(OWNER, GROUP, "chmod", "666", file, status=1)
    assert "Operation not permitted" in denied
    assert "Permission denied" in as_user(OWNER, GROUP, *clear, owned / "kvm/busy", status=2)
    assert "Operation not permitted" in as_user(OWNER, GROUP, "mkdir", owned / "new", status=1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("touch", "kvm/exits"), "Permission denied"),
        (("touch", "kvm/new"), "Permission denied"),
        (("mkdir", "kvm/new"), "Permission denied"),
        (("rm", "-f", "kvm/exits"), "Permission denied"),
        (("rmdir", "kvm"), "Permission denied"),
        (("mv", "kvm/exits", "kvm/new"), "Permission denied"),
        (("chmod", "666", "kvm/exits"), "Operation not permitted"),
        (("chown", str(NOBODY), "kvm/exits"), "Operation not permitted"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_refusals_for_others(roots: Server, command: tuple[str, ...], words: str) -> None:
    """The kernel refuses by the modes, before it asks us."""
    done = as_nobody(*command, cwd=roots.mountpoint, status=1)
    assert words in done.stderr


def test_nobody_else_is_let_in_if_so_wished() -> None:
    """With allow_other off not even the name of a file is told, not to root's own children."""
    with serving(options={"allow_other": False, "uid": NOBODY}) as server:
        server.call(build)
        assert run("cat", server / "kvm/exits").stdout == "0\n"
        for path in ("", "kvm", "kvm/exits"):
            assert "Permission denied" in as_nobody("stat", server / path, status=1).stderr
        table = Path("/proc/mounts").read_text().splitlines()
        (line,) = (line for line in table if str(server.mountpoint) in line)
        assert "allow_other" not in line


def test_a_server_that_gives_up_its_rights() -> None:
    """After mounting as root, as daemons do: it cannot unmount, but its watcher can."""
    with serving(measured=False) as server:
        server.call(build)
        server.call(calls.become_nobody)
        assert run("cat", server / "kvm/exits").stdout == "0\n"
        assert owner(server / "kvm/exits") == (0, 0)
        server.end()


@pytest.mark.parametrize("ids", [{"uid": -1}, {"gid": 1 << 32}])
def test_owners_that_there_cannot_be(ids: dict[str, int]) -> None:
    """They are refused when mounting, and not when somebody looks."""
    with serving("later") as server:
        message, _ = server.call(try_to_mount, server.mountpoint, **ids)
        assert ": invalid " in message


# Servers of users who are not root. They have a /dev/fuse and a fuse.conf of this test's.

ISOLATED = """
device=$(mktemp -u /tmp/statsfs-test-device.XXXXXX) conf=$(mktemp)
mknod "$device" c 10 229
chmod "$1" "$device"
mount --bind "$device" /dev/fuse
rm -f "$device"
echo "$2" >"$conf"
chmod 644 "$conf"
mount --bind "$conf" /etc/fuse.conf
rm -f "$conf"
shift 2
exec "$@"
"""


def isolated(mode: str = "666", conf: str = "") -> tuple[str, ...]:
    """Return a command that runs a program where /dev/fuse has a mode and fuse.conf a line."""
    return ("unshare", "--mount", "sh", "-ec", ISOLATED, "sh", mode, conf)


def test_a_user_mounts_for_himself() -> None:
    """On a directory of his own; the files are his, nobody else is let in, root neither."""
    with serving("later", measured=False, wrapper=isolated()) as server:
        os.chown(server.mountpoint, NOBODY, NOBODY)
        server.call(build)
        server.call(calls.become_nobody)
        server.call(mount_here, server.mountpoint)
        demoted = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        file = server / "kvm/exits"
        assert inside(server, *demoted, "cat", file) == "0\n"
        assert inside(server, *demoted, "stat", "-c", "%u %g", file) == f"{NOBODY} {NOBODY}\n"
        assert inside(server, *demoted, "sh", "-c", 'echo 0 >"$1"', "sh", file) == ""
        assert "Permission denied" in inside(server, "cat", file, status=1)
        server.call(calls.close)
        assert inside(server, "ls", server.mountpoint) == ""


def test_a_user_lets_others_in() -> None:
    """Where fuse.conf allows it."""
    with serving("later", measured=False, wrapper=isolated(conf="user_allow_other")) as server:
        os.chown(server.mountpoint, NOBODY, NOBODY)
        server.call(build)
        server.call(calls.become_nobody)
        server.call(mount_here, server.mountpoint, allow_other=True)
        assert inside(server, "cat", server / "kvm/exits") == "0\n"
        server.call(calls.close)


@pytest.mark.parametrize(
    ("mode", "conf", "mine", "options", "words"),
    [
        ("600", "", True, {}, "no permission to use /dev/fuse; run as root, or chmod 666"),
        ("666", "", False, {}, "no permission; choose a directory that you may write"),
        ("666", "#user_allow_other", True, {"allow_other": True},
         "letting other users in needs root, or the line user_allow_other in /etc/fuse.conf"),
    ],
)  # fmt: skip
def test_what_a_user_is_refused(
    mode: str, conf: str, mine: bool, options: dict[str, bool], words: str
) -> None:
    """One line that says what to do; and what is allowed can then be done."""
    with serving("later", measured=False, wrapper=isolated(mode, conf)) as server:
        if mine:
            os.chown(server.mountpoint, NOBODY, NOBODY)
        server.call(calls.become_nobody)
        message, code = server.call(try_to_mount, server.mountpoint, **options)
        assert message.startswith(f"{server.mountpoint}: {words}")
        assert "\n" not in message
        assert code


def test_a_mount_that_fusermount3_refuses(tmp_path: Path) -> None:
    """Where the checks before saw nothing wrong, its message is on stderr; ours is one line."""
    with serving("later", measured=False, wrapper=isolated(conf="mount_max = 0")) as server:
        os.chown(server.mountpoint, NOBODY, NOBODY)
        server.call(calls.become_nobody)
        message, _ = server.call(try_to_mount, server.mountpoint)
        assert "the mount was refused" in message
        assert "\n" not in message
        assert "fusermount3" in server.stderr
        server.kill()
