"""The file of a segment: round trips, what a producer may leave out, and what is refused."""

import struct
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsfs.exceptions import FormatError, InvalidNameError
from statsfs.formats import binary
from statsfs.formats.metric_names import make_label
from statsfs.model.histograms import find_sums
from statsfs.model.values import Aggregate, Kind, Type, Unit, Value
from statsfs.segments import file_format
from statsfs.segments.file_format import (
    COMPONENTS_MAX,
    FILE_MAX,
    MAGIC,
    VALUES_MAX,
    SegmentMetadata,
    decode,
    encode,
)
from tests.formats.test_binary import read_as_kvm
from tests.support.strategies import recipes

DUMP = (Path(__file__).parent.parent / "data" / "kvm_vm.stats.bin").read_bytes()
VALUES = (
    Value("requests", aggregate=Aggregate.SUM, description="Requests – answered"),
    Value("busiest", Type.S32, Aggregate.MAX | Aggregate.AVG, kind=Kind.PEAK, hidden=True),
    Value("late", kind=Kind.LINEAR_HIST, size=3, bucket_size=10, unit=Unit.SECONDS, exponent=-9),
    Value("open", Type.U16, mode=0o400, kind=Kind.INSTANT, unit=Unit.BYTES, base=2, exponent=10),
)
NUMBERS = (7, (1 << 64) - 1, [1, 2, 3], 0)


def decoded(encoded: bytes) -> SegmentMetadata:
    head = decode(encoded)
    assert head is not None
    return head


