"""A client that reads a fleet, and knows what its numbers can be; standard library only.

Whoever looks twice looks for what has gone: ENOENT is what all but the directories that stay may
say, and nothing says anything else.
"""

import contextlib
import json
import os
import random
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.soak.rules import LIMIT, OWNERS, STAYING, VCPUS

__all__ = ["read_fleet"]

_SAMPLE = re.compile(r"(\w+?)(?:_total)?(?:\{(.*)\})? (\d+)")
_COMMENT = re.compile(r"# (?:HELP|TYPE|UNIT) \w+ ?.*|# EOF")
_HEADER = struct.Struct("=6I")
_DESCRIPTOR = struct.Struct("=IhHII")


def _read_all(descriptor: int, size: int = 1 << 17) -> bytes:
    # From offset 0 to the end, whatever the pieces.
    pieces, offset = [], 0
    while piece := os.pread(descriptor, size, offset):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def _opened(path: str, at: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=at)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _number(path: str, at: int | None = None) -> int:
    with _opened(path, at) as descriptor:
        text = os.read(descriptor, 4096)
    assert text.endswith(b"\n"), text
    return int(text)


class _Reader:
    def __init__(self, kvm: str, seed: int) -> None:
        self.kvm = kvm
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.generations: dict[int, int] = {}
        self.numbers: dict[str, int] = {}
        self.looks = [
            (self.look_at_totals, 6),
            (self.look_at_what_stays, 6),
            (self.look_byte_by_byte, 6),
            (self.look_at_a_cpu, 6),
            (self.look_at_a_machine, 6),
            (self.look_again_in_a_directory, 3),
            (self.list_directory, 3),
            (self.look_at_json, 2),
            (self.look_at_metrics, 2),
            (self.look_at_binary, 2),
            (self.look_at_schema, 1),
            (self.clear, 1),
        ]

    def read(self, until: float) -> None:
        """Look here and there."""
        looks, weights = zip(*self.looks, strict=True)
        while time.monotonic() < until:
            (look,) = self.random.choices(looks, weights)
            try:
                look()
                self.done[look.__name__] += 1
            except FileNotFoundError as error:
                path = os.fsdecode(error.filename or "")
                if any(f"/{name}" in path for name in STAYING):
                    raise
                self.done["gone"] += 1

    def machine(self) -> str:
        """A machine that comes and goes."""
        return f"{self.kvm}/vm{self.random.randrange(OWNERS)}"

    # Numbers

    def look_at_totals(self) -> None:
        # The others have counted as much as `stable`, or are just about to.
        least = 2 * _number(f"{self.kvm}/stable/begun") - OWNERS
        total = _number(f"{self.kvm}/begun")
        most = 2 * _number(f"{self.kvm}/stable/begun") + (OWNERS * VCPUS + 1) * LIMIT
        assert least <= total <= most, (least, total, most)
        machine = self.machine()
        for name in ("begun", "done"):
            assert 0 <= _number(f"{machine}/{name}") <= VCPUS * LIMIT
        assert 0 <= _number(f"{machine}/peak") <= LIMIT

    def look_at_what_stays(self) -> None:
        directory = self.random.choice(["", *(f"/vcpu{number}" for number in range(OWNERS))])
        paths = [f"{self.kvm}/stable{directory}/{name}" for name in ("peak", "done", "begun")]
        numbers = [_number(path) for path in paths]
        for path, number in zip(paths, numbers, strict=True):
            assert number >= self.numbers.get(path, 0), (path, number)
            self.numbers[path] = number
        # What is counted last was read first.
        assert numbers == sorted(numbers), numbers

    def look_at_a_cpu(self) -> None:
        cpu = f"{self.machine()}/vcpu1"
        with _opened(cpu) as directory, _opened("done", directory) as done:
            last = 0
            for _ in range(3):
                number = int(os.pread(done, 99, 0))
                assert last <= number <= LIMIT, (last, number)
                last = number
            assert last <= _number("begun", directory)

    def look_byte_by_byte(self) -> None:
        with _opened(f"{self.kvm}/stable/begun") as file:
            least = int(os.pread(file, 99, 0))
            text = os.pread(file, 1, 0)
            while byte := os.pread(file, 1, len(text)):
                text += byte
            # It was computed at its first byte.
            assert least <= int(text) <= int(os.pread(file, 99, 0)), (least, text)

    def look_at_a_machine(self) -> None:
        with _opened(f"{self.machine()}/generation") as file:
            self.check_inode(file, int(os.read(file, 99)))

    def look_again_in_a_directory(self) -> None:
        with _opened(self.machine()) as directory:
            generation = _number("generation", directory)
            self.check_inode(directory, generation)
            for _ in range(3):
                assert _number("generation", directory) == generation

    def check_inode(self, descriptor: int, generation: int) -> None:
        """An inode number is that of one machine, and never of another."""
        inode = os.fstat(descriptor).st_ino
        assert self.generations.setdefault(inode, generation) == generation, inode

    def list_directory(self) -> None:
        names = os.listdir(self.kvm)
        assert len(names) == len(set(names)), names
        assert {*STAYING, "begun", "done", "peak"} <= set(names), names
        assert 0 <= os.stat(self.kvm).st_nlink - 2 - len(STAYING) <= OWNERS
        for entry in list(os.scandir(self.machine())):
            with contextlib.suppress(FileNotFoundError):
                entry.stat()

    def clear(self) -> None:
        with open(f"{self.kvm}/cleared/begun", "wb", buffering=0) as file:
            file.write(b"0\n")
        assert 0 <= _number(f"{self.kvm}/cleared/begun") <= LIMIT

    # Views: each is of one moment, so what is counted together agrees

    def view(self, name: str) -> tuple[str, bytes]:
        directory = self.random.choice([self.kvm, self.kvm, f"{self.kvm}/stable", self.machine()])
        with _opened(f"{directory}/{name}") as view:
            text = _read_all(view, self.random.choice((1 << 17, 4096, 1000)))
            assert os.fstat(view).st_size == len(text)
        return directory, text

    def look_at_json(self) -> None:
        directory, text = self.view(".stats.json")
        node = json.loads(text)
        self.check_json(os.path.basename(directory), node)
        if directory == self.kvm:
            pair = [node["subordinates"][name]["subordinates"] for name in ("stable", "echo")]
            for number in range(OWNERS):
                first, then = (found[f"vcpu{number}"]["values"]["begun"] for found in pair)
                check_cpu(first, then)

    def check_json(self, name: str, node: Any) -> None:
        numbers, below = node["values"], node["subordinates"]
        for child, found in below.items():
            self.check_json(child, found)
        # A machine whose CPUs have all gone shows no totals, nor does one that has none yet.
        under = [found["values"] for found in below.values() if "begun" in found["values"]]
        if under:
            for total in ("begun", "done"):
                assert numbers[total] == sum(found[total] for found in under), (name, node)
            assert numbers["peak"] == max(found["peak"] for found in under), (name, node)
        elif name.startswith("vcpu") and numbers:
            check_cpu(numbers["begun"], numbers["done"])

    def look_at_metrics(self) -> None:
        name = self.random.choice((".stats.prom", ".stats.openmetrics"))
        _, text = self.view(name)
        numbers: dict[str, dict[str, int]] = {}
        for line in text.decode().splitlines():
            if line.startswith("#"):
                assert _COMMENT.fullmatch(line), line
                continue
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            found = numbers.setdefault(sample[2] or "", {})
            assert sample[1] not in found, line
            found[sample[1]] = int(sample[3])
        assert name == ".stats.prom" or text.endswith(b"# EOF\n")
        for labels, found in numbers.items():
            if "vcpu=" in labels:
                check_cpu(found["kvm_begun"], found["kvm_done"])

    def look_at_binary(self) -> None:
        directory, text = self.view(".stats.bin")
        _, name_size, descriptors, _, described, data = _HEADER.unpack_from(text)
        numbers = {}
        for number in range(descriptors):
            at = described + number * (_DESCRIPTOR.size + name_size)
            offset = _DESCRIPTOR.unpack_from(text, at)[3]
            name = text[at + _DESCRIPTOR.size :][:name_size].rstrip(b"\0").decode()
            (numbers[name],) = struct.unpack_from("=Q", text, data + offset)
        # Not of `kvm`, which has `cleared` in it.
        if "begun" in numbers and directory != self.kvm:
            assert 0 <= numbers["begun"] - numbers["done"] <= OWNERS, numbers

    def look_at_schema(self) -> None:
        _, text = self.view(".schema.json")
        assert set(json.loads(text)) == {"labels", "values", "subordinates"}


def check_cpu(begun: int, done: int) -> None:
    """At each moment its one thread is in the middle of one piece of work, or of none."""
    assert 0 <= begun - done <= 1, (begun, done)


def read_fleet(mountpoint: str, seed: str, until: str) -> None:
    """Read until a moment of the monotonic clock; print how often what was done."""
    reader = _Reader(f"{mountpoint}/kvm", int(seed))
    reader.read(float(until))
    json.dump(reader.done, sys.stdout)
