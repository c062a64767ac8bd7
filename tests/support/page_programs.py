"""The Python on a page of the manual, in order: `python -m tests.support.page_programs PAGE`.

It runs in the current directory and in one namespace, which begins with all names of `statsfs`.
What a page leaves to its reader, such as the work that is counted, is in `_STAND_INS`. What a
`print(…)` prints is compared with the comment behind it.
"""

import ast
import contextlib
import inspect
import io
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, Final

import trio

import statsfs
from tests.support.mounts import ROOT
from tests.support.pages import Block, blocks_of

__all__ = ["programs_of"]

# By page and by a piece of the block before which they are done.
_STAND_INS: Final = {
    "docs/api.md": {
        "PerThread(": """
            app, sock, queue = Source("app"), socket.socketpair()[0], [b"two"]
            class SenderStats(Stats):
                sent = counter("Bytes sent")
        """,
        "class EndpointStats": 'http = Source("http", retain=True)',
        "stats.adding": """
            class AnswerStats(EndpointStats):
                latency = log_hist(40, unit=Unit.SECONDS, exponent=-9)
            stats, answer = AnswerStats(), lambda: None
        """,
        "def ask": "read_sensor = lambda: 20",
        "class ProcessStats": "import psutil",
        "kvm.snapshot": "kvm.add_subordinate(vm)",
        "class WorkerStats": """
            app, worker = Source("app"), Source("worker1")
            app.add_subordinate(worker)
        """,
        '"worker7"': "stats = WorkerStats()",
    },
    "docs/embedding.md": {
        "    run()": "registry, run = Registry(), lambda: None",
        "await run()": "run = trio.lowlevel.checkpoint",
    },
    "docs/looking.md": {
        "duckdb.sql": """
            import subprocess, sys
            class VmStats(Stats):
                exits = counter("VM exits")
            kvm, stats, registry = Source("kvm"), VmStats(), Registry()
            kvm.add_values(VmStats, stats)
            registry.register(kvm)
            with mount(registry, "stats"):
                arguments = "record -i 0.1 -o r.parquet -p stats --for 0.5".split()
                command = [sys.executable, "-m", "statsfs", *arguments]
                recorder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                while recorder.poll() is None:
                    stats.exits += 1
        """,
    },
    "docs/monitoring.md": {
        "serve_metrics": "import prometheus_client; registry = Registry()",
        "show_prometheus": "server.close()",
    },
    "docs/operations.md": {
        "mounted.stats": """
            registry = Registry()
            mounted = mount(registry, "/run/stats", create=True)
            server = serve_metrics(registry, "127.0.0.1", 0)
        """,
    },
    "docs/processes.md": {"class WorkerStats": "import os"},
}
# Where a page is in the machine's own directories, a test is in its own.
_PLACES: Final = {"/run/statsfs": "segments", '"/run/': '"', "9464": "0"}
_PRINTED: Final = re.compile(r"^\s*print\(.*\)  +# (.+)$", re.MULTILINE)


def programs_of(page: Path) -> list[Block]:
    """The blocks of Python that are done."""
    return [
        one
        for one in blocks_of(page)
        if (one.language, one.name) == ("python", None) and not one.remark.startswith("not run: ")
    ]


def _run(text: str, names: dict[str, Any]) -> None:
    for place, ours in _PLACES.items():
        text = text.replace(place, ours)
    code = compile(text, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:

        async def wait() -> None:
            await eval(code, names)

        trio.run(wait)
    else:
        exec(code, names)


def main() -> None:
    """Do what the page has; an error tells the line of the block."""
    page = ROOT / sys.argv[1]
    stand_ins = dict(_STAND_INS.get(sys.argv[1], {}))
    names: dict[str, Any] = {**vars(statsfs), "socket": __import__("socket"), "trio": trio}
    names["__name__"] = "page"
    for block in programs_of(page):
        for piece in [piece for piece in stand_ins if piece in block.text]:
            _run(textwrap.dedent(stand_ins.pop(piece)), names)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                _run(block.text, names)
        except Exception as error:
            error.add_note(f"in the block of line {block.line}")
            raise
        printed = [line for line in output.getvalue().splitlines() if line]
        assert printed == _PRINTED.findall(block.text), (block.line, printed)
    assert stand_ins == {}, "stand-ins of blocks that are not there"


if __name__ == "__main__":
    main()
