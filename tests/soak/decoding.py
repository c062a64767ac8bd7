"""Segments that strangers wrote: the decoder refuses them or understands them, and nothing else."""

import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from statsfs.exceptions import FormatError
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments import file_format

__all__ = ["decoding"]

SLOW: Final = 5  # seconds of processor for one input; atheris measures those of the clock
MEMORY: Final = 1024  # MiB, of which the fuzzer itself needs most
VALUES: Final = (
    Value("requests", aggregate=Aggregate.SUM, description="Requests – answered"),
    Value("busiest", Type.S32, Aggregate.MAX | Aggregate.AVG, kind=Kind.PEAK, hidden=True),
    Value("late", kind=Kind.LINEAR_HIST, size=3, bucket_size=10, unit=Unit.SECONDS, exponent=-9),
    Value("open", Type.U16, mode=0o400, kind=Kind.INSTANT, unit=Unit.BYTES, base=2, exponent=10),
)
SOUND: Final = (
    file_format.encode("app/worker-1", VALUES, ("app", None)),
    file_format.encode("a/b/c/d/e/f/g/h", VALUES[:1]),
    file_format.encode("app", VALUES[2:], ("app",)),
)
TOKENS: Final = (
    b"null", b"true", b"1e9", b"[]", b"{}", b'"', b"{", b"]", b"-1", b'"v0"', b'"values"',
    b"\\ud800", b"\xff", b"../", b"\0", file_format.MAGIC,
)  # fmt: skip
EDGES: Final = (0, 1, 7, 8, 64, 4096, 4097, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8)

# atheris looks for bytes that reach new code, and knows the code that was imported in its sight.
PROGRAM: Final = """
import sys, atheris
with atheris.instrument_imports(include=["statsfs.segments.file_format", "statsfs.formats.binary"]):
    from tests.soak.decoding import look_at

def look(encoded):
    look_at(encoded)

atheris.Setup(sys.argv, look)
atheris.Fuzz()
"""


def look_at(encoded: bytes) -> bool:
    """Decode what somebody wrote; tell whether it is a segment."""
    try:
        head = file_format.decode(encoded)
    except FormatError as error:
        message = str(error)
        if not message.isprintable() or len(message) > 400:
            raise AssertionError(f"no line for a log: {message!r}") from error
        return False
    assert len(encoded) >= head.size
    assert len(head.layout.numbers(encoded[head.data_offset :])) == len(head.values)
    assert 1 <= len(head.components) == len(head.labels) <= file_format.COMPONENTS_MAX
    assert all(value.description.encode() is not None for value in head.values)
    return True


def damage(chance: random.Random) -> bytes:
    """A sound segment with something wrong here and there."""
    encoded = bytearray(chance.choice(SOUND))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(encoded))
        match chance.randrange(6):
            case 0 | 1:
                encoded[at] = chance.randrange(256)
            case 2:
                token = chance.choice(TOKENS)
                encoded[at : at + len(token)] = token
            case 3:
                at = chance.choice((at, chance.randrange(24))) & ~3
                encoded[at : at + 4] = chance.choice(EDGES).to_bytes(4, sys.byteorder)
            case 4:
                del encoded[at : at + chance.randint(1, min(64, len(encoded) - 1))]
            case _:
                encoded[at:at] = chance.randbytes(chance.randint(1, 64))
        encoded = encoded or bytearray(1)
    return bytes(encoded)


def decoding(seconds: float) -> str:
    """Decode what is damaged at random, and what atheris finds, each half of the time."""
    seed = random.randrange(1 << 32)
    chance, end = random.Random(seed), time.monotonic() + seconds / 2
    looks, sound, slowest = 0, 0, 0.0
    while time.monotonic() < end:
        encoded, begun = damage(chance), time.thread_time()
        try:
            sound += look_at(encoded)
        except BaseException as error:
            error.add_note(f"the seed is {seed}, the file {encoded!r}")
            raise
        looks += 1
        slowest = max(slowest, time.thread_time() - begun)
    assert 0 < sound < looks
    assert slowest < SLOW
    report = f"{looks} damaged segments, {sound} of them sound, at most {slowest * 1e3:.1f} ms"
    return f"{report}; {run_atheris(seconds / 2)}"


def run_atheris(seconds: float) -> str:
    """Let atheris look for what breaks, where it is installed."""
    if importlib.util.find_spec("atheris") is None:
        return "no atheris here"
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "corpus")
        corpus.mkdir()
        for number, encoded in enumerate(SOUND):
            (corpus / str(number)).write_bytes(encoded)
        limits = [f"-timeout={SLOW}", f"-rss_limit_mb={MEMORY}", "-max_len=4096"]
        # It counts whole seconds.
        length = f"-max_total_time={seconds:.0f}" if seconds >= 1 else "-runs=2000"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *limits, length, f"-artifact_prefix={name}/", corpus],
            env={key: text for key, text in os.environ.items() if "COVERAGE" not in key},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        broken = [path.read_bytes() for path in Path(name).iterdir() if path.is_file()]
    assert done.returncode == 0, f"{broken}\n{done.stderr}"
    (runs,) = re.findall(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    return f"{runs} of atheris"
