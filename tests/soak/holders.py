"""Clients that hold on to something; standard library only.

One that waits for its parent prints "ready", and goes on when it gets a line.
"""

import ctypes
import errno
import json
import os
import random
import resource
import signal
import struct
import sys
import time
from typing import Final, NamedTuple

__all__ = ["hold_and_stop", "hold_many", "list_in_pieces"]

_libc: Final = ctypes.CDLL(None, use_errno=True)
_ENTRY: Final = struct.Struct("=QqHB")  # struct linux_dirent64, up to its name


class _Entry(NamedTuple):
    name: str
    offset: int  # where to go on after it


def _getdents(directory: int, size: int) -> list[_Entry]:
    buffer = ctypes.create_string_buffer(size)
    length = _libc.getdents64(directory, buffer, size)
    if length < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found, at = [], 0
    while at < length:
        _, offset, record, _ = _ENTRY.unpack_from(buffer, at)
        name = buffer.raw[at + _ENTRY.size : at + record].split(b"\0")[0]
        found.append(_Entry(name.decode(), offset))
        at += record
    return found


def _list(directory: int, size: int) -> list[_Entry]:
    found = []
    while piece := _getdents(directory, size):
        found += piece
    return found


def _wait_for_parent() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def list_in_pieces(directory: str, stays: str, seed: str, until: str) -> None:
    """List a directory again and again, a few entries at a time; print how often.

    No name comes twice, and none that stays is missed: not from the beginning, nor from where an
    earlier listing was.

    Args:
        directory: it changes all the time.
        stays: names that stay, as JSON.
        seed: of the sizes and places.
        until: a moment of the monotonic clock.
    """
    choice = random.Random(int(seed))
    staying = set(json.loads(stays))
    done = 0
    opened = os.open(directory, os.O_DIRECTORY)
    while time.monotonic() < float(until):
        os.lseek(opened, 0, os.SEEK_SET)
        # The smallest holds one entry of a name of up to twelve bytes.
        found = _list(opened, choice.choice((32, 40, 64, 120, 280, 1000, 1 << 15)))
        names = [entry.name for entry in found]
        assert names[:2] == [".", ".."], names
        assert len(set(names)) == len(names), names
        assert staying <= set(names), staying - set(names)
        place = choice.randrange(len(found))
        os.lseek(opened, found[place].offset, os.SEEK_SET)
        again = [entry.name for entry in _list(opened, choice.choice((32, 64, 4096)))]
        # The same names in the same order, but for what has gone, or has come back.
        after = names[place + 1 :]
        assert len(set(again)) == len(again), again
        both = set(again).intersection(after)
        assert [n for n in again if n in both] == [n for n in after if n in both], (again, after)
        assert staying.intersection(after) <= set(again), (again, after)
        done += 2
    json.dump(done, sys.stdout)


def hold_and_stop(directory: str, name: str) -> None:
    """Open a file, a view and a directory, read a little, stop; then read on.

    Prints what was read before and after.

    Args:
        directory: with the view.
        name: of a subdirectory with a file `exits`.
    """
    exits = os.open(f"{directory}/{name}/exits", os.O_RDONLY)
    view = os.open(f"{directory}/.stats.json", os.O_RDONLY)
    opened = os.open(directory, os.O_DIRECTORY)
    names = [entry.name for entry in _getdents(opened, 120)]
    first, begun = os.read(exits, 1), os.read(view, 10)
    os.kill(os.getpid(), signal.SIGSTOP)
    # As if nothing had happened: what was begun is read to its end.
    while piece := os.read(view, 1000):
        begun += piece
    while piece := os.read(exits, 1):
        first += piece
    names += [entry.name for entry in _list(opened, 120)]
    anew = b""
    while piece := os.pread(view, 1 << 17, len(anew)):
        anew += piece
    before, after = json.loads(begun), json.loads(anew)
    try:
        os.stat(f"{directory}/{name}")
    except FileNotFoundError:
        names.append("it is gone")
    result = {
        "before": [int(first), before["values"]["exits"], sorted(before["subordinates"])],
        "after": [int(os.pread(exits, 99, 0)), sorted(after["subordinates"])],
        "names": names,
    }
    json.dump(result, sys.stdout)


def hold_many(directory: str, count: str, limit: str) -> None:
    """Hold files and views of a directory open until told to go on; print how many it could.

    Args:
        directory: with directories `cpu0` to `cpu9`.
        count: how many.
        limit: of descriptors of this process.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(int(limit), hard), hard))
    held: list[int] = []
    names = ("exits", "busy", "wait", ".stats.json", ".schema.json")
    try:
        for number in range(int(count)):
            path = f"{directory}/cpu{number % 10}/{names[number % len(names)]}"
            held.append(os.open(path, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    _wait_for_parent()
    texts = {os.pread(descriptor, 1, 0) for descriptor in held}
    assert texts == {b"0", b"{"}, texts
    json.dump(len(held), sys.stdout)
