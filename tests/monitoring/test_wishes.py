"""What the targets of requests ask for."""

import pytest

from statsfs.formats.views import VIEWS
from statsfs.monitoring.wishes import METRICS, Wish, parse_wish

STATS, SCHEMA = VIEWS[".stats.json"], VIEWS[".schema.json"]


@pytest.mark.parametrize(
    ("path", "query", "wish"),
    [
        ("/api/stats", "", Wish(STATS)),
        ("/api/schema", "x=1&value=", Wish(SCHEMA)),
        ("/api/stats/kvm/12-3", "depth=0", Wish(STATS, "kvm/12-3", 0)),
        ("/api/stats/%C3%A4%20b/%252F", "depth=1&depth=2", Wish(STATS, "ä b/%2F", 2)),
        ("/api/stats", "value=a&value=b%26", Wish(STATS, None, None, frozenset({"a", "b&"}))),
        ("/api/stats", "depth=", Wish(STATS)),
        ("/api/stats/", "", None),
        ("/api/stats/kvm/", "", None),
        ("/api/stats//kvm", "", None),
        ("/api/stats/kvm%2F12-3", "", None),
        ("/api/stats/%ff", "", None),
        ("/api/statsx", "", None),
        ("/api", "", None),
        ("/api/", "", None),
        ("/api/metrics", "", None),
        ("/", "", None),
    ],
)
def test_targets(path: str, query: str, wish: Wish | None) -> None:
    """A view, of the root or of a directory; names are percent-encoded."""
    assert parse_wish(path, query) == wish


@pytest.mark.parametrize("depth", ["-1", "x", "1.0", "%2B1", "12345", "１"])
def test_invalid_depths(depth: str) -> None:
    """A depth is a small number."""
    with pytest.raises(ValueError, match="invalid depth"):
        parse_wish("/api/stats", f"depth={depth}")


def test_scrapes() -> None:
    """Only metrics are scrapes; they have no depth."""
    assert all(wish.scrape and wish.arguments == {} for wish in METRICS.values())
    wish = Wish(SCHEMA, None, 1)
    assert not wish.scrape
    assert wish.arguments == {"depth": 1, "names": None, "readable": 0o004}
    assert Wish(STATS).arguments == {"depth": None, "names": None}