def make(said: bytes, descriptors: int = 1, reserved: int = 0, claimed: int | None = None) -> bytes:
    """A file of values `v0`, … with a test's JSON, sound in all else."""
    described = [binary.Descriptor(f"v{number}") for number in range(descriptors)]
    start = binary.make_layout("a/b", described).desc_end
    data_offset = -(-(start + 16 + len(said)) // 64) * 64
    layout = binary.make_layout("a/b", described, data_offset=data_offset)
    lengths = struct.pack("=II", len(said) if claimed is None else claimed, reserved)
    block = (MAGIC + lengths + said).ljust(data_offset - start, b"\0")
    return layout.head() + block + bytes(-(-layout.data_size // 64) * 64)


# Round trips


def test_a_file_has_all_that_was_said() -> None:
    """Path, labels, values and numbers come back; blocks are where the format says."""
    encoded = encode("app/worker-1", VALUES, ("app", None), numbers=NUMBERS)
    head = decoded(encoded)
    assert (head.path, head.components) == ("app/worker-1", ("app", "worker-1"))
    assert head.labels == ("app", None)
    assert head.values == VALUES
    assert head.layout.numbers(encoded[head.data_offset :]) == NUMBERS
    assert head.data_offset % 64 == head.data_size % 64 == 0
    assert len(encoded) == head.size == head.data_offset + 64
    assert struct.unpack_from("=6I", encoded) == (0, 48, 4, 24, 72, head.data_offset)
    assert encoded[72 + 4 * 64 :].startswith(MAGIC)


def test_a_decoder_written_for_kvm_reads_it() -> None:
    """It follows the header and the descriptors, and never sees the block."""
    id, found = read_as_kvm(encode("app/worker-1", VALUES, numbers=NUMBERS))
    assert id == "app/worker-1"
    assert {name: list(one.numbers) for name, one in found.items()} == {
        "requests": [7],
        "busiest": [(1 << 64) - 1],
        "late": [1, 2, 3],
        "open": [0],
    }
    assert binary.decode(encode("x", VALUES)).numbers == (0, 0, [0, 0, 0], 0)


def test_histograms_with_bounds_of_their_own() -> None:
    """To KVM's decoders they are several counters; the block has their bounds."""
    values = (
        Value("times", Type.U32, kind=Kind.HIST, bounds=[100, 300, (1 << 64) - 1], mode=0o600),
        Value("n"),
    )
    encoded = encode("x", values, numbers=([1, 2, 3, 4], 5))
    assert decoded(encoded).values == values
    _, found = read_as_kvm(encoded)
    assert list(found["times"].numbers) == [1, 2, 3, 4]
    descriptor = binary.decode(encoded).descriptors[0]
    assert (descriptor.kind, descriptor.size, descriptor.bucket_size) == (Kind.CUMULATIVE, 4, 0)


def test_a_sum_is_known_by_its_place() -> None:
    """A producer in another language writes two values."""
    values = (
        Value("late", kind=Kind.LOG_HIST, size=4, unit=Unit.SECONDS, aggregate=Aggregate.SUM),
        Value("late.sum", unit=Unit.SECONDS, aggregate=Aggregate.SUM),
    )
    assert find_sums(decoded(encode("x", values)).values) == {0: 1}


def test_a_long_path_or_name_makes_the_fields_longer() -> None:
    """All of them have the next multiple of 8 in which the longest has room for its NUL."""
    for length, size in ((47, 48), (48, 56), (255, 256)):
        encoded = encode("x" * length, VALUES)
        assert struct.unpack_from("=I", encoded, 4) == (size,)
        assert decoded(encoded).path == "x" * length
    assert decoded(encode("x", [Value("y" * 100)])).values[0].name == "y" * 100


def test_equal_files_share_what_is_equal() -> None:
    """Ten thousand workers of one program have one array, and not one each."""
    one, other = (decoded(encode(f"app/{name}", VALUES)) for name in ("a", "b"))
    assert one.values is other.values
    assert one.layout is other.layout
    assert one != other


ID = "0123456789abcdef"


def test_files_that_differ_in_their_ids_share_what_is_equal() -> None:
    """Each has its own id, and they have one tuple of values."""
    ids = (ID, ID[::-1], "0" * 16)
    heads = [decoded(encode("app/a", VALUES, id=text)) for text in ids]
    assert tuple(head.id for head in heads) == ids
    assert len({id(head.values) for head in heads}) == 1
    assert decoded(encode("app/a", VALUES)).id is None


@pytest.mark.parametrize(
    ("said", "id"),
    [
        ('{"id":"0123456789abcdef"}', ID),
        ('{ "id" : "A-b9" , "values": {}}', "A-b9"),
        ('{"values": {}, "id":"0123456789abcdef"}', ID),
        ('{"id":"0123456789abcdef","id":"other"}', "other"),
        ('{"id":"0123456789abcdef","values":{"v0":{"id":"fedcba9876543210"}}}', ID),
        ('{"id": null}', None),
        ('{"values": {"id": {}}}', None),
    ],
)
def test_an_id_wherever_it_is_in_the_json(said: str, id: str | None) -> None:
    """Any program may write the keys in any order, and twice."""
    assert decoded(make(said.encode())).id == id


@pytest.mark.parametrize(
    "said", ['""', "5", "[]", '"a.b"', '"a:b"', '"\\ud800"', f'"{"x" * 65}"', '"a\\n"']
)
def test_what_is_no_id(said: str) -> None:
    """It is refused: its segment could not be told from others."""
    with pytest.raises(FormatError, match="1 to 64 letters"):
        decode(make(f'{{"id": {said}}}'.encode()))


def test_large_heads_are_not_kept() -> None:
    """The metadata of megabytes is freed with its last user."""
    encoded = encode("x", [Value(f"v{number}") for number in range(1200)])
    assert decoded(encoded).values is not decoded(encoded).values


names = st.text(
    st.characters(categories=("L", "M", "N", "P", "S", "Zs"), exclude_characters="/."), min_size=1
)


@settings(max_examples=60, derandomize=True)
@given(
    recipe=recipes().filter(lambda recipe: not recipe.has_offsets),
    components=st.lists(names.map(lambda name: name[:40]), min_size=1, max_size=8),
    data=st.data(),
)
def test_whatever_is_encoded_is_decoded(recipe: Any, components: list[str], data: Any) -> None:
    """Any values with names of their own, any path, any labels, any numbers."""
    values = {value.name: value for value in recipe.values()}.values()
    labels = data.draw(st.lists(st.none() | names.map(lambda name: name[:40]),
                                min_size=len(components), max_size=len(components)))  # fmt: skip
    integers = st.integers(0, (1 << 64) - 1)
    numbers = tuple(
        data.draw(st.lists(integers, min_size=value.size, max_size=value.size))
        if value.histogram
        else data.draw(integers)
        for value in values
    )
    encoded = encode("/".join(components), tuple(values), labels, numbers=numbers)
    head = decoded(encoded)
    shown = [label if label is None else make_label(label) for label in labels]
    assert (head.components, list(head.labels)) == (tuple(components), shown)
    assert head.values == tuple(values)
    assert head.layout.numbers(encoded[head.data_offset :]) == numbers


# What may be left out


@pytest.mark.parametrize(
    "said",
    ["{}", '{"values": {}}', '{"values": {"v0": {}}, "labels": null}',
     '{"values": {"v0": {"type": null, "mode": null}, "other": 3}, "future": [[]]}'],
)  # fmt: skip
def test_everything_in_the_json_has_a_default(said: str) -> None:
    """The default is a u64 with a sum, 0644, without labels."""
    head = decoded(make(said.encode()))
    assert head.values == (Value("v0", Type.U64, Aggregate.SUM, 0o644),)
    assert head.labels == (None, None)


def test_the_defaults_follow_the_kind() -> None:
    """A peak's total is the largest, and what is INSTANT cannot be cleared."""
    values = [Value("a", kind=Kind.PEAK), Value("b", kind=Kind.INSTANT), Value("c", size=2,
              kind=Kind.LOG_HIST)]  # fmt: skip
    encoded = encode("x", values)
    start = encoded.index(b"{")
    size = struct.unpack_from("=I", encoded, start - 8)[0]
    bare = encoded[: start - 8] + struct.pack("=II", 2, 0) + b"{}".ljust(size, b"\0")
    head = decoded(bare + encoded[start + size :])
    assert [value.aggregate for value in head.values] == [
        Aggregate.MAX,
        Aggregate.SUM,
        Aggregate.SUM,
    ]
    assert [value.mode for value in head.values] == [0o644, 0o444, 0o644]


def test_no_aggregate_at_all_can_be_said() -> None:
    """An empty list means no aggregate; without a list there is the default."""
    said = b'{"values": {"v0": {"aggregate": []}}}'
    assert decoded(make(said)).values == (Value("v0"),)


# Other files than segments


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"", "^0 bytes, fewer than the 24 of the header$"),
        (b"short", "^5 bytes, fewer than the 24 of the header$"),
        (DUMP, "^not a segment: no magic at "),
        (bytes(64), "^not a segment: no magic at 0$"),
        (b"\xff" * 4096, "^truncated: 4294967295 descriptors end at .*, the file at 4096$"),
        (encode("x", VALUES)[:100], "^truncated: 4 descriptors end at 328, the file at 100$"),
        (encode("x", VALUES)[: 24 + 48 + 4 * 64 + 7], "^truncated: .* the file at 335$"),
        (encode("x", VALUES)[: 24 + 48 + 4 * 64 + 12], "^truncated: .* the file at 340$"),
        (encode("x", VALUES).replace(MAGIC, b"statsfs\2"), "^version 2, not 1$"),
        (encode("x", VALUES).replace(MAGIC, b"statsfs\0"), "^version 0, not 1$"),
        (encode("x", VALUES).replace(MAGIC, b"\0" + MAGIC), "^the magic is at 329, .* at 328$"),
        (MAGIC + encode("x", VALUES)[8:], "^the magic is at 0, but "),
        (b"a text that is longer than the header", "^truncated: "),
    ],
    ids=["empty", "short", "a kernel's", "zeros", "ones", "truncated", "in the magic",
         "in the block", "version 2", "version 0", "a byte too far", "in front", "a text"],
)  # fmt: skip
def test_what_has_no_block_of_ours_says_why(encoded: bytes, words: str) -> None:
    """Such files were ignored in silence: no hint for a producer in another language."""
    with pytest.raises(FormatError, match=words) as raised:
        decode(encoded)
    assert "\n" not in str(raised.value)


