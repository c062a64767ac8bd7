"""Make a Grafana dashboard from a schema: a panel for each value, drawn by its kind and unit.

Of the virtual machines of a host, and of a program whose values are in the source `http`::

    pip install grafana-foundation-sdk
    python examples/monitoring/make_dashboards.py /run/stats/.schema.json kvm > kvm.json
    python examples/monitoring/make_dashboards.py /run/stats/.schema.json http > http.json

Import them into Grafana (10.1 or newer). A counter is shown as its rate, a gauge and a peak as they
are, a histogram as a heat map and as quantiles. Each label of the source is a variable; another one
chooses by which label the sums are made. The source `kvm` has rows of its own. If the schema is a
daemon's, a folded row has the daemon's own numbers: its scrapes, its readers, refusals by user.

`kvm.json` and `application.json` beside this script were made so.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.builders.dashboard import (
    CustomVariable,
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.heatmap import YAxisConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import LegendDisplayMode, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from statsfs import Aggregate, Kind, Type, Unit, Value
from statsfs.formats.metric_names import Metric, make_metric, make_prefix

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
WINDOW: Final = "$__rate_interval"
QUANTILES: Final = (0.5, 0.9, 0.99)

# How the numbers of several sources are combined; a value with none of these is shown by source.
OPERATORS: Final = {
    Aggregate.SUM: "sum",
    Aggregate.MAX: "max",
    Aggregate.MIN: "min",
    Aggregate.AVG: "avg",
}
# Prometheus renames labels that have the name of a label of its targets.
EXPORTED: Final = {"job": "exported_job", "instance": "exported_instance"}
# Grafana's names of the units, and of the rates of counters in them.
LEVELS: Final = {Unit.SECONDS: "s", Unit.BYTES: "bytes"}
RATES: Final = {Unit.SECONDS: "percentunit", Unit.BYTES: "binBps", Unit.CYCLES: "hertz"}


@dataclass
class Shown:
    """A metric of a source: its value, the labels that its series have, whether there is a sum."""

    value: Value
    metric: Metric
    labels: dict[str, None] = field(default_factory=dict[str, None])
    summed: bool = False

    def select(self, suffix: str = "") -> str:
        """Return the selector of those of its series that the variables choose."""
        chosen = (f'{label}=~"${label}"' for label in ("job", "instance", *self.labels))
        name = f"{self.metric.name}{suffix}" if suffix else self.metric.sample
        return f"{name}{{{','.join(chosen)}}}"

    def level(self, by: str) -> str:
        """Return the query of its number."""
        return self._combine(self.select(), by)

    def rate(self, by: str) -> str:
        """Return the query of how fast it grows; the rate comes first, as each series restarts."""
        return self._combine(f"rate({self.select()}[{WINDOW}])", by)

    def buckets(self, by: str = "") -> str:
        """Return the query of how fast the buckets fill."""
        labels = f"{by}, le" if by else "le"
        return f"sum by ({labels}) (rate({self.select('_bucket')}[{WINDOW}]))"

    def _combine(self, query: str, by: str) -> str:
        for kind, operator in OPERATORS.items():
            if kind in self.value.aggregate:
                return f"{operator} by ({by}) ({query})"
        return query


class Subject:
    """A top-level source: its name and its metrics, as a schema describes them."""

    def __init__(self, schema: dict[str, Any], name: str, prefix: str | None = None) -> None:
        self.name = name
        self.top = make_prefix(prefix, name)
        self.labels: dict[str, None] = {}
        self.informed: set[str] = set()  # the labels whose sources have info
        self._found: dict[str, Shown] = {}
        directories = list(_walk(schema["subordinates"][name]))
        names = {entry["name"]: entry for one in directories for entry in one["values"]}
        for directory in directories:
            labels = [EXPORTED.get(label, label) for label in map(str, directory["labels"])]
            self.labels |= dict.fromkeys(labels)
            if labels and any("." not in key for key in directory.get("info", ())):
                self.informed.add(labels[-1])
            for entry in directory["values"]:
                if entry["mode"] & 0o004:  # else nobody gets it over HTTP
                    self._add(entry, names, labels)

    def _add(self, entry: dict[str, Any], names: dict[str, Any], labels: Iterable[str]) -> None:
        stem, _, end = entry["name"].rpartition(".")
        if end in entry["aggregate"] and len(entry["aggregate"]) > 1:
            entry = {**entry, "name": stem}  # one of the totals of a value, which is one metric
        if end == "sum" and stem in names and "hist" in names[stem]["kind"]:
            self._find(names[stem]).summed = True
            return
        self._find(entry).labels |= dict.fromkeys(labels)

    def _find(self, entry: dict[str, Any]) -> Shown:
        value = _make_value(entry)
        metric, _ = make_metric(self.top, value)
        return self._found.setdefault(metric.name, Shown(value, metric))

    def __iter__(self) -> Iterator[Shown]:
        return iter(self._found.values())

    def find(self, name: str) -> Shown | None:
        """Return the metric of a value, if the schema has it."""
        return next((shown for shown in self if shown.value.name == name), None)


def _walk(directory: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield directory
    for below in directory["subordinates"].values():
        yield from _walk(below)


def _make_value(entry: dict[str, Any]) -> Value:
    aggregate = Aggregate.NONE
    for kind in entry["aggregate"]:
        aggregate |= Aggregate[kind.upper()]
    shape: dict[str, Any] = {key: entry[key] for key in ("size", "bucket_size") if key in entry}
    if "bounds" in entry:
        shape = {"bounds": tuple(entry["bounds"])}
    return Value(
        entry["name"],
        Type[entry["type"].upper()],
        aggregate,
        kind=Kind[entry["kind"].upper()],
        unit=Unit[entry["unit"].upper()],
        base=entry["base"],
        exponent=entry["exponent"],
        description=entry["description"],
        **shape,
    )


# Panels


def query(text: str, legend: str = "__auto") -> Dataquery:
    """Return a query over time."""
    return Dataquery().expr(text).legend_format(legend).range()


def chart(title: str, about: str, unit: str, queries: Sequence[Dataquery]) -> Timeseries:
    """Return a panel of lines."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    panel = Timeseries().title(title).description(about).unit(unit).datasource(SOURCE)
    panel = panel.legend(legend).tooltip(tooltip).fill_opacity(10).height(8).span(12)
    for number, one in enumerate(queries):
        panel.with_target(one.ref_id(chr(ord("A") + number)))
    return panel


