"""A widget of many rows, of which only those on the screen are made.

Owns the cursor, scrolling, the line of titles, and the mouse; what is in a row its subclasses know.
Threading: textual's.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from statsfs.eyes.numbers import clean_text

__all__ = ["Cell", "Rows", "fit"]


class Cell(NamedTuple):
    """A piece of a row: a text, and the name of its style."""

    text: str
    style: str = "text"


class Rows(ScrollView, can_focus=True):
    """Rows with a cursor, below a line of titles.

    Attributes:
        cursor: the index of the row under the cursor.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--title", "rows--cursor", "rows--text", "rows--dim", "rows--number", "rows--rate",
        "rows--bars",
    }  # fmt: skip
    DEFAULT_CSS = """
    Rows { background: $surface; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Rows > .rows--title { color: $text; background: $primary-darken-2; text-style: bold; }
    Rows > .rows--cursor { background: $surface-lighten-2; }
    Rows:focus > .rows--cursor { background: $secondary-darken-1; text-style: bold; }
    Rows > .rows--text { color: $text; }
    Rows > .rows--dim { color: $text-muted; }
    Rows > .rows--number { color: $text-primary; }
    Rows > .rows--rate { color: $text-success; }
    Rows > .rows--bars { color: $text-warning; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "move_page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "move_page(1)", "Page down", show=False),
        Binding("home,g", "move(-1000000000)", "First", show=False),
        Binding("end,G", "move(1000000000)", "Last", show=False),
    ]

    class Moved(Message):
        """The cursor moved."""

        def __init__(self, rows: "Rows") -> None:
            super().__init__()
            self.rows = rows

    class TitleClicked(Message):
        """The line of titles was clicked, so many columns from the left."""

        def __init__(self, rows: "Rows", column: int) -> None:
            super().__init__()
            self.rows = rows
            self.column = column

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.cursor = 0
        self._count = 0

    # What subclasses know

    def make_title(self, width: int) -> Sequence[Cell]:
        """Return the line of titles."""
        raise NotImplementedError

    def make_row(self, index: int, width: int) -> Sequence[Cell]:
        """Return one row."""
        raise NotImplementedError

    # What the app tells

    def set_count(self, count: int, cursor: int) -> None:
        """Show so many rows, anew, with the cursor on one of them."""
        self.cursor = max(0, min(cursor, count - 1))
        if count != self._count:
            self._count = count
            self._resize()
        self.refresh()

    def move_to(self, index: int) -> None:
        """Put the cursor on a row, and show it."""
        cursor = max(0, min(index, self._count - 1))
        moved, self.cursor = cursor != self.cursor, cursor
        self.show_cursor()
        if moved:
            self.refresh()
            self.post_message(self.Moved(self))

    def show_cursor(self) -> None:
        """Scroll to the cursor."""
        height = max(self.size.height - 1, 1)
        top = self.scroll_offset.y
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    @property
    def on_screen(self) -> range:
        """The indices of the rows on the screen."""
        top = self.scroll_offset.y
        return range(top, min(top + max(self.size.height - 1, 0), self._count))

    # textual's

    def _resize(self) -> None:
        self.virtual_size = Size(self.size.width, self._count + 1)

    def on_resize(self) -> None:
        """Follow the size of the terminal."""
        self._resize()
        self.show_cursor()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._join(self.make_title(width), width, "rows--title")
        index = self.scroll_offset.y + y - 1
        if index >= self._count:
            return Strip.blank(width, self.rich_style)
        under = "rows--cursor" if index == self.cursor else ""
        return self._join(self.make_row(index, width), width, under)

    def _join(self, cells: Sequence[Cell], width: int, under: str) -> Strip:
        # Titles have one style; the cursor is a background.
        base = self.rich_style
        if under == "rows--title":
            style = self.get_component_rich_style(under)
            segments = [Segment(cell.text, style) for cell in cells]
            return Strip(segments).adjust_cell_length(width, style)
        if under:
            base += Style(
                bgcolor=self.get_component_rich_style(under).bgcolor,
                bold=self.get_component_rich_style(under).bold,
            )
        segments = [
            Segment(
                cell.text,
                base + Style(color=self.get_component_rich_style(f"rows--{cell.style}").color),
            )
            for cell in cells
        ]
        return Strip(segments).adjust_cell_length(width, base)

    def action_move(self, by: int) -> None:
        """Move the cursor by some rows."""
        self.move_to(self.cursor + by)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by some screens."""
        self.move_to(self.cursor + by * max(self.size.height - 2, 1))

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row, or sort by the column of a title."""
        if event.y == 0:
            self.post_message(self.TitleClicked(self, event.x))
        elif (index := self.scroll_offset.y + event.y - 1) < self._count:
            self.move_to(index)
            self.clicked(index, event.x, event.chain)

    def clicked(self, index: int, column: int, times: int) -> None:
        """Know that a row was clicked; for subclasses."""


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Return a text that takes a width, cut if it must be."""
    text = clean_text(text)
    if right and cell_len(text) < width:
        return " " * (width - cell_len(text)) + text
    if cell_len(text) > width > 0:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, width)
