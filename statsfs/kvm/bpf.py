"""All VMs of the host in one pass: a BPF iterator over the open files of all processes.

Owns the system call bpf(2), what it needs (a kernel with BTF; CAP_BPF and CAP_PERFMON), and the
check of what it returns. The program copies the statistics out of `struct kvm` and `struct
kvm_vcpu`: it interrupts no guest and keeps no VM alive. 26 VMs take 0.3 ms. It goes on where KVM is
unloaded and loaded again, but finds nothing then: it is to be made anew.
Threading: any thread may read; passes do not share anything.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from statsfs.exceptions import KvmError
from statsfs.formats.binary import Layout
from statsfs.kvm.bpf_program import FOUND, MARK, NO_VCPU, ROW, make_copier, make_finder
from statsfs.kvm.btf import Btf, read_kernel_btf
from statsfs.kvm.capabilities import find_missing
from statsfs.kvm.own_vm import OwnVm
from statsfs.kvm.vm_sources import SCHEDULE_SIZE

__all__ = ["BpfIterator", "BpfPass", "BpfRow", "check_rights"]

_SYSCALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
# include/uapi/linux/bpf.h
_PROG_LOAD, _LINK_CREATE, _ITER_CREATE = 5, 28, 33
_TRACING, _TRACE_ITER = 26, 28
_ATTRIBUTES: Final = 144  # bytes of a `union bpf_attr`; a kernel takes more than it knows if zero
_READ: Final = 1 << 20  # bytes; the kernel gives what fits into its own buffer
_LOG: Final = 1 << 16
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_VCPUS: Final = 1 << 16  # more than any kernel's KVM_MAX_VCPU_IDS

_libc: Final = ctypes.CDLL(None, use_errno=True)


class BpfRow(NamedTuple):
    """A VM or a vCPU, at one descriptor of a process.

    Attributes:
        process, fd: where it was found; there may be several places.
        kvm: tells its VM from others, as long as that lives.
        vcpu: the number of the vCPU; None for a VM.
        id: the kernel's id string.
        thread: of a vCPU, the number of the thread that last ran it; 0 if there is none.
    """

    process: int
    fd: int
    kvm: int
    vcpu: int | None
    id: bytes
    thread: int


class BpfPass(NamedTuple):
    """The result of one pass.

    Attributes:
        rows: the VMs and vCPUs.
        blocks: the statistics of each, as a statistics descriptor has them. A vCPU's block begins
            with the scheduler's numbers of its thread: nanoseconds of running, nanoseconds of
            waiting to run, and how often it ran.
        heads: the bytes before each block in the kernel's output.
        places: where the output has each head, and each block.
        size: bytes of the output; -1 if rows of it are left out.
    """

    rows: Sequence[BpfRow]
    blocks: Sequence[bytes]
    heads: Sequence[bytes]
    places: tuple[Sequence[slice], Sequence[slice]]
    size: int


class BpfIterator(AbstractContextManager["BpfIterator"]):
    """An iterator over all VMs and vCPUs of this host; closes as a context.

    Args:
        own: a VM of our own, for the time of the call: what is looked for.

    Raises:
        KvmError: it does not work here; the message is one line that says what is missing.
    """

    def __init__(self, own: OwnVm) -> None:
        check_rights()
        btf = read_kernel_btf()
        self._sizes = {
            False: _check_size(btf, "kvm_vcpu", own.vcpu),
            True: _check_size(btf, "kvm", own.vm),
        }
        try:
            with _Link(btf, make_finder(btf, os.getpid())) as finder:
                kinds = dict(FOUND.iter_unpack(finder.read()))
        except struct.error as error:
            raise KvmError(f"invalid BPF output: {error}") from error
        if not {own.fd, own.vcpu_fd} <= kinds.keys():
            raise KvmError("BPF finds no files of this process: in a PID namespace?")
        self._link = _Link(btf, make_copier(btf, kinds[own.fd], kinds[own.vcpu_fd]))
        try:
            if not self.finds(own):
                raise KvmError("BPF does not find a VM of our own")
        except BaseException:
            self._link.close()
            raise

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unload the program."""
        self._link.close()

    def finds(self, own: OwnVm) -> bool:
        """Tell whether the program finds a VM of our own."""
        found = {row.fd for row in self.read().rows if row.process == os.getpid()}
        return {own.fd, own.vcpu_fd} <= found

    def read(self, before: BpfPass | None = None) -> BpfPass:
        """Return the statistics of all VMs and vCPUs now.

        Args:
            before: an earlier pass. If it found the same, the new one has its `rows`: that takes a
                tenth of the time.

        Raises:
            KvmError: what the kernel returned is not what the program writes.
            OSError: the kernel refuses.
        """
        data = self._link.read()
        if before is not None and len(data) == before.size:
            heads, blocks = (list(map(data.__getitem__, places)) for places in before.places)
            if heads == before.heads:
                return before._replace(blocks=blocks)
        return self._decode(data)

    def _decode(self, data: bytes) -> BpfPass:
        rows, heads, blocks = list[BpfRow](), list[slice](), list[slice]()
        at, end, size = 0, len(data), len(data)
        unpack, head, sizes = ROW.unpack_from, ROW.size, self._sizes
        while at < end:
            if end - at < head:
                raise KvmError("invalid BPF output: it ends in a row")
            mark, process, fd, kvm, vcpu, id, thread, same, *_ = unpack(data, at)
            start, stop = at + head, at + head + sizes[vcpu == NO_VCPU]
            if mark != MARK or stop > end or not NO_VCPU <= vcpu < _VCPUS:
                raise KvmError("invalid BPF output: not a row of ours")
            if not kvm or not id.startswith(b"kvm-"):
                size = -1  # a vCPU that is just being made: the next pass decodes all
            else:
                if vcpu == NO_VCPU:
                    rows.append(BpfRow(process, fd, kvm, None, id, 0))
                else:
                    rows.append(BpfRow(process, fd, kvm, vcpu, id, thread * (thread == same)))
                    start -= SCHEDULE_SIZE
                heads.append(slice(at, start))
                blocks.append(slice(start, stop))
            at = stop
        first, second = (list(map(data.__getitem__, places)) for places in (heads, blocks))
        return BpfPass(rows, second, first, (heads, blocks), size)


