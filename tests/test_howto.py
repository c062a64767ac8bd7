"""The recipes, each typed from its first line to its last."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.mounts import ROOT
from tests.support.pages import blocks_of, files_of, type_page

HOWTO = ROOT / "docs" / "howto"
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "docs" / "tutorial.md", *sorted(HOWTO.glob("*.md"))]
TYPED = ["asgi", "celery", "fractions", "gunicorn", "poller", "threads", "uwsgi", "version_info"]


@pytest.mark.mount
@pytest.mark.parametrize("name", TYPED)
def test_a_recipe(name: str, tmp_path: Path) -> None:
    """Its programs run, and its commands print what the page says."""
    if name == "uwsgi" and not (Path(sys.executable).parent / "uwsgi").exists():
        pytest.skip("there is no uWSGI: make uwsgi")
    type_page(HOWTO / f"{name}.md", tmp_path)


@pytest.mark.mount
@pytest.mark.tools
def test_queries(tmp_path: Path) -> None:
    """The program's metrics are those that the queries ask for; promtool finds the results."""
    type_page(HOWTO / "promql.md", tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_query_of_a_page_is_tried(page: Path) -> None:
    """Each has a result in the file that promtool tries; the expected numbers are in the text."""
    (tried,) = files_of(HOWTO / "promql.md")["queries_test.yml"]
    for block in blocks_of(page):
        if block.language in ("promql", "text"):  # what colours a page knows no subqueries
            assert f"- expr: round({' '.join(block.text.split())}, 0.001)\n" in tried


@pytest.fixture
def node() -> Iterator[Path]:
    """A directory that others may enter, with a copy of the package for other users."""
    path = Path(tempfile.mkdtemp(prefix="statsfs-node-"))
    path.chmod(0o755)
    shutil.copytree(ROOT / "statsfs", path / "lib" / "statsfs")
    (path / "home").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.root
def test_containers(node: Path) -> None:
    """Another user without capabilities and devices counts in a namespace; it is collected."""
    check = ["/usr/bin/python3", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not Path(check[0]).exists() or subprocess.run(check, check=False).returncode:
        pytest.skip("the system's Python, which another user may run, is missing or too old")
    type_page(HOWTO / "containers.md", node / "home", PYTHONPATH=str(node / "lib"))


def manifest(name: str) -> Any:
    """A manifest of the page."""
    (text,) = files_of(HOWTO / "containers.md")[name]
    return yaml.safe_load(text)


def check_volumes(pod: Any) -> None:
    """What containers mount is there; no group gets a right to write."""
    names = {volume["name"] for volume in pod["volumes"]}
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    assert {one["name"] for each in containers for one in each["volumeMounts"]} == names
    assert "fsGroup" not in pod.get("securityContext", {})


def test_manifests_of_a_node() -> None:
    """The collector and the application share a directory, and its user is that of the program."""
    collector, shop = (
        manifest(name)["spec"]["template"]["spec"] for name in ("collector.yaml", "shop.yaml")
    )
    check_volumes(collector)
    check_volumes(shop)
    assert collector["volumes"] == shop["volumes"]
    (collecting,), (init,), (program,) = (
        collector["containers"],
        shop["initContainers"],
        shop["containers"],
    )
    top = collector["volumes"][0]["hostPath"]["path"]
    assert collecting["command"][-1] == collecting["volumeMounts"][0]["mountPath"] == top
    assert init["volumeMounts"][0]["mountPath"] == top
    (mounted,) = program["volumeMounts"]
    made = init["command"]
    assert made[-1] == mounted["mountPath"] == f"{top}/{mounted['subPath']}"
    assert program["env"] == [{"name": "STATSFS_DIR", "value": made[-1]}]
    user = program["securityContext"]["runAsUser"]
    assert made[:-1] == ["install", "-d", "-m", "755", "-o", str(user), "-g", str(user)]
    assert program["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert collecting["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["DAC_OVERRIDE"],
    }


def test_manifest_of_a_sidecar() -> None:
    """Both containers run as one user, and use a directory that only this user may write."""
    pod = manifest("sidecar.yaml")["spec"]
    check_volumes(pod)
    made = pod["initContainers"][0]["command"]
    assert made[:-1] == ["mkdir", "-m", "755"]
    program, collecting = pod["containers"]
    assert program["env"] == [{"name": "STATSFS_DIR", "value": made[-1]}]
    assert collecting["command"][-1] == made[-1]
    assert all("runAsUser" not in one.get("securityContext", {}) for one in pod["containers"])
    assert "runAsUser" in pod["securityContext"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_in_a_page(page: Path) -> None:
    """A file that has the name of an example is that example."""
    for name, texts in files_of(page).items():
        if (EXAMPLES / name).exists():
            assert texts == [(EXAMPLES / name).read_text()]


@pytest.mark.slow
def test_programs_of_pages_are_clean(tmp_path: Path) -> None:
    """Ruff finds no mistake in any program, and no line that is too long for a page."""
    for page in PAGES:
        for name, texts in files_of(page).items():
            for number, text in enumerate(texts):
                if name.endswith(".py"):
                    (tmp_path / f"{page.stem}-{number}-{name}").write_text(text)
    assert len(list(tmp_path.iterdir())) > 10
    rules = ["--isolated", "--select=B,E,F,PIE,UP,W", "--line-length=100"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *rules, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_index_lists_the_recipes() -> None:
    """Each page once, with a line of what it is for."""
    text = (HOWTO / "index.md").read_text()
    listed = re.findall(r"^- \[[^]]+\]\((\w+\.md)\): .+$", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:] if page.stem != "index")