def show_number(title: str, about: str, unit: str, text: str) -> Stat:
    """Return a panel of one number."""
    panel = Stat().title(title).description(about).unit(unit).datasource(SOURCE)
    newest = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = panel.reduce_options(newest).height(4).span(6)
    return panel.with_target(query(text).ref_id("A"))


def show_heatmap(shown: Shown) -> Heatmap:
    """Return a panel of a histogram over time."""
    buckets = query(shown.buckets(), "{{le}}").format(PromQueryFormat.HEATMAP).ref_id("A")
    axis = YAxisConfig().unit(LEVELS.get(shown.value.unit, "short"))
    panel = Heatmap().title(shown.value.name).description(f"{shown.value.description}: how often")
    panel = panel.y_axis(axis).show_tooltip().datasource(SOURCE).calculate(False).height(8).span(12)
    return panel.with_target(buckets)


def show_quantiles(shown: Shown, by: str, legend: str) -> Timeseries:
    """Return a panel of some quantiles of a histogram, and of its mean if it has a sum."""
    queries = [
        query(
            f"histogram_quantile({quantile}, {shown.buckets(by)})", f"p{100 * quantile:g} {legend}"
        )
        for quantile in QUANTILES
    ]
    if shown.summed:
        total, count = (
            f"sum by ({by}) (rate({shown.select(suffix)}[{WINDOW}]))"
            for suffix in ("_sum", "_count")
        )
        queries.append(query(f"{total} / {count}", f"mean {legend}"))
    unit = LEVELS.get(shown.value.unit, "short")
    about = f"{shown.value.description}: quantiles"
    return chart(f"{shown.value.name}: quantiles", about, unit, queries)


def show_value(shown: Shown, by: str, legend: str) -> Iterator[Any]:
    """Return the panels of a value, as its kind demands."""
    about, unit = shown.value.description, shown.value.unit
    match shown.metric.type:
        case "histogram":
            yield show_heatmap(shown)
            yield show_quantiles(shown, by, legend)
        case "counter":
            queries = [query(shown.rate(by), legend)]
            yield chart(f"{shown.value.name} per second", about, RATES.get(unit, "cps"), queries)
        case _:
            queries = [query(shown.level(by), legend)]
            yield chart(shown.value.name, about, LEVELS.get(unit, "short"), queries)


# Dashboards


