"""QEMU's answers: what they become, and what is none."""

import json
from pathlib import Path
from typing import Any

import pytest

from statsfs.exceptions import QmpError
from statsfs.formats.binary import Descriptor
from statsfs.kvm.qmp_answers import AnswerParser, read_apic_id, read_cpus, read_schemas, read_stats
from statsfs.kvm.values import make_values
from statsfs.model.values import Kind, Unit
from tests.support.kvm_files import DESCRIBED

# As QEMU 7.2 answered them, a VM of two vCPUs under Linux 6.18.
ANSWERS = json.loads((Path(__file__).parent.parent / "data" / "qemu_answers.json").read_text())
EXITS = Descriptor("exits")
WAITS = Descriptor("waits", Kind.LOG_HIST, Unit.SECONDS, 10, -9)


@pytest.mark.parametrize(
    ("target", "path"), [("vm", ""), ("vcpu", "/machine/unattached/device[0]")]
)
def test_values_are_those_of_a_statistics_descriptor(target: str, path: str) -> None:
    """The same values in the same order as of the descriptor: their totals go together."""
    schemas = read_schemas(ANSWERS["query-stats-schemas"])
    stats = read_stats(ANSWERS[target])[path]
    # The kernel of the descriptor counts three things more.
    described = [one for one in DESCRIBED[target] if one.name in stats]
    assert len(described) == len(DESCRIBED[target]) - {"vm": 1, "vcpu": 2}[target]
    assert make_values(AnswerParser(schemas[target], stats).descriptors) == make_values(described)


def test_the_numbers_of_an_answer() -> None:
    """By qom-path, which tells the number that QEMU's own order does not; booleans are integers."""
    stats = read_stats(ANSWERS["vcpu"])
    schemas = read_schemas(ANSWERS["query-stats-schemas"])
    assert list(stats) == ["/machine/unattached/device[2]", "/machine/unattached/device[0]"]
    cpus = ANSWERS["query-cpus-fast"]
    assert read_cpus(cpus) == dict.fromkeys(stats)
    assert read_cpus([one | {"target": "aarch64"} for one in cpus]) == {
        "/machine/unattached/device[0]": 0,
        "/machine/unattached/device[2]": 1,
    }
    answered = stats["/machine/unattached/device[0]"]
    parser = AnswerParser(schemas["vcpu"], answered)
    row = parser.row(answered)
    names = [one.name for one in parser.descriptors]
    assert [answered[name] for name in names] == [
        one[::-1] if isinstance(one, list) else one for one in row
    ]
    assert row[names.index("exits")] == 3159
    assert row[names.index("guest_mode")] == 0
    assert type(row[names.index("guest_mode")]) is int


def test_what_is_not_of_kvm_is_left_out() -> None:
    """A newer QEMU has other providers, types and units."""
    stats = [
        {"name": "b", "type": "cumulative", "unit": "bytes", "base": 2, "exponent": 10},
        {"name": "h", "type": "linear-histogram", "bucket-size": 8},
        {"name": "new", "type": "of a new type"},
        {"name": "new", "type": "peak", "unit": "of a new unit"},
    ]
    schemas = [
        {"provider": "cryptodev", "target": "cryptodev", "stats": "whatever"},
        {"provider": "kvm", "target": "vm", "stats": stats},
    ]
    assert read_schemas(schemas) == {
        "vm": (
            Descriptor("h", Kind.LINEAR_HIST, bucket_size=8),
            Descriptor("b", Kind.CUMULATIVE, Unit.BYTES, 2, 10),
        )
    }
    assert read_stats([{"provider": "cryptodev", "stats": "whatever"}]) == {}


def entry(**changed: Any) -> list[dict[str, Any]]:
    """An answer of one entry."""
    one = {"name": "exits", "type": "cumulative", "exponent": 0} | changed
    return [{"provider": "kvm", "target": "vm", "stats": [one]}]


NO_SCHEMAS: list[Any] = [
    None, 1, {}, [1], [[]], [{}], [{"provider": "kvm"}],
    [{"provider": "kvm", "target": "vm"}], [{"provider": "kvm", "target": 1, "stats": []}],
    [{"provider": "kvm", "target": "vm", "stats": {"a": 1}}],
    entry(name=1), entry(type=[]), entry(unit={}), entry(exponent="1"), entry(exponent=True),
    entry(base=[10], unit="bytes"), entry(**{"bucket-size": 1.5}),
]  # fmt: skip


