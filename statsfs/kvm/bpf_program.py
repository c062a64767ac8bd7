"""Two BPF programs, as instructions: what the kernel runs for each open file of the host.

`make_finder` finds the kinds of a VM's and a vCPU's files, by those of a VM of our own: no symbol
is looked up, so the addresses of the kernel (CAP_SYSLOG) are not needed. `make_copier` copies the
statistics of every VM and vCPU. Owns the encoding of Documentation/bpf/standardization/
instruction-set.rst, the order of registers and stack, and `ROW`, which the copier puts before each
copy. Threading: pure functions.
"""

import struct
from typing import Final

from statsfs.kvm.btf import Btf

__all__ = ["FOUND", "MARK", "NO_VCPU", "ROW", "make_copier", "make_finder"]

FOUND: Final = struct.Struct("=QQ")
"""What the finder writes for each file of a process: its number, and the kind's address."""

ROW: Final = struct.Struct("=QIIQq48sIIQQQ")
"""What precedes each copy: `MARK`, process, descriptor, the VM's address, the vCPU's number or
`NO_VCPU`, the id; then of the thread that last ran the vCPU the number, once as the vCPU has it and
once as the thread has it, and what the scheduler counted: time, wait and turns."""

MARK: Final = 0x21736673_74617473  # "statsfs!"
NO_VCPU: Final = -1

_BEGIN: Final = -ROW.size  # of the row, on the stack
_CHUNK: Final = 384  # bytes that are copied at once: a stack has 512
_COPY: Final = _BEGIN - _CHUNK
_POINTER: Final = _COPY - 8
_PROBE_READ: Final = 113  # bpf_probe_read_kernel
_SEQ_WRITE: Final = 127
_CONTEXT, _FILE, _TASK, _DATA = 6, 7, 8, 9  # registers that a call leaves alone
_STACK: Final = 10


class _Code:
    # Instructions, and jumps to labels that come later.

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._code: list[bytes] = []
        self._jumps: list[tuple[int, str]] = []
        self._labels: dict[str, int] = {}

    def add(self, code: int, to: int = 0, by: int = 0, offset: int = 0, number: int = 0) -> None:
        self._code.append(struct.pack("=BBhi", code, to | by << 4, offset, number))

    def jump(self, label: str, code: int = 0x05, to: int = 0, by: int = 0) -> None:
        self._jumps.append((len(self._code), label))
        self.add(code, to, by)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def done(self) -> bytes:
        for at, label in self._jumps:
            head = self._code[at]
            self._code[at] = head[:2] + struct.pack("=h", self._labels[label] - at - 1) + head[4:]
        return b"".join(self._code)

    def member(self, to: int, of: int, *path: str) -> None:
        # A pointer, through one whose type the kernel knows.
        self.add(0x79, to, of, self._btf.offset(*path))

    def put(self, register: int, number: int) -> None:
        low, high = struct.unpack("=ii", struct.pack("=Q", number))
        self.add(0x18, register, number=low)
        self.add(0, number=high)

    def store(self, number: int, at: int) -> None:
        self.put(1, number & (1 << 64) - 1)
        self.add(0x7B, _STACK, 1, at)

    def begin(self) -> None:
        # Of both programs: the context, the task and the file, if there are.
        self.add(0xBF, _CONTEXT, 1)
        for register, name in ((_FILE, "file"), (_TASK, "task")):
            self.member(register, _CONTEXT, "bpf_iter__task_file", name)
            self.jump("end", 0x15, register)  # 0: the end of the files

    def load_word(self, at: int, register: int, offset: int) -> None:
        # 32 bits, to the stack.
        self.add(0x61, 1, register, offset)
        self.add(0x63, _STACK, 1, at)

    def read(self, at: int, size: int, register: int, offset: int) -> None:
        # Kernel memory to the stack; zeros where it cannot be read.
        self.add(0xBF, 1, _STACK)
        self.add(0x07, 1, number=at)
        self.add(0xB7, 2, number=size)
        self.add(0xBF, 3, register)
        self.add(0x07, 3, number=offset)
        self.add(0x85, number=_PROBE_READ)

    def write(self, at: int, size: int) -> None:
        # From the stack to the iterator's reader.
        self.member(1, _CONTEXT, "bpf_iter__task_file", "meta")
        self.member(1, 1, "bpf_iter_meta", "seq")
        self.add(0xBF, 2, _STACK)
        self.add(0x07, 2, number=at)
        self.add(0xB7, 3, number=size)
        self.add(0x85, number=_SEQ_WRITE)

    def end(self) -> None:
        self.label("end")
        self.add(0xB7)
        self.add(0x95)


