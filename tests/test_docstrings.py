"""The docstrings of what the manual documents: examples that run, arguments, errors."""

import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

import statsfs
from statsfs import StatsfsError, exceptions
from tests.support.deadlines import DEADLINE
from tests.support.examples import (
    MEMBERS,
    NAMES,
    document_of,
    examples_of,
    find,
    run_examples,
)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "statsfs"
# These pages are about the package's own names.
INTERNAL_PAGES = {"architecture.md", "glossary.md", "limits.md"}

# A process mounts once at a time; prometheus_client's own registry is one of the process.
ALONE = re.compile(r"statsfs\.(mount|mounted|Mount(\..*)?|RegistryCollector|show_prometheus)")
MARKS = {
    "statsfs.mount": pytest.mark.mount,
    "statsfs.mounted": pytest.mark.mount,
    "statsfs.Mount": pytest.mark.mount,
    "statsfs.kvm.host.KvmHost": [pytest.mark.kvm, pytest.mark.root],
}


def list_examples() -> list[Any]:
    """Return each name and member that has examples, with the marks of its object."""
    marks: dict[str, Any] = {name: MARKS.get(name, ()) for name in NAMES}
    marks |= {name: marks[name.rpartition(".")[0]] for name in MEMBERS}
    return [pytest.param(name, marks=marks[name]) for name in marks if examples_of(name)]


@pytest.mark.parametrize("name", list_examples())
def test_examples_show_what_happens(name: str) -> None:
    """Each example of a docstring prints what stands there."""
    if not ALONE.fullmatch(name):
        run_examples(name)
        return
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.examples", name],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_example_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has what was expected, and what came instead."""
    wrong = (statsfs.safe_name.__doc__ or "").replace("50%25", "50%")
    monkeypatch.setattr(statsfs.safe_name, "__doc__", wrong)
    with pytest.raises(AssertionError, match=r"Expected:\n.*'50%',.*\nGot:\n.*'50%25',"):
        run_examples("statsfs.safe_name")


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example(name: str) -> None:
    """A new name needs one."""
    assert examples_of(name), f"{name} has no example in its docstring"


@pytest.mark.parametrize("name", MEMBERS)
def test_every_public_method_has_an_example(name: str) -> None:
    """It is in its own docstring, or that of the class uses it."""
    owner, _, member = name.rpartition(".")
    used = any(re.search(rf"\.{member}\b", example.source) for example in examples_of(owner))
    assert examples_of(name) or used, f"{name} has no example"


@pytest.mark.parametrize("name", [*NAMES, *MEMBERS])
def test_examples_are_short(name: str) -> None:
    """A docstring has a dozen lines of examples at most, output included."""
    lines = [one.source.count("\n") + one.want.count("\n") for one in examples_of(name)]
    assert sum(lines) <= 12


def test_what_the_manual_names_is_public() -> None:
    """What a page of the manual names by its module has examples too."""
    known = [find(name) for name in NAMES]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    missing = set()
    for page in pages:
        if page.name in INTERNAL_PAGES:
            continue
        text = page.read_text()
        dotted = re.findall(r"(?<![\w.])statsfs(?:\.[a-zA-Z]\w*)+", text)
        imported = re.findall(r"^from (statsfs\S*) import (.+)$", text, re.MULTILINE)
        dotted += [f"{module}.{name}" for module, names in imported for name in names.split(", ")]
        for name in dotted:
            found = resolve(name)
            if (inspect.isclass(found) or inspect.isfunction(found)) and found not in known:
                missing.add(name)
    assert missing == set()


def resolve(name: str) -> object:
    """Return what a dotted name is; None if it is something else, such as a file's name."""
    found: Any = statsfs
    for part in name.split(".")[1:]:
        if inspect.ismodule(found) and not hasattr(found, part):
            try:
                importlib.import_module(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                return None
        found = getattr(found, part, None)
    return found


# Arguments and errors

SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:(?:    .*)?\n)+)", re.MULTILINE)
ELSEWHERE = re.compile(
    r"[Tt]he arguments(?: and errors)? are those of `|`\w+` makes them|made by `"
)
# What a class of values is made with are its own values.
UNLISTED = {"statsfs.Stats"}