@pytest.mark.parametrize("answer", NO_SCHEMAS, ids=repr)
def test_no_schemas(answer: Any) -> None:
    """Whatever is answered in their place is an error of one line."""
    with pytest.raises(QmpError, match=r"^invalid answer to query-stats-schemas: .{1,80}$"):
        read_schemas(answer)


@pytest.mark.parametrize(
    "answer",
    [None, {"a": 1}, [1], [{}], [{"qom-path": 1, "cpu-index": 0, "target": "x86_64"}],
     [{"qom-path": "a"}], [{"qom-path": "a", "cpu-index": 0, "target": 1}],
     [{"qom-path": "a", "target": "arm"}],
     [{"qom-path": "a", "cpu-index": "0", "target": "arm"}],
     [{"qom-path": "a", "cpu-index": True, "target": "arm"}]],
    ids=repr,
)  # fmt: skip
def test_no_cpus(answer: Any) -> None:
    """Whatever is answered in their place is an error."""
    with pytest.raises(QmpError, match=r"^invalid answer to query-cpus-fast: "):
        read_cpus(answer)


@pytest.mark.parametrize("answer", [None, "1", [1], {}, True, 1.0], ids=repr)
def test_no_apic_id(answer: Any) -> None:
    """Only an integer is one."""
    assert read_apic_id(6) == 6
    with pytest.raises(QmpError, match=r"^invalid answer to qom-get: "):
        read_apic_id(answer)


def test_buckets_are_turned_round() -> None:
    """QEMU's list of buckets begins with the last one, as its schema does."""
    parser = AnswerParser([WAITS], {"waits": [0, 0, 0, 0]})
    assert parser.row({"waits": [16, 0, 5, 19449]}) == [[19449, 5, 0, 16]]


@pytest.mark.parametrize(
    "answer",
    [None, {"a": 1}, [1], [{}], [{"provider": "kvm"}], [{"provider": "kvm", "stats": 1}],
     [{"provider": "kvm", "stats": [1]}], [{"provider": "kvm", "stats": [{"name": "a"}]}],
     [{"provider": "kvm", "stats": [{"name": [], "value": 1}]}],
     [{"provider": "kvm", "stats": [], "qom-path": 1}]],
    ids=repr,
)  # fmt: skip
def test_no_stats(answer: Any) -> None:
    """Whatever is answered in their place is an error."""
    with pytest.raises(QmpError, match=r"^invalid answer to query-stats: "):
        read_stats(answer)


def test_the_first_numbers_tell_the_row() -> None:
    """How many buckets there are; what is missing or other than described is left out."""
    schema = [EXITS, WAITS, Descriptor("gone"), Descriptor("list"), Descriptor("text"), EXITS,
              Descriptor("single", Kind.LOG_HIST), Descriptor("empty", Kind.LOG_HIST)]  # fmt: skip
    stats = {"exits": 7, "waits": [1, 2, 3], "list": [1], "text": "x", "single": 3, "empty": []}
    parser = AnswerParser(schema, stats)
    assert [(one.name, one.size) for one in parser.descriptors] == [("exits", 1), ("waits", 3)]
    assert parser.row(stats) == [7, [3, 2, 1]]


MOST = (1 << 64) - 1


@pytest.mark.parametrize(
    "changed",
    [{"exits": None}, {"exits": 1.5}, {"exits": "7"}, {"exits": -1}, {"exits": MOST + 1},
     {"exits": [1]}, {"waits": 1}, {"waits": [1]}, {"waits": [1, 2, 3]}, {"waits": [1, 2.5]},
     {"waits": [1, True]}, {"waits": [1, -1]}, {"waits": [1, MOST + 1]}, {"waits": {"0": 1}}],
    ids=repr,
)  # fmt: skip
def test_no_numbers(changed: dict[str, Any]) -> None:
    """Only what fits is a row: integers of 64 bits, as many buckets as there were."""
    stats: dict[str, Any] = {"exits": MOST, "waits": [1, MOST]}
    parser = AnswerParser([EXITS, WAITS], stats)
    assert parser.row(stats) == [MOST, [MOST, 1]]
    with pytest.raises(QmpError, match=r"^invalid answer to query-stats: "):
        parser.row(stats | changed)
    with pytest.raises(QmpError, match="exits"):
        parser.row({"waits": [1, 2]})
