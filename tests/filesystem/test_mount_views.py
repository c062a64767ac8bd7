"""Views on a real mount: read at any size, copied whole, of one moment, and in nobody's way."""

import contextlib
import errno
import json
import mmap
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from statsfs.formats import binary
from tests.support import mount_calls as calls
from tests.support import mount_views as views
from tests.support.deadlines import DEADLINE, wait_until
from tests.support.mounts import Server, as_nobody, run, serving, shell

pytestmark = pytest.mark.mount

NAMES = (".stats.json", ".stats.prom", ".stats.openmetrics", ".stats.bin", ".schema.json")
PAIRS = (20, 100)


@pytest.fixture(scope="module", params=["thread", "trio"])
def still(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose tree nobody changes, in either mode."""
    with serving(request.param) as server:
        server.call(views.build)
        yield server


@pytest.fixture(scope="module")
def pairs() -> Iterator[Server]:
    """A server with thousands of pairs, which the tests have count."""
    with serving() as server:
        server.call(views.add_pairs, *PAIRS)
        yield server


@contextlib.contextmanager
def working(server: Server, work: Any) -> Iterator[None]:
    """Have a thread of the server work."""
    server.call(work)
    try:
        yield
    finally:
        server.call(views.stop)


# What is in a view


@pytest.mark.parametrize("path", ["", "kvm", "kvm/cpu0"])
def test_cat(still: Server, path: str) -> None:
    """What the library says of the same directory, with everything that root may read."""
    shown = json.loads(run("cat", still / path / ".stats.json").stdout)
    assert shown == still.call(views.to_dict, path)


def test_each_view(still: Server) -> None:
    """Each is there, with what it is for."""
    kvm = still / "kvm"
    assert run("head", "-n", "1", kvm / ".stats.prom").stdout == (
        "# HELP kvm_exits_total VM exits\n"
    )
    assert run("tail", "-n", "1", kvm / ".stats.openmetrics").stdout == "# EOF\n"
    found = binary.decode((kvm / "cpu1/.stats.bin").read_bytes())
    assert (found.id, found.numbers) == ("kvm/cpu1", (101, 1, 0))
    schema = json.loads((kvm / "cpu1/.schema.json").read_text())
    assert [value["name"] for value in schema["values"]] == os.listdir(kvm / "cpu1")


def test_the_root(still: Server) -> None:
    """It has them but for the binary one."""
    for name in NAMES:
        if name == ".stats.bin":
            assert not (still / name).exists()
        else:
            assert (still / name).read_bytes() != b""
    whole = json.loads((still / ".stats.json").read_text())
    assert list(whole["subordinates"]) == ["kvm"]


def test_listings_have_none(still: Server) -> None:
    """Nothing that walks finds them, open or not."""
    top = still.mountpoint
    with open(top / "kvm/.stats.json"):
        for command in (("ls", "-aR", top), ("find", top), ("grep", "-rc", "", top)):
            assert ".stats" not in run(*command).stdout
        assert not any(name.startswith(".") for name in os.listdir(top / "kvm"))
    assert shell('cd "$1" && echo .[!.]*', top / "kvm") == ".[!.]*\n"


@pytest.mark.parametrize("name", NAMES)
def test_stat(still: Server, name: str) -> None:
    """Its size and its moment are those of what was read; nobody may write."""
    path = still / "kvm" / name
    before = time.time_ns()
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        text = file.read()
    assert (stat.S_IMODE(found.st_mode), found.st_nlink, found.st_size) == (0o444, 1, len(text))
    # The clock of files is a little behind.
    assert before - 10**8 <= found.st_mtime_ns <= time.time_ns()
    later = os.stat(path)
    assert (later.st_size, later.st_mtime_ns) == (len(text), found.st_mtime_ns)
    with open(path, "rb") as file:
        assert os.fstat(file.fileno()).st_mtime_ns > found.st_mtime_ns


@pytest.mark.parametrize("name", NAMES)
def test_it_cannot_be_written(still: Server, name: str) -> None:
    """Not even by root; nor made, removed or renamed."""
    path = still / "kvm" / name
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(PermissionError):
            os.open(path, flags)
    with pytest.raises(PermissionError):
        os.truncate(path, 0)
    with pytest.raises(PermissionError):
        path.unlink()


def test_getfattr(still: Server) -> None:
    """There are no attributes; asking is no error."""
    assert os.listxattr(still / "kvm/.stats.json") == []
    assert run("getfattr", "-d", still / "kvm/.stats.json").stdout == ""


# How it is read


@pytest.mark.parametrize("size", [1, 2, 7, 100, 4096, 1 << 20])
def test_any_size_of_reads(still: Server, size: int) -> None:
    """The same text, byte by byte or at once."""
    done = run("dd", f"if={still / 'kvm/.stats.json'}", f"bs={size}", "status=none")
    assert json.loads(done.stdout) == still.call(views.to_dict, "kvm")


def test_any_offset(pairs: Server) -> None:
    """Reads in the middle are of the text that was last rendered."""
    path = pairs / "pairs/.stats.json"
    chance = random.Random(7)
    with open(path, "rb", buffering=0) as file, working(pairs, views.flicker):
        text = os.pread(file.fileno(), 1 << 20, 0)
        while piece := os.pread(file.fileno(), 1 << 20, len(text)):
            text += piece
        check(text)
        assert len(text) == os.fstat(file.fileno()).st_size
        for _ in range(300):
            offset, size = chance.randrange(1, len(text) + 99), chance.randrange(1, 70_000)
            assert os.pread(file.fileno(), size, offset) == text[offset : offset + size]
        # Only a read at the beginning makes another.
        again = os.pread(file.fileno(), 1 << 20, 0)
        while piece := os.pread(file.fileno(), 1 << 20, len(again)):
            again += piece
        check(again)
        assert again != text


def test_mmap(still: Server) -> None:
    """Refused, or right."""
    with open(still / "kvm/.stats.json", "rb") as file:
        for access in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with (
                contextlib.suppress(OSError),
                mmap.mmap(file.fileno(), 0, flags=access, prot=mmap.PROT_READ) as mapped,
            ):
                assert json.loads(mapped[:]) == still.call(views.to_dict, "kvm")


def test_tools(pairs: Server) -> None:
    """Those that look at the size, or seek, or count."""
    path = pairs / "pairs/.stats.prom"
    text = path.read_text()
    assert run("wc", "-c", path).stdout.split()[0] == str(len(text))
    assert run("tail", "-c", "99", path).stdout == text[-99:]
    assert run("tail", "-n", "3", path).stdout == "".join(text.splitlines(True)[-3:])
    assert run("grep", "-c", "pair99", path).stdout == f"{2 * PAIRS[0]}\n"
    run("cmp", path, path)


def check(text: bytes) -> dict[str, Any]:
    """See that a text is one consistent one: the totals are those of what is below."""
    whole: dict[str, Any] = json.loads(text)
    groups = whole["subordinates"].values()
    assert len(groups) == PAIRS[0]
    for name in ("a", "b"):
        assert whole["values"][name] == sum(group["values"][name] for group in groups) % 2**64
        for group in groups:
            members = group["subordinates"].values()
            assert len(members) == PAIRS[1]
            assert group["values"][name] == sum(one["values"][name] for one in members) % 2**64
    return whole


COPIES = {
    "cp": 'cp "$1" "$2"',
    "cp --reflink": 'cp --reflink=auto --sparse=always "$1" "$2"',
    "install": 'install -m 600 "$1" "$2"',
    "cat": 'cat "$1" >"$2"',
    "dd": 'dd if="$1" of="$2" bs=10000 status=none',
    "curl": 'curl -s "file://$1" -o "$2"',
    "tar": 'tar -cf - -C "$(dirname "$1")" "$(basename "$1")" | tar -xOf - >"$2"',
    "tar by path": 'tar -cPf "$2.tar" "$1" && tar -xPOf "$2.tar" >"$2"',
    "rsync": 'rsync --inplace "$1" "$2"',
}


def copies() -> list[str]:
    """The ways of copying that this machine has."""
    return [how for how, script in COPIES.items() if shutil.which(script.split()[0])]


@pytest.mark.parametrize("how", copies())
def test_copies_are_whole(pairs: Server, tmp_path: Path, how: str) -> None:
    """Whatever tool, while all numbers change their length, and three copy at once."""
    source = pairs / "pairs/.stats.json"
    loop = f'for i in 1 2 3; do rm -f "$2"; ( {COPIES[how]} ) || exit 1; cat "$2" >>"$2.all"; done'
    with working(pairs, views.flicker):
        clients = [
            subprocess.Popen(
                ["sh", "-c", loop, "sh", source, tmp_path / str(number)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(3)
        ]
        outputs = [client.communicate(timeout=DEADLINE)[0] for client in clients]
    assert outputs == [""] * 3
    assert [client.returncode for client in clients] == [0] * 3
    texts = set()
    for number in range(3):
        lines = (tmp_path / f"{number}.all").read_bytes().splitlines(True)
        assert len(lines) == 3
        for line in lines:
            check(line)
            texts.add(line)
    assert len(texts) > 1


def test_sendfile(pairs: Server, tmp_path: Path) -> None:
    """As `shutil.copyfile` uses it, one at a time: the kernel has one page cache for all who do."""
    source, target = pairs / "pairs/.stats.json", tmp_path / "copy"
    texts = set()
    with working(pairs, views.flicker):
        for _ in range(5):
            shutil.copyfile(source, target)
            check(target.read_bytes())
            texts.add(target.read_bytes())
    assert len(texts) > 1


def test_an_archive(still: Server, tmp_path: Path) -> None:
    """`tar` neither pads nor warns, also where it never saw the view before."""
    archive = tmp_path / "views.tar"
    paths = [f"{where}/{name}" for where in ("kvm", "kvm/cpu0") for name in NAMES]
    done = run("tar", "-cvf", archive, "-C", still.mountpoint, *paths)
    assert done.stderr == ""
    with tarfile.open(archive) as tar:
        for path in paths:
            member = tar.extractfile(path)
            assert member is not None
            text = member.read()
            assert b"\0\0\0\0\0\0\0\0\0\0\0\0" not in text or path.endswith(".bin")
            assert text == (still / path).read_bytes()


def test_several_readers_at_once(pairs: Server) -> None:
    """Each reads one text of its own, in small pieces and while the others do."""
    texts: list[bytes] = []

    def read(size: int) -> None:
        for _ in range(3):
            with open(pairs / "pairs/.stats.json", "rb", buffering=0) as file:
                texts.append(b"".join(iter(lambda: file.read(size), b"")))

    with working(pairs, views.flicker):
        readers = [threading.Thread(target=read, args=(1000 * 7**n,)) for n in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(DEADLINE)
    assert len(texts) == 12
    for text in texts:
        check(text)


# One moment


def sum_samples(text: str) -> tuple[int, int]:
    """What all samples of each of the two metrics add up to."""
    sums = []
    for name in ("a", "b"):
        found = re.findall(rf"^pairs_{name}_total{{[^}}]*}} (\d+)$", text, re.MULTILINE)
        assert len(found) == PAIRS[0] * PAIRS[1]
        sums.append(sum(map(int, found)))
    return sums[0], sums[1]


def read_sums(path: Path) -> tuple[int, int]:
    """What a view says that was counted first, and second."""
    if path.name == ".stats.bin":
        found = binary.decode(path.read_bytes())
        names = [one.name for one in found.descriptors]
        numbers = dict(zip(names, found.numbers, strict=True))
        return int(str(numbers["a"])), int(str(numbers["b"]))
    if path.name != ".stats.json":
        return sum_samples(path.read_text())
    values = check(path.read_bytes())["values"]
    return values["a"], values["b"]


@pytest.mark.parametrize("name", [".stats.json", ".stats.prom", ".stats.openmetrics", ".stats.bin"])
def test_all_numbers_are_of_one_moment(pairs: Server, name: str) -> None:
    """Two numbers that a thread counts one after the other differ, in all sources, by one at most.

    A view that saw some sources earlier than others would see it.
    """
    path, seen = pairs / "pairs" / name, set()
    with working(pairs, views.count_in_step):
        first, second = read_sums(path)
        for _ in range(6):
            before = first
            first, second = read_sums(path)
            assert abs(first - second) <= 1
            assert first >= before
            seen.add(first)
    assert len(seen) > 1


# Others meanwhile


@pytest.fixture
def waiting() -> Iterator[Server]:
    """A server of which one source waits to be read."""
    with serving() as server:
        server.call(views.build)
        server.call(views.add_waiting)
        try:
            yield server
        finally:
            if not server.ended:
                server.call(views.let_go)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a client that reads a view."""
    with subprocess.Popen(
        ["cat", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def test_a_view_that_waits_keeps_nobody_waiting(waiting: Server) -> None:
    """While a property blocks, others read values, list, and read views without it."""
    with reading(waiting / "kvm/.stats.json") as client:
        wait_until(lambda: waiting.call(views.is_asked), "the view")
        assert run("cat", waiting / "kvm/exits").stdout == "201\n"
        assert run("cat", waiting / "kvm/cpu1/.stats.json").stdout.startswith('{"values"')
        assert "cpu0" in run("ls", "-l", waiting / "kvm").stdout
        waiting.call(calls.add, "late")
        waiting.call(calls.remove, "late")
        assert client.poll() is None
        waiting.call(views.let_go)
        output, errors = client.communicate(timeout=DEADLINE)
    assert errors == ""
    assert json.loads(output)["subordinates"]["waiting"]["values"] == {"slow": 7}


def test_a_client_that_is_killed_while_its_view_is_rendered(waiting: Server) -> None:
    """Nothing is left open, and the next one is served."""
    with reading(waiting / "kvm/.stats.json") as client:
        wait_until(lambda: waiting.call(views.is_asked), "the view")
        client.send_signal(signal.SIGKILL)
        assert run("cat", waiting / "kvm/exits").stdout == "201\n"
        waiting.call(views.let_go)
        client.communicate(timeout=DEADLINE)
        assert client.returncode == -signal.SIGKILL
    wait_until(lambda: waiting.call(views.open_files) == 0, "the end of the open file")
    shown = json.loads((waiting / "kvm/.stats.json").read_text())
    assert shown["values"]["slow"] == 7


def test_a_directory_that_goes_while_its_view_is_rendered(waiting: Server) -> None:
    """The view is of the moment of its sample; afterwards it is gone."""
    path = waiting / "kvm/waiting/.stats.json"
    with reading(path) as client:
        wait_until(lambda: waiting.call(views.is_asked), "the view")
        waiting.call(views.remove, "waiting")
        assert not path.exists()
        waiting.call(views.let_go)
        output, _ = client.communicate(timeout=DEADLINE)
    assert json.loads(output) == {"values": {"slow": 7}, "subordinates": {}}
    wait_until(lambda: waiting.call(views.references, "waiting") == 1, "the last reference")


def test_unmounting_while_a_view_is_rendered(waiting: Server) -> None:
    """The client is refused; nothing hangs, and nothing is left."""
    with reading(waiting / "kvm/.stats.json") as client:
        wait_until(lambda: waiting.call(views.is_asked), "the view")
        assert waiting.call(calls.close)
        _, errors = client.communicate(timeout=DEADLINE)
        assert client.returncode == 1
        assert errors.startswith("cat: ")
    waiting.call(views.let_go)
    assert waiting.call(views.open_files) == 0


def test_unmounting_while_a_view_is_open() -> None:
    """What was rendered goes with the mount."""
    with serving() as server:
        server.call(views.build)
        descriptor = os.open(server / "kvm/.stats.json", os.O_RDONLY)
        try:
            assert os.read(descriptor, 10) == b'{"values":'
            assert server.call(calls.close)
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.read(descriptor, 10)
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        assert server.call(views.open_files) == 0


def test_a_base_that_raises() -> None:
    """What it holds is missing, everywhere; all else is there, and nobody gets an error."""
    with serving() as server:
        server.call(views.build)
        server.call(views.add_failing)
        server.call(calls.expect_losses)
        for name in NAMES:
            run("cat", server / "kvm" / name)
        shown = json.loads((server / "kvm/.stats.json").read_text())
        assert shown["values"]["slow"] == 0
        assert list(shown["subordinates"]["failing"]["values"]) == ["exits", "wait", "busy"]
        assert shown["values"]["exits"] == 201


def test_a_directory_that_goes_while_its_view_is_open() -> None:
    """It is read on, and even anew, until it is closed."""
    with serving() as server:
        server.call(views.build)
        with open(server / "kvm/cpu0/.stats.json", "rb", buffering=0) as file:
            server.call(views.remove, "cpu0")
            assert server.call(views.references, "cpu0") == 1
            first = file.read()
            assert json.loads(first)["values"]["exits"] == 100
            assert os.pread(file.fileno(), 4096, 0) == first
            assert not (server / "kvm/cpu0/.stats.json").exists()
        wait_until(lambda: server.call(views.references, "cpu0") == 0, "the last reference")
        assert "cpu0" not in (server / "kvm/.stats.json").read_text()


@pytest.mark.root
def test_other_users(still: Server) -> None:
    """They see what they could read in files, and not a number more."""
    kvm = still / "kvm"
    assert "Permission denied" in as_nobody("cat", kvm / "secret", status=1).stderr
    for name in NAMES:
        text = as_nobody("cat", kvm / name).stdout
        assert "424242" not in text
        assert ("secret" in text) == (name == ".schema.json")
    assert "secret" in (kvm / ".stats.json").read_text()
    shown = json.loads(as_nobody("cat", still / ".stats.json").stdout)
    assert shown["subordinates"]["kvm"]["values"]["exits"] == 201


def test_others_read_beside_a_large_view() -> None:
    """While a client opens a view of 47,000 values all the time, reads of a file do not wait.

    A hundred reads take as long as a few views; were each to wait for one, there would be a hundred
    views. The figures are those of `python -m tests.bench viewing`.
    """
    with serving() as server, tempfile.TemporaryFile() as log:
        server.call(views.add_many, 1000)
        command = ["sh", "-c", 'while cat "$1" >"$2"; do echo; done', "sh"]
        command += [str(server / "many/.stats.json"), os.devnull]
        with subprocess.Popen(command, process_group=0, stdout=log) as client:
            try:
                wait_until(lambda: os.fstat(log.fileno()).st_size, "the first view")
                before = os.fstat(log.fileno()).st_size
                for _ in range(100):
                    assert (server / "many/vcpu0/value_0").read_text() == "0\n"
                done = os.fstat(log.fileno()).st_size - before
                assert client.poll() is None
            finally:
                os.killpg(client.pid, signal.SIGKILL)
        assert done < 50
        wait_until(lambda: server.call(views.open_files) == 0, "the end of the open file")
