"""Which format and which encoding a client gets."""

import pytest

from statsfs.formats import openmetrics, prometheus
from statsfs.monitoring.negotiation import accepts_gzip, choose_content_type

OPENMETRICS = "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("text/html", "text/plain"),
        (OPENMETRICS, OPENMETRICS),
        (f"{OPENMETRICS};version=1.0.0", OPENMETRICS),
        (f'{OPENMETRICS.upper()} ; Version = "1.0.0"', OPENMETRICS),
        (f"{OPENMETRICS};version=0.0.1", "text/plain"),
        (f"{OPENMETRICS};version=2.0.0,*/*;q=0.1", "text/plain"),
        (f"text/plain,{OPENMETRICS}", OPENMETRICS),
        (f"text/plain;q=0.9,{OPENMETRICS};q=0.8", "text/plain"),
        (f"text/plain;q=0.8,{OPENMETRICS};q=0.9", OPENMETRICS),
        (f"{OPENMETRICS};q=0", "text/plain"),
        (f"{OPENMETRICS};q=0,*/*", "text/plain"),
        ("application/*", OPENMETRICS),
        ("application/*;q=0.5,*/*;q=0.5", "text/plain"),
        ("text/*;q=0.1,application/*;q=0.2", OPENMETRICS),
        (f"{OPENMETRICS};q=nan", "text/plain"),
        (f"{OPENMETRICS};q=2,", "text/plain"),
        # Prometheus 2.42, 3.5 and node_exporter's libraries.
        (
            f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        (
            f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.2",
            OPENMETRICS,
        ),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
        (f"text/plain;version=0.0.4,{OPENMETRICS};version=0.0.1", "text/plain"),
    ],
)
def test_formats(accept: str, expected: str) -> None:
    """A client gets OpenMetrics if it names it, and does not prefer the text."""
    assert choose_content_type(accept).startswith(expected)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("identity", False),
        ("br;q=1.0, x-gzip;q=0.8", True),
    ],
)
def test_encodings(header: str, expected: bool) -> None:
    """The answer is compressed for clients that accept it."""
    assert accepts_gzip(header) is expected


def test_headers_that_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many items count as clients have; those after them have no effect, and cost nothing."""
    assert choose_content_type("a/b," * 63 + OPENMETRICS) == openmetrics.CONTENT_TYPE
    assert choose_content_type("a/b," * 64 + OPENMETRICS) == prometheus.CONTENT_TYPE
    assert accepts_gzip("br;" + "x;" * 62 + "q=1,gzip")
    assert not accepts_gzip("gzip;" + "x;" * 62 + "q=0")
    assert accepts_gzip("gzip;" + "x;" * 63 + "q=0")
