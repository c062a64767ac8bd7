"""docs/fleet.md: Prometheus takes each configuration, and what is computed follows the formulas."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fleet.servers import MONITORING, RULES
from tests.support.deadlines import DEADLINE
from tests.support.mounts import ROOT
from tests.support.prometheus_server import promtool, tool

PAGE = (ROOT / "docs" / "fleet.md").read_text()
BLOCK = re.compile(r"^```yaml\n# (\S+\.yml)\b.*\n((?:.*\n)+?)```$", re.MULTILINE)
FILES = dict(BLOCK.findall(PAGE))
CONFIGURATIONS = [name for name, text in FILES.items() if "/" not in name]
HOSTS = [f"host{number}.example:9464" for number in range(40)]


def cells_of(table: str) -> list[list[str]]:
    """The rows of a table of the page, but for its head, which begins with a text."""
    found = re.search(rf"^\| {re.escape(table)}.+\n\|[-|]+\n((?:\|.+\n)+)", PAGE, re.MULTILINE)
    assert found is not None, table
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in found[1].splitlines()]


def two_digits(number: float) -> str:
    """A number as the page rounds it."""
    rounded = float(f"{number:.1e}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{number:#.2g}"


def figure(text: str) -> float:
    """The one number of the page that stands in this place."""
    (found,) = re.findall(text.replace("@", r"([\d,.]*\d)"), PAGE)
    return float(found.replace(",", ""))


def test_computed_figures() -> None:
    """Each figure of the table follows from what was measured, by the formulas of the page."""
    costs = {
        name: (float(size.replace(",", "")), float(cpu)) for name, size, cpu in cells_of("process")
    }
    series_each, interval = figure(r"With \*S\* = @ and"), figure(r"and \*I\* = @,")
    scrape, sent = figure(r"= \*N\* × @ bytes / \*I\*"), figure(r"samples a second × @ bytes\n")
    disk = figure(r"86,400 × @ bytes")
    rows = cells_of("hosts | series")
    assert [row[0] for row in rows] == ["100", "500", "1,000", "10,000"]
    for hosts, *cells in rows:
        count = float(hosts.replace(",", ""))
        series = count * series_each
        rate = series / interval
        uses = [
            f"{two_digits(series * size / 1e9)} GB, {two_digits(rate * cpu / 1e6)} CPU"
            for size, cpu in costs.values()
        ]
        assert cells == [
            two_digits(series),
            two_digits(rate),
            *uses,
            f"{two_digits(count * scrape / interval / 1e6)} MB/s",
            f"{two_digits(rate * sent / 1e6)} MB/s",
            f"{two_digits(rate * 86_400 * disk / 1e9)} GB",
        ]


def write_files(directory: Path) -> None:
    """Write what the page shows, and the rules beside it."""
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    for name in RULES:
        shutil.copy(MONITORING / name, directory)


@pytest.mark.tools
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(name: str, tmp_path: Path) -> None:
    """Each is complete, and valid."""
    write_files(tmp_path)
    agent = ["--agent"] if name == "agent.yml" else []
    said = promtool(tmp_path, "check", "config", *agent, name).stdout
    assert f"SUCCESS: {name} is valid" in said
    assert "WARNING" not in said


def test_there_are_configurations() -> None:
    """The page has all that its stages need, and no block of YAML without a name."""
    assert sorted(CONFIGURATIONS) == [
        "agent.yml",
        "central.yml",
        "few.yml",
        "prometheus.yml",
        "shard.yml",
        "storage.yml",
    ]
    assert PAGE.count("```yaml") == len(FILES)


def find_kept(directory: Path, name: str) -> set[str]:
    """The targets that a configuration scrapes; those that it drops have no labels."""
    command = ("check", "service-discovery", "--timeout=1s", name, "statsfs")
    found = json.loads(promtool(directory, *command).stdout)
    assert {one["discoveredLabels"]["__address__"] for one in found} == {*HOSTS}
    return {one["discoveredLabels"]["__address__"] for one in found if one["labels"]}


@pytest.mark.tools
def test_shards_share_the_hosts(tmp_path: Path) -> None:
    """Each host is scraped by one of the shards, and by one only."""
    write_files(tmp_path)
    for path in tmp_path.glob("hosts/*"):
        path.unlink()
    (tmp_path / "hosts/all.yml").write_text(json.dumps([{"targets": HOSTS}]))
    (modulus,) = re.findall(r"modulus: (\d+)", FILES["shard.yml"])
    shards = []
    for number in range(int(modulus)):
        text, times = re.subn(r'regex: "0"', f'regex: "{number}"', FILES["shard.yml"])
        assert times == 1
        (tmp_path / "shard.yml").write_text(text)
        shards.append(find_kept(tmp_path, "shard.yml"))
    assert all(shards)
    assert sum(map(len, shards)) == len(HOSTS)
    assert set.union(*shards) == {*HOSTS}


@pytest.mark.tools
def test_vmalert_takes_the_rules() -> None:
    """What VictoriaMetrics evaluates for agents are the same files."""
    files = [f"-rule={MONITORING / name}" for name in RULES]
    done = subprocess.run(
        [tool("vmalert"), "-dryRun", "-loggerLevel=ERROR", *files],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
