"""A recording as a place: its samples are those that were recorded, wherever one begins."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from statsfs.exceptions import SampleError
from statsfs.eyes.places import Player
from statsfs.recordings import playing, recorder, tables
from statsfs.recordings.playing import Playback
from statsfs.recordings.recorder import Recorder
from tests.support.registry_place import BEGUN, Place, Tree


class Watched(Place):
    """A place whose samples are kept."""

    def __init__(self, place: Place) -> None:
        super().__init__(place._registry, place.name)
        self.roots: list[Any] = []

    def read_sample(self) -> Any:
        """Return the numbers of now."""
        try:
            sample = super().read_sample()
        except SampleError:
            self.roots.append({"values": {}, "subordinates": {}})
            raise
        if len(self.roots) % 4 == 3:  # a file that cannot be read now
            workers: Any = sample.root["subordinates"]["app"]["subordinates"]
            del workers["worker0"]["values"]["longest"]
            del workers["worker1"]["values"]["latency"]
        self.roots.append(sample.root)
        return sample


def make(file: Path, ticks: int, places: int = 1) -> list[Any]:
    """Record a tree in which everything happens; return its roots."""
    rng = random.Random(7)
    tree = Tree(file.with_suffix(".unused"))
    watched = [Watched(Place(tree.registry, f"/run/stats{n}")) for n in range(places)]
    made = Recorder(str(file), watched, 1.0)
    more: list[str] = []
    for tick in range(ticks):
        for stats in tree.workers:
            stats.requests += rng.randrange(3)
            stats.memory = rng.randrange(-5, 5)
            stats.latency.observe(rng.randrange(100))
        if tick % 7 == 3:
            more.append(f"more{tick % 5}")
            tree.add(more[-1]).requests = 2**64 - tick
        if tick % 7 == 6:
            tree.remove(more.pop())
        if tick % 11 == 5:
            tree.workers[0].requests = 0
        watched[0].error = "gone" if tick % 13 == 12 else ""
        made.record(BEGUN + tick)
    made.close()
    return watched[0].roots


def at(player: Playback, index: int) -> Any:
    """The tree after a jump to a sample."""
    player.skip(BEGUN + index - player.begin - (player._time - player.begin))
    sample = player.read_sample()
    assert sample is not None
    assert sample.time == BEGUN + index
    return sample.root


@pytest.fixture(params=["sorted", "not sorted", "many batches", "many parts"])
def recorded(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """A recording and what it is of; as a file has it in the making and later."""
    if request.param == "not sorted":
        monkeypatch.setattr(Recorder, "_sort", lambda self: None)
    elif request.param == "many batches":
        monkeypatch.setattr(recorder, "_INTERVALS_MAX", 3)
    elif request.param == "many parts":
        monkeypatch.setattr(tables, "_PART_ROWS", 100)
        monkeypatch.setattr(recorder, "_INTERVALS_MAX", 20)
    file = tmp_path / "r.parquet"
    return file, make(file, 60)


def test_all_samples_are_those_that_were_recorded(recorded: tuple[Path, Any]) -> None:
    """One after the other, with every source and bucket."""
    player = Playback(str(recorded[0]))
    assert [sample.root for sample in player.replay()] == recorded[1]
    assert [sample.root for sample in player.replay(2)] == recorded[1][-2:]


def test_jumps_find_the_same(recorded: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Back and forth, from any sample to any other."""
    monkeypatch.setattr(playing, "_KEPT_MAX", 4)
    player = Playback(str(recorded[0]))
    player.paused = True
    rng = random.Random(3)
    for _ in range(60):
        index = rng.randrange(60)
        assert at(player, index) == recorded[1][index], index


