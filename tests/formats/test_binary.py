"""The binary format: the kernel's own bytes, round trips, and whatever is wrong with an object."""

import json
import struct
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statsfs.exceptions import FormatError
from statsfs.formats import binary
from statsfs.formats.binary import (
    Descriptor,
    Layout,
    Number,
    Statistics,
    decode,
    decode_layout,
    describe,
    encode,
    make_layout,
    render,
)
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value

DUMPS = {
    section: (Path(__file__).parent.parent / "data" / f"kvm_{section}.stats.bin").read_bytes()
    for section in ("vm", "vcpu")
}
LISTED = json.loads((files("statsfs") / "data" / "kvm_stats.json").read_text())
U64 = 1 << 64


class Found(NamedTuple):
    """One statistic, as `read_as_kvm` finds it."""

    type: int
    unit: int
    base: int
    exponent: int
    bucket_size: int
    numbers: tuple[int, ...]


def read_as_kvm(encoded: bytes) -> tuple[str, dict[str, Found]]:
    """Read an object as api.rst says, checking what the kernel's own test of the format checks.

    It shares nothing with statsfs: blocks are found by the header, names end at a NUL.
    """
    flags, name_size, num_desc, id_offset, desc_offset, data_offset = struct.unpack_from(
        "=IIIIII", encoded
    )
    assert flags == 0
    assert id_offset % 8 == desc_offset % 8 == data_offset % 8 == 0
    assert min(id_offset, desc_offset, data_offset) >= 24
    id = encoded[id_offset : id_offset + name_size]
    assert len(id) == name_size
    assert b"\0" in id
    step = 16 + name_size
    assert data_offset < desc_offset or desc_offset + num_desc * step <= data_offset
    found: dict[str, Found] = {}
    size_data = 0
    for number in range(num_desc):
        at = desc_offset + number * step
        flags, exponent, size, offset, bucket_size = struct.unpack_from("=IhHII", encoded, at)
        name = encoded[at + 16 : at + step]
        type, unit, base = flags & 15, flags >> 4 & 15, flags >> 8 & 15
        assert type <= 4
        assert unit <= 4
        assert base <= 1
        assert b"\0" in name
        assert size
        assert bool(bucket_size) == (type == 3)
        numbers = struct.unpack_from(f"={size}Q", encoded, data_offset + offset)
        size_data += 8 * size
        text = name.split(b"\0")[0].decode()
        assert text not in found
        found[text] = Found(type, unit, base, exponent, bucket_size, numbers)
    assert data_offset + size_data <= len(encoded)
    return id.split(b"\0")[0].decode(), found


def as_list(number: Number) -> list[int]:
    return number if isinstance(number, list) else [number]


# The kernel's own


@pytest.mark.parametrize("section", DUMPS)
def test_dumps_of_a_kernel_are_encoded_to_the_same_bytes(section: str) -> None:
    """What was decoded has all that there was, and is written as the kernel writes it."""
    assert encode(decode(DUMPS[section])) == DUMPS[section]


def test_a_kernels_layout_is_the_one_we_make() -> None:
    """Made anew of the same descriptors, the object of a vCPU is the same."""
    dumped = decode(DUMPS["vcpu"])
    layout = make_layout(dumped.id, dumped.descriptors)
    assert layout == dumped.layout
    assert hash(layout) == hash(dumped.layout)
    assert encode(Statistics(layout, layout.data(dumped.numbers))) == DUMPS["vcpu"]