# What is refused


def patched(offset: int, *numbers: int) -> bytes:
    """A sound file with other numbers somewhere in its first bytes."""
    encoded = bytearray(make(b"{}", 2))
    struct.pack_into(f"={len(numbers)}I", encoded, offset, *numbers)
    return bytes(encoded)


REFUSED: dict[str, tuple[bytes, str]] = {
    "flags": (patched(0, 1), "flags"),
    "id elsewhere": (patched(12, 32), "invalid id_offset 32"),
    "data not at 64": (patched(20, 216), "invalid data_offset 216"),
    "data in the block": (patched(20, 192), "invalid data_offset 192"),
    "data behind the end": (patched(20, 1 << 31), "invalid data_offset"),
    "no data": (make(b"{}")[:-8], "the data ends at"),
    "data at the end of memory": (patched(72 + 8, 0xFFFFFFF8), "the data ends at"),
    "offset not at 8": (patched(72 + 8, 4), "at offset 4"),
    "overlap": (patched(72 + 8, 8), "overlaps"),
    "a size of none": (patched(72 + 4, 0), "0 integers"),
    "unknown kind": (patched(72, 15), "unknown flags"),
    "a name twice": (make(b"{}", 2).replace(b"v1\0", b"v0\0"), "twice"),
    "a name with /": (make(b"{}").replace(b"v0\0", b"v/\0"), "control character"),
    "a hidden name": (make(b"{}").replace(b"v0\0", b".v\0"), r"starts with"),
    "a name without end": (make(b"{}").replace(b"v0".ljust(48, b"\0"), b"v" * 48), "no NUL"),
    "a log_hist of 66": (patched(72 + 64, 4, 66 << 16), "size is 66"),
    "no path": (make(b"{}").replace(b"a/b\0", bytes(4)), "invalid path"),
    "a path without end": (make(b"{}").replace(b"a/b".ljust(48, b"\0"), b"a" * 48), "invalid path"),
    "a path of ..": (make(b"{}").replace(b"a/b\0", b"../\0"), "invalid path"),
    "an absolute path": (make(b"{}").replace(b"a/b\0", b"/ab\0"), "invalid path"),
    "a path that is no text": (make(b"{}").replace(b"a/b\0", b"a/\xff\0"), "invalid path"),
    "a path with a newline": (make(b"{}").replace(b"a/b\0", b"a\nb\0"), "invalid path"),
    "nine components": (
        make(b"{}").replace(b"a/b".ljust(48, b"\0"), b"a/b/c/d/e/f/g/h/i".ljust(48, b"\0")),
        "9 components",
    ),
    "reserved": (make(b"{}", reserved=1), "invalid JSON size 2, or reserved 1"),
    "a size beyond the block": (make(b"{}", claimed=1 << 31), "invalid JSON size"),
    "no text": (make(b'"\xff"'), "invalid JSON"),
    "no JSON": (make(b"{"), "invalid JSON"),
    "a list": (make(b"[]"), "not an object"),
    "too deep": (make(b"[" * 100_000), "invalid JSON: .*(recursion|Stack overflow)"),
    "an endless integer": (make(b'{"a":' + b"1" * 5000 + b"}"), "5000 digits"),
    "values no object": (make(b'{"values": []}'), "not an object"),
    "a value no object": (make(b'{"values": {"v0": 3}}'), "'v0': the description is not an object"),
    "labels no list": (make(b'{"labels": "ab"}'), "\"labels\" is not a list"),
    "many labels": (make(b'{"labels": [1, 2, 3, 4, 5, 6, 7, 8, 9]}'), "\"labels\" is not a list"),
    "a label too many": (make(b'{"labels": ["a", "b", "c"]}'), "3 labels for 2 components"),
    "a label no text": (make(b'{"labels": ["a", 1]}'), "a label must be a str"),
    "a label no name": (make(b'{"labels": ["a", "/"]}'), "a label '/'"),
    "a long description": (make(
        b'{"values": {"v0": {"description": "%s"}}}' % (b"x" * 4097)), "more than 4096"),
    "a lone surrogate": (make(b'{"values": {"v0": {"description": "\\ud800"}}}'), "surrogates"),
}  # fmt: skip
for key, wrong in {
    "type": ['"u128"', "1", "[]"],
    "aggregate": ['["median"]', '"sum"', "[[]]", "3"],
    "mode": ["511", "-1", "true", '"0644"'],
    "description": ["1", "[" * 500 + "]" * 500],
    "hidden": ["1", '"yes"'],
    "bounds": ["1", "[]", "[1]", "[0.5]", "[true]", "[" * 500 + "]" * 500],
}.items():
    for text in wrong:
        said = '{"values": {"v0": {"%s": %s}}}' % (key, text)  # noqa: UP031 - braces of JSON
        REFUSED[f"{key} {text[:9]}"] = (make(said.encode()), "v0")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_in_a_segment_is_refused_in_one_line(name: str) -> None:
    """Whatever a stranger wrote, the message says what is wrong and is short."""
    encoded, message = REFUSED[name]
    with pytest.raises(FormatError, match=message) as caught:
        decode(encoded)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_file_is_limited() -> None:
    """1 MiB, 4,096 values: the last that are taken, and the first that are not."""
    encoded = encode("x", [Value(f"v{number}") for number in range(VALUES_MAX)])
    assert len(decoded(encoded).values) == VALUES_MAX
    with pytest.raises(FormatError, match="4097 values"):
        decode(make(b"{}", VALUES_MAX + 1))
    # Two that are as large as they can be need 1 MiB, and the head some more.
    whole = decoded(encoded).size
    grown = encoded.ljust(FILE_MAX, b"\0")
    assert decoded(grown).size == whole
    with pytest.raises(FormatError, match="1048577 bytes, not at most 1048576"):
        decode(grown + b"\0")