def test_time_passes_as_fast_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still where it is paused, and after a step; the end is told once it is passed."""
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("statsfs.recordings.playing.time", clock)
    make(tmp_path / "r", 20)
    player = Playback(str(tmp_path / "r"))

    def tick(seconds: float) -> float | None:
        nonlocal now
        now += seconds
        sample = player.read_sample()
        return None if sample is None else sample.time - BEGUN

    assert [tick(0), tick(1), tick(0.5), tick(0.5), tick(3)] == [0, 1, 1, 2, 5]
    player.accelerate(2)
    assert tick(1) == 7
    player.paused = True
    assert tick(5) == 7
    player.step(1)
    assert [tick(0), tick(9)] == [8, 8]
    player.step(-1)
    player.step(-1)
    assert tick(0) == 6
    player.skip(-100)
    assert tick(0) == 0
    player.seek(0.5)
    assert tick(0) == 9
    player.paused = False
    assert [tick(1), tick(100), tick(1)] == [11, 19, None]
    player.accelerate(1e-9)
    player.seek(1)
    assert [player.speed, tick(0), tick(0)] == [1 / 16, 19, None]
    player.paused = True
    assert tick(0) == 19


def test_a_jump_has_the_sample_before_it(tmp_path: Path) -> None:
    """Rates begin there; at the first one there is none."""
    roots = make(tmp_path / "r", 20)
    player = Playback(str(tmp_path / "r"))
    player.step(7)
    sample = player.read_sample()
    assert sample is not None
    start = player.start_of(sample)
    assert start is not None
    assert (start.root, sample.root) == (roots[6], roots[7])
    assert player.start_of(start) is None
    player.seek(0)
    sample = player.read_sample()
    assert sample is not None
    assert player.start_of(sample) is None


def test_a_step_during_a_jump_is_one_from_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was one from where the reader was on its way there."""
    make(tmp_path / "r", 20)
    player = Playback(str(tmp_path / "r"))
    find = player._batches.find

    def step(moment: int) -> Any:
        monkeypatch.undo()
        player.step(1)
        return find(moment)

    player.step(7)
    monkeypatch.setattr(player._batches, "find", step)
    for index in (7, 8):
        sample = player.read_sample()
        assert sample is not None
        assert sample.time == BEGUN + index


def test_descriptions_are_those_of_the_recording(tmp_path: Path) -> None:
    """Of sources that have left too; nothing can be cleared."""
    make(tmp_path / "r", 10)
    player = Playback(str(tmp_path / "r"))
    assert isinstance(player, Player)
    schema = player.read_schema()
    assert schema.labels(("app", "more3")) == {"worker": "more3"}
    found = player.read_schema(("app", "worker0")).find(())
    assert found is not None
    assert found["latency"].histogram
    with pytest.raises(SampleError, match="no source app/none"):
        player.read_schema(("app", "none"))
    with pytest.raises(SampleError, match="a recording is read-only"):
        player.clear((), "requests")


def test_several_places_are_beside_each_other(tmp_path: Path) -> None:
    """Each is a source, by its name."""
    roots = make(tmp_path / "r", 9, places=2)
    *_, last = Playback(str(tmp_path / "r")).replay()
    assert last.root["subordinates"]["/run/stats0"] == roots[-1]
    assert list(last.root["subordinates"]) == ["/run/stats0", "/run/stats1"]


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    """It was stopped before the first one."""
    Recorder(str(tmp_path / "r"), [], 1.0).close()
    with pytest.raises(SampleError, match="a recording without samples"):
        Playback(str(tmp_path / "r"))


def test_a_recorder_at_work_may_sort_meanwhile(tmp_path: Path) -> None:
    """What was read is then somewhere else in the file; the same samples are found there."""
    tree = Tree(tmp_path / "r.parquet")
    for _ in range(40):
        tree.workers[0].requests += 1
        tree.tick()
    player = Playback(str(tree.file))
    samples = player.replay()
    assert next(samples).time == BEGUN
    tree.recorder.close()
    app = [sample.root["subordinates"]["app"]["values"]["requests"] for sample in samples]
    assert app == list(range(2, 41))


def test_nothing_changes_in_an_idle_tree(tmp_path: Path) -> None:
    """Its samples are there nevertheless."""
    tree = Tree(tmp_path / "r.parquet")
    for _ in range(5):
        tree.tick()
    player = Playback(str(tree.file))
    assert len({id(sample.root) for sample in player.replay()}) == 1
    assert player.end == BEGUN + 4
    tree.recorder.close()