def test_a_kernel_has_its_data_in_another_order_than_its_descriptors() -> None:
    """The numbers of a VM are where `struct kvm_vm_stat` has them, and found by their offsets."""
    dumped = decode(DUMPS["vm"])
    offsets = [one.offset for one in dumped.descriptors]
    assert offsets != sorted(offsets)
    stored = struct.unpack("=16Q", dumped.data)
    assert dumped.numbers == tuple(stored[offset // 8] for offset in offsets)
    assert dumped.layout.data(dumped.numbers) == dumped.data


@pytest.mark.parametrize(("section", "id"), [("vm", "kvm-23556"), ("vcpu", "kvm-23556/vcpu-0")])
def test_descriptors_of_a_kernel(section: str, id: str) -> None:
    """They are those that the mock KVM is made from."""
    dumped = decode(DUMPS[section])
    assert dumped.id == id
    assert dumped.layout.name_size == 48
    assert [
        {
            "name": one.name,
            "kind": str(one.kind),
            "unit": str(one.unit),
            "base": one.base,
            "exponent": one.exponent,
            "size": one.size,
            "bucket_size": one.bucket_size,
        }
        for one in dumped.descriptors
    ] == LISTED[section]


@pytest.mark.parametrize("section", DUMPS)
def test_numbers_of_a_kernel(section: str) -> None:
    """Another decoder finds the same; histograms are lists, all else are integers."""
    id, found = read_as_kvm(DUMPS[section])
    dumped = decode(DUMPS[section])
    assert dumped.id == id
    assert [one.name for one in dumped.descriptors] == list(found)
    for one, number in zip(dumped.descriptors, dumped.numbers, strict=True):
        assert isinstance(number, list) is one.kind.name.endswith("HIST")
        assert tuple(as_list(number)) == found[one.name].numbers


def test_a_kernels_data_is_read_again_and_again() -> None:
    """The layout is decoded once, the data whenever it was read anew."""
    layout = decode_layout(DUMPS["vm"][:1096])
    assert (layout.data_offset, layout.data_size) == (1096, 16 * 8)
    for number in (0, 5, U64 - 1):
        data = struct.pack("=16Q", *[number] * 16)
        assert layout.numbers(data) == (number,) * 16
        assert layout.numbers(memoryview(data + b"more")) == (number,) * 16
    with pytest.raises(FormatError, match="127 bytes of data, not 128"):
        layout.numbers(bytes(127))


# What we make

VALUES = (
    Value("exits", aggregate=Aggregate.SUM | Aggregate.MAX),
    Value("depth", Type.S8, Aggregate.MIN, unit=Unit.CYCLES),
    Value("wait_ns", kind=Kind.LOG_HIST, size=4, unit=Unit.SECONDS, exponent=-9),
    Value("pages", kind=Kind.INSTANT, unit=Unit.BYTES, base=2, exponent=12),
    Value("peak", kind=Kind.PEAK),
    Value("sizes", Type.S16, kind=Kind.LINEAR_HIST, size=3, bucket_size=100),
    Value("busy", Type.BOOL, kind=Kind.INSTANT, unit=Unit.BOOLEAN),
)


def test_a_directory_is_an_object() -> None:
    """Names, kinds, units, powers and numbers are those of the files, in their order."""
    exits, depth, wait_ns, pages, peak, sizes, busy = VALUES
    rendered = render(
        "kvm/1234-11",
        [
            ("exits", exits, 21),
            ("exits.max", exits, 11),
            ("depth", depth, -5),
            ("wait_ns", wait_ns, [1, 2, 0, 1 << 63]),
            ("pages", pages, 7),
            ("peak", peak, U64 - 1),
            ("sizes", sizes, [-1, 0, 3]),
            ("busy", busy, 1),
        ],
    )
    assert read_as_kvm(rendered) == (
        "kvm/1234-11",
        {
            "exits": Found(0, 0, 0, 0, 0, (21,)),
            "exits.max": Found(0, 0, 0, 0, 0, (11,)),
            "depth": Found(0, 3, 0, 0, 0, (U64 - 5,)),
            "wait_ns": Found(4, 2, 0, -9, 0, (1, 2, 0, 1 << 63)),
            "pages": Found(1, 1, 1, 12, 0, (7,)),
            "peak": Found(2, 0, 0, 0, 0, (U64 - 1,)),
            "sizes": Found(3, 0, 0, 0, 100, (U64 - 1, 0, 3)),
            "busy": Found(1, 4, 0, 0, 0, (1,)),
        },
    )


def test_an_object_is_laid_out_as_the_kernel_does() -> None:
    """Header, id string, descriptors and data follow one another; all names have 48 bytes."""
    rendered = render("vm", [("n", Value("n"), 5)])
    header = struct.pack("=6I", 0, 48, 1, 24, 72, 72 + 64)
    descriptor = struct.pack("=IhHII", 0, 0, 1, 0, 0) + b"n".ljust(48, b"\0")
    assert rendered == header + b"vm".ljust(48, b"\0") + descriptor + struct.pack("=Q", 5)


def test_layouts_that_are_large_are_not_kept() -> None:
    """Many directories share a layout; strangers' values must not fill memory."""
    binary._prepare.cache_clear()
    for size in (512, 513):
        wide = Value("wide", kind=Kind.LINEAR_HIST, size=size, bucket_size=1)
        assert decode(render("vm", [("h", wide, [1] * size)])).numbers == ([1] * size,)
    assert binary._prepare.cache_info().currsize == 1


def test_a_directory_without_files_is_an_object_too() -> None:
    """It has an id and nothing else."""
    rendered = render("vm", [])
    assert len(rendered) == 72
    assert read_as_kvm(rendered) == ("vm", {})
    assert decode(rendered).numbers == ()
    assert encode(decode(rendered)) == rendered


@pytest.mark.parametrize(
    ("length", "name_size"), [(1, 48), (47, 48), (48, 56), (55, 56), (56, 64), (4000, 4008)]
)
def test_a_long_path_makes_all_names_longer(length: int, name_size: int) -> None:
    """The id string and its NUL must fit into `name_size` bytes; the kernel's 48 may not suffice.

    All blocks and descriptors stay at multiples of 8. A name's length does the same.
    """
    text = "é" + "x" * (length - 2) if length > 1 else "x"
    for id, name in ((text, "n"), ("v", text)):
        rendered = render(id, [(name, VALUES[0], 5)])
        assert read_as_kvm(rendered)[0] == id
        assert read_as_kvm(rendered)[1][name].numbers == (5,)
        assert decode(rendered).layout.name_size == name_size


def test_files_that_cannot_stand_together() -> None:
    """Two of one name, buckets of another number than the value's, a path that C would cut."""
    value, histogram = VALUES[0], VALUES[2]
    with pytest.raises(FormatError, match="twice: 'n'"):
        render("vm", [("n", value, 1), ("n", value, 2)])
    wrong: list[Any] = [5, [1, 2, 3], [1, 2, 3, 4, 5]]
    for number in wrong:
        with pytest.raises(FormatError, match=r"integers? in 1, not 4 in 1"):
            render("vm", [("n", histogram, number)])
    with pytest.raises(FormatError, match="2 integers in 2, not 1 in 1"):
        make_layout("vm", [Descriptor("n")]).data([1, 2])
    with pytest.raises(FormatError, match="NUL"):
        render("v\0m", [])
    with pytest.raises(FormatError, match="not valid UTF-8"):
        render("\udc80", [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "without a name"),
        ({"name": "a\0"}, "NUL"),
        ({"name": "\udc80"}, "not valid UTF-8"),
        ({"size": 0}, "0 integers"),
        ({"size": -1}, "-1 integers"),
        ({"size": 65536}, "does not fit"),
        ({"exponent": 40000}, "does not fit"),
        ({"bucket_size": 5}, "buckets of 5"),
        ({"kind": Kind.LINEAR_HIST}, "buckets of 0"),
        ({"kind": Kind.LINEAR_HIST, "bucket_size": 1 << 32}, "does not fit"),
        ({"kind": Kind.HIST, "size": 2}, "does not fit"),
    ],
)
def test_descriptors_that_no_object_has(fields: dict[str, Any], message: str) -> None:
    """They are refused when a layout is made of them."""
    with pytest.raises(FormatError, match=message):
        make_layout("vm", [Descriptor(**{"name": "n", **fields})])


def test_a_block_between_descriptors_and_data() -> None:
    """Who writes a segment puts one there; who decodes it follows `data_offset`."""
    layout = make_layout("app/w", [describe(VALUES[0])], data_offset=1024)
    assert (layout.desc_end, layout.data_offset) == (72 + 64, 1024)
    head = layout.head()
    assert len(head) == layout.desc_end
    whole = head + b"statsfs\1".ljust(1024 - len(head), b"?") + layout.data([7]) + bytes(56)
    assert read_as_kvm(whole)[1]["exits"].numbers == (7,)
    found = decode(whole)
    assert found.layout == layout
    assert (found.numbers, found.data) == ((7,), struct.pack("=Q", 7))
    # What no decoder looks at is not kept.
    assert encode(found) == head.ljust(1024, b"\0") + layout.data([7])
    for wrong in (0, 128, 1028):
        with pytest.raises(FormatError, match="invalid data_offset"):
            make_layout("app/w", [describe(VALUES[0])], data_offset=wrong)


def test_what_is_decoded_never_changes() -> None:
    """Descriptors, layouts and objects are frozen, and compared by content."""
    first, second = decode(DUMPS["vm"]), decode(DUMPS["vm"])
    assert first == second
    assert first.layout is not second.layout
    with pytest.raises(AttributeError):
        first.layout.id = "x"  # type: ignore[misc]  # that is the question
    with pytest.raises(AttributeError):
        first.descriptors[0].name = "x"  # type: ignore[misc]


# Objects that others made: the blocks may be anywhere, and the data in any order


def put_together(
    id_offset: int, desc_offset: int, data_offset: int, one: tuple[int, int], other: tuple[int, int]
) -> bytes:
    """An object of two cumulative statistics, each of a size, at an offset of the data."""
    encoded = bytearray(1024)
    struct.pack_into("=6I", encoded, 0, 0, 8, 2, id_offset, desc_offset, data_offset)
    struct.pack_into("=8s", encoded, id_offset, b"id")
    for number, (size, offset) in enumerate((one, other)):
        at = desc_offset + 24 * number
        struct.pack_into("=IhHII8s", encoded, at, 0, 0, size, offset, 0, b"ab"[number:][:1])
    for slot in range(8):
        struct.pack_into("=Q", encoded, data_offset + 8 * slot, 100 + slot)
    return bytes(encoded)


@pytest.mark.parametrize(
    ("one", "other", "numbers"),
    [
        ((1, 0), (1, 8), (100, 101)),
        ((1, 8), (1, 0), (101, 100)),
        ((1, 16), (1, 56), (102, 107)),
        ((2, 0), (1, 16), ([100, 101], 102)),
        ((1, 24), (3, 0), (103, [100, 101, 102])),
    ],
)
@pytest.mark.parametrize("offsets", [(24, 32, 80), (200, 24, 400), (80, 200, 104), (504, 24, 80)])
def test_blocks_may_be_anywhere(
    offsets: tuple[int, int, int],
    one: tuple[int, int],
    other: tuple[int, int],
    numbers: tuple[Number, ...],
) -> None:
    """Only the header says where they are, only a descriptor where its integers are."""
    encoded = put_together(*offsets, one, other)
    found = decode(encoded)
    assert (found.id, found.numbers) == ("id", numbers)
    again = encode(found)
    assert decode(again) == found
    assert read_as_kvm(again) == read_as_kvm(encoded)
    assert found.layout.data(numbers) == found.data or one[1] + other[1] > 24


# What is no object

VM = DUMPS["vm"]
HEADER = ("flags", "name_size", "num_desc", "id_offset", "desc_offset", "data_offset")


def with_header(**fields: int) -> bytes:
    """The dump of a VM with some fields of its header changed."""
    known = dict(zip(HEADER, struct.unpack_from("=6I", VM), strict=True))
    return struct.pack("=6I", *{**known, **fields}.values()) + VM[24:]


def with_descriptor(number: int, **fields: Any) -> bytes:
    """The dump of a VM with some fields of one descriptor changed."""
    names = ("flags", "exponent", "size", "offset", "bucket_size", "name")
    at = 72 + 64 * number
    known = dict(zip(names, struct.unpack_from("=IhHII48s", VM, at), strict=True))
    return VM[:at] + struct.pack("=IhHII48s", *{**known, **fields}.values()) + VM[at + 64 :]


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "0 bytes, too few for a header"),
        (VM[:23], "23 bytes, too few for a header"),
        (VM[:24], "a block ends at 1096, the object at 24"),
        (VM[:1095], "a block ends at 1096"),
        (VM[:-1], "the data ends at 1224, the object at 1223"),
        (bytes(1024), "invalid name_size 0"),
        (b"\xff" * 1024, "unknown flags 0xffffffff"),
        (with_header(flags=1), "unknown flags 0x1"),
        (with_header(name_size=0), "invalid name_size 0"),
        (with_header(name_size=50), "invalid name_size 50"),
        (with_header(name_size=0xFFFFFFF8), "blocks overlap"),
        (with_header(name_size=56), "blocks overlap"),
        (with_header(num_desc=17), "without a name"),
        (with_header(num_desc=0, data_offset=0), "invalid data_offset 0"),
        (with_header(num_desc=0, data_offset=0xFFFFFFF8), "the data ends at 4294967288"),
        (with_header(num_desc=0, desc_offset=0xFFFFFFF8), "a block ends at 4294967288"),
        (with_header(num_desc=0xFFFFFFFF), "a block ends at"),
        (with_header(id_offset=0), "invalid id_offset 0"),
        (with_header(id_offset=16), "invalid id_offset 16"),
        (with_header(id_offset=28), "invalid id_offset 28"),
        (with_header(id_offset=72), "blocks overlap"),
        (with_header(id_offset=0xFFFFFFF8), "a block ends at"),
        (with_header(desc_offset=48), "blocks overlap"),
        (with_header(desc_offset=73), "invalid desc_offset 73"),
        (with_header(desc_offset=0xFFFFFFF8), "a block ends at"),
        (with_header(data_offset=1095), "invalid data_offset 1095"),
        (with_header(data_offset=1088), "blocks overlap at 1088"),
        (with_header(data_offset=24), "blocks overlap at 24"),
        (with_header(data_offset=1104), "the data ends at"),
        (with_header(data_offset=0xFFFFFFF8), "the data ends at"),
        (with_descriptor(3, flags=5), "'mmu_pte_write' has unknown flags 0x5"),
        (with_descriptor(3, flags=0x50), "unknown flags 0x50"),
        (with_descriptor(3, flags=0x200), "unknown flags 0x200"),
        (with_descriptor(3, flags=0x1000), "unknown flags 0x1000"),
        (with_descriptor(3, size=0), "'mmu_pte_write' has 0 integers"),
        (with_descriptor(3, size=2), "'mmu_pde_zapped' overlaps 'mmu_pte_write'"),
        (with_descriptor(3, size=65535), "overlaps 'mmu_pte_write'"),
        (with_descriptor(15, size=65535), "the data ends at"),
        (with_descriptor(3, offset=0), "'mmu_pte_write' overlaps 'remote_tlb_flush'"),
        (with_descriptor(3, offset=4), "at offset 4"),
        (with_descriptor(3, offset=0xFFFFFFF8), "the data ends at"),
        (with_descriptor(3, bucket_size=1), "is cumulative, with buckets of 1"),
        (with_descriptor(3, flags=3), "is linear_hist, with buckets of 0"),
        (with_descriptor(3, name=b""), "without a name"),
        (with_descriptor(3, name=b"mmu_unsync"), "twice: 'mmu_unsync'"),
        (with_descriptor(3, name=b"x" * 48), "a text at 280 has no NUL"),
        (with_descriptor(3, name=b"\xff"), "not valid UTF-8"),
        (VM[:24] + b"x" * 48 + VM[72:], "a text at 24 has no NUL"),
        (VM[:24] + b"\xff\0" + VM[26:], "not valid UTF-8"),
    ],
)
def test_bytes_that_are_no_object(encoded: bytes, message: str) -> None:
    """There is one error for whatever is wrong; it says it on one line and keeps what it is."""
    with pytest.raises(FormatError) as caught:
        decode(encoded)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.offender is not None


