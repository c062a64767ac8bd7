"""What a user does who may publish in one directory, and means harm; each until its input ends.

They are run by `Neighbours.attacking`: as that user, with the names of `tests.support.collecting`.
A line of JSON at the end says what was done.
"""

import contextlib
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from statsfs.model.values import Aggregate, Kind, Value
from statsfs.segments import file_format, locks

__all__ = ["VALUES", "mutate", "play_with_locks", "rename"]

VALUES: Final = (
    Value("requests", aggregate=Aggregate.SUM, description="Requests – answered"),
    Value("late", kind=Kind.LINEAR_HIST, size=3, bucket_size=10),
    Value("deepest", aggregate=Aggregate.MAX, kind=Kind.PEAK),
)
_EDGES: Final = (0, 1, 7, 8, 64, 4096, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock


def _encode(path: str) -> bytes:
    labels = ["web"] + [None] * path.count("/")
    return file_format.encode(path, VALUES, labels, numbers=[1, [1, 2, 3], 4])


def _turns(random_: random.Random, moves: Sequence[Callable[[], object]]) -> Iterator[str]:
    # Makes moves at random until the input ends; what is refused is refused.
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for _ in range(50):
            move = random_.choice(moves)
            with contextlib.suppress(OSError):
                move()
                yield getattr(move, "__name__", "move")


def _run(turns: Iterator[str]) -> None:
    print(json.dumps(Counter(turns)))


def rename(directory: str, *targets: str) -> None:
    """Swap what is at a few names, faster than a check and an open: segments, links, pipes.

    Args:
        directory: the user's own.
        targets: files and directories of others, to which links lead.
    """
    chance = random.Random(11)
    names = [f"{directory}/{name}.stats" for name in "abcd"]
    spare = f"{directory}/.spare"

    def any_name() -> str:
        return chance.choice(names)

    def put_segment() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spare)  # a pipe would be waited for
        with open(spare, "xb") as file:
            file.write(_encode(f"web/{chance.choice('abc')}"))
        os.rename(spare, any_name())

    def put_link() -> None:
        os.symlink(chance.choice(targets), spare)
        os.rename(spare, any_name())

    def put_hard_link() -> None:
        os.link(any_name(), spare)
        os.rename(spare, any_name())

    def put_pipe() -> None:
        os.mkfifo(spare)
        os.rename(spare, any_name())

    def put_directory() -> None:
        name = any_name()
        os.unlink(name)
        os.mkdir(name)
        os.rmdir(name)

    def swap() -> None:
        os.rename(any_name(), any_name())

    def clean() -> None:
        os.unlink(spare)

    moves = [put_segment, put_link, put_hard_link, put_pipe, put_directory, clean, *[swap] * 4]
    _run(_turns(chance, moves))


def play_with_locks(directory: str, *others: str) -> None:
    """Take and drop locks: of files of one's own, and of others' files that one may read.

    Args:
        directory: the user's own.
        others: directories whose files are locked, as far as that is allowed.
    """
    chance = random.Random(12)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # of a lease that is broken
    held: list[int] = []
    read_lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)

    def open_some() -> None:
        place = chance.choice([directory, *others])
        name = chance.choice(os.listdir(place) or ["nothing"])
        held.append(os.open(f"{place}/{name}", os.O_RDONLY | os.O_NONBLOCK))
        fd = held[-1]
        how = chance.choice(("ofd", "flock", "posix", "lease"))
        if how == "ofd":
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, read_lock)
        elif how == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif how == "posix":
            fcntl.fcntl(fd, fcntl.F_SETLK, read_lock)
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, chance.choice((fcntl.F_RDLCK, fcntl.F_WRLCK)))

    def close_some() -> None:
        if held:
            os.close(held.pop(chance.randrange(len(held))))

    def put_own() -> None:
        # A producer that lives and dies at its own pleasure, with the same file.
        name = f"{directory}/{chance.choice('abc')}.stats"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
        held.append(fd)
        os.write(fd, _encode(f"web/{chance.choice('abc')}"))
        locks.hold(fd)

    _run(_turns(chance, [open_some, open_some, close_some, close_some, put_own]))


def mutate(directory: str) -> None:
    """Put segments there whose bytes were changed at random.

    Args:
        directory: the user's own.
    """
    chance = random.Random(13)
    sound = [_encode("web/a"), _encode("web/b/c/d"), _encode("web/" + "e" * 100)]
    spare = f"{directory}/.spare"

    def put_mutated() -> None:
        encoded = bytearray(chance.choice(sound))
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(encoded))
            kind = chance.randrange(4)
            if kind == 0:
                encoded[at] = chance.randrange(256)
            elif kind == 1:
                struct.pack_into("=I", encoded, at % 24 & ~3, chance.choice(_EDGES))
            elif kind == 2:
                del encoded[at : at + chance.randrange(1, 64)]
            else:
                encoded[at:at] = encoded[: chance.randrange(1, 64)]
        with open(spare, "wb") as file:
            file.write(encoded)
        os.rename(spare, f"{directory}/{chance.randrange(64)}.stats")

    _run(_turns(chance, [put_mutated]))
