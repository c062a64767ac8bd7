"""Metrics that two top-level sources might have: whose they are, and what is left out."""

import re
from itertools import permutations
from typing import Any

import pytest

from statsfs.formats import openmetrics, prometheus
from statsfs.formats.metric_conflicts import assign_names
from statsfs.model.values import Aggregate, Kind, Unit, Value
from statsfs.monitoring.exposition import RegistryCollector
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.formats.test_metric_families import lines as list_lines
from tests.support.exported import parse_openmetrics

WEB, WEB_API, OTHER = (1001, 1001), (1002, 1002), (1003, 1003)
TOTAL: dict[str, Any] = {"aggregate": Aggregate.SUM}


def top(name: str, owner: tuple[int, int] | None, *fields: tuple[Value, Any]) -> Source:
    """Make a top-level source with a value of each array."""
    made = Source("%s", name, owner=owner)
    for value, number in fields:
        made.add_values([value], {value.name: number})
    return made


def lines(shown: Registry | Source) -> list[str]:
    """The samples of the text format, sorted."""
    return sorted(list_lines(shown))


def left_out(name: str, owner: tuple[int, int], count: int = 1) -> str:
    """The line that says so."""
    labels = f'reason="name",source="{name}",user="{owner[0]}"'
    return f"statsfs_left_out_metrics{{{labels}}} {count}"


HISTOGRAM: dict[str, Any] = {"kind": Kind.LOG_HIST, "size": 2}
GAUGE: dict[str, Any] = {"kind": Kind.INSTANT}


@pytest.mark.parametrize("order", list(permutations(range(2))))
@pytest.mark.parametrize(
    ("squatter", "squatting", "name", "value"),
    [
        # The same metric, by the same type and by others.
        ("web", Value("api_requests_total"), "web_api", Value("requests")),
        ("web", Value("api_requests"), "web_api", Value("requests_total")),
        ("web", Value("api_requests", **GAUGE), "web_api", Value("requests")),
        ("web", Value("api_requests", **HISTOGRAM), "web_api", Value("requests")),
        ("web", Value("api_n", **GAUGE, description="forged"), "web_api", Value("n", **GAUGE)),
        # One's samples are called as the other's metric.
        ("web", Value("api_n_total", **GAUGE), "web_api", Value("n")),
        ("web", Value("api_n_created", **GAUGE), "web_api", Value("n")),
        ("web", Value("api_n_count", **GAUGE), "web_api", Value("n", **HISTOGRAM)),
        ("web", Value("api_n_sum", **GAUGE), "web_api", Value("n", **HISTOGRAM)),
        ("web", Value("api_n_bucket", **GAUGE), "web_api", Value("n", **HISTOGRAM)),
        ("web", Value("api_n", **HISTOGRAM), "web_api", Value("n_count", **GAUGE)),
        ("web", Value("api_n"), "web_api", Value("n_created", **GAUGE)),
        ("web", Value("api", **GAUGE), "web_api", Value("total")),
        # Units.
        (
            "web", Value("api_wait_seconds", **GAUGE),
            "web_api", Value("wait_ns", unit=Unit.SECONDS, exponent=-9, **GAUGE),
        ),
        (
            "web", Value("api_wait_us", unit=Unit.SECONDS, exponent=-6),
            "web_api", Value("wait_ms", unit=Unit.SECONDS, exponent=-3),
        ),
        # Characters that are replaced.
        ("web", Value("api:requests"), "web_api", Value("requests")),
        ("web", Value("api requests"), "web-api", Value("requests")),
        ("web-api", Value("n"), "web_api", Value("n")),
        ("web-api", Value("n"), "web_api", Value("n", **GAUGE)),
        ("web", Value("api_v2_n"), "web_api_v2", Value("n")),
        ("web_api", Value("v2_n"), "web_api_v2", Value("n")),
        ("9", Value("9_n"), "9_9", Value("n")),
    ],
)  # fmt: skip
def test_no_one_takes_a_metric_by_a_value(
    caplog: pytest.LogCaptureFixture,
    squatter: str, squatting: Value, name: str, value: Value, order: tuple[int, ...],
) -> None:  # fmt: skip
    """The most specific top-level source has it, whoever comes first; the other is told."""

    def number(of: Value) -> Any:
        return [1, 2] if of.histogram else 3

    alone = Registry()
    alone.register(top(name, WEB_API, (value, number(value))))
    whole = lines(alone)
    squatted = [8, 9] if squatting.histogram else 9
    tops = [
        top(squatter, WEB, (squatting, squatted), (Value("own"), 5)),
        top(name, WEB_API, (value, number(value))),
    ]
    registry = Registry()
    for index in order:
        registry.register(tops[index])
    mapped = f"_{squatter}" if squatter[0].isdigit() else squatter.replace("-", "_")
    expected = sorted([*whole, f"{mapped}_own_total 5", left_out(squatter, WEB)])
    for _ in range(2):
        assert lines(registry) == expected
        parse_openmetrics(openmetrics.render(registry.snapshot()))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{squatter}: metric ")
    assert message.endswith(f": left out: it is one of {name!r}")
    # The user's own directory has all that the user counts.
    assert f"{mapped}_own_total 5" in lines(tops[0])
    assert not any("statsfs_" in line for one in tops for line in lines(one))


