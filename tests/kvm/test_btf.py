"""BTF: this kernel's own, that of a module, and what is none."""

import struct
from pathlib import Path

import pytest

from statsfs.exceptions import KvmError
from statsfs.kvm.btf import Btf, read_kernel_btf

needs_btf = pytest.mark.skipif(
    not Path("/sys/kernel/btf/vmlinux").exists(), reason="a kernel without BTF"
)


class Maker:
    """Makes BTF; each method returns the number of the type that it adds."""

    def __init__(self, base: "Maker | None" = None) -> None:
        self.names = b"" if base else b"\0"
        self.types: list[bytes] = []
        self.first_name: int = len(base.names) if base else 0
        self.first_type: int = base.first_type + len(base.types) if base else 1

    def add(
        self, kind: int, name: str, about: int, *body: int, vlen: int = 0, flag: int = 0
    ) -> int:
        at = 0
        if name:
            at = self.first_name + len(self.names)
            self.names += name.encode() + b"\0"
        info = flag << 31 | kind << 24 | vlen
        self.types.append(struct.pack(f"={3 + len(body)}I", at, info, about, *body))
        return self.first_type + len(self.types) - 1

    def integer(self, size: int) -> int:
        return self.add(1, f"u{8 * size}", size, 0)

    def struct(self, name: str, size: int, *members: tuple[str, int, int], flag: int = 0) -> int:
        body = []
        for member, about, offset in members:
            at = 0
            if member:
                at = self.first_name + len(self.names)
                self.names += member.encode() + b"\0"
            body += [at, about, offset * 8]
        return self.add(4, name, size, *body, vlen=len(members), flag=flag)

    def done(self) -> bytes:
        types = b"".join(self.types)
        head = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.names)
        )
        return head + types + self.names


@needs_btf
def test_this_kernels_own() -> None:
    """What KVM's structs have is found, also in members of members, arrays and unions."""
    btf = read_kernel_btf()
    assert btf.offset("bpf_iter__task_file", "task") == 8
    assert btf.offset("pid", "numbers", "nr") >= btf.offset("pid", "level")
    assert btf.offset("kvm_vcpu", "stat") > btf.offset("kvm_vcpu", "vcpu_id") > 0
    assert btf.size("kvm", "stat") % 8 == 0
    assert btf.find_function("bpf_iter_task_file") > 0
    for path in (("kvm", "nothing"), ("nothing",), ("kvm", "stat", "nothing")):
        with pytest.raises(KvmError, match="the kernel's BTF has no 'nothing'"):
            btf.offset(*path)
    with pytest.raises(KvmError, match="no struct vcpu_id in kvm_vcpu"):
        btf.size("kvm_vcpu", "vcpu_id")


def make_files(tmp_path: Path) -> Path:
    """BTF of a vmlinux that knows only the name of a struct, and of a module that has it."""
    vmlinux = Maker()
    word = vmlinux.integer(8)
    vmlinux.struct("list", 8, ("next", word, 0))
    (tmp_path / "vmlinux").write_bytes(vmlinux.done())
    module = Maker(vmlinux)
    stat = module.struct("kvm_stat", 24, ("exits", word, 16))
    alias = module.add(8, "kvm_stat_t", stat)
    const = module.add(10, "", alias)
    inner = module.struct("", 32, ("stat", const, 8))
    array = module.add(3, "", 0, inner, word, 4)
    module.struct("kvm_vcpu", 256, ("id", word, 0), ("", inner, 32), ("all", array, 64), flag=1)
    (tmp_path / "kvm").write_bytes(module.done())
    return tmp_path


def test_a_modules(tmp_path: Path) -> None:
    """Its numbers and names go on where vmlinux's end, and lead into either."""
    btf = read_kernel_btf(make_files(tmp_path))
    assert btf.offset("kvm_vcpu", "stat") == 40
    assert btf.offset("kvm_vcpu", "stat", "exits") == 56
    assert btf.offset("kvm_vcpu", "all", "stat", "exits") == 64 + 8 + 16
    assert btf.size("kvm_vcpu", "stat") == 24
    assert btf.offset("list", "next") == 0


def test_a_kernel_without(tmp_path: Path) -> None:
    """One line says what is missing."""
    with pytest.raises(KvmError, match=r"no BTF: .*vmlinux: No such file"):
        read_kernel_btf(tmp_path)
    make_files(tmp_path)
    (tmp_path / "kvm").unlink()
    with pytest.raises(KvmError, match=r"no BTF of KVM: neither .*/kvm nor vmlinux describes"):
        read_kernel_btf(tmp_path)


def test_structs_in_vmlinux_are_enough(tmp_path: Path) -> None:
    """As where KVM is built in."""
    vmlinux = Maker()
    vmlinux.struct("kvm_vcpu", 8, ("vcpu_id", vmlinux.integer(4), 4))
    (tmp_path / "vmlinux").write_bytes(vmlinux.done())
    assert read_kernel_btf(tmp_path).offset("kvm_vcpu", "vcpu_id") == 4


def spoil(change: str) -> bytes:
    """BTF with something wrong."""
    maker = Maker()
    if change == "kind":
        maker.add(25, "unknown", 0)
    elif change == "loop":
        maker.struct("kvm_vcpu", 8, ("stat", maker.add(8, "alias", 1), 0))
        maker.types[0] = maker.types[0][:8] + struct.pack("=I", 1)
    elif change == "type":
        maker.struct("kvm_vcpu", 8, ("stat", 77, 0))
    elif change == "deep":
        # A struct without a name that has itself as a member without a name.
        maker.struct("", 8, ("", 1, 0))
        maker.struct("kvm_vcpu", 8, ("", 1, 0))
    data = maker.done()
    return {"magic": b"\0" + data[1:], "short": data[:10]}.get(change, data)


@pytest.mark.parametrize("change", ["kind", "loop", "type", "deep", "magic", "short"])
def test_what_is_no_btf(change: str) -> None:
    """It is refused, when it is read or when it is asked."""
    with pytest.raises(KvmError, match="BTF"):
        Btf(spoil(change)).size("kvm_vcpu", "stat")


def test_any_cut_of_it_is_refused_or_read() -> None:
    """No error but ours, wherever it ends."""
    maker = Maker()
    maker.struct("kvm_vcpu", 8, ("stat", maker.integer(8), 0))
    data = maker.done()
    for end in range(len(data)):
        try:
            Btf(data[:end]).offset("kvm_vcpu", "stat")
        except KvmError:
            continue
