"""The pages of the manual: their commands and programs are run, and what is printed is compared.

A block that is not run says why, in a comment before it that no reader sees.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import statsfs
from statsfs.cli.commands import cli
from tests.support.deadlines import DEADLINE
from tests.support.mounts import ROOT, run
from tests.support.pages import Block, Shell, blocks_of, commands_in

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# They tell a story from an empty directory on, or have programs of their own: other tests run them.
ELSEWHERE = re.compile(r"docs/(tutorial|fleet|howto/.*)\.md")
RUN = {"console", "python", "c"}
SHOWN = {"text", "yaml", "json", "ini", ""}  # nothing is a directive, for Sphinx
NOT_RUN = "not run: "

_DEMO = "statsfs demo ./stats {} >demo.log 2>&1 &\nuntil mountpoint -q stats; do sleep 0.1; done"
# What is typed before the first command of a page; and what a page needs.
BEFORE = {
    "README.md": _DEMO.format(""),
    "docs/looking.md": _DEMO.format(""),
    "docs/tree.md": _DEMO.format("--rate 0"),
}
MARKS: dict[str, list[pytest.MarkDecorator]] = {
    "README.md": [pytest.mark.mount],
    "docs/command_line.md": [pytest.mark.slow],
    "docs/kvm.md": [pytest.mark.mount, pytest.mark.kvm],
    "docs/looking.md": [pytest.mark.mount],
    "docs/monitoring.md": [pytest.mark.mount, pytest.mark.tools],
    "docs/tree.md": [pytest.mark.mount, pytest.mark.tools],
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def is_run(block: Block, *languages: str) -> bool:
    return block.language in languages and not block.remark.startswith(NOT_RUN)


def pages_with(*languages: str) -> list[object]:
    """The pages that have something to run in a language, and what they need."""
    return [
        pytest.param(page, marks=MARKS.get(name_of(page), []), id=name_of(page))
        for page in PAGES
        if not ELSEWHERE.fullmatch(name_of(page))
        if any(is_run(block, *languages) for block in blocks_of(page))
    ]


class DemoShell(Shell):
    """A shell in which a demo may go on beside what is typed: a line a second is not looked at."""

    def _as_on_a_page(self, text: str) -> str:
        shown = super()._as_on_a_page(text)
        return re.sub(r"^\d+ VMs  exits .*\n", "", shown, flags=re.MULTILINE)


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands(page: Path, tmp_path: Path) -> None:
    """Each command prints what the page says, but for numbers where it says so."""
    shell = DemoShell(tmp_path)
    try:
        if before := BEFORE.get(name_of(page)):
            assert shell.run(before)[0] == 0
        for block in blocks_of(page):
            if is_run(block, "console"):
                for command in commands_in(block):
                    shell.type(command, exact=block.remark != "numbers vary")
            elif block.name is not None:
                shell.write(block.name, block.text)
        shell.close()
    finally:
        shell.kill()


@pytest.mark.mount
@pytest.mark.parametrize("page", pages_with("python"))
def test_programs(page: Path, tmp_path: Path) -> None:
    """The Python of a page runs from its beginning to its end, and prints what the page says."""
    for name in ("segments", "stats"):
        (tmp_path / name).mkdir(mode=0o755)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.page_programs", name_of(page)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STATSFS_DIR": str(tmp_path / "segments")},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.tools
@pytest.mark.parametrize("page", pages_with("c"))
def test_c(page: Path, tmp_path: Path) -> None:
    """The C of a page is compiled without a warning, and runs."""
    code = "".join(block.text for block in blocks_of(page) if is_run(block, "c"))
    whole = f"""#include <statsfs.h>
    int main(void) {{
        uint64_t nanoseconds = 1500;
        {code}
        return *requests != 1;
    }}"""
    (tmp_path / "page.c").write_text(whole)
    include = ["-I", statsfs.get_include()]
    program = tmp_path / "page"
    run("cc", "-std=gnu99", "-Wall", "-Wextra", "-Werror", *include, "-o", program, f"{program}.c")
    subprocess.run([program], env={"STATSFS_DIR": str(tmp_path)}, check=True, timeout=DEADLINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_block_is_run_or_says_why_not(page: Path) -> None:
    """Only what is in no language to run is just shown. Tests that reasons name are there."""
    for block in blocks_of(page):
        assert block.language in RUN | SHOWN or ELSEWHERE.fullmatch(name_of(page)), block.line
        if block.remark.startswith(NOT_RUN):
            named = re.findall(r"\b(?:tests|examples)/[\w./]*\w", block.remark)
            assert [path for path in named if not (ROOT / path).exists()] == []
            assert len(block.remark) > len(NOT_RUN) + 5


def test_fences_are_seen() -> None:
    """The blocks that this file looks at are all that a page has; each has a language."""
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page
        ends = re.findall(r"^```$", page.read_text(), re.MULTILINE)
        assert len(ends) == len(blocks_of(page)) or ELSEWHERE.fullmatch(name_of(page)), page


def test_each_prometheus_has_data_of_its_own() -> None:
    """Debian's would write to /var/lib/prometheus: as root only, and one at a time."""
    pages = [*PAGES, ROOT / "examples" / "monitoring" / "prometheus.yml"]
    commands = [
        line
        for page in pages
        for line in re.findall(r"^[$#] (prometheus .*)", page.read_text(), re.MULTILINE)
    ]
    assert len(commands) > 3
    assert [line for line in commands if not re.search(r" --storage\.\w+\.path=", line)] == []