def is_made_elsewhere(name: str) -> bool:
    """Tell whether a program does not call it, or the docstring says where the arguments are."""
    item = find(name)
    if inspect.isclass(item) and issubclass(item, Enum | StatsfsError):
        return item is not StatsfsError
    return ELSEWHERE.search(document_of(name)) is not None


def sections_of(name: str) -> dict[str, list[str]]:
    """Return the names in front of the colons of each section of a docstring."""
    return {
        title: [
            one
            for names in re.findall(r"^    (\w+(?:, \w+)*): ", text, re.MULTILINE)
            for one in names.split(", ")
        ]
        for title, text in SECTION.findall(document_of(name) + "\n")
    }


def function_of(name: str) -> Any:
    """Return the function that an object calls: of a class what makes an instance; or None."""
    item = find(name)
    if inspect.isclass(item):
        return None if issubclass(item, dict) else item
    if isinstance(item, property):
        return item.fget
    return item.__func__ if isinstance(item, classmethod) else item


def parameters_of(name: str) -> list[str]:
    """Return the names of the parameters that a caller gives."""
    function = function_of(name)
    try:
        found = [*inspect.signature(function).parameters]
    except (TypeError, ValueError):  # a class without a signature
        return []
    return [one for one in found if one not in ("self", "cls")]


@pytest.mark.parametrize("name", [*NAMES, *MEMBERS])
def test_arguments_are_documented(name: str) -> None:
    """`Args` has each parameter and nothing else; only a function of one may do without."""
    sections, parameters = sections_of(name), parameters_of(name)
    if "Args" in sections:
        assert sections["Args"] == parameters
    elif len(parameters) > 1 and name not in UNLISTED and not is_made_elsewhere(name):
        assert set(parameters) <= set(sections.get("Attributes", ())), name


def raised_in(function: Any) -> set[str]:
    """Return the errors that a function raises by itself, and by `check` and the like."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=error))) if error.endswith("Error"):
                found.add(error)
            case ast.Call(func=ast.Name() | ast.Attribute(value=ast.Name()) as called):
                checking = find_global(function, ast.unparse(called))
                if checking is not None:
                    found |= raised_in(checking)
    return found


def find_global(function: Any, name: str) -> Any:
    """Return the function of the package that a function calls by a name such as `check_path`."""
    module, _, last = name.rpartition(".")
    owner = function.__globals__.get(module) if module else None
    found = getattr(owner, last, None) if module else function.__globals__.get(last)
    known = inspect.isfunction(found) and found.__module__.startswith("statsfs.")
    return found if known and last.strip("_").startswith("check") else None


def raised_by(name: str) -> set[str]:
    """Return the errors that are told from the code of a public function, or of a class."""
    item = find(name)
    if is_made_elsewhere(name):
        return set()
    functions = [function_of(name)]
    if inspect.isclass(item):
        functions = [vars(item).get("__init__"), vars(item).get("__post_init__")]
    # A dataclass's own __init__ has no source.
    written = [
        one
        for one in functions
        if inspect.isfunction(one) and one.__code__.co_filename != "<string>"
    ]
    return {error for one in written for error in raised_in(one)}


@pytest.mark.parametrize("name", [*NAMES, *MEMBERS])
def test_errors_are_documented(name: str) -> None:
    """`Raises` has errors that exist, and those that the function and its checks raise."""
    documented = sections_of(name).get("Raises", [])
    known = {one: getattr(builtins, one, None) or getattr(exceptions, one) for one in documented}
    raised = {
        error: getattr(builtins, error, None) or getattr(exceptions, error)
        for error in raised_by(name)
    }
    missing = {
        error
        for error, item in raised.items()
        if not any(issubclass(item, one) for one in known.values())
    }
    assert missing == set()


# Length


def without_examples(text: str) -> str:
    """Return a module's text without the examples in its docstrings, and their empty lines."""
    return re.sub(r'^\n( *)>>> .*\n(?:\1.*\S.*\n|\n(?=\1>>> ))*?(?=\n| *""")', "", text, flags=re.M)


def test_modules_are_short() -> None:
    """450 lines at most, not counting examples: they are no code that has to be understood."""
    lines = {path: without_examples(path.read_text()).count("\n") for path in PACKAGE.rglob("*.py")}
    assert {path.name: count for path, count in lines.items() if count > 450} == {}
