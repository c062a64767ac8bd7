"""The examples in docstrings: which public objects there are, and what runs their examples.

An example uses the names of `statsfs` as after `from statsfs import *`. It runs in an empty
directory that has a directory `segments`; `stats_fd` reads as the statistics descriptor of a vCPU
with 102 exits. As a program this runs the examples of the objects that are its arguments.
"""

import contextlib
import doctest
import importlib
import inspect
import io
import os
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import statsfs
from statsfs.formats.binary import decode

__all__ = ["MEMBERS", "NAMES", "document_of", "examples_of", "find", "run_examples"]

_STATISTICS = Path(__file__).parent.parent / "data" / "kvm_vcpu.stats.bin"

# What the manual names besides `statsfs.__all__`.
_OTHERS = (
    "statsfs.MetricsServer",
    "statsfs.exceptions.KvmError",
    "statsfs.exceptions.SampleError",
    "statsfs.formats.prometheus.render",
    "statsfs.kvm.KvmStats",
    "statsfs.kvm.host.KvmHost",
    "statsfs.kvm.qemu.QemuMonitor",
)

NAMES = (*(f"statsfs.{name}" for name in statsfs.__all__), *_OTHERS)
"""All public objects, as a program imports them."""

# What other rooms of the package need of a public class: the manual does not name it.
_INTERNAL = {
    "Collector": "follow go_on halt hold prepare settle start_held",
    "KvmHost": "go_on",
    "MetricsServer": "leave listener pause resume",
    "QemuMonitor": "adopt begin go_on hold keep leave",
    "Registry": "add_listener notify remove_listener tell tell_no_more",
    "Samples": "decode entries",
    "Snapshot": "decoded find_silent",
}


def find(name: str) -> Any:
    """Return the object of a dotted name."""
    owner: Any = statsfs
    for part in name.split(".")[1:]:
        if inspect.ismodule(owner) and not hasattr(owner, part):
            importlib.import_module(f"{owner.__name__}.{part}")
        if inspect.isclass(owner):
            owner = inspect.getattr_static(owner, part)
        else:
            owner = getattr(owner, part)
    return owner


def _members_of(name: str) -> Iterator[str]:
    # Methods and properties of a public class, also those of its bases in the package.
    cls = find(name)
    if not inspect.isclass(cls):
        return
    internal = _INTERNAL.get(cls.__name__, "").split()
    for base in cls.__mro__:
        for member, item in vars(base).items() if base.__module__.startswith("statsfs") else ():
            callable = inspect.isfunction(item) or isinstance(item, property | classmethod)
            if callable and not member.startswith("_") and member not in internal:
                yield f"{name}.{member}"


MEMBERS = tuple(dict.fromkeys(member for name in NAMES for member in _members_of(name)))
"""The public methods and properties of public classes, in the same way."""


def document_of(name: str) -> str:
    """Return the docstring of an object, without its indentation; "" where there is none."""
    return inspect.getdoc(find(name)) or ""


def examples_of(name: str) -> list[doctest.Example]:
    """Return the examples in the docstring of an object."""
    return doctest.DocTestParser().get_examples(document_of(name), name)


def run_examples(name: str, more: Mapping[str, Any] | None = None) -> None:
    """Run the examples of an object; an AssertionError has the report of those that fail."""
    names = {"__name__": "__main__", **{one: getattr(statsfs, one) for one in statsfs.__all__}}
    public = find(name if name in NAMES else name.rpartition(".")[0])
    names[public.__name__] = public
    report = io.StringIO()
    with _surroundings() as fd:
        names["stats_fd"] = fd
        test = doctest.DocTestParser().get_doctest(document_of(name), names, name, None, None)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        failed, _ = runner.run(test, out=report.write)
    assert not failed, report.getvalue()


@contextlib.contextmanager
def _surroundings() -> Iterator[int]:
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.mkdir("segments", 0o700)
        with tempfile.TemporaryFile() as file:
            file.write(_make_statistics())
            file.flush()
            yield file.fileno()


def _make_statistics() -> bytes:
    statistics = bytearray(_STATISTICS.read_bytes())
    decoded = decode(statistics)
    (exits,) = (one for one in decoded.descriptors if one.name == "exits")
    struct.pack_into("=Q", statistics, decoded.layout.data_offset + exits.offset, 102)
    return bytes(statistics)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run_examples(argument)