def begin(subject: Subject, title: str) -> Dashboard:
    """Return a dashboard without panels: with a variable for each label."""
    dashboard = (
        Dashboard(title)
        .uid(f"statsfs-{subject.top}"[:40])
        .tags(["statsfs"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(DatasourceVariable("datasource").type("prometheus").label("Data source"))
    )
    # A metric of the sources furthest down: of a VM, some ways have only what the vCPUs count.
    metrics = sorted(subject, key=lambda shown: -len(shown.labels))
    chosen: list[str] = []
    for label in ("job", "instance", *subject.labels):
        having = (shown for shown in metrics if label in shown.labels)
        name = next(having, metrics[0]).metric.sample
        conditions = f"{{{','.join(chosen)}}}" if chosen else ""
        found = f"label_values({name}{conditions}, {label})"
        dashboard.with_variable(
            QueryVariable(label)
            .label(label)
            .datasource(SOURCE)
            .query(found)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
        )
        if label in ("job", "instance"):
            chosen.append(f'{label}=~"${label}"')
    return dashboard


def make_application(subject: Subject) -> Dashboard:
    """Return the dashboard of any program: a panel or two for each value."""
    dashboard = begin(subject, f"statsfs: {subject.name}")
    labels = [*subject.labels, "instance", "job"]
    first = VariableOption(selected=True, text=labels[0], value=labels[0])
    by = CustomVariable("by").label("Sums by").values(",".join(labels)).current(first)
    dashboard.with_variable(by)
    rows = {"Rates": "counter", "Levels": "gauge", "Distributions": "histogram"}
    for title, type in rows.items():
        found = [shown for shown in subject if shown.metric.type == type]
        if found:
            dashboard.with_row(Row(title))
            for shown in found:
                for panel in show_value(shown, "$by", "{{$by}}"):
                    dashboard.with_panel(panel)
    return dashboard


DAEMON: Final = "statsfs"


def make_daemon_row(schema: dict[str, Any]) -> Row | None:
    """Return a folded row of what a daemon counts of itself; None if the schema is not a daemon's.

    It is of the daemons that the variables choose: no other variable has an effect on it.
    """
    if DAEMON not in schema["subordinates"]:
        return None
    row = Row("The daemon itself").collapsed(True)
    for shown in Subject(schema, DAEMON):
        by = ["instance", *shown.labels]
        shown.labels = {}
        for panel in show_value(shown, ", ".join(by), " ".join(f"{{{{{one}}}}}" for one in by)):
            row.with_panel(panel)
    return row


# The virtual machines of a host

VM: Final = "instance, vm"
VM_LEGEND: Final = "{{vm}} {{instance}}"
REASONS: Final = "io mmio halt irq irq_window nmi_window request_irq signal notify_window"


class KvmPanels:
    """The panels of a host's VMs. One whose values the schema lacks is left out."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._used: set[str] = set()

    def make(self, dashboard: Dashboard) -> Dashboard:
        """Add all rows."""
        for title, panels in {
            "Host": self._show_host(),
            "Exits": self._show_exits(),
            "Halts": self._show_halts(),
            "Scheduler": self._show_scheduler(),
            "Memory": self._show_memory(),
        }.items():
            found = [*panels]
            if found:
                dashboard.with_row(Row(title))
            for panel in found:
                dashboard.with_panel(panel)
        rest = Row("All other values")
        for shown in self.subject:
            if shown.value.name not in self._used:
                for panel in show_value(shown, VM, VM_LEGEND):
                    rest.with_panel(panel)
        return dashboard.with_row(rest)

    def _take(self, *names: str) -> list[Shown]:
        # The metrics of these values, which then need no panel of their own; all of them, or none.
        found = [shown for name in names if (shown := self.subject.find(name))]
        if len(found) < len(names):
            return []
        self._used.update(names)
        return found

    def _show_each(self, *names: str) -> Iterator[Any]:
        for name in names:
            for shown in self._take(name):
                yield from show_value(shown, VM, VM_LEGEND)

    def _make_steal(self) -> str | None:
        # The share of the time in which vCPUs wanted to run and could not.
        found = self._take("run_ns", "wait_ns")
        if not found:
            return None
        run, wait = (shown.rate(VM) for shown in found)
        return f"{wait} / ({run} + {wait})"

    def _show_host(self) -> Iterator[Any]:
        for exits in self._take("exits"):
            vms = f"count(count by ({VM}) ({exits.select()}))"
            yield show_number("VMs", "Virtual machines that are shown", "short", vms)
            if "vcpu" in exits.labels:
                vcpus = f"count(count by ({VM}, vcpu) ({exits.select()}))"
                yield show_number("vCPUs", "All vCPUs of these VMs", "short", vcpus)
            rate = f"sum(rate({exits.select()}[{WINDOW}]))"
            yield show_number("Exits per second", exits.value.description, "cps", rate)
        if steal := self._make_steal():
            about = "That of the VM which has most of it"
            yield show_number("Highest steal", about, "percentunit", f"max({steal})")
        if "vm" in self.subject.informed:
            chosen = 'job=~"$job",instance=~"$instance",vm=~"$vm"'
            info = Dataquery().expr(f"{self.subject.top}_vm_info{{{chosen}}}").instant()
            table = Table().title("What is known of each VM").datasource(SOURCE).show_header(True)
            table = table.height(8).span(24)
            yield table.with_target(info.format(PromQueryFormat.TABLE).ref_id("A"))

    def _show_exits(self) -> Iterator[Any]:
        yield from self._show_each("exits")
        reasons = [shown for name in REASONS.split() for shown in self._take(f"{name}_exits")]
        if reasons:
            queries = [
                query(f"sum(rate({shown.select()}[{WINDOW}]))", shown.value.name)
                for shown in reasons
            ]
            yield chart("exits by reason, per second", "Of all chosen VMs", "cps", queries)

    def _show_halts(self) -> Iterator[Any]:
        yield from self._show_each("halt_exits", "halt_wait_ns", "halt_wait_hist")
        if polls := self._take("halt_successful_poll", "halt_attempted_poll"):
            good, all = (shown.rate(VM) for shown in polls)
            queries = [query(f"{good} / {all}", VM_LEGEND)]
            yield chart("halts that polling caught", "A share of all", "percentunit", queries)

    def _show_scheduler(self) -> Iterator[Any]:
        if steal := self._make_steal():
            about = "The share of the time in which vCPUs were ready to run and had no CPU"
            yield chart("steal", about, "percentunit", [query(steal, VM_LEGEND)])
        yield from self._show_each("run_ns", "wait_ns", "timeslices")

    def _show_memory(self) -> Iterator[Any]:
        yield from self._show_each("pf_taken", "tlb_flush", "pages_4k", "pages_2m", "pages_1g")


def make_dashboard(schema: dict[str, Any], source: str, prefix: str | None = None) -> str:
    """Return a dashboard as JSON.

    Args:
        schema: that of a mount's root.
        source: the top-level source.
        prefix: that of its registry.

    Raises:
        ValueError: there is nothing to show.
    """
    if source not in schema["subordinates"]:
        raise ValueError(f"there is no source {source}")
    subject = Subject(schema, source, prefix)
    if not [*subject]:
        raise ValueError(f"{source} has no values")
    if source == "kvm":
        dashboard = KvmPanels(subject).make(begin(subject, "statsfs: virtual machines"))
    else:
        dashboard = make_application(subject)
    if source != DAEMON and (row := make_daemon_row(schema)):
        dashboard.with_row(row)
    built = dashboard.build()
    _number_panels(built)
    return f"{json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True)}\n"


def _number_panels(dashboard: models.Dashboard) -> None:
    # Each has a number; and those in a row that is folded, which the library does not place, a
    # place, which is that in the unfolded row.
    ids = count(1)
    for panel in dashboard.panels or []:
        panel.id_val = next(ids)
        if isinstance(panel, models.RowPanel):
            top = panel.grid_pos.y + 1 if panel.grid_pos else 1
            for number, inner in enumerate(panel.panels):
                inner.id_val = next(ids)
                below, right = divmod(number, 2)
                inner.grid_pos = models.GridPos(h=8, w=12, x=12 * right, y=top + 8 * below)


def main() -> None:
    """Write a dashboard to standard output."""
    parser = argparse.ArgumentParser(description="a Grafana dashboard from a schema")
    parser.add_argument("schema", type=Path, help=".schema.json at the root of a mount")
    parser.add_argument("source", help="the name of a directory there")
    parser.add_argument("--prefix", help="the one of the program's registry")
    args = parser.parse_args()
    try:
        schema = json.loads(args.schema.read_text())
        text = make_dashboard(schema, args.source, args.prefix)
    except (OSError, ValueError) as error:
        parser.error(f"{args.schema}: {error}")
    print(text, end="")


if __name__ == "__main__":
    main()
