"""What is scraped, and who serves it."""

from collections.abc import Iterator

import pytest

from statsfs.model.values import Kind, Unit, Value
from statsfs.monitoring.exposition import serve_metrics
from statsfs.monitoring.http_server import MetricsServer
from statsfs.tree.registry import Registry
from statsfs.tree.source import Source


@pytest.fixture
def app(registry: Registry) -> Source:
    """A source with one value of each sort; one of them not everybody may read."""
    values = (
        Value("requests", description="Answered"),
        Value("lag_ms", unit=Unit.SECONDS, exponent=-3, kind=Kind.INSTANT),
        Value("sizes", kind=Kind.LOG_HIST, size=3, unit=Unit.BYTES),
        Value("sizes.sum", unit=Unit.BYTES),
        Value("bare", kind=Kind.LOG_HIST, size=2),
        Value("secret", mode=0o640),
    )
    app = Source("app")
    base = {"requests": 5, "lag_ms": 250, "sizes": [1, 2, 3], "sizes.sum": 11, "bare": [4, 5]}
    app.add_values(values, {**base, "secret": 9})
    registry.register(app)
    return app


@pytest.fixture
def server(registry: Registry, app: Source) -> Iterator[MetricsServer]:
    """A server of these values."""
    with serve_metrics(registry) as server:
        yield server