def check_rights() -> None:
    """Raise KvmError if the system, or this process's rights, refuse BPF."""
    if os.uname().machine not in _SYSCALLS:
        raise KvmError(f"BPF is not supported on {os.uname().machine} yet")
    # In this mode the call answers EINVAL, which does not tell the reason.
    try:
        lockdown = _LOCKDOWN.read_text()
    except OSError:
        lockdown = ""  # not mounted, or a kernel without lockdown
    if "[confidentiality]" in lockdown:
        raise KvmError("BPF is refused: the kernel's lockdown is confidentiality", _LOCKDOWN)
    missing = find_missing(("CAP_BPF", "CAP_PERFMON"))
    if missing:
        raise KvmError(f"BPF needs {' and '.join(missing)}", missing)


def _check_size(btf: Btf, struct_name: str, layout: Layout) -> int:
    size = btf.size(struct_name, "stat")
    if size != layout.data_size:
        raise KvmError(
            f"the BTF is of another kernel: {size} bytes of statistics in {struct_name}, "
            f"not {layout.data_size}",
            struct_name,
        )
    return size


class _Link(AbstractContextManager["_Link"]):
    # A loaded program, attached to the iterator.

    def __init__(self, btf: Btf, code: bytes) -> None:
        with ExitStack() as stack:
            program = _load(code, btf.find_function("bpf_iter_task_file"))
            stack.callback(os.close, program)
            try:
                self._fd = _bpf(_LINK_CREATE, struct.pack("=IIII", program, 0, _TRACE_ITER, 0))
            except OSError as error:
                raise KvmError(f"BPF: no link: {error.strerror}") from error
            stack.callback(os.close, self._fd)
            self._close = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._close.close()

    def read(self) -> bytes:
        iterator = _bpf(_ITER_CREATE, struct.pack("=II", self._fd, 0))
        try:
            parts = []
            while part := os.read(iterator, _READ):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(iterator)


def _load(code: bytes, function: int) -> int:
    text, license = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG)
    where, what = ctypes.addressof(text), ctypes.addressof(license)

    def attributes(log_level: int) -> bytes:
        size, log_at = (_LOG, ctypes.addressof(log)) if log_level else (0, 0)
        return struct.pack(
            "=IIQQIIQII16sIIIIQIIQII",
            *(_TRACING, len(code) // 8, where, what, log_level, size, log_at, 0, 0),
            *(b"statsfs_kvm", 0, _TRACE_ITER, 0, 0, 0, 0, 0, 0, 0, function),
        )

    try:
        return _bpf(_PROG_LOAD, attributes(0))
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EPERM:
            raise KvmError(f"BPF is refused: {why}: seccomp, or a security module?") from error
        try:  # once more, for the verifier's reason
            os.close(_bpf(_PROG_LOAD, attributes(1)))
        except OSError:
            lines = [line for line in log.value.decode(errors="replace").splitlines() if line]
            reason = next((line for line in reversed(lines) if " insns " not in line), "no reason")
            why = f"{why}: {reason[:120]}"
        raise KvmError(f"BPF: the kernel refuses the program: {why}") from error


def _bpf(command: int, attributes: bytes) -> int:
    size = max(_ATTRIBUTES, len(attributes))
    buffer = ctypes.create_string_buffer(attributes, size)
    found: int = _libc.syscall(_SYSCALLS[os.uname().machine], command, buffer, size)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
