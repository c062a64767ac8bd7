"""The markup of manual pages: text, and Markdown, as roff with the macros of man(7) and tbl(1).

Owns escapes, line lengths, and that part of Markdown which the manual in docs/ has: headings,
paragraphs, lists, tables, code, emphasis, links. Comments are left out; all else is an error.
Threading: none.
"""

import textwrap
from collections.abc import Callable, Iterator
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

__all__ = ["escape", "fill", "from_markdown", "keep"]

_PARSER: Final = MarkdownIt("commonmark").enable("table")
_WIDTH: Final = 78  # of lines of the page's source
_ESCAPES: Final = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
_FONTS: Final = {"strong": "B", "em": "I"}


def escape(text: str) -> str:
    """Return a text in which no character has a meaning for roff."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def fill(text: str) -> Iterator[str]:
    """Yield the lines of an escaped text that roff fills anew."""
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    yield from map(_protect, lines)


def keep(lines: list[str]) -> Iterator[str]:
    """Yield lines, not escaped yet, that stay as they are."""
    yield ".nf"
    for line in lines:
        yield _protect(escape(line))
    yield ".fi"


def from_markdown(text: str) -> Iterator[str]:
    """Yield the lines of a page of Markdown.

    Raises:
        ValueError: it has something that is not known here.
    """
    last = ""
    for node in SyntaxTreeNode(_PARSER.parse(text)).children:
        for line in _render(node):
            if line != ".PP" or not last.startswith(".S"):  # a heading begins a paragraph
                yield line
            last = line


def _protect(line: str) -> str:
    # A line that begins so would be a request.
    return f"\\&{line}" if line[:1] in (".", "'") else line


def _render(node: SyntaxTreeNode) -> Iterator[str]:
    match node.type:
        case "heading" if node.tag == "h1":
            yield f".SH {_inline(node, str.upper)}"
        case "heading":
            yield f".SS {_inline(node)}"
        case "paragraph":
            yield ".PP"
            yield from fill(_inline(node))
        case "fence":
            yield from (".PP", ".RS 4", *keep(node.content.splitlines()), ".RE")
        case "bullet_list" | "ordered_list":
            for number, item in enumerate(node.children, 1):
                mark = "\\(bu" if node.type == "bullet_list" else f"{number}."
                yield f".IP {mark} 4"
                yield from _render_item(item)
        case "table":
            yield from _render_table(node)
        case "html_block" if node.content.startswith("<!--"):
            pass
        case _:
            raise ValueError(f"unknown Markdown: {node.type}, line {(node.map or [0])[0] + 1}")


def _render_item(item: SyntaxTreeNode) -> Iterator[str]:
    first, *others = item.children
    yield from fill(_inline(first))
    for child in others:
        yield from (".RS 4", *_render(child), ".RE")


def _render_table(table: SyntaxTreeNode) -> Iterator[str]:
    # The last column is as wide as there is room, and filled.
    rows = [row.children for part in table.children for row in part.children]
    columns = " ".join("l" * len(rows[0]))
    yield from (".PP", ".TS", f"{columns.replace('l', 'lB')}x", f"{columns}x.")
    for row in rows:
        *cells, last = map(_inline, row)
        yield "\t".join([*cells, "T{"])
        yield from fill(last)
        yield "T}"
    yield ".TE"


def _inline(node: SyntaxTreeNode, change: Callable[[str], str] = str) -> str:
    return "".join(_inline_parts(node.children, change))


def _inline_parts(nodes: list[SyntaxTreeNode], change: Callable[[str], str] = str) -> Iterator[str]:
    for node in nodes:
        match node.type:
            case "inline":
                yield from _inline_parts(node.children, change)
            case "text":
                yield escape(change(node.content))
            case "softbreak":
                yield " "
            case "code_inline":
                yield f"\\fB{escape(node.content)}\\fP"
            case "strong" | "em":
                yield f"\\f{_FONTS[node.type]}{_inline(node, change)}\\fP"
            case "link":
                yield _inline(node, change)
                href = str(node.attrs["href"])
                # Others lead to pages beside this one.
                if href.startswith("http") and href != node.children[0].content:
                    yield f" <{escape(href)}>"
            case _:
                raise ValueError(f"unknown Markdown: {node.type}: {node.content}")
