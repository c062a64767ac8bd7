"""What a server of metrics counts of its own work."""

import pytest

from statsfs.formats import views
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source
from tests.support.scrapes import ask


def test_scrapes(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are answered, and those that fail; not what asks for something else."""

    def fail(root: Registry | Source) -> None:
        raise KeyError("broken")

    assert ask(server)[0].status == 200
    assert ask(server, path="/metrics?name[]=app_requests")[0].status == 200
    assert ask(server, path="/other")[0].status == 404
    assert ask(server, "POST")[0].status == 405
    with monkeypatch.context() as patch:
        patch.setattr(views, "take_snapshot", fail)
        assert ask(server)[0].status == 500
    assert (server.stats.scrapes, server.stats.failed_scrapes) == (3, 1)
    assert sum(server.stats.scrape_duration_ns) == 3


def test_a_source_of_them(server: MetricsServer, registry: Registry) -> None:
    """They are values as all others."""
    source = registry.register(Source("watcher"))
    source.add_values(type(server.stats), server.stats)
    ask(server)
    assert source.get_value("scrapes") == 1
    assert b"watcher_scrapes_total 2\n" in ask(server)[1]
