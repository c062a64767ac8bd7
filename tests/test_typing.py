"""Types: what a type checker refuses, and that all it names can be imported from `statsfs`."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import statsfs
from tests.support.mounts import ROOT

PACKAGE = ROOT / "statsfs"

CHECKED = """
from statsfs import Family, PerThread, Registry, Source, Stats, Unit, counter, gauge, log_hist
from statsfs import publish, serve_metrics, Histogram, MetricsServer

class S(Stats):
    n: int = counter("Jobs")
    busy = gauge()
    times = log_hist(40, unit=Unit.SECONDS, exponent=-9, description="Time")

S(n=5)
S(n=5, nonsense=1)
S(n="5")
s = S()
s.n += 1
s.busy -= 1
s.jobs += 1
times: Histogram = s.times
times.observe(5)
times.observe(0.5)
log_hist(40, descripton="Time")
counter("Jobs", size=5)
source = Registry().register(Source("app"))
Family(source, S, "kind")("mail").jobs
Family(source, S, "kind")(5)
PerThread(source, S).mine.jobs
publish("app", values=S).stats.jobs
with s.adding(n=1), s.times.time():
    pass
s.adding(n="5")
server: MetricsServer = serve_metrics(Registry())
"""
REFUSED = [
    'S(n=5, nonsense=1)', 'S(n="5")', "s.jobs += 1", "times.observe(0.5)",
    'log_hist(40, descripton="Time")', 'counter("Jobs", size=5)',
    'Family(source, S, "kind")("mail").jobs', 'Family(source, S, "kind")(5)',
    "PerThread(source, S).mine.jobs", 'publish("app", values=S).stats.jobs', 's.adding(n="5")',
]  # fmt: skip


@pytest.mark.slow
def test_what_mypy_refuses(tmp_path: Path) -> None:
    """Misspelt names and numbers of another type, in exactly these lines; all else is right."""
    program = tmp_path / "program.py"
    program.write_text(CHECKED)
    options = ["--strict", "--no-error-summary", "--hide-error-context"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", tmp_path / "cache", program],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = CHECKED.splitlines()
    found = re.findall(r"program\.py:(\d+): error: ", done.stdout)
    assert [lines[int(number) - 1] for number in found] == REFUSED, done.stdout + done.stderr


# What is public


# Modules of the package use these; the manual has no such methods, arguments and attributes.
PLUMBING = {
    *("Registry.add_listener", "Registry.notify", "Registry.remove_listener", "Snapshot.decoded"),
    *("Source.__init__(recorder)", "Snapshot.declared", "Snapshot.retained", "Snapshot.tops"),
    *("Registry.tell", "Registry.tell_no_more"),
    *("Snapshot.states", "Samples.array", "Samples.decode", "Samples.entries"),
}
# The package makes them.
MADE = {"Mount", "Samples", "Snapshot"}


@cache
def names_of_types() -> dict[str, Any]:
    """What the modules of the package have for type checkers alone."""
    found: dict[str, Any] = {}
    for path in PACKAGE.rglob("*.py"):
        for block in ast.parse(path.read_text()).body:
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                names = dict(vars(importlib.import_module(module)))
                exec(compile(ast.Module(block.body, []), path, "exec"), names)
                found.update(names)
    return found


def types_in(annotation: Any) -> Iterator[type]:
    """The classes of an annotation, bounds of type variables included."""
    if isinstance(annotation, list | tuple):
        for one in annotation:
            yield from types_in(one)
    elif isinstance(annotation, typing.TypeVar):
        yield from types_in(annotation.__bound__)
    elif arguments := typing.get_args(annotation):
        yield from types_in([typing.get_origin(annotation), *arguments])
    elif isinstance(annotation, type):
        yield annotation


def annotated() -> Iterator[tuple[str, Any]]:
    """What is public and may have annotations: functions, classes, methods, properties."""
    for name in statsfs.__all__:
        thing = getattr(statsfs, name)
        yield name, thing
        if not isinstance(thing, type):
            continue
        for member, static in inspect.getmembers_static(thing):
            if member.startswith("_") and member not in ("__init__", "__call__", "__getitem__"):
                continue
            if (name in MADE and member == "__init__") or f"{name}.{member}" in PLUMBING:
                continue
            for part in (getattr(static, "__func__", static), getattr(static, "fget", None)):
                if isinstance(part, types.FunctionType):
                    yield f"{name}.{member}", inspect.unwrap(part)


def hints_of(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """The annotations of one thing, each with a name to find it by."""
    if not isinstance(thing, type | types.FunctionType) or not hasattr(thing, "__annotations__"):
        return
    names = {**names_of_types(), **vars(sys.modules[thing.__module__])}
    for key, hint in typing.get_type_hints(thing, globalns=names).items():
        if not key.startswith("_"):
            yield f"{name}.{key}" if isinstance(thing, type) else f"{name}({key})", hint


def test_what_signatures_name_is_exported() -> None:
    """A program can write down the type of all that it is given."""
    found = {
        (where, one)
        for name, thing in annotated()
        for where, hint in hints_of(name, thing)
        if where not in PLUMBING
        for one in types_in(hint)
        if one.__module__.split(".")[0] == "statsfs"
    }
    assert len(found) > 50
    public = [statsfs.MetricsServer, *(getattr(statsfs, name) for name in statsfs.__all__)]
    assert [pair for pair in found if pair[1] not in public] == []