def test_a_million_values_cost_nothing() -> None:
    """The count is compared before anything is decoded: no descriptor is looked at."""
    encoded = make(b"{}", 40_000)
    with pytest.raises(FormatError, match="40000 values"):
        decode(encoded)


def test_encoding_refuses_what_decoding_does() -> None:
    """One set of rules: a producer learns at once what no collector would take."""
    large = [Value(f"h{i}", kind=Kind.LINEAR_HIST, size=65_535, bucket_size=1) for i in range(3)]
    with pytest.raises(FormatError, match="bytes, not at most"):
        encode("x", large)
    for values in ([], [Value(f"v{number}") for number in range(VALUES_MAX + 1)]):
        with pytest.raises(FormatError, match=f"{len(values)} values"):
            encode("x", values)
    with pytest.raises(FormatError, match="twice"):
        encode("x", [Value("a"), Value("a", hidden=True)])
    with pytest.raises(FormatError, match="invalid JSON"):
        encode("x", [Value("a", description="\ud800")])
    with pytest.raises(FormatError, match="2 labels for 1 component of"):
        encode("x", VALUES, ("a", "b"))
    with pytest.raises(FormatError, match=f"{COMPONENTS_MAX + 1} components"):
        encode("a/" * COMPONENTS_MAX + "b", VALUES)
    for path in ("", "/a", "a/", "a//b", "../a", ".a", "a/\n", "\ud800", 3, None):
        with pytest.raises(InvalidNameError, match="a component of a path"):
            encode(path, VALUES)  # type: ignore[arg-type]  # that is the question


