"""What is drawn of a recording, and the pictures."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from statsfs import Source, Stats, counter, gauge
from statsfs.exceptions import SampleError
from statsfs.eyes.samples import Sample
from statsfs.recordings import panels
from statsfs.recordings.panels import Panel, list_values, make_panels
from statsfs.recordings.pictures import draw
from tests.support.registry_place import BEGUN, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Two workers of which the second does twice as much; it is cleared once."""
    tree = Tree(tmp_path / "r.parquet")
    for second in range(6):
        for number, stats in enumerate(tree.workers, 1):
            stats.requests += 10 * number
            stats.memory = 1000 * number + second
            stats.latency.observe(5 * number)
        if second == 3:
            tree.workers[1].requests = 0
        tree.tick()
    return tree


def make(tree: Tree, *values: str, by: str = "total", since: float = -math.inf) -> list[Panel]:
    recording = tree.read()
    return make_panels(recording, list_values(recording, values), by, since)


def test_rates_of_totals(tree: Tree) -> None:
    """Where the total was cleared, its rate is not known."""
    (panel,) = make(tree, "requests")
    (line,) = panel.lines
    assert panel.rate
    assert np.array_equal(line.numbers, [30, 30, math.nan, 30, 30], equal_nan=True)
    assert panel.times.tolist() == [BEGUN + second for second in range(1, 6)]


@pytest.mark.parametrize("by", ["source", "worker"])
def test_rates_by_source_and_by_label(tree: Tree, by: str) -> None:
    """The largest is first."""
    (panel,) = make(tree, "requests", by=by)
    names = {line.name: line.numbers.tolist() for line in panel.lines}
    assert names["app/worker0" if by == "source" else "worker0"] == [10] * 5
    assert len(names) == 2


def test_levels_and_since(tree: Tree) -> None:
    """A level is what it was last, also before the time from which on it is drawn."""
    (panel,) = make(tree, "memory", since=BEGUN + 2)
    assert panel.lines[0].numbers.tolist() == [3004, 3006, 3008, 3010]
    with pytest.raises(SampleError, match="fewer than two samples"):
        make(tree, since=BEGUN + 5)


def test_heats_of_histograms(tree: Tree) -> None:
    """A row for each bucket: how much was observed in a second."""
    (panel,) = make(tree, "latency")
    (heat,) = panel.heats
    assert heat.rates.shape == (8, 5)
    assert heat.rates.sum(axis=1).tolist() == [0, 0, 0, 5, 5, 0, 0, 0]


def test_values_without_numbers_or_the_label_are_not_drawn(tree: Tree) -> None:
    """A value that could never be read, one of a source without a label; the others are."""
    other = Source("other")
    lonely = Lonely()
    other.add_values(Lonely, lonely)
    tree.registry.register(other)
    real = tree.place.read_sample

    def read() -> Sample:
        sample = real()
        sample.root["subordinates"]["other"]["values"].pop("never")
        if tree.time > BEGUN + 7:
            for node in sample.root["subordinates"]["app"]["subordinates"].values():
                node["values"].pop("latency")
        return sample

    tree.place.read_sample = read  # type: ignore[method-assign]
    for number in (0, -5, -7, -3):
        lonely.depth = number
        tree.tick()
    assert [panel.value for panel in make(tree, "never", "depth")] == ["depth"]
    assert [panel.value for panel in make(tree, "depth", "requests", by="worker")] == ["requests"]
    (panel,) = make(tree, "depth")
    assert np.nanmin(panel.lines[0].numbers) == -7
    assert draw([panel], "png", "x").startswith(b"\x89PNG")
    (panel,) = make(tree, "latency", by="worker")
    assert [heat.rates[:, -2:].sum() for heat in panel.heats] == [0, 0]


class Lonely(Stats):
    never = counter()
    depth = gauge()


def test_what_cannot_be_drawn_is_said(tree: Tree) -> None:
    """Names that are not there, and labels."""
    with pytest.raises(SampleError, match="no value none; there are: requests, wait_ns"):
        make(tree, "none")
    with pytest.raises(SampleError, match="no source has the label none"):
        make(tree, by="none")


def test_more_lines_than_colours(tree: Tree) -> None:
    """The largest are drawn, and how many are not is said."""
    for number in range(12):
        tree.add(f"more{number}").requests = 5 * number
    tree.tick()
    (panel,) = make(tree, "mem*", by="source")
    assert panel.left_out == 0
    (panel,) = make(tree, "latency.sum", by="source")
    assert panel.rate
    for _ in range(2):
        for _, one in zip(range(12), tree.app.subordinates, strict=False):
            one.clear_value("requests")
        tree.tick()
    added = [tree.add(f"busy{number}") for number in range(12)]
    tree.tick()
    for stats in added:
        stats.requests += 7
    tree.tick()
    (panel,) = make(tree, "requests", by="source")
    assert (len(panel.lines), panel.left_out) == (panels.LINES_MAX, 6)
    assert b"6 more are not drawn" in re.sub(rb"<!-- | -->", b"", draw([panel], "svg", "x"))


@pytest.mark.parametrize("form", ["png", "svg", "html"])
def test_pictures(tree: Tree, form: str) -> None:
    """Each is what its name says; a page needs nothing from elsewhere."""
    picture = draw(make(tree, by="worker"), form, "a <b> $x$")
    if form == "png":
        assert picture.startswith(b"\x89PNG")
    elif form == "svg":
        assert ET.fromstring(picture).tag.endswith("svg")
    else:
        text = picture.decode()
        assert "<title>a &lt;b&gt; $x$</title>" in text
        assert not re.search(r'(src|href)="(?!#|data:)', text)
        ids = re.findall(r' id="([^"]+)"', text)
        assert all(re.match(r"p\d+(-|$)", name) for name in ids)  # each picture's are its own
        for name in re.findall(r'(?:url\(#|href="#)([^")]+)', text):
            assert name in ids
