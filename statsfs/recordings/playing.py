"""A recording, played: a place whose samples are those of the recording, one after the other.

Owns the position, and the tree at it. A sample shares what did not change with the one before, as
samples are never changed. Going back begins at a sample that was kept on the way.

Threading: one thread reads; the position may be set from any.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path, Schema, find_node
from statsfs.eyes.samples import Sample
from statsfs.recordings.batches import Batch, Batches
from statsfs.recordings.reading import open_recording

__all__ = ["Playback"]

_KEPT_MAX: Final = 8  # samples to go back to
_SPEED_MIN, _SPEED_MAX = 1 / 16, 4096.0

_ALL: Final = 1 << 64

_Node = dict[str, Any]


class Playback:
    """A recording as a place.

    Args:
        name: the file's.
        progress: is called with what share of the file was read, from time to time.

    Attributes:
        paused: whether time stands still.
        speed: how many seconds of the recording pass in one.
        mended: whether an unfinished interval was cut off.
        begin: the time of the first sample, in seconds since 1970.
        end: the time of the last one.
    """

    writable = False
    partial = False

    def __init__(self, name: str, progress: Any = id) -> None:
        self.name = name
        self.mended = self._open(progress)
        self.begin = float(self._moments[0])
        self.paused = False
        self.speed = 1.0
        self._lock = threading.Lock()
        self._goal: int | None = 0
        self._wanted = 0  # the sample that was read last, or is being read
        self._time = self.begin
        self._clock = time.monotonic()
        self._sample: Sample | None = None
        self._start: tuple[Sample, Sample] | None = None

    def _open(self, progress: Any = id) -> bool:
        recording, mended = open_recording(self.name, progress)
        if not len(recording.moments):
            raise SampleError(f"{self.name}: a recording without samples", self.name)
        self._recording = recording
        self._moments = recording.moments
        self.end = float(self._moments[-1])
        self._paths = {source: _find_path(recording.places, source) for source in recording.sources}
        self._batches = Batches(recording)
        self._index = -1  # of the moment that the tree is of
        self._tree = _Tree(_make_node())
        self._kept: list[tuple[int, _Node]] = [(-1, self._tree.root)]
        return mended

    # What keys do

    def step(self, count: int) -> None:
        """Stand still, so many samples further on, or back."""
        with self._lock:
            self.paused = True
            self._set_goal((self._wanted if self._goal is None else self._goal) + count)

    def skip(self, seconds: float) -> None:
        """Go some seconds further on, or back."""
        with self._lock:
            self._set_goal(self._find(self._time + seconds))

    def seek(self, share: float) -> None:
        """Go to a part of the recording: 0 is its beginning, 1 its end."""
        with self._lock:
            self._set_goal(self._find(self.begin + share * (self.end - self.begin)))

    def accelerate(self, factor: float) -> None:
        """Play so many times as fast."""
        self.speed = min(max(self.speed * factor, _SPEED_MIN), _SPEED_MAX)

    def start_of(self, sample: Sample) -> Sample | None:
        """Return the sample before one that was jumped to, for rates; None if it was not."""
        start = self._start
        return start[0] if start is not None and start[1] is sample else None

    def _set_goal(self, index: int) -> None:
        self._goal = min(max(index, 0), len(self._moments) - 1)
        self._time = float(self._moments[self._goal])

    def _find(self, moment: float) -> int:
        # Times have microseconds.
        return int(np.searchsorted(self._moments, moment + 5e-7, side="right")) - 1

    # The place

    def read_schema(self, path: Path = ()) -> Schema:
        """Return what is known of a source and those below it, at any time of the recording."""
        root: dict[str, Any] = {"labels": {}, "values": {}, "subordinates": {}}
        for source, recorded in self._recording.sources.items():
            node = root
            for name in self._paths[source]:
                empty: dict[str, Any] = {"labels": {}, "values": {}, "subordinates": {}}
                node = node["subordinates"].setdefault(name, empty)
            node["labels"], node["values"] = recorded.labels, recorded.values
        found = Schema(root).below(path)
        if found is None:
            raise SampleError(f"{self.name}: no source {'/'.join(path)}", self.name)
        return found

    def read_sample(self) -> Sample | None:
        """Return the sample of the position; None if it was the last one already."""
        with self._lock:
            now = time.monotonic()
            passed, self._clock = now - self._clock, now
            goal, self._goal = self._goal, None
            if goal is None:
                if not self.paused:
                    self._time = min(self._time + passed * self.speed, self.end)
                index = max(self._find(self._time), self._index)
                if index == self._index:
                    at_end = index == len(self._moments) - 1
                    return None if at_end and not self.paused else self._sample
            self._wanted = index if goal is None else goal
        if goal is None:
            self._sample = self._read(index)
        elif goal != self._index or self._sample is None:
            before = self._read(goal - 1) if goal else None
            self._sample = self._read(goal)
            self._start = None if before is None else (before, self._sample)
        return self._sample

    def clear(self, path: Path, name: str) -> None:
        """Refuse: a recording stays as it is."""
        raise SampleError(f"{self.name}: a recording is read-only", self.name)

    def replay(self, last: int | None = None) -> Iterator[Sample]:
        """Yield all samples, or so many of the last."""
        count = len(self._moments)
        for index in range(0 if last is None else max(0, count - last), count):
            yield self._read(index)

    def _read(self, index: int) -> Sample:
        try:
            return self._go(index)
        except SampleError:
            # A recorder that is at work has sorted what was read here. No moment is lost by that.
            self._open()
            return self._go(index)

    def _go(self, index: int) -> Sample:
        if index < self._index:
            self._index, root = next(kept for kept in reversed(self._kept) if kept[0] <= index)
            self._tree = _Tree(root)
        while self._index < index:
            batch = self._batches.find(self._index + 1)
            # A source that leaves and comes back begins anew: each leave is a step.
            ends = [batch.end, index, *self._recording.events.left_after(self._index)]
            step = min(ends)
            self._tree.apply(self._batches, batch, self._index, step, self._paths)
            for source, there in self._recording.events.between(self._index, step):
                self._tree.place(self._paths[source], there)
            self._index = step
            self._tree = _Tree(self._tree.root)
            self._keep(batch)
        moment = float(self._moments[index])
        return Sample(moment, moment, self._tree.root)

    def _keep(self, batch: Batch) -> None:
        # The end of each batch is one to go back to; of many, each second one stays.
        if self._index == batch.end and self._index > self._kept[-1][0]:
            self._kept.append((self._index, self._tree.root))
            if len(self._kept) > _KEPT_MAX:
                del self._kept[1::2]


class _Tree:
    # The tree of a sample in the making: nodes are copied before they are changed.

    def __init__(self, root: _Node) -> None:
        self.root = root
        self._copied: dict[Path, _Node] = {}

    def apply(
        self, batches: Batches, batch: Batch, after: int, to: int, paths: dict[str, Path]
    ) -> None:
        """Add the changes behind one moment up to another."""
        changes = batch.sum_up(after, to)
        gone = {batches.keys[series][:2]: last for series, last in changes.gone}
        back = set()
        for series, change, last in changes.sums:
            source, value, bucket = batches.keys[series]
            if last <= gone.get((source, value), -1):
                continue
            values = self._copy(paths[source])["values"]
            if bucket < 0:
                limit = batches.limits[series]
                number = (values.get(value, 0) + change) % _ALL
                values[value] = number - _ALL if number >= limit else number
            else:
                old = values.get(value)
                buckets = [*old] if isinstance(old, list) else []
                buckets += [0] * (bucket + 1 - len(buckets))
                buckets[bucket] += change
                values[value] = buckets
            back.add((source, value))
        for source, value in gone.keys() - back:
            self._copy(paths[source])["values"].pop(value, None)

    def place(self, path: Path, there: bool) -> None:
        """Let a source be there, or not."""
        if there:
            self._copy(path)
        elif not path:
            self.root, self._copied = _make_node(), {}
        elif find_node(self.root, path) is not None:  # else one above it has left
            del self._copy(path[:-1])["subordinates"][path[-1]]

    def _copy(self, path: Path) -> _Node:
        node = self._copied.get(path)
        if node is not None:
            return node
        if path:
            above = self._copy(path[:-1])["subordinates"]
            old = above.get(path[-1])
        else:
            old = self.root
        node = _make_node() if old is None else {key: dict(part) for key, part in old.items()}
        self._copied[path] = node
        if path:
            above[path[-1]] = node
        else:
            self.root = node
        return node


def _make_node() -> _Node:
    return {"values": {}, "subordinates": {}}


def _find_path(places: list[str], source: str) -> Path:
    # Below one place as it was there; of several, each is a source by itself.
    place = next((p for p in places if f"{source}/".startswith(f"{p.rstrip('/')}/")), "")
    names = tuple(name for name in source[len(place.rstrip("/")) :].split("/") if name)
    return names if len(places) == 1 else (place, *names)