def test_a_metric_stays_whose_it_is_while_it_has_no_numbers(registry: Registry) -> None:
    """Where its source does not answer, or nobody counts yet, no other shows a number for it."""
    failing = [True]

    def refresh() -> None:
        if failing[0]:
            raise OSError

    web = top("web", WEB, (Value("api_n", **TOTAL), 1), (Value("api_m", **TOTAL), 2))
    api, worker = top("web_api", WEB_API), Source("w", refresh=refresh)
    worker.add_values([Value("n", **TOTAL)], {"n": 3})
    api.add_values([Value("m", **TOTAL)], None)
    api.add_subordinate(worker)
    for one in (web, api):
        registry.register(one)
    assert lines(registry) == [left_out("web", WEB, 2)]
    failing[0] = False
    shown = ['web_api_n_total{source="w"} 3']
    assert lines(registry) == [left_out("web", WEB, 2), *shown]
    worker.revoke()
    assert lines(registry) == [left_out("web", WEB, 2)]
    registry.unregister(api)
    assert lines(registry) == ["web_api_m_total 2", "web_api_n_total 1"]


def test_the_longest_of_several(registry: Registry) -> None:
    """A metric that has lost takes no name from a third one."""
    registry.register(top("a", WEB, (Value("b_c_n"), 1)))
    registry.register(top("a_b", OTHER, (Value("c_n", **HISTOGRAM), [1, 1])))
    registry.register(top("a_b_c", WEB_API, (Value("n_count", **GAUGE), 3)))
    assert lines(registry) == ["a_b_c_n_count 3", "a_b_c_n_total 1", left_out("a_b", OTHER)]


def test_names_that_differ_in_characters_only() -> None:
    """The one that is what the metrics have, else the one that is sorted last."""
    value = Value("n")
    for names, winner in ((["a-b", "a_b"], "a_b"), (["a-b", "a.b"], "a.b"), (["é", "ü"], "ü")):
        for order in permutations(names):
            registry = Registry()
            for number, name in enumerate(order):
                registry.register(top(name, (1000 + number, 0), (value, number)))
            shown, lost = sorted(lines(registry), key=lambda line: line.startswith("statsfs_"))
            assert shown.endswith(f" {order.index(winner)}")
            assert f'source="{winner}"' not in lost