def test_what_may_be_otherwise_than_a_kernels() -> None:
    """No decoder minds what stands behind a NUL, nor data that nobody described."""
    behind = VM[:24] + b"id\0\xff\xff" + VM[29:]
    assert decode(behind).id == "id"
    assert decode(VM + b"more").numbers == decode(VM).numbers
    assert decode(with_header(data_offset=1096, num_desc=0)).numbers == ()
    assert decode(bytearray(VM)) == decode(memoryview(VM)) == decode(VM)


changes = st.lists(
    st.tuples(st.integers(0, len(DUMPS["vcpu"]) - 1), st.integers(0, 255)), min_size=1, max_size=6
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(DUMPS)), changes, st.integers(0, len(DUMPS["vcpu"])), st.booleans())
def test_a_dump_with_changed_bytes(
    section: str, changed: list[tuple[int, int]], end: int, cut: bool
) -> None:
    """It is an object, and the same as another decoder finds, or a `FormatError`."""
    encoded = bytearray(DUMPS[section])
    for at, byte in changed:
        # Most of the bytes are in names: of four changes, three are in the header and descriptors.
        at = at % 72 if at % 4 == 0 else 72 + at % 64 + 64 * (at % 16) if at % 4 < 3 else at
        encoded[at % len(encoded)] = byte
    mutated = bytes(encoded[:end] if cut else encoded)
    try:
        found = decode(mutated)
    except FormatError:
        return
    id, expected = read_as_kvm(mutated)
    assert found.id == id
    numbers = {
        one.name: tuple(as_list(number))
        for one, number in zip(found.descriptors, found.numbers, strict=True)
    }
    assert numbers == {name: one.numbers for name, one in expected.items()}
    assert decode(encode(found)) == found


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
@example(struct.pack("=6I", 0, 8, 0, 24, 24, 24) + bytes(8))
def test_any_bytes(encoded: bytes) -> None:
    """Nothing but a `FormatError`, and what is an object can be written again."""
    try:
        found = decode(encoded)
    except FormatError:
        return
    assert decode(encode(found)) == found


