"""What goes from one daemon to the next about VMs, as JSON; and whatever is wrong with it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from statsfs.exceptions import FormatError
from statsfs.kvm.kept import KeptKvm, KeptTarget, KeptVm, decode, encode, fits, restore_rows
from statsfs.model.values import Aggregate, Kind, Value
from statsfs.tree.source import Source

EXITS = Value("exits", aggregate=Aggregate.SUM, description="Exits")
DEEPEST = Value("deepest", aggregate=Aggregate.MAX, kind=Kind.PEAK)
RUNNING = Value("running", aggregate=Aggregate.SUM, kind=Kind.INSTANT)
WAITS = Value("waits", aggregate=Aggregate.SUM, kind=Kind.LOG_HIST, size=3)
ARRAY = (EXITS, DEEPEST, RUNNING)
ROWS: dict[tuple[Value, ...], tuple[Any, ...]] = {ARRAY: (5, 7, 0), (WAITS,): ([1, 2, 3],)}
VM = KeptVm(
    name="12-5",
    pid=12,
    began=34,
    way="bpf",
    key="(1, b'kvm-12')",
    label="web",
    shown=True,
    known=(["a"], ["exits"]),
    declared=(["a"], ["exits", "waits"]),
    retained=ROWS,
    targets=[KeptTarget(None, {"a": 1}, {}), KeptTarget(0, {"waits": [1, 2, 3]}, {"exits": 2})],
    socket="/run/a.qmp",
    arrays=(ARRAY, (WAITS,)),
)
KEPT = KeptKvm(ROWS, [VM, replace(VM, began=None)], 77)


def test_all_of_it() -> None:
    """Each value is described once; descriptions of another release are not those of this one."""
    encoded = encode(KEPT)
    assert decode(encoded) == KEPT
    assert encoded.count(b'"exits", "mode"') == 1
    mended = (replace(EXITS, description="All exits"), DEEPEST, RUNNING)
    found = decode(encoded, [mended])
    assert found.retained.keys() == {mended, (WAITS,)}
    assert found.vms[0].arrays[0] == mended
    assert decode(encode(KeptKvm())) == KeptKvm(vms=[])
    assert VM.find_baselines(0) == {"exits": 2}
    assert VM.find_baselines(1) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"values": []},
        {"values": [{"name": "x"}]},
        {"heard": "1"},
        {"heard": True},
        {"retained": [[[0, 1, 2], [1]]]},
        {"retained": 5},
        {"vms": [5]},
        {"vms": [{}]},
    ],
)
def test_what_is_wrong_as_a_whole(change: dict[str, Any]) -> None:
    """It is one line."""
    described = {**json.loads(encode(KEPT)), **change}
    with pytest.raises(FormatError) as caught:
        decode(json.dumps(described).encode())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"pid": "12"},
        {"known": [1]},
        {"targets": [{"vcpu": "0", "numbers": {}, "baselines": {}}]},
        {"targets": [{"vcpu": 0, "numbers": {"exits": -1}, "baselines": {}}]},
        {"targets": [{"vcpu": 0, "numbers": {"exits": 1 << 64}, "baselines": {}}]},
        {"targets": [{"vcpu": 0, "numbers": {}, "baselines": {"exits": [1, None]}}]},
        {"arrays": [[0]]},
    ],
)
def test_what_is_wrong_with_a_vm(change: dict[str, Any]) -> None:
    """Nothing of the whole is used then."""
    described = json.loads(encode(KEPT))
    described["vms"][1] |= change
    with pytest.raises(FormatError):
        decode(json.dumps(described).encode())


def test_what_is_no_json() -> None:
    """Not even that."""
    for bad in (b"", b"{", b"[1]", b"[" * 100_000, b"\xff"):
        with pytest.raises(FormatError):
            decode(bad)


def test_rows_that_are_partly_there() -> None:
    """In the end a source retains just these; a larger peak stays."""
    with Source("kvm", retain=True) as source:
        source.restore(ARRAY, (2, 9, 0))
        source.restore((WAITS,), ([1, 1, 5],))
        restore_rows(source, ROWS)
        assert source.retained == {ARRAY: (5, 9, 0), (WAITS,): ([1, 2, 3],)}


def test_what_fits() -> None:
    """Integers, and as many buckets as there are."""
    assert fits(EXITS, 5)
    assert fits(WAITS, [1, 2, 3])
    assert not any((fits(EXITS, [5]), fits(EXITS, None), fits(WAITS, [1]), fits(WAITS, 5)))