def test_sources_of_one_owner(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """The same rule; only the log tells, as it is one user's own matter."""
    registry.register(top("web", None, (Value("api_n"), 1)))
    registry.register(top("web_api", None, (Value("n"), 2)))
    registry.register(top("other", WEB, (Value("x_n"), 3)))
    registry.register(top("other_x", WEB, (Value("n"), 4)))
    assert lines(registry) == ["other_x_n_total 4", "web_api_n_total 2"]
    assert [record.getMessage() for record in caplog.records] == [
        "web: metric web_api_n: left out: it is one of 'web_api'",
        "other: metric other_x_n: left out: it is one of 'other_x'",
    ]


def test_our_own_metric_is_nobody_elses(registry: Registry) -> None:
    """Neither by a source that is called so, nor by one with a longer name."""
    registry.register(top("statsfs", WEB, (Value("left_out_metrics", **GAUGE), 7), (Value("n"), 1)))
    registry.register(top("statsfs_left_out", OTHER, (Value("metrics", **GAUGE), 7)))
    registry.register(top("statsfs-left", None, (Value("out_metrics", **GAUGE), 7)))
    expected = [left_out("statsfs", WEB), left_out("statsfs_left_out", OTHER), "statsfs_n_total 1"]
    assert lines(registry) == expected
    where: prometheus.Where = {}
    whole = prometheus.render(registry.snapshot(), where=where)
    text = whole[slice(*where["statsfs_left_out_metrics"])].decode()
    assert re.findall("# TYPE (.*)", text) == ["statsfs_left_out_metrics gauge"]
    assert sorted(text.splitlines()[2:]) == expected[:2]


def test_a_hidden_top_level_source_has_no_metrics(registry: Registry) -> None:
    """So none is left to it."""
    hidden = Source("web_api", hidden=True)
    hidden.add_values([Value("n")], {"n": 1})
    registry.register(hidden)
    registry.register(top("web", WEB, (Value("api_n"), 2)))
    assert lines(registry) == ["web_api_n_total 2"]


def test_a_unit_is_not_taken_from_the_name_of_a_source(registry: Registry) -> None:
    """A counter `total` of `web_ns` is no metric of `web`."""
    wait: dict[str, Any] = {"unit": Unit.SECONDS, "exponent": -9}
    registry.register(top("web_ns", OTHER, (Value("total", **wait), 10**9)))
    registry.register(top("web", WEB, (Value("seconds", **wait), 2 * 10**9)))
    assert lines(registry) == ["web_ns_seconds_total 1.0", "web_seconds_total 2.0"]


def test_only_related_sources_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of others cost nothing."""
    tops = {top(name, None): name for name in ("a", "ab", "a_", "b_a", "_a", "b", "c")}
    asked = []

    class Asked(dict[Source, Any]):
        def __getitem__(self, one: Source) -> Any:
            asked.append(one.name)
            return []

    assert assign_names(tops, Asked()) == {}
    assert sorted(asked) == ["a", "a_", "b", "b_a"]


def test_a_collector_names_what_it_collects(registry: Registry) -> None:
    """prometheus_client gets the same metrics, and names nobody else has."""
    registry.register(top("web", WEB, (Value("api_n", **TOTAL), 1), (Value("own"), 2)))
    registry.register(top("web_api", WEB_API, (Value("n"), 3)))
    web = registry.by_name["web"]
    web.add_values([Value("api_m", **TOTAL), Value("later", **TOTAL)], None)
    registry.by_name["web_api"].add_values([Value("m", **TOTAL)], None)
    collector = RegistryCollector(registry)
    collected = [one.name for one in collector.collect()]
    assert sorted(collected) == ["statsfs_left_out_metrics", "web_api_n", "web_own"]
    described = [one.name for one in collector.describe()]
    assert sorted(described) == sorted([*collected, "web_api_m", "web_later"])


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_the_daemons_own_come_first(order: tuple[int, ...]) -> None:
    """Also where another top-level source has the longer name."""
    value = Value("scrape_failures")
    tops = [top("statsfs", None, (value, 1)), top("statsfs_scrape", WEB, (Value("failures"), 2))]
    registry = Registry()
    for index in order:
        registry.register(tops[index])
    assert lines(registry) == [left_out("statsfs_scrape", WEB), "statsfs_scrape_failures_total 1"]
