"""BTF: the kernel's own description of its types, as far as the places of members need it.

Owns the format of Documentation/bpf/btf.rst. A module's BTF is "split": its numbers of types and
offsets of names go on where those of vmlinux end, and its references may lead into either.
Threading: pure, once made. It takes about 200 ms to read that of vmlinux, with 127,000 types.
"""

import struct
from pathlib import Path
from typing import Final, Self

from statsfs.exceptions import KvmError

__all__ = ["Btf", "read_kernel_btf"]

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")
_TYPE: Final = struct.Struct("=III")
_MEMBER: Final = struct.Struct("=III")
_STRUCT, _UNION, _FUNCTION = 4, 5, 12
_NAMED: Final = (_STRUCT, _UNION, _FUNCTION)
_ARRAY: Final = 3
_ALIASES: Final = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
_LAST: Final = 19
# What follows a type: bytes, and bytes for each of its members.
_EXTRA: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_EACH: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_DEEP: Final = 32  # a typedef of a typedef …, a struct in a struct …


class Btf:
    """The types of one BTF file.

    Args:
        data: the file.
        base: that of vmlinux, if this is a module's.

    Raises:
        KvmError: it is not BTF of a kind that is known here.
    """

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        self._base = base
        self._types: list[tuple[int, int, bytes, bool]] = []  # kind, size or type, body, flag
        self._named: dict[tuple[int, bytes], int] = {}
        self._first_id = base.next_id if base else 1  # 0 is void
        self._first_name: int = base._end_name if base else 0
        try:
            self._parse(data)
        except (struct.error, ValueError) as error:
            raise KvmError(f"invalid BTF: {error}") from error

    def _parse(self, data: bytes) -> None:
        magic, version, _, size, type_at, type_size, name_at, name_size = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, 1):
            raise KvmError(f"invalid BTF: magic {magic:#x}, version {version}")
        types = data[size + type_at : size + type_at + type_size]
        names = self._names = data[size + name_at : size + name_at + name_size]
        self._end_name = self._first_name + name_size
        at, unpack, first = 0, _TYPE.unpack_from, self._first_name
        while at < len(types):
            name, info, about = unpack(types, at)
            kind, body = info >> 24 & 31, at + _TYPE.size
            if not 1 <= kind <= _LAST:  # how long an unknown one is cannot be known
                raise KvmError(f"invalid BTF: a type of the unknown kind {kind}")
            at = body + _EXTRA.get(kind, 0) + (info & 0xFFFF) * _EACH.get(kind, 0)
            if kind in _NAMED and name >= first:
                start = name - first
                text = names[start : names.index(b"\0", start)]
                self._named.setdefault((kind, text), self._first_id + len(self._types))
            self._types.append((kind, about, types[body:at], bool(info >> 31)))
        if at > len(types):
            raise KvmError("invalid BTF: the last type is cut")

    @property
    def next_id(self) -> int:
        """The number after that of the last type."""
        return self._first_id + len(self._types)

    def _name(self, offset: int) -> bytes:
        if offset < self._first_name:
            assert self._base is not None
            return self._base._name(offset)
        start = offset - self._first_name
        return self._names[start : self._names.find(b"\0", start)]

    def _type(self, number: int) -> tuple[int, int, bytes, bool]:
        if number < self._first_id and self._base is not None:
            return self._base._type(number)
        if not self._first_id <= number < self.next_id:
            raise KvmError(f"invalid BTF: no type {number}")
        return self._types[number - self._first_id]

    def _resolve(self, number: int) -> int:
        for _ in range(_DEEP):
            kind, about, _, _ = self._type(number)
            if kind not in _ALIASES:
                return number
            number = about
        raise KvmError(f"invalid BTF: type {number} has no end")

    def _find(self, kind: int, name: str) -> int:
        # The module's own first: vmlinux may know a struct of a module by a declaration only.
        found = self._named.get((kind, name.encode()))
        if found is not None:
            return found
        if self._base is None:
            raise KvmError(f"the kernel's BTF has no {name!r}", name)
        return self._base._find(kind, name)

    def find_function(self, name: str) -> int:
        """Return the number of a function's type; KvmError if there is none."""
        return self._find(_FUNCTION, name)

    def has_struct(self, name: str) -> bool:
        """Tell whether a struct is described."""
        try:
            self._find(_STRUCT, name)
        except KvmError:
            return False
        return True

    def offset(self, struct_name: str, *path: str) -> int:
        """Return where a member of a struct is, in bytes, or a member of its member.

        Raises:
            KvmError: there is no such struct or member.
        """
        return self._locate(struct_name, path)[0]

    def size(self, struct_name: str, *path: str) -> int:
        """Return how many bytes a member that is a struct has; KvmError if there is none."""
        kind, about, _, _ = self._type(self._resolve(self._locate(struct_name, path)[1]))
        if kind not in (_STRUCT, _UNION):
            raise KvmError(f"the kernel's BTF has no struct {'.'.join(path)} in {struct_name}")
        return about

    def _locate(self, struct_name: str, path: tuple[str, ...]) -> tuple[int, int]:
        offset, number = 0, self._find(_STRUCT, struct_name)
        for name in path:
            found = self._member(self._element(number), name.encode(), _DEEP)
            if found is None:
                raise KvmError(f"the kernel's BTF has no {name!r} in {struct_name!r}", name)
            offset, number = offset + found[0], found[1]
        return offset, number

    def _element(self, number: int) -> int:
        # The struct of which an array has many: the first.
        number = self._resolve(number)
        kind, _, body, _ = self._type(number)
        return self._resolve(_MEMBER.unpack(body)[0]) if kind == _ARRAY else number

    def _member(self, number: int, wanted: bytes, depth: int) -> tuple[int, int] | None:
        # Offset and type; those of anonymous structs and unions are members too.
        kind, _, body, flag = self._type(number)
        if kind not in (_STRUCT, _UNION) or not depth:
            return None
        for at in range(0, len(body), _MEMBER.size):
            name, about, bits = _MEMBER.unpack_from(body, at)
            offset = (bits & 0xFFFFFF if flag else bits) // 8
            text = self._name(name)
            if text == wanted:
                return offset, about
            if not text:
                found = self._member(self._resolve(about), wanted, depth - 1)
                if found is not None:
                    return offset + found[0], found[1]
        return None

    @classmethod
    def read(cls, path: Path, base: "Btf | None" = None) -> Self:
        """Read a file; KvmError says why it cannot be."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise KvmError(f"no BTF: {path}: {error.strerror}", path) from error
        return cls(data, base)


def read_kernel_btf(where: Path = Path("/sys/kernel/btf")) -> Btf:
    """Return vmlinux's BTF, or that of the module kvm on top of it where KVM is a module.

    Raises:
        KvmError: the kernel has none, or none of KVM.
    """
    base = Btf.read(where / "vmlinux")
    if (where / "kvm").exists():
        return Btf.read(where / "kvm", base)
    # KVM is built in; or its structs are in vmlinux too, as in Debian 12, whose module has no BTF.
    if base.has_struct("kvm_vcpu"):
        return base
    raise KvmError(f"no BTF of KVM: neither {where}/kvm nor vmlinux describes its structs", where)
