"""QMP servers that do not do what QEMU does: only their own VM is not shown."""

import contextlib
import json
import logging
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from statsfs.exceptions import StatsfsError
from statsfs.kvm import qemu, qemu_vm
from statsfs.kvm.qemu import QemuMonitor
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.deadlines import until, wait_until
from tests.support.qmp_servers import GREETING, QmpServer, pretend_a_vm

__all__ = ["hostile_qmp"]

_COMMANDS: Final = (
    "greeting", "qmp_capabilities", "query-stats-schemas", "query-stats", "query-cpus-fast",
    "qom-get",
)  # fmt: skip
_ARGUMENTS: Final = {
    "query-stats-schemas": {"provider": "kvm"},
    "qom-get": {"path": "/machine/cpu[0]", "property": "apic-id"},
    "query-stats": {"providers": [{"provider": "kvm"}], "target": "vm"},
}
_LEAVES: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    1 << 64,
    1e300,
    "",
    "x" * 5000,
    "\ud800",
    [],
    {},
    [[]],
    [{}],
)


def _spoil(answer: Any, chance: random.Random) -> Any:
    # Puts something else somewhere into a sound answer.
    if chance.random() < 0.2 or not isinstance(answer, dict | list) or not answer:
        return chance.choice(_LEAVES)
    if isinstance(answer, list):
        at = chance.randrange(len(answer))
        return [*answer[:at], _spoil(answer[at], chance), *answer[at + 1 :] * chance.randrange(3)]
    key = chance.choice(list(answer))
    if chance.random() < 0.2:
        return {name: one for name, one in answer.items() if name != key}
    return {**answer, key: _spoil(answer[key], chance)}


def _garble(server: QmpServer, command: str, chance: random.Random) -> bytes:
    # What is sent in place of an answer.
    sound = (
        GREETING
        if command == "greeting"
        else {"return": server.answer(command, _ARGUMENTS.get(command))}
    )
    kind = chance.randrange(8)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 500)) + b"\n"
    if kind == 1:
        return b"[" * 100_000 + b"\n"
    if kind == 2:
        return b'{"return": ' + b"9" * 10_000 + b', "id": ID}\n'
    if kind == 3:
        return b'{"event": "X", "data": {}}\n' * 200
    if kind == 4:
        return b'{"error": {"class": "x", "desc": "\\u0007 no\\nline"}, "id": ID}\n'
    spoilt = json.dumps(_spoil(sound, chance)).encode()
    if kind == 5:
        return spoilt[: chance.randrange(1, len(spoilt) + 1)]
    return spoilt[:-1] + b', "id": ID}\n' if spoilt[-2:-1] not in b"{" else spoilt + b"\n"


class _Tracebacks(logging.Handler):
    # What is logged with a traceback.
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "\n" in record.getMessage():
            self.found.append(self.format(record))


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    handler, logs = _Tracebacks(), [logging.getLogger(name) for name in ("statsfs", "asyncio")]
    propagated = [log.propagate for log in logs]
    for log in logs:
        log.propagate = False
        log.addHandler(handler)
    try:
        yield handler.found
    finally:
        for log, before in zip(logs, propagated, strict=True):
            log.removeHandler(handler)
            log.propagate = before


def hostile_qmp(seconds: float) -> str:
    """Answer with nonsense, at each step; then as QEMU does, and the VM is shown.

    No answer ends the monitor, or is logged with a traceback, or makes a number wrong.
    """
    chance, answers = random.Random(17), 0
    registry, kvm = Registry(), Source("kvm")
    registry.register(kvm)
    with contextlib.ExitStack() as stack:
        patcher = stack.enter_context(pytest.MonkeyPatch.context())
        patcher.setattr(qemu, "_RESCAN", 0.005)
        patcher.setattr(qemu, "_RETRY", 0.01)
        patcher.setattr(qemu_vm, "_FRESH", 0.0)
        said = stack.enter_context(_listening())
        name = stack.enter_context(pretend_a_vm(patcher))
        place = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(QmpServer(Path(place, "a.qmp")))
        server.vm["mmu_cache_miss"] = 5
        stack.enter_context(QemuMonitor(kvm, [f"{place}/*.qmp"]))
        for _ in until(seconds):
            command = chance.choice(_COMMANDS)
            server.answers[command] = _garble(server, command, chance)
            if chance.random() < 0.5:
                with contextlib.suppress(Exception):
                    server.hang_up()
            end = time.monotonic() + 0.03
            while time.monotonic() < end:
                with contextlib.suppress(StatsfsError):
                    kvm.get_value("mmu_cache_miss")
            server.answers.clear()
            with contextlib.suppress(Exception):
                server.hang_up()
            answers += 1
            wait_until(lambda: _reads(kvm, name) == 5, "the VM")
        assert not said, said[0]
    return f"{answers} answers; {len(server.commands)} commands received"


def _reads(kvm: Source, name: str) -> int | None:
    vm = kvm.find(name)
    try:
        return None if vm is None else int(vm.get_value("mmu_cache_miss"))
    except StatsfsError:
        return None
