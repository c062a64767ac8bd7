"""How large a recording of 10,000 sources of 47 values is, and what a sample of it costs.

The peer, in the same run: the rows that a first program would write with plain pyarrow, which are
time, source, value and number, of what changed, compressed with zstd.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from statsfs.eyes.descriptions import Path, Schema, parse_schema
from statsfs.eyes.samples import Sample, parse_sample
from statsfs.recordings.recorder import Recorder
from tests.bench.measuring import Line, show

SOURCES, VALUES = 10_000, 47
VMS = 100
SAMPLES = 68  # in which 470,000 changes each are sorted twice
MOST = 200.0  # MB in an hour

_Numbers = npt.NDArray[np.int64]


class _Place:
    # A tree whose numbers move by a rule; what it takes to make the text is not measured.
    name = "/run/stats/kvm"
    writable = False
    partial = True

    def __init__(self, move: Callable[[], _Numbers]) -> None:
        self._move = move
        self.numbers = np.random.default_rng(1).integers(0, 1 << 40, (SOURCES, VALUES))
        self.text = b""
        self.advance()

    def advance(self) -> None:
        self.numbers = self.numbers + self._move()
        rows = self.numbers.tolist()
        self.text = json.dumps(self._make(lambda index: _name(rows[index]))).encode()

    def _make(self, values: Callable[[int], Any], **more: Any) -> dict[str, Any]:
        each = SOURCES // VMS
        empty: Any = [] if more else {}
        vms = {
            f"1234-{vm}": {
                **more,
                "values": empty,
                "subordinates": {
                    f"vcpu{vcpu}": {
                        **more, "values": values(vm * each + vcpu), "subordinates": {}
                    }
                    for vcpu in range(each)
                },
            }
            for vm in range(VMS)
        }  # fmt: skip
        return {**more, "values": empty, "subordinates": vms}

    def read_sample(self) -> Sample:
        return parse_sample(self.text, 0, 0)

    def read_schema(self, path: Path = ()) -> Schema:
        values = [
            {"name": name, "type": "u64", "kind": "cumulative", "unit": "none", "aggregate": []}
            for name in _name(range(VALUES))
        ]
        whole = parse_schema(json.dumps(self._make(lambda _: values, labels={})).encode())
        found = whole.below(path)
        assert found is not None
        return found

    def clear(self, path: Path, name: str) -> None:
        raise NotImplementedError


def _name(numbers: Any) -> dict[str, int]:
    return {f"value{index}": number for index, number in enumerate(numbers)}


def _list_loads() -> dict[str, tuple[Callable[[], _Numbers], bool]]:
    # What each sample adds, and whether the bound holds for it.
    rng = np.random.default_rng(2)
    shape = SOURCES, VALUES
    some = (rng.random(SOURCES) < 0.1)[:, None]
    few = some & (np.arange(VALUES) < 15)
    means = np.exp(rng.uniform(0, np.log(2000), shape))
    own = rng.integers(1, 1000, shape)
    nothing = np.zeros(shape, np.int64)
    return {
        "nothing moves": (lambda: nothing, True),
        "of 10 % of sources 15 values, Poisson": (lambda: rng.poisson(means) * few, True),
        "of 10 % of sources all values, Poisson": (lambda: rng.poisson(means) * some, True),
        "all values, each evenly": (lambda: own, True),
        "all values, Poisson": (lambda: rng.poisson(means), False),
        "all values, 0 to 999 at random": (lambda: rng.integers(0, 1000, shape), False),
    }


def _record(move: Callable[[], _Numbers], directory: str) -> tuple[float, float, float]:
    # MB in an hour, of the peer too; seconds of CPU for a sample.
    place = _Place(move)
    recorder = Recorder(os.path.join(directory, "r.parquet"), [place], 1.0)
    recorder.record(0.0)
    first, spent, peer = recorder.size, 0.0, 0
    for second in range(1, SAMPLES + 1):
        before = place.numbers
        place.advance()
        begun = time.process_time()
        recorder.record(float(second))
        spent += time.process_time() - begun
        peer += _measure_peer(before, place.numbers, second, directory)
    begun = time.process_time()
    recorder.close()
    spent += time.process_time() - begun
    hour = 3600 / SAMPLES / 1e6
    return first / 1e6 + (recorder.size - first) * hour, peer * hour, spent / SAMPLES


def _measure_peer(before: _Numbers, after: _Numbers, second: int, directory: str) -> int:
    source, value = np.nonzero(after != before)
    sources = pa.array([f"/run/stats/kvm/1234-{n // VMS}/vcpu{n % VMS}" for n in range(SOURCES)])
    names = pa.array([f"value{index}" for index in range(VALUES)])
    table = pa.table(
        {
            "time": np.full(len(source), second * 1_000_000),
            "source": pa.DictionaryArray.from_arrays(source.astype(np.int32), sources),
            "value": pa.DictionaryArray.from_arrays(value.astype(np.int32), names),
            "number": after[source, value],
        }
    )
    name = os.path.join(directory, "peer.parquet")
    pq.write_table(table, name, compression="zstd")
    return os.path.getsize(name) if len(source) else 0


def main() -> None:
    """Print what was measured."""
    lines = []
    for what, (move, bounded) in _list_loads().items():
        with tempfile.TemporaryDirectory() as directory:
            size, peer, spent = _record(move, directory)
        lines.append(
            Line(
                what,
                f"{size:,.0f} MB; {spent * 1e3:.0f} ms a sample",
                ratio=size / peer if peer else None,
                bound=f"<= {MOST:.0f} MB" if bounded else "",
                kept=size <= MOST if bounded else None,
            )
        )
    show(
        f"an hour of {SOURCES:,} sources of {VALUES} values at 1 s; ratio to plain pyarrow, zstd",
        lines,
    )
