"""The C header, called from Python: its functions, compiled as C or C++, and values for it."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_uint, c_uint64
from pathlib import Path
from typing import Any, ClassVar

import pytest

import statsfs
from statsfs.model.histograms import find_sums
from statsfs.model.values import Kind, Type, Unit, Value

__all__ = ["COMPILERS", "Header", "HeaderSegment", "compile_c"]

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-pedantic", "-Werror", "-O2"]
COMPILERS = {"c": ["gcc", "-std=c99"], "c++": ["g++", "-std=c++11", "-x", "c++"]}
KINDS = (Kind.CUMULATIVE, Kind.INSTANT, Kind.PEAK, Kind.LINEAR_HIST, Kind.LOG_HIST, Kind.HIST)
TYPES = (Type.U64, Type.BOOL, *(type for type in Type if type not in (Type.U64, Type.BOOL)))
NO_AGGREGATE = 64


def compile_c(language: str, *arguments: str | Path, standard: str = "") -> None:
    """Compile with every warning an error."""
    if shutil.which(COMPILERS[language][0]) is None:
        pytest.skip(f"there is no {COMPILERS[language][0]}: make qemu")
    command = COMPILERS[language]
    if standard:
        command = [command[0], f"-std={standard}", *command[2:]]
    include = ["-I", statsfs.get_include()]
    subprocess.run([*command, *WARNINGS, *include, *arguments], check=True, timeout=100)


class _Value(ctypes.Structure):
    # struct statsfs_value
    _fields_: ClassVar = [
        ("name", c_char_p),
        ("description", c_char_p),
        ("kind", c_uint),
        ("unit", c_uint),
        ("exponent", c_int),
        ("base", c_int),
        ("type", c_uint),
        ("aggregate", c_uint),
        ("mode", c_uint),
        ("hidden", c_int),
        ("size", c_uint),
        ("bucket_size", c_uint),
        ("bounds", POINTER(c_uint64)),
        ("n_bounds", c_uint),
    ]


class _Options(ctypes.Structure):
    # struct statsfs_options
    _fields_: ClassVar = [
        ("directory", c_char_p),
        ("labels", POINTER(c_char_p)),
        ("mode", c_uint),
        ("optional", c_int),
    ]


class _Segment(ctypes.Structure):
    # The public half of struct statsfs_segment.
    _fields_: ClassVar = [("slots", POINTER(POINTER(c_uint64))), ("file", c_char_p)]


class HeaderSegment:
    """What the header has published."""

    def __init__(self, library: Any, pointer: Any) -> None:
        self._library = library
        self._pointer = pointer
        self.slots = pointer.contents.slots

    @property
    def file(self) -> Path | None:
        """The file, or None of private memory."""
        name = self._pointer.contents.file
        return None if name is None else Path(os.fsdecode(name))

    def observe(self, index: int, observed: int) -> None:
        self._library.observe(self._pointer, index, observed)

    def close(self) -> None:
        self._library.end(self._pointer)


def _make_values(values: Sequence[Value]) -> Iterator[_Value]:
    # As a program in C declares them: a histogram has its sum by itself.
    sums = find_sums(values).values()
    for index, value in enumerate(values):
        if index in sums:
            continue
        histogram = value.kind is Kind.LINEAR_HIST or value.kind is Kind.LOG_HIST
        yield _Value(
            name=value.name.encode(),
            description=value.description.encode(),
            kind=KINDS.index(value.kind),
            unit=list(Unit).index(value.unit),
            exponent=value.exponent,
            base=value.base,
            type=TYPES.index(value.type),
            aggregate=value.aggregate.value or NO_AGGREGATE,
            mode=value.mode,
            hidden=value.hidden,
            size=value.size if histogram else 0,
            bucket_size=value.bucket_size,
            bounds=(c_uint64 * len(value.bounds))(*value.bounds),
            n_bounds=len(value.bounds),
        )


class Header:
    """The functions of the header.

    Args:
        language: "c" or "c++".
        directory: where the library is made.
        options: the compiler's.
    """

    def __init__(self, language: str, directory: Path, *options: str) -> None:
        library = directory / "header.so"
        source = Path(__file__).with_suffix(".c")
        compile_c(language, *options, "-shared", "-fPIC", "-o", library, source)
        self._library = ctypes.CDLL(str(library), use_errno=True)
        self._library.publish.restype = POINTER(_Segment)
        self._library.error.restype = c_char_p
        self._library.observe.argtypes = [POINTER(_Segment), c_uint, c_uint64]

    def publish(
        self,
        path: str,
        values: Sequence[Value],
        labels: Sequence[str | None] | None = None,
        *,
        directory: Path | str | None = None,
        mode: int = 0,
        optional: bool = False,
    ) -> HeaderSegment:
        """Publish, or raise an OSError with the header's errno and text."""
        made = list(_make_values(values))
        options = _Options(
            directory=None if directory is None else os.fsencode(directory),
            mode=mode,
            optional=optional,
        )
        if labels is not None:
            texts = [None if label is None else label.encode() for label in labels]
            options.labels = (c_char_p * len(texts))(*texts)
        plain = (directory, labels, mode, optional) == (None, None, 0, False)
        given = None if plain else ctypes.byref(options)
        array = (_Value * len(made))(*made)
        return self._call(path.encode(errors="surrogatepass"), array, len(made), given)

    def publish_raw(self, path: str, directory: Path, **fields: Any) -> HeaderSegment:
        """Publish one value as a program in C would: what is not given is 0."""
        options = _Options(directory=os.fsencode(directory))
        array = (_Value * 1)(_Value(**fields))
        return self._call(path.encode(), array, 1, ctypes.byref(options))

    def _call(self, *arguments: Any) -> HeaderSegment:
        ctypes.set_errno(0)
        pointer = self._library.publish(*arguments)
        if not pointer:
            raise OSError(ctypes.get_errno(), self._library.error().decode(errors="replace"))
        return HeaderSegment(self._library, pointer)
