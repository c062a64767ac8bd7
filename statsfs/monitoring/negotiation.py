"""Which format and which encoding a client gets, by the headers of its request.

Threading: pure.
"""

import re
from collections.abc import Iterator
from typing import Final

from statsfs.formats import openmetrics, prometheus

__all__ = ["accepts", "accepts_gzip", "choose_content_type", "has_tag"]

_ITEMS: Final = 64  # of a header, and parameters of an item; what comes after them has no effect

_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def _parse(header: str) -> Iterator[tuple[str, str, float]]:
    # Yields the name, the version and the quality of each item of an Accept or Accept-Encoding.
    for item in header.split(",", _ITEMS)[:_ITEMS]:
        name, *rest = (part.strip().lower() for part in item.split(";", _ITEMS)[:_ITEMS])
        pairs = {key.strip(): text.strip() for key, _, text in (one.partition("=") for one in rest)}
        quality = pairs.get("q", "1")
        if _QUALITY.fullmatch(quality):
            yield name, pairs.get("version", "").strip('"'), float(quality)


def _rate(header: str, content_type: str) -> tuple[float, bool]:
    # Returns the quality of a content type, and whether it is named: a name outweighs a pattern.
    ((named, current, _),) = _parse(content_type)
    patterns = ("*/*", f"{named.partition('/')[0]}/*", named)
    rated = {
        (patterns.index(name), quality)
        for name, version, quality in _parse(header)
        if name in patterns and version in ("", current)
    }
    weight, quality = max(rated, default=(0, 0.0))
    return quality, weight == patterns.index(named)


def choose_content_type(accept: str) -> str:
    """Choose by an `Accept` header: OpenMetrics if it is preferred, or named and liked as well."""
    wanted, named = _rate(accept, openmetrics.CONTENT_TYPE)
    other, _ = _rate(accept, prometheus.CONTENT_TYPE)
    preferred = wanted and (wanted, named) > (other, False)
    return openmetrics.CONTENT_TYPE if preferred else prometheus.CONTENT_TYPE


def accepts_gzip(header: str) -> bool:
    """Tell whether an `Accept-Encoding` header lets the answer be compressed."""
    return any(name in ("gzip", "x-gzip") and quality > 0 for name, _, quality in _parse(header))


def accepts(header: str, content_type: str) -> bool:
    """Tell whether an `Accept` header permits this type; an empty one permits any."""
    return not header.strip() or _rate(header, content_type)[0] > 0


def has_tag(header: str, tag: str) -> bool:
    """Tell whether an `If-None-Match` header names this entity tag, or any."""
    tags = [item.strip().removeprefix("W/") for item in header.split(",", _ITEMS)]
    return tag in tags or tags == ["*"]
