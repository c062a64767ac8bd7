"""The files of the filesystem without FUSE: opening, reading, writing, and what they keep alive."""

import gc
import logging
import os
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from statsfs.exceptions import ReadOnlyValueError
from statsfs.filesystem.known import ROOT, NoSuchFileError
from statsfs.filesystem.value_files import BrokenValueError, NotZeroError
from statsfs.filesystem.vfs import Vfs
from statsfs.model.values import Aggregate, Kind, Type, Value
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.kernel import Kernel, write
from tests.support.trees import Cpu, add_cpu, make_kvm, subordinate

MODES = (Value("secret", mode=0o600), Value("write_only", mode=0o200))


@pytest.fixture
def kvm(registry: Registry) -> Source:
    """A top-level source with `cpu0` and `cpu1` below it."""
    return make_kvm(registry)


def read_all(kernel: Kernel, path: str) -> bytes:
    """Open a file, read it, close it."""
    handle = kernel.open(kernel.find(path))
    try:
        return kernel.vfs.read(handle, 0, 4096)
    finally:
        kernel.close(handle)


# Reading


def test_reading_is_fixed_at_offset_0(kernel: Kernel, kvm: Source) -> None:
    """Byte by byte is one text; a read at 0 is a new one; other files have their own."""
    cpu = add_cpu(kvm, "cpu2")
    cpu.exits = 123
    vfs, handle = kernel.vfs, kernel.open(kernel.find("kvm/cpu2/exits"))
    other = kernel.open(kernel.find("kvm/cpu2/exits"))
    assert vfs.read(handle, 0, 1) == b"1"
    cpu.exits = 98765
    assert [vfs.read(handle, offset, 1) for offset in range(1, 5)] == [b"2", b"3", b"\n", b""]
    assert vfs.read(other, 2, 2) == b"76"
    assert vfs.read(handle, 0, 4096) == b"98765\n"
    cpu.exits = 0
    assert vfs.read(handle, 1, 4096) == b"8765\n"
    assert vfs.read(other, 0, 4096) == b"0\n"


@given(first=st.integers(0, 10**20), sizes=st.lists(st.integers(1, 7), max_size=12))
def test_pieces_of_a_read_agree(first: int, sizes: list[int]) -> None:
    """Whatever the sizes of its reads and however the number moves, a reader gets one number."""
    registry = Registry()
    source, base = Source("source"), SimpleNamespace(number=first)
    source.add_values([Value("number")], base)
    registry.register(source)
    kernel = Kernel(Vfs(registry))
    handle, text = kernel.open(kernel.find("source/number")), b""
    for size in [*sizes, 4096]:
        text += kernel.vfs.read(handle, len(text), size)
        base.number += 1 + base.number // 2
    assert text == b"%d\n" % (first % 2**64)


def test_texts(kernel: Kernel, kvm: Source) -> None:
    """Decimal numbers with their sign; booleans are 0 or 1; aggregates too."""
    cpu = add_cpu(kvm, "cpu2")
    cpu.exits, cpu.wait, cpu.busy = -1, -12, 7
    texts = {name: read_all(kernel, f"kvm/cpu2/{name}") for name in ("exits", "wait", "busy")}
    assert texts == {"exits": b"%d\n" % (2**64 - 1), "wait": b"-12\n", "busy": b"1\n"}
    files = ("wait.min", "wait.max", "wait.avg", "busy")
    assert [read_all(kernel, f"kvm/{name}") for name in files] == [
        b"-12\n",
        b"0\n",
        b"-4\n",
        b"1\n",
    ]


def test_show(kernel: Kernel, registry: Registry) -> None:
    """Own values, minima and maxima show an enum's text; sums and counts are numbers."""
    kinds = Aggregate.SUM | Aggregate.MIN | Aggregate.MAX | Aggregate.AVG | Aggregate.COUNT_ZERO
    state = [Value("state", Type.U8, kinds, show=["off", "on", "über"].__getitem__)]
    top = Source("top")
    registry.register(top)
    for number in range(3):
        source = Source(str(number))
        source.add_values(state, {"state": number})
        top.add_subordinate(source)
    assert [read_all(kernel, f"top/{i}/state") for i in range(3)] == [
        b"off\n",
        b"on\n",
        "über\n".encode(),
    ]
    texts = [read_all(kernel, f"top/state{x}") for x in ("", ".min", ".max", ".avg", ".count_zero")]
    assert texts == [b"3\n", b"off\n", "über\n".encode(), b"1\n", b"1\n"]


