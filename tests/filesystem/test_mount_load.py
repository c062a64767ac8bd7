"""A tree that many threads change while many clients look at it, on a real mount."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mount_calls as calls
from tests.support import mount_threads as threads
from tests.support.deadlines import until, wait_until
from tests.support.mounts import Server, run, serving, shell

pytestmark = pytest.mark.mount

STABLE = [f"stable{number}" for number in range(5)]  # CPUs that stay, with one exit each
SECONDS = 1.2  # that a test hammers for


# What the clients see


@pytest.fixture(params=["thread", "trio"])
def kvm(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Path]]:
    """A server with CPUs that stay, and its directory."""
    with serving(request.param) as server:
        server.call(calls.clear)
        for name in STABLE:
            server.call(calls.add, name, 1)
        yield server, server / "kvm"


def check_end(server: Server, rounds: int) -> None:
    """See that the threads worked, and that all is as before."""
    done, errors = server.call(threads.end_churn)
    assert errors == []
    assert done >= rounds
    kvm = server / "kvm"
    totals = {"exits", "busy", "wait.min", "wait.max", "wait.avg"}
    assert set(os.listdir(kvm)) == {*STABLE, *totals}
    assert (kvm / "exits").read_text() == f"{len(STABLE)}\n"
    assert os.stat(kvm).st_nlink == 2 + len(STABLE)


def test_grep_while_the_tree_changes(kvm: tuple[Server, Path]) -> None:
    """It meets no error but that of a name that has just gone; what stays is there each time."""
    server, directory = kvm
    server.call(threads.start_churn, 3)
    turns = 0
    for _ in until(SECONDS):
        done = run("grep", "-r", ".", directory, status=None)
        assert all("No such file or directory" in line for line in done.stderr.splitlines())
        assert done.returncode == (2 if done.stderr else 0)
        stable = [line for line in done.stdout.splitlines() if "/stable" in line]
        assert len(stable) == len(STABLE) * 3
        turns += 1
    assert turns > 1
    check_end(server, rounds=20)


def test_listing_while_the_tree_changes(kvm: tuple[Server, Path]) -> None:
    """No name twice, none that stays missed; totals are of some moment."""
    server, directory = kvm
    server.call(threads.start_churn, 3)
    for _ in until(SECONDS):
        names = os.listdir(directory)
        assert len(names) == len(set(names))
        assert set(STABLE) <= set(names)
        assert 0 <= int((directory / "exits").read_text()) - len(STABLE) <= 9
        assert 0 <= os.stat(directory).st_nlink - 2 - len(STABLE) <= 3
    check_end(server, rounds=20)


def test_many_clients_of_all_kinds(kvm: tuple[Server, Path]) -> None:
    """Reading, listing, writing, standing in what goes away, dying: all at once."""
    server, directory = kvm
    scripts = [
        'while :; do grep -r . "$1"; done',
        'while :; do ls -lR "$1"; done',
        'while :; do find "$1" -newer "$1"/exits; done',
        'while :; do for f in "$1"/*/exits; do echo 0 >"$f"; done; done',
        'while :; do for d in "$1"/vm*; do cd "$d" && cat exits && ls; cd "$1"; done; done',
        'while :; do cat "$1"/vm*/cpu*/*; done',
    ]
    server.call(threads.start_churn, 3)
    clients = [
        subprocess.Popen(
            ["sh", "-c", script, "sh", directory],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for script in scripts
    ]
    try:
        choice = random.Random(1)
        for _ in until(SECONDS):
            assert (directory / choice.choice(STABLE) / "wait").read_text() == "0\n"
    finally:
        for process in clients:
            os.killpg(process.pid, 9)
            process.wait()
    server.call(calls.set_exits, STABLE, 1)
    check_end(server, rounds=5)


@pytest.mark.root
def test_nothing_is_leaked_under_load(kvm: tuple[Server, Path]) -> None:
    """When all is quiet and the kernel has forgotten, nothing but the root is known."""
    server, directory = kvm
    server.call(threads.start_churn, 3)
    for _ in until(SECONDS / 2):
        run("grep", "-r", ".", directory, status=None)
        shell("echo 2 >/proc/sys/vm/drop_caches")
    server.call(threads.end_churn)

    def is_clean() -> bool:
        shell("echo 2 >/proc/sys/vm/drop_caches")
        return server.call(calls.known_inodes) == 0

    wait_until(is_clean, "the kernel's forgetting")


def test_a_mount_that_ends_under_load(kvm: tuple[Server, Path]) -> None:
    """While threads change the tree and clients look at it, the end comes, and is clean."""
    server, directory = kvm
    server.call(threads.start_churn, 3)
    looking = subprocess.Popen(
        ["sh", "-c", 'while ls -lR "$1"; do cat "$1"/*/*; done', "sh", directory],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in until(0.3):
            os.listdir(directory)
        server.end()
    finally:
        os.killpg(looking.pid, 9)
        looking.wait()
