"""Stand-ins for statistics descriptors: a kernel's own bytes in ordinary files.

What /dev/kvm would tell is in `data/`: the descriptors of one VM and one vCPU of Linux 6.18.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from statsfs.formats.binary import Descriptor, Layout, Number, Statistics, decode, encode
from statsfs.model.values import Kind, Value

__all__ = ["DESCRIBED", "DUMPS", "KvmFile", "shapes"]

DUMPS = {
    section: (Path(__file__).parent.parent / "data" / f"kvm_{section}.stats.bin").read_bytes()
    for section in ("vm", "vcpu")
}
DESCRIBED: dict[str, tuple[Descriptor, ...]] = {
    section: decode(dump).descriptors for section, dump in DUMPS.items()
}


class KvmFile:
    """A file that is read as a statistics descriptor would be, and counts as it is told.

    Args:
        path: where it is made.
        section: "vm" or "vcpu".
    """

    def __init__(self, path: Path, section: str = "vcpu") -> None:
        self.path = path
        self.layout: Layout = decode(DUMPS[section]).layout
        self._names = [one.name for one in self.layout.descriptors]
        self.count()

    def count(self, **numbers: Number) -> None:
        """Let some numbers be what they are said to be, and all others 0."""
        unknown = numbers.keys() - set(self._names)
        assert not unknown, unknown
        zeros = ([0] * one.size if one.size > 1 else 0 for one in self.layout.descriptors)
        row = dict(zip(self._names, zeros, strict=True)) | numbers
        self.write(encode(Statistics(self.layout, self.layout.data(list(row.values())))))

    def write(self, *parts: bytes | Iterable[int]) -> None:
        """Replace all of it, in place: descriptors that are open see it."""
        with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
            file.write(b"".join(map(bytes, parts)))
            file.truncate()


def shapes(values: Sequence[Value]) -> dict[str, tuple[Any, ...]]:
    """All but the mode of peaks: the mock's own can be cleared, a kernel's cannot."""
    return {
        value.name: (
            value.type,
            value.aggregate,
            None if value.kind is Kind.PEAK else value.mode,
            value.kind,
            value.unit,
            value.base,
            value.exponent,
            value.size,
            value.bucket_size,
            value.description,
        )
        for value in values
    }