def test_the_command_line_is_what_the_commands_say() -> None:
    """docs/command_line.md is what packaging/command_line_page.py makes."""
    made = run(sys.executable, ROOT / "packaging" / "command_line_page.py").stdout
    assert made == (ROOT / "docs" / "command_line.md").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "costs.md"], ids=name_of)
def test_figures_are_those_of_the_benchmarks(page: Path) -> None:
    """Each line is one of RESULTS.md; README tells how many bounds are missed."""
    results = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    (quoted,) = (block.text for block in blocks_of(page) if block.language == "text")
    lines = quoted.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if line not in results.splitlines()] == []


def test_readme_tells_of_the_benchmarks_what_they_say() -> None:
    """How many bounds are missed, and what increments take."""
    results = (ROOT / "tests" / "bench" / "RESULTS.md").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())

    def ratio(line: str) -> int:
        found = re.search(rf"^  {re.escape(line)} +[\d.]+ ns +([\d.]+) x", results, re.MULTILINE)
        assert found is not None, line
        return round(float(found[1]))

    assert f"{results.count('MISSED')} of its bounds are missed" in readme
    plain, labelled = (
        ratio("prometheus_client: Counter.inc()"),
        ratio("prometheus_client: labels(...).inc()"),
    )
    shared = ratio("prometheus_client, multi-process: Counter.inc()")
    assert f"{plain} times one of `Stats`, with labels {labelled};" in readme
    assert f"between processes {shared} times one of a segment" in readme


def test_readme_is_short() -> None:
    """It is read to its end."""
    assert (ROOT / "README.md").read_text().count("\n") <= 150


def test_the_commands_that_pages_name_exist() -> None:
    """Each `statsfs COMMAND --OPTION` is one that there is, in a text and in a block."""
    known = {
        name: {
            option
            for parameter in command.params
            for option in parameter.opts + parameter.secondary_opts
        }
        for name, command in cli.commands.items()
    }
    said = re.compile(r"(?:`|^(?:[$#] )?)statsfs ([a-z][a-z-]*)\b([^`\n|&>]*)", re.MULTILINE)
    seen = set()
    for page in PAGES:
        if page.name == "architecture.md":  # it has names of threads
            continue
        for name, rest in said.findall(page.read_text()):
            assert name in known, (name_of(page), name)
            options = re.findall(r"(?<![\w-])--[a-z-]+", re.split(r"  | -- ", rest)[0])
            assert {*options} <= {*known[name], "--help"}, (name_of(page), name, rest)
            seen.add(name)
    assert seen == {*known}