def make_finder(btf: Btf, process: int) -> bytes:
    """Return the program that writes `FOUND` for each file of a process."""
    code = _Code(btf)
    code.begin()
    code.add(0x61, 1, _TASK, btf.offset("task_struct", "tgid"))
    code.add(0xB7, 2, number=process)
    code.jump("end", 0x5D, 1, 2)
    code.store(0, -16)
    code.load_word(-16, _CONTEXT, btf.offset("bpf_iter__task_file", "fd"))
    code.member(1, _FILE, "file", "f_op")
    code.add(0x7B, _STACK, 1, -8)
    code.write(-16, FOUND.size)
    code.end()
    return code.done()


def make_copier(btf: Btf, vm_kind: int, vcpu_kind: int) -> bytes:
    """Return the program that writes `ROW` and a copy for each file of these kinds."""
    code = _Code(btf)
    code.begin()
    code.member(2, _FILE, "file", "f_op")
    code.member(_DATA, _FILE, "file", "private_data")
    code.put(3, vcpu_kind)
    code.jump("vcpu", 0x1D, 2, 3)
    code.put(3, vm_kind)
    code.jump("end", 0x5D, 2, 3)
    _begin_row(code, btf)
    code.add(0x7B, _STACK, _DATA, _BEGIN + 16)
    code.store(NO_VCPU, _BEGIN + 24)
    _copy(code, btf, "kvm")
    code.jump("end")
    code.label("vcpu")
    _begin_row(code, btf)
    code.read(_BEGIN + 16, 8, _DATA, btf.offset("kvm_vcpu", "kvm"))
    code.read(_BEGIN + 24, 4, _DATA, btf.offset("kvm_vcpu", "vcpu_id"))
    _read_thread(code, btf)
    _copy(code, btf, "kvm_vcpu")
    code.end()
    return code.done()


def _begin_row(code: _Code, btf: Btf) -> None:
    for at in range(_BEGIN, 0, 8):
        code.store(MARK if at == _BEGIN else 0, at)
    code.load_word(_BEGIN + 8, _TASK, btf.offset("task_struct", "tgid"))
    code.load_word(_BEGIN + 12, _CONTEXT, btf.offset("bpf_iter__task_file", "fd"))


def _read_thread(code: _Code, btf: Btf) -> None:
    # From the vCPU to the `struct pid` of its thread, and from there to the thread. What is freed
    # meanwhile is read as something else, which the thread's number tells.
    code.read(_POINTER, 8, _DATA, btf.offset("kvm_vcpu", "pid"))
    code.add(0x79, _FILE, _STACK, _POINTER)
    code.read(_BEGIN + 80, 4, _FILE, btf.offset("pid", "numbers", "nr"))
    code.read(_POINTER, 8, _FILE, btf.offset("pid", "tasks", "first"))
    code.add(0x79, _FILE, _STACK, _POINTER)
    code.add(0x07, _FILE, number=-btf.offset("task_struct", "pid_links"))
    code.read(_BEGIN + 88, 8, _FILE, btf.offset("task_struct", "se", "sum_exec_runtime"))
    code.read(_BEGIN + 96, 8, _FILE, btf.offset("task_struct", "sched_info", "run_delay"))
    code.read(_BEGIN + 104, 8, _FILE, btf.offset("task_struct", "sched_info", "pcount"))
    code.read(_BEGIN + 84, 4, _FILE, btf.offset("task_struct", "pid"))


def _copy(code: _Code, btf: Btf, struct_name: str) -> None:
    code.read(_BEGIN + 32, 48, _DATA, btf.offset(struct_name, "stats_id"))
    code.write(_BEGIN, ROW.size)
    start, size = btf.offset(struct_name, "stat"), btf.size(struct_name, "stat")
    for done in range(0, size, _CHUNK):
        part = min(_CHUNK, size - done)
        code.read(_COPY, part, _DATA, start + done)
        code.write(_COPY, part)
