"""Sphinx's configuration of the manual: `make docs`.

All pages but those of `reference/` are plain Markdown, which a forge shows as well. Docstrings are
plain text, as `help()` shows it: here they become reStructuredText.

Threading: none.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import statsfs

__all__ = ["setup"]

DOCS = Path(__file__).parent.resolve()

project = "statsfs"
author = "the statsfs authors"
version = release = statsfs.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # links to headings, as a forge has them
highlight_language = "text"
html_theme = "furo"
html_title = f"statsfs {version}"
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Found nowhere: types of others, and those that only this package names.
nitpick_ignore_regex = [
    ("py:class", r"(collections|contextlib|os|pathlib|types)\..*"),
    ("py:class", r"statsfs\.(kvm|model|segments|tree)\..*"),
    ("py:class", r"(.*\.)?_\w+"),
    ("py:class", r"Array|CollectorRegistry|MetricsServer|Section|Session|TheirMetric"),
]

# A link to a text of the repository that is no page.
_LINK = re.compile(r"\[([^\]]+)\]\((\.\.[\w./-]+\.md)\)")
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)(\w?)")
_UNDERSCORE = re.compile(r"``[^`]*``|_(?!\w)")
# napoleon takes what is before the first colon of a property, and of what is returned, for a type.
_COLON = "\ue000"


def _link_file(found: re.Match[str], page: Path) -> str:
    inside = (page.parent / found[2]).resolve().is_relative_to(DOCS)
    return found[0] if inside else f"{{download}}`{found[1]} <{found[2]}>`"


def _read(_app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to other files of the repository be downloads."""
    source[0] = _LINK.sub(lambda found: _link_file(found, DOCS / page), source[0])


def _write_code(found: re.Match[str]) -> str:
    return f"``{found[1].replace(':', _COLON)}``" + (f"\\ {found[2]}" if found[2] else "")


def _write_line(line: str) -> str:
    if re.match(r" *(>>>|\.\.\.)", line):
        return line
    return _UNDERSCORE.sub(
        lambda found: r"\_" if found[0] == "_" else found[0], _CODE.sub(_write_code, line)
    )


def _before(_app: Sphinx, what: str, _name: str, _it: object, _how: Any, lines: list[str]) -> None:
    """Before napoleon: what is in backticks is code, and a name that ends in "_" is no link."""
    lines[:] = map(_write_line, lines)
    if what in {"attribute", "property"} and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _after(_app: Sphinx, _what: str, _name: str, _it: object, _how: Any, lines: list[str]) -> None:
    """Give the colons back."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app: Sphinx) -> None:
    """Stand before and behind napoleon, whose priority is 500."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _before, priority=400)
    app.connect("autodoc-process-docstring", _after, priority=600)
