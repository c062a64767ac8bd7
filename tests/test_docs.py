"""The documents: their names and links lead to something, and their terms are the code's."""

import ast
import importlib
import os
import re
import socket
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

import statsfs
from statsfs import Registry, Source, Stats, u64

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "statsfs"
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
GLOSSARY = ROOT / "docs" / "glossary.md"
LIMITS = ROOT / "docs" / "limits.md"
API = ROOT / "docs" / "api.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

CODE = re.compile(r"`([^`\n]+)`")
NAME = re.compile(r"[A-Za-z_]\w*([./]\w+)*(\(\))?")
PATH = re.compile(r"(statsfs|tests|docs|examples)/\S*|[A-Z]+\.md")
# What the architecture names of others.
FOREIGN = {
    "None",
    "cp",
    "invalidate_entry_async",
    "kvm_stat",
    "os.register_at_fork",
    "pread",
    "pyfuse3._session_loop",
    "pyfuse3._wait_fuse_readable",
    "pyfuse3.close",
    "pyfuse3.invalidate_entry",
    "pyfuse3.invalidate_inode",
    "read",
    "tar",
}
# Terms of Markdown's own.
SLUG = re.compile(r"[^\w\- ]")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def text_of(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def headings(document: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", text_of(document), flags=re.MULTILINE)


# Names


def members_of(cls: ast.ClassDef) -> Iterator[str]:
    """What a class has: methods, attributes, slots."""
    for node in ast.walk(cls):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                yield node.attr


def definitions_of(module: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """What a module defines: each name, with the members of a class and the names of its bases."""
    for node in module.body:
        match node:
            case ast.ClassDef():
                bases = {f"<{ast.unparse(base).split('[')[0]}>" for base in node.bases}
                yield node.name, {*members_of(node), *bases}
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name, set()
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, set()


@cache
def known() -> dict[str, set[str]]:
    """Rooms, modules, and what modules define, with what each of them has."""
    found: dict[str, set[str]] = {"statsfs": {room.stem for room in PACKAGE.iterdir()}}
    for path in PACKAGE.rglob("*.py"):
        defined = dict(definitions_of(ast.parse(path.read_text())))
        name = path.parent.name if path.name == "__init__.py" else path.stem
        found.setdefault(name, set()).update(defined)
        if path.parent != PACKAGE:
            found.setdefault(path.parent.name, set()).add(path.stem)
        for defines, members in defined.items():
            found.setdefault(defines, set()).update(members)
    return found


def has(owner: str, name: str) -> bool:
    """Tell whether a room, a module or a class has something; a class also what its bases have."""
    members = known().get(owner, set())
    bases = [member[1:-1] for member in members if member.startswith("<")]
    return name in members or any(has(base, name) for base in bases)


def exists(name: str) -> bool:
    """Tell whether a name is one of ours: `module`, `room/module`, `function`, `Class.method`."""
    first, *rest = re.split("[./]", name.removesuffix("()"))
    if first not in known():
        return False
    return all(has(owner, part) for owner, part in zip([first, *rest], rest, strict=False))


def names_in(document: Path) -> list[str]:
    """The names in backticks of a document; not files, options and pieces of code."""
    found = CODE.findall(text_of(document))
    return [one for one in found if NAME.fullmatch(one) and not PATH.fullmatch(one)]


def test_what_the_architecture_names_exists() -> None:
    """Each room, module, class, method and function of it is in the package."""
    missing = {name for name in names_in(ARCHITECTURE) if not exists(name)}
    assert missing - FOREIGN == set()
    assert len(set(names_in(ARCHITECTURE)) - FOREIGN) > 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_a_document_names_exist(document: Path) -> None:
    """Each path of the repository that stands in backticks leads to something."""
    paths = [one for one in CODE.findall(text_of(document)) if PATH.fullmatch(one)]
    assert [one for one in paths if "<" not in one and not (ROOT / one).exists()] == []


def test_names_are_told_apart() -> None:
    """The checker finds what is there, in a base class too, and nothing else."""
    assert exists("tree/source")
    assert exists("source.Source")
    assert exists("Source.add_subordinate")
    assert exists("AttributeReader.column")
    assert exists("OpenFile.text")
    assert not exists("Source.no_such_method")
    assert not exists("source.no_such_function")
    assert not exists("tree/vfs")
    assert not exists("no_such_function")


def test_rooms_import_what_the_architecture_says() -> None:
    """The table of rooms has each room, and exactly the rooms that it imports."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ([a-z ]+) \|$", text_of(ARCHITECTURE), re.MULTILINE)
    told = {room: set(imports.split()) for room, imports in rows}
    imported: dict[str, set[str]] = {}
    for path in PACKAGE.glob("*/*.py"):
        room = path.parent.name
        named = re.findall(r"^ *(?:from|import) statsfs\.(\w+)", path.read_text(), re.MULTILINE)
        imported.setdefault(room, set()).update({*named} - {room})
    assert told == imported


# Links


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as web pages of repositories have them."""
    return {SLUG.sub("", title.lower()).replace(" ", "-") for title in headings(document)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    """Links to files of the repository and to headings resolve; others are not looked at."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_what_tests_quote_of_the_architecture_is_there() -> None:
    """A test that quotes `docs/architecture.md, "Heading"` quotes a heading of it."""
    quoted = {
        heading
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__)
        for heading in re.findall(r'architecture\.md,\s+(?:# )?"([^"]+)"', path.read_text())
    }
    assert quoted
    assert quoted <= set(headings(ARCHITECTURE))


# Terms


def terms() -> list[tuple[str, str]]:
    """The terms of the glossary and what they mean."""
    items = re.findall(r"^- \*\*(.+?)\*\*: ((?:.|\n  )+)$", GLOSSARY.read_text(), re.MULTILINE)
    return [(term, " ".join(meaning.split())) for term, meaning in items]


def test_the_glossary_is_sorted() -> None:
    """Each term is there once, in the order of the alphabet."""
    names = [term for term, _ in terms()]
    assert len(names) > 50
    assert names == sorted(set(names), key=str.casefold)


def test_a_term_has_one_sentence() -> None:
    """What a term means is one sentence, and ends as one."""
    for term, meaning in terms():
        assert re.fullmatch(r"[^.]*(\.\w[^.]*)*\.", meaning), term


@cache
def words_of_the_package() -> str:
    """All text of the package in lower case, with the words of names apart."""
    text = " ".join(path.read_text() for path in sorted(PACKAGE.rglob("*.py")))
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", text)
    return " ".join(apart.lower().split())


def test_terms_are_those_of_the_code() -> None:
    """The package uses each term of the glossary, in names, docstrings or comments."""
    text = words_of_the_package()
    unused = [term for term, _ in terms() if not re.search(rf"\b{term}(e?s)?\b", text)]
    assert unused == []


# Limits


_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


def test_limits_are_those_of_the_code() -> None:
    """Each figure of the table is that of the constant that it names; several are a tuple's."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .+ \|$", LIMITS.read_text(), re.MULTILINE)
    assert len(rows) > 40
    for name, figure in rows:
        module, _, constant = name.rpartition(".")
        value = getattr(importlib.import_module(f"statsfs.{module}"), constant)
        shown = [
            float(number.replace(",", "")) * _UNITS.get(unit, 1)
            for number, unit in re.findall(r"\b(\d[\d,.]*\d|\d)(?: (KiB|MiB))?", figure)
        ]
        wanted = list(value) if isinstance(value, tuple) else [value]
        assert shown[: len(wanted)] == wanted, name


# The manual


@pytest.mark.parametrize("document", [API.read_text(), Stats.__doc__ or ""])
def test_a_base_a_thread_loses_nothing(document: str) -> None:
    """The example is complete; four threads that shared a base lost two thirds."""
    found = re.search(
        r"^( *)stats = PerThread\(.*\n(\n|\1def work.*\n|\1 +.*\n)+", document, re.MULTILINE
    )
    assert found is not None

    class SenderStats(Stats):
        sent = u64()

    sock, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    names: dict[str, Any] = {**vars(statsfs), "SenderStats": SenderStats, "app": Source("app")}
    names.update(sock=sock, queue=[b"two"] * 5000)
    exec(textwrap.dedent(found[0]), names)
    with sock, peer, ThreadPoolExecutor(5) as pool:
        received = pool.submit(lambda: sum(len(peer.recv(9)) for _ in range(4 * 5000)))
        for done in [pool.submit(names["work"]) for _ in range(4)]:
            done.result()
        assert names["app"].get_value("sent") == received.result() == 4 * 5000 * 3


def test_a_poller_syncs() -> None:
    """The example is complete, but for its imports: this process has a directory, and numbers."""
    found = re.search(r"^class ProcessStats.*?(?=^```)", API.read_text(), re.DOTALL | re.M)
    assert found is not None
    names: dict[str, Any] = {**vars(statsfs), "psutil": psutil}
    exec(found[0], names)
    procs: Source = names["procs"]
    assert procs.get_value("resident_bytes") > 0
    own = procs.find(str(os.getpid()))
    assert own is not None
    assert own.get_value("cpu_ns") > 0


def row_of(name: str) -> list[str]:
    """The names in backticks that the manual's table has for a class, without arguments."""
    row = re.search(rf"^\| `{name}` \|(.+)\|$", API.read_text(), re.MULTILINE)
    assert row is not None
    return [re.sub(r"\(.*", "", code) for code in CODE.findall(row[1])]


def test_a_source_has_what_the_manual_says() -> None:
    """`dir(Source)` shows the manual's names and nothing else."""
    public = [name for name in dir(Source) if not name.startswith("_")]
    assert sorted(row_of("Source")) == public


def test_a_registry_has_what_the_manual_says() -> None:
    """Each method that the manual lists is there."""
    assert set(row_of("Registry")) <= set(dir(Registry))


def test_the_manual_lists_what_the_package_exports() -> None:
    """The manual's table has each name of `statsfs.__all__`."""
    rows = re.findall(r"^\| (`.+)$", API.read_text(), re.MULTILINE)
    assert set(statsfs.__all__) <= set(CODE.findall("\n".join(rows)))


def test_the_reference_has_what_the_package_exports() -> None:
    """Each name of `statsfs.__all__` is on one of its pages, once, and all that is there exists."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    names = [
        name
        for page in pages
        for name in re.findall(r"^\.\. auto\w+:: statsfs\.([\w.]+)$", page.read_text(), re.M)
    ]
    assert len(names) == len(set(names))
    assert {*statsfs.__all__} <= {*names}
