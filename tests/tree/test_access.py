"""Access: what can be an owner, and which permission bits count for whom, source by source."""

from typing import Any

import pytest

from statsfs.tree.access import Access, Masks, Owner, check_owner, find_masks
from statsfs.tree.pauses import pausing
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source

MOUNTS: Owner = (0, 0)
ALICE: Owner = (1234, 4321)
BOB: Owner = (77, 88)


@pytest.mark.parametrize("owner", [None, (0, 0), ALICE, (0xFFFFFFFE, 0xFFFFFFFE)])
def test_owners(owner: Owner | None) -> None:
    """A source keeps the owner that it is given, or none."""
    assert check_owner(owner, "the owner") == owner
    assert Source("source", owner=owner).owner == owner


@pytest.mark.parametrize(
    ("owner", "error"),
    [
        (5, TypeError), ("root", TypeError), ([1, 2], TypeError), ((1,), TypeError),
        ((1, 2, 3), TypeError), ((1, "2"), TypeError), ((1, None), TypeError),
        ((True, 1), TypeError), ((1.0, 1), TypeError), ((), TypeError),
        ((-1, 0), ValueError), ((0, 0xFFFFFFFF), ValueError), ((1 << 40, 0), ValueError),
    ],
)  # fmt: skip
def test_what_is_no_owner(owner: Any, error: type[Exception]) -> None:
    """It is refused when the source is made, and not when somebody looks at it."""
    with pytest.raises(error, match="the owner of 'source'"):
        Source("source", owner=owner)


@pytest.mark.parametrize(
    ("user", "bits"),
    [((0, 4321), 0o444), ((1234, 0), 0o400), ((1234, 4321), 0o400), ((5, 4321), 0o040),
     ((5, 5), 0o004), ((4321, 1234), 0o004)],
)  # fmt: skip
def test_the_class_of_a_reader(user: Owner, bits: int) -> None:
    """Root may read what anybody may; else it is one class, as the kernel has it."""
    assert Access(*user, MOUNTS).mask_of(ALICE) == bits
    assert Access(*user, ALICE).mask_of(ALICE) == bits


def make_tree() -> dict[str, Source]:
    """Sources without owners, with alice's below one, and bob's below that."""
    owners = {"top": None, "a": None, "b": ALICE, "bb": None, "bbb": BOB, "bbbb": None, "c": MOUNTS}
    parents = {"a": "top", "b": "top", "bb": "b", "bbb": "bb", "bbbb": "bbb", "c": "bbbb"}
    sources = {name: Source(name, owner=owner) for name, owner in owners.items()}
    for name, parent in parents.items():
        sources[parent].add_subordinate(sources[name])
    return sources


def masks_of(mask: int | Access, top: Registry | Source) -> Masks:
    """The masks for all that is below a source, and how many pauses there were."""
    return find_masks(mask, top.snapshot())


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (ALICE, {"top": 4, "a": 4, "b": 0o400, "bb": 0o400, "bbb": 4, "bbbb": 4, "c": 4}),
        ((9, BOB[1]), {"top": 4, "a": 4, "b": 4, "bb": 4, "bbb": 0o40, "bbbb": 0o40, "c": 4}),
        ((9, 0), {"top": 0o40, "a": 0o40, "b": 4, "bb": 4, "bbb": 4, "bbbb": 4, "c": 0o40}),
        ((0, 9), dict.fromkeys(["top", "a", "b", "bb", "bbb", "bbbb", "c"], 0o444)),
    ],
)
def test_who_has_no_owner_has_that_of_the_nearest_above(
    user: Owner, expected: dict[str, int]
) -> None:
    """At any depth, down to the next that has one of its own."""
    sources = make_tree()
    masks = masks_of(Access(*user, MOUNTS), sources["top"])
    assert {name: masks.of(source) for name, source in sources.items()} == expected
    registry = Registry()
    registry.register(sources["top"])
    masks = masks_of(Access(*user, MOUNTS), registry)
    assert {name: masks.of(source) for name, source in sources.items()} == expected


def test_a_subtree_has_the_owner_of_its_top() -> None:
    """The reader says whose that is: what is above is not sampled."""
    sources = make_tree()
    masks = masks_of(Access(*ALICE, ALICE), sources["bb"])
    assert (masks.common, masks.of(sources["bb"])) == (0o400, 0o400)
    assert masks.others == {sources["bbb"]: 4, sources["bbbb"]: 4, sources["c"]: 4}


def test_only_what_differs_is_kept() -> None:
    """Where nobody has an owner, or it makes no difference, all are alike; bits are for all."""
    sources = make_tree()
    for mask, common in (
        (0o040, 0o040), (Access(0, 0, MOUNTS), 0o444), (Access(9, 9, MOUNTS), 0o004),
    ):  # fmt: skip
        assert masks_of(mask, sources["top"]) == Masks(common, {})
    assert masks_of(Access(*ALICE, MOUNTS), sources["a"]) == Masks(0o004, {})


def test_pauses() -> None:
    """Every few hundred sources; and one with none of its own comes after the first with one."""
    top = Source("top")
    calls: list[None] = []
    for number in range(600):
        top.add_subordinate(Source("s%d", number, owner=ALICE if number == 300 else None))
    reader = Access(*ALICE, MOUNTS)
    snapshot = top.snapshot()
    with pausing(lambda: calls.append(None)):
        masks = find_masks(reader, snapshot)
    assert len(calls) == 3
    assert masks == Masks(0o004, {top.subordinates[300]: 0o400})