def test_a_broken_base_is_an_error_logged_once(
    kernel: Kernel, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A base that lost its value has no text; the other values, and the directory, go on."""
    source, base = Source("source"), SimpleNamespace(one=1, two=2)
    source.add_values([Value("one"), Value("two")], base)
    registry.register(source)
    handle = kernel.open(kernel.find("source/one"))
    del base.one
    for _ in range(3):
        with pytest.raises(BrokenValueError, match="'one' holds no integer"):
            kernel.vfs.read(handle, 0, 4096)
    base.one = "text"
    with pytest.raises(BrokenValueError):
        read_all(kernel, "source/one")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "source: source: 'one'" in caplog.text
    assert read_all(kernel, "source/two") == b"2\n"
    base.one = 5
    assert kernel.vfs.read(handle, 0, 4096) == b"5\n"


@pytest.mark.parametrize(
    ("show", "kind"),
    [
        (lambda number: {}[number], "KeyError"),
        (lambda number: number, "TypeError"),
        (lambda number: "\udcff", "UnicodeEncodeError"),
    ],
)
def test_a_broken_show_is_an_error_logged_once(
    kernel: Kernel, registry: Registry, caplog: pytest.LogCaptureFixture, show: Any, kind: str
) -> None:
    """A `show` that raises, or returns no text, is the reader's EIO and one line in the log."""
    source = Source("source")
    source.add_values([Value("state", show=show)], {"state": 3})
    registry.register(source)
    for _ in range(3):
        with pytest.raises(BrokenValueError, match="'state'"):
            read_all(kernel, "source/state")
    assert len(caplog.records) == 1
    assert f"show(3) failed: {kind}" in caplog.text


# Opening


def test_open_refuses_what_the_mode_does(kernel: Kernel, kvm: Source) -> None:
    """Whoever asks, root too: the mode says whether a file can be read, and be written."""
    subordinate(kvm, "cpu0").add_values(MODES, {"secret": 1, "write_only": 2})
    vfs = kernel.vfs
    for path, bad in [
        ("busy", (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_ACCMODE)),
        ("cpu0/write_only", (os.O_RDONLY, os.O_RDWR)),
    ]:
        for flags in bad:
            with pytest.raises(ReadOnlyValueError):
                vfs.open(kernel.find(f"kvm/{path}"), flags)
    for path, good in [
        ("busy", (os.O_RDONLY, os.O_RDONLY | os.O_TRUNC)),
        ("cpu0/write_only", (os.O_WRONLY,)),
        ("cpu0/secret", (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND)),
    ]:
        for flags in good:
            kernel.close(kernel.open(kernel.find(f"kvm/{path}"), flags))
    vfs.check_truncate(kernel.find("kvm/exits"))
    vfs.check_truncate(kernel.find("kvm"))
    with pytest.raises(ReadOnlyValueError):
        vfs.check_truncate(kernel.find("kvm/busy"))


def test_gone_files_are_not_opened_and_open_ones_go_on(registry: Registry, kvm: Source) -> None:
    """After a removal: no new open, no name below, no link; but reading and writing go on."""
    kernel = Kernel(Vfs(registry))  # it is not told of changes, as if all was in use
    vfs = kernel.vfs
    cpu = add_cpu(kvm, "cpu2")
    cpu.exits = 5
    file, directory = kernel.find("kvm/cpu2/exits"), kernel.find("kvm/cpu2")
    handle = kernel.open(file, os.O_RDWR)
    kvm.remove_subordinate(subordinate(kvm, "cpu2"))
    cpu.exits = 6
    assert vfs.read(handle, 0, 99) == b"6\n"
    write(vfs, handle, b"0")
    assert cpu.exits == 0
    for refused in (
        lambda: vfs.open(file, os.O_RDONLY),
        lambda: vfs.lookup(directory, b"exits"),
        lambda: vfs.open_directory(directory),
    ):
        with pytest.raises(NoSuchFileError):
            refused()
    assert [vfs.attributes(inode).links for inode in (file, directory)] == [0, 0]
    kernel.close(handle)
    assert vfs.attributes(file).links == 0


def test_aggregates_that_vanish_read_on(kernel: Kernel, kvm: Source) -> None:
    """An open aggregate whose last source left reads 0; its name opens no more."""
    file = kernel.find("kvm/exits")
    handle = kernel.open(file)
    for name in ("cpu0", "cpu1"):
        kvm.remove_subordinate(subordinate(kvm, name))
    assert kernel.vfs.read(handle, 0, 99) == b"0\n"
    with pytest.raises(NoSuchFileError):
        kernel.vfs.open(file, os.O_RDONLY)
    assert kernel.entries(kernel.find("kvm")) == {}


# Writing


def is_zero(data: bytes) -> bool:
    """Tell whether a text clears: docs/architecture.md, "Writing"."""
    text = data.strip(b" \t\n\v\f\r")
    if text[:1] in (b"+", b"-"):
        text = text[1:]
    if text[:2].lower() == b"0x":
        text = text[2:]
    return text != b"" and not text.strip(b"0")


WRITTEN = st.one_of(
    st.from_regex(rb"\A\s*[+-]?(0[xX])?0+\s*\Z"),
    st.text("0xX+- \t\n\v\f\r1", max_size=8).map(str.encode),
    st.binary(max_size=8),
)


@given(WRITTEN)
@example(b"0")
@example(b"0\n")
@example(b"0x0")
@example(b"0X00\n")
@example(b" +0 ")
@example(b"-0")
@example(b"\t\v\f\r000\n\n")
@example(b" " * 5000 + b"0")
@example(b"")
@example(b"00x0")
@example(b"0x")
@example(b"+-0")
@example(b"+ 0")
@example(b"0 0")
@example(b"0\0")
@example(b"0.0")
@example(b"0_0")
@example(b"\xc2\xa00")
@example(b"\x1c0")
@example("٠".encode())
def test_writing(data: bytes) -> None:
    """0 in its spellings clears and is taken whole; anything else changes nothing."""
    registry, source, cpu = Registry(), Source("source"), Cpu()
    cpu.exits = 5
    source.add_values(Cpu, cpu)
    registry.register(source)
    kernel = Kernel(Vfs(registry))
    handle = kernel.open(kernel.find("source/exits"), os.O_WRONLY)
    if is_zero(data):
        write(kernel.vfs, handle, data)
        assert cpu.exits == 0
    else:
        with pytest.raises(NotZeroError):
            write(kernel.vfs, handle, data)
        assert cpu.exits == 5


def test_writing_an_aggregate_clears_all_that_it_covers(kernel: Kernel, kvm: Source) -> None:
    """Any file of the aggregate does; other values stay."""
    below = [add_cpu(kvm, f"more{number}") for number in range(3)]
    for name, value in (("wait.max", "wait"), ("exits", "exits")):
        for cpu in below:
            cpu.exits = cpu.wait = cpu.busy = 7
        handle = kernel.open(kernel.find(f"kvm/{name}"), os.O_WRONLY)
        write(kernel.vfs, handle, b"0\n")
        kernel.close(handle)
        left = {"exits", "wait", "busy"} - {value}
        assert all(getattr(cpu, value) == 0 for cpu in below)
        assert all(getattr(cpu, name) == 7 for cpu in below for name in left)


def test_a_base_that_refuses(kernel: Kernel, registry: Registry) -> None:
    """Clearing an own value of such a base is an error; it stays as it was."""
    source = Source("source")
    source.add_values([Value("one")], (type("Frozen", (tuple,), {"one": property(len)}))("abc"))
    registry.register(source)
    handle = kernel.open(kernel.find("source/one"), os.O_RDWR)
    with pytest.raises(ReadOnlyValueError):
        write(kernel.vfs, handle, b"0")
    assert kernel.vfs.read(handle, 0, 99) == b"3\n"


# What open files, and what the kernel knows, keep alive


class Referable(SimpleNamespace):
    """A base that can be referred to weakly."""


def test_an_open_file_holds_its_source(registry: Registry) -> None:
    """Until it is closed the base is there and counts; then it goes at once."""
    kernel = Kernel(Vfs(registry))
    registry.add_listener(kernel)
    source, base = Source("source"), Referable(number=1)
    source.add_values([Value("number")], base)
    registry.register(source)
    handles = [kernel.open(kernel.find("source/number")) for _ in range(2)]
    assert source.refcount == 4
    source.put()
    registry.unregister(source)
    seen = weakref.ref(base)
    base.number = 2
    del base
    assert [kernel.vfs.read(handle, 0, 99) for handle in handles] == [b"2\n"] * 2
    kernel.close(handles[0])
    assert kernel.vfs.read(handles[1], 0, 99) == b"2\n"
    kernel.close(handles[1])
    assert seen() is None


def test_memory_is_free_after_forget(registry: Registry) -> None:
    """A subtree that was looked up, listed, opened and removed leaves nothing behind."""
    kernel = Kernel(Vfs(registry))
    registry.add_listener(kernel)
    seen = []
    for _ in range(3):
        kvm = make_kvm(registry)
        cpu = subordinate(kvm, "cpu0")
        seen += [weakref.ref(kvm), weakref.ref(cpu)]
        kernel.walk()
        kernel.hold(kernel.find("kvm/cpu0"))
        handle = kernel.open(kernel.find("kvm/cpu0/exits"))
        held = kernel.find("kvm/cpu0")
        kvm.put()
        registry.unregister(kvm)
        del kvm, cpu
        kernel.close(handle)
        kernel.release(held)
    gc.collect()
    assert [source() for source in seen] == [None] * 6
    assert kernel.names == {}


def test_close_all(registry: Registry) -> None:
    """At the end of a mount nothing is held any more, whatever was open; the root can be used."""
    kernel = Kernel(Vfs(registry))
    kvm = make_kvm(registry)
    file = kernel.find("kvm/exits")
    for _ in range(3):
        kernel.open(file)
    kernel.vfs.open_directory(kernel.find("kvm"))
    assert kvm.refcount == 5
    kernel.vfs.close_all()
    assert kvm.refcount == 2
    with pytest.raises(NoSuchFileError):
        kernel.vfs.attributes(file)
    assert kernel.vfs.attributes(ROOT).links == 3
    assert kernel.vfs.lookup(ROOT, b"kvm").links == 4


def test_a_histogram(kernel: Kernel, registry: Registry) -> None:
    """A line for each bucket that is not empty; the size has room for the longest text."""
    source = Source("disk")
    wide = Value("wide", kind=Kind.LOG_HIST, size=64, aggregate=Aggregate.SUM)
    vast = Value("vast", kind=Kind.LINEAR_HIST, size=1000, bucket_size=10**6)
    own = Value("own", kind=Kind.HIST, bounds=[100, 300])
    base = {"wide": [0, 2, 0, 5] + [0] * 60, "vast": [2**64 - 1] * 1000, "own": [1, 2, 3]}
    source.add_values([wide, vast, own], base)
    registry.register(source)
    assert read_all(kernel, "disk/wide") == b"1 2\n4 5\n"
    assert read_all(kernel, "disk/own") == b"0 1\n101 2\n301 3\n"
    sizes = [kernel.vfs.attributes(kernel.find(f"disk/{name}")).size for name in ("wide", "vast")]
    assert [size % 4096 for size in sizes] == [0, 0]
    handle = kernel.open(kernel.find("disk/vast"))
    assert 4096 < len(kernel.vfs.read(handle, 0, 1 << 20)) <= sizes[1]
    kernel.close(handle)
