"""The rows of a tree: folds, filters, orders, and what has gone."""

import gc
import re
import tracemalloc
from typing import Any

from statsfs.eyes.samples import Sample
from statsfs.top.outline import Outline, natural_key
from tests.support.top_place import node


def sample(root: dict[str, Any]) -> Sample:
    """A sample of a tree."""
    return Sample(0, 0, root)


VCPUS = {f"vcpu{index}": node({"n": index}) for index in (10, 9, 1)}
TREE = sample(node({}, kvm=node({}, vm2=node({"n": 1}, **VCPUS), vm1=node({"n": 5}))))


def texts(outline: Outline, of: Sample = TREE, followed: tuple[str, ...] = ()) -> list[str]:
    """The rows."""
    return ["/".join(path) for path in outline.rows(of, followed)]


def test_names_are_sorted_as_people_count() -> None:
    """vcpu10 is behind vcpu9; names without digits are sorted too."""
    assert sorted(["v10", "v9", "a", "9", "v09"], key=natural_key) == ["9", "a", "v09", "v9", "v10"]


def test_sources_are_unfolded_and_folded() -> None:
    """The upper levels are open at first; a fold stays while numbers change."""
    outline = Outline()
    assert texts(outline) == ["", "kvm"]
    outline.begin(TREE)
    everything = [
        "", "kvm", "kvm/vm1", "kvm/vm2", "kvm/vm2/vcpu1", "kvm/vm2/vcpu9", "kvm/vm2/vcpu10"
    ]  # fmt: skip
    assert texts(outline) == everything
    assert outline.rows(TREE, ()) is outline.rows(TREE, ())
    outline.open(("kvm", "vm2"), False)
    assert texts(outline) == everything[:4]
    assert [outline.is_open(path) for path in ((), ("kvm",), ("kvm", "vm2"))] == [True, True, False]
    outline.open((), False)
    assert texts(outline) == [""]
    outline.open_all(TREE, True)
    assert texts(outline) == everything
    outline.open_all(TREE, False)
    assert texts(outline) == ["", "kvm"]


def test_many_sources_are_folded_at_first() -> None:
    """A level of more than a screen is not unfolded."""
    outline = Outline()
    many = sample(node({}, app=node({}, **{f"w{index}": node({}) for index in range(100)})))
    outline.begin(many)
    assert texts(outline, many) == ["", "app"]


def test_a_filter_shows_what_matches_and_what_is_above() -> None:
    """Whatever is folded; without a match the root alone."""
    outline = Outline()
    outline.pattern = re.compile("vcpu1")
    assert texts(outline) == ["", "kvm", "kvm/vm2", "kvm/vm2/vcpu1", "kvm/vm2/vcpu10"]
    assert outline.is_open(("kvm", "vm2"))
    outline.pattern = re.compile("none")
    assert texts(outline) == [""]


def test_sources_are_sorted_by_a_measure() -> None:
    """The largest first, or turned round; names too."""
    outline = Outline()
    outline.begin(TREE)
    outline.reverse = True
    assert texts(outline)[1:4] == ["kvm", "kvm/vm2", "kvm/vm2/vcpu10"]
    outline.measure = lambda path: TREE.number(path, "n") or 0  # type: ignore[assignment,return-value]
    assert texts(outline)[2:5] == ["kvm/vm2", "kvm/vm2/vcpu1", "kvm/vm2/vcpu9"]
    outline.reverse = False
    assert texts(outline)[2:5] == ["kvm/vm1", "kvm/vm2", "kvm/vm2/vcpu10"]


def test_a_source_that_has_gone_keeps_its_row_while_it_is_followed() -> None:
    """Below the nearest source above that is there, until it comes back."""
    outline = Outline()
    outline.begin(TREE)
    assert texts(outline, followed=("kvm", "vm7", "vcpu0"))[:3] == ["", "kvm", "kvm/vm7/vcpu0"]
    assert texts(outline)[:3] == ["", "kvm", "kvm/vm1"]
    empty = sample(node({}))
    assert texts(outline, empty, ("kvm",)) == ["", "kvm"]


def test_sources_that_come_for_days_are_forgotten() -> None:
    """Each was unfolded, and had its order."""
    outline = Outline()
    outline.pattern = re.compile("vcpu")

    def show(numbers: range) -> int:
        tracemalloc.start()
        for number in numbers:
            tree = sample(node({}, **{f"vm{number}": node({}, **VCPUS)}))
            assert len(texts(outline, tree)) == 5
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return kept

    show(range(200))
    assert show(range(200, 2000)) < 100_000