def test_an_object_of_nothing_but_overlapping_histograms_takes_no_memory() -> None:
    """43,000 histograms of 65,535 buckets each would be 21 GB; they cannot share their slots."""
    count = 43_000
    header = struct.pack("=6I", 0, 8, count, 24, 32, 32 + 24 * count)
    descriptors = [
        struct.pack("=IhHII8s", 4, 0, 65535, 0, 0, b"%x" % number) for number in range(count)
    ]
    encoded = header + bytes(8) + b"".join(descriptors) + bytes(8)
    with pytest.raises(FormatError, match="overlaps"):
        decode(encoded)


# Round trips

texts = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=70
)


@st.composite
def descriptors(draw: st.DrawFn) -> list[Descriptor]:
    """Draw some descriptors of different names."""
    made = []
    for name in draw(st.lists(texts, max_size=6, unique=True)):
        kind = draw(st.sampled_from([kind for kind in Kind if kind is not Kind.HIST]))
        histogram = kind in (Kind.LINEAR_HIST, Kind.LOG_HIST)
        made.append(
            Descriptor(
                name,
                kind,
                draw(st.sampled_from(Unit)),
                draw(st.sampled_from((2, 10))),
                draw(st.integers(-0x8000, 0x7FFF)),
                draw(st.integers(1, 70)) if histogram else 1,
                draw(st.integers(1, (1 << 32) - 1)) if kind is Kind.LINEAR_HIST else 0,
            )
        )
    return made


