"""Values of the kernel's descriptors: what they are, and that the mock's are the same."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest

from statsfs.demo.mock_kvm import VcpuStats, VmStats
from statsfs.exceptions import FormatError
from statsfs.formats.binary import Descriptor
from statsfs.kvm import index_values, make_values
from statsfs.model.stats import Stats, values_of
from statsfs.model.values import Aggregate, Kind, Type, Unit
from statsfs.tree.source import Source
from tests.support.kvm_files import DESCRIBED, shapes

MOCKS: dict[str, type[Stats]] = {"vm": VmStats, "vcpu": VcpuStats}
SECTIONS = pytest.mark.parametrize("section", ["vm", "vcpu"])


@SECTIONS
def test_the_mock_shows_what_the_kernel_shows(section: str) -> None:
    """Of the kernel that was dumped: the same names, in the same order, of the same shapes."""
    real, mock = make_values(DESCRIBED[section]), values_of(MOCKS[section])
    assert [value.name for value in real] == [value.name for value in mock]
    assert shapes(real) == shapes(mock)


@SECTIONS
def test_what_descriptors_say_is_what_values_have(section: str) -> None:
    """Kind, unit, scale and size are taken over; the rest follows from them."""
    for one, value in zip(DESCRIBED[section], make_values(DESCRIBED[section]), strict=True):
        assert (value.name, value.kind, value.unit) == (one.name, one.kind, one.unit)
        assert (value.base, value.exponent) == (one.base, one.exponent)
        assert (value.size, value.bucket_size) == (one.size, one.bucket_size)
        assert value.type is (Type.BOOL if one.unit is Unit.BOOLEAN else Type.U64)
        peak = one.kind is Kind.PEAK
        assert value.aggregate is (Aggregate.MAX if peak else Aggregate.SUM)
        assert value.writable is (one.kind not in (Kind.PEAK, Kind.INSTANT))


def test_names_that_nobody_described() -> None:
    """A later kernel's value is shown as it is; a histogram of truths has counts."""
    later = Descriptor("later", Kind.INSTANT, Unit.BYTES, 2, 10)
    truths = Descriptor("truths", Kind.LOG_HIST, Unit.BOOLEAN, size=4)
    known = Descriptor("exits")
    values = make_values([later, truths, known])
    assert [value.description for value in values[:2]] == ["", ""]
    assert values[2].description
    assert (values[0].base, values[0].exponent, values[0].mode) == (2, 10, 0o444)
    assert (values[1].type, values[1].size) == (Type.U64, 4)


def test_no_name_is_described_twice() -> None:
    """A description is found by the name alone, so a VM and a vCPU have none in common."""
    text = (files("statsfs") / "data" / "kvm_descriptions.json").read_text()
    described: dict[str, dict[str, str]] = json.loads(text)
    assert not described["vm"].keys() & described["vcpu"].keys()


def test_equal_descriptors_share_their_values() -> None:
    """Wherever the data are, and whether it is a tuple or a list: thousands of vCPUs share one."""
    values = make_values(DESCRIBED["vcpu"])
    assert make_values(list(DESCRIBED["vcpu"])) is values
    moved = [replace(one, offset=one.offset + 64) for one in DESCRIBED["vcpu"]]
    assert make_values(moved) is values
    assert make_values(DESCRIBED["vm"]) is not values
    assert index_values(values) is index_values(values)
    assert list(index_values(values).items()) == [(value.name, value) for value in values]


WRONG = {
    "none": ([], "no statistics"),
    "name": ([Descriptor("a/b")], "'a/b'"),
    "several": ([Descriptor("pair", size=2)], "only histograms"),
    "buckets": ([Descriptor("waits", Kind.LOG_HIST, size=66)], "not 1 to 65"),
    "exponent": ([Descriptor("x", exponent=1 << 15)], "does not fit 16 bits"),
}


@pytest.mark.parametrize(("descriptors", "words"), WRONG.values(), ids=WRONG)
def test_descriptors_of_no_value(descriptors: list[Descriptor], words: str) -> None:
    """One error, which names the descriptor and keeps it."""
    with pytest.raises(FormatError, match=words) as caught:
        make_values(descriptors)
    offender = caught.value.offender
    assert offender == (descriptors[0] if descriptors else ())


def test_totals_of_real_values() -> None:
    """Peaks make the largest, truths how many are true, histograms their sums."""
    descriptors = [
        Descriptor("deepest", Kind.PEAK),
        Descriptor("busy", Kind.INSTANT, Unit.BOOLEAN),
        Descriptor("waits", Kind.LOG_HIST, size=2),
    ]
    with Source("kvm") as kvm:
        for number, base in enumerate(
            [{"deepest": 7, "busy": 2, "waits": [1, 2]}, {"deepest": 5, "busy": 1, "waits": [3, 4]}]
        ):
            with Source("%d-4", number) as vm:
                vm.add_values(make_values(descriptors), base)
                kvm.add_subordinate(vm)
        assert kvm.names() == ["deepest", "busy", "waits"]
        assert [kvm.get_value(name) for name in kvm.names()] == [7, 2, [4, 6]]