SOUND = encode("app/worker-1", VALUES, ("app", "worker"), numbers=NUMBERS)


@settings(max_examples=300, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=8
    ),
    st.integers(0, len(SOUND)),
)
def test_damaged_files_are_refused_or_decoded(damage: list[tuple[int, int]], end: int) -> None:
    """Whatever is changed, nothing but FormatError is raised, and what is decoded is whole."""
    encoded = bytearray(SOUND)
    for offset, byte in damage:
        encoded[offset] = byte
    for file in (bytes(encoded), bytes(encoded[:end])):
        try:
            head = decode(file)
        except FormatError:
            continue
        assert head.layout.numbers(file[head.data_offset :])
        assert 1 <= len(head.components) == len(head.labels) <= COMPONENTS_MAX


def test_every_byte_of_the_header_may_be_wrong() -> None:
    """The numbers that say where everything is, one by one, at their edges."""
    for field, number in product(range(6), (0, 1, 7, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8)):
        encoded = bytearray(SOUND)
        struct.pack_into("=I", encoded, 4 * field, number)
        try:
            head = decode(bytes(encoded))
        except FormatError:
            continue
        assert head == decode(SOUND)


def test_the_documented_limits_are_those_of_the_module() -> None:
    """What the specification says."""
    assert (FILE_MAX, VALUES_MAX, COMPONENTS_MAX) == (1024 * 1024, 4096, 8)
    assert file_format.MAGIC == b"statsfs\x01"