def draw_numbers(layout: Layout, data: st.DataObject) -> list[Number]:
    """Draw integers for a layout, signed ones too."""
    integers = st.integers(-(1 << 63), U64 - 1)
    return [
        data.draw(st.lists(integers, min_size=one.size, max_size=one.size))
        if one.kind in (Kind.LINEAR_HIST, Kind.LOG_HIST)
        else data.draw(integers)
        for one in layout.descriptors
    ]


@settings(max_examples=100, deadline=None)
@given(texts, descriptors(), st.integers(0, 64), st.data())
def test_what_is_encoded_is_decoded(
    id: str, described: list[Descriptor], gap: int, data: st.DataObject
) -> None:
    """All of it comes back; the numbers modulo 2^64; another decoder reads the same."""
    layout = make_layout(id, described)
    layout = make_layout(id, described, layout.data_offset + 8 * gap)
    numbers = draw_numbers(layout, data)
    encoded = encode(Statistics(layout, layout.data(numbers)))
    found = decode(encoded)
    assert found.layout == decode_layout(encoded[: layout.desc_end]) == layout
    ends = list(accumulate((8 * one.size for one in described), initial=0))
    assert [one.offset for one in found.descriptors] == ends[:-1]
    assert layout.data_size == ends[-1]
    unsigned = [[one % U64 for one in as_list(number)] for number in numbers]
    assert [as_list(number) for number in found.numbers] == unsigned
    assert encode(found) == encoded
    read_id, read = read_as_kvm(encoded)
    assert read_id == id
    assert [list(one.numbers) for one in read.values()] == unsigned


def test_a_value_is_described_under_any_name() -> None:
    """An aggregate has a name of its own; all else is the value's."""
    assert describe(VALUES[2]) == Descriptor(
        "wait_ns", Kind.LOG_HIST, Unit.SECONDS, 10, -9, 4, 0, 0
    )
    assert describe(VALUES[0], "exits.max") == Descriptor("exits.max")
    own = Value("own", kind=Kind.HIST, bounds=[1, 2])
    assert describe(own) == Descriptor("own", Kind.CUMULATIVE, size=3)
    _, found = read_as_kvm(render("vm", [("own", own, [1, 2, 3])]))
    assert list(found["own"].numbers) == [1, 2, 3]
