"""The two panes: the tree with totals, and the numbers of one source.

They show what the app gives them with each tick. Threading: textual's.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from textual.binding import Binding, BindingType
from textual.message import Message

from statsfs.eyes.descriptions import Path
from statsfs.eyes.numbers import format_number, format_rate
from statsfs.eyes.rates import Rates
from statsfs.top.history import History, draw_bars, draw_buckets
from statsfs.top.outline import Outline
from statsfs.top.rows import Cell, Rows, fit
from statsfs.top.table import Entry, Find, describe_unit

__all__ = ["TablePane", "TreePane"]

# Widths in columns; where two stand, the first is for narrow panes.
_TREE_NARROW: Final = 50
_TOTAL: Final = 12, 15
_RATE: Final = 10, 12
_TABLE_NARROW: Final = 75
_VALUE: Final = 13, 18
_UNIT: Final = 7
_BARS: Final = 24
_HISTOGRAM: Final = 42  # three percentiles
_NAMES: Final = 12, 30  # at least and at most


class TreePane(Rows):
    """The sources, with the total and the rate of the value under the table's cursor.

    Attributes:
        outline: which sources are shown.
        total_of: the name of that value.
        title: the title of the first column.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l,plus", "fold(True)", "Unfold", show=False),
        Binding("left,minus", "fold(False)", "Fold", show=False),
        Binding("enter,space", "turn", "Fold", show=False),
        Binding("asterisk", "fold_all", "Fold all", show=False),
    ]

    class Folded(Message):
        """A source is to be folded or unfolded; or all of them, where it is None."""

        def __init__(self, path: Path | None, opened: bool) -> None:
            super().__init__()
            self.path = path
            self.opened = opened

    def __init__(self, outline: Outline, rates: Rates, find: Find) -> None:
        super().__init__(id="tree")
        self.outline = outline
        self.total_of = ""
        self.title = ""
        self.name_of_root = ""
        self._rates = rates
        self._find = find
        self._paths: list[Path] = []
        self._all = False

    def show(self, paths: list[Path], cursor: Path) -> None:
        """Show sources, with the cursor on one of them."""
        if paths is not self._paths or self._at(self.cursor) != cursor:
            index = paths.index(cursor) if cursor in paths else min(self.cursor, len(paths) - 1)
        else:
            index = self.cursor
        self._paths = paths
        self.set_count(len(paths), index)

    @property
    def selected(self) -> Path:
        """The source under the cursor."""
        return self._at(self.cursor) or ()

    @property
    def shown(self) -> list[Path]:
        """The sources on the screen."""
        return [self._paths[index] for index in self.on_screen]

    def _at(self, index: int) -> Path | None:
        return self._paths[index] if index < len(self._paths) else None

    def make_title(self, width: int) -> Sequence[Cell]:
        names, total, rate = _divide(width)
        cells = [fit(self.title, names), fit(self.total_of, total, right=True)]
        return [*map(Cell, cells), Cell(fit("rate", rate, right=True))]

    def make_row(self, index: int, width: int) -> Sequence[Cell]:
        path = self._paths[index]
        node = None if self._rates.after is None else self._rates.after.find(path)
        names, total, rate = _divide(width)
        mark = " "
        if node is not None and node["subordinates"]:
            mark = "▾" if self.outline.is_open(path) else "▸"
        name = path[-1] if path else self.name_of_root
        label = fit(f"{'  ' * len(path)}{mark} {name}", names)
        if node is None:
            return [Cell(label, "dim"), Cell(fit("gone", total, right=True), "dim")]
        number = node["values"].get(self.total_of)
        if number is None:
            return [Cell(label)]
        what = self._find(path, self.total_of)
        rates = ""
        if what is not None and what.counts(node["values"], bool(node["subordinates"])):
            moved = self._rates.rate(path, self.total_of)
            rates = format_rate(moved, what) if moved else ""
        whole = sum(number) if isinstance(number, list) else number
        plain = what is None or isinstance(number, list)
        text = f"{whole:,}" if plain or what is None else format_number(number, what)
        return [
            Cell(label),
            Cell(fit(_narrow(text, whole, total - 1), total, right=True), "number"),
            Cell(fit(rates, rate, right=True), "rate"),
        ]

    def action_fold(self, opened: bool) -> None:
        """Unfold or fold the source; a folded one moves the cursor to the source above."""
        path = self.selected
        if not opened and not self.outline.is_open(path) and path[:-1] in self._paths and path:
            self.move_to(self._paths.index(path[:-1]))
        else:
            self.post_message(self.Folded(path, opened))

    def action_turn(self) -> None:
        """Unfold the source if it is folded, or fold it."""
        path = self.selected
        self.post_message(self.Folded(path, not self.outline.is_open(path)))

    def action_fold_all(self) -> None:
        """Unfold all sources, or fold them."""
        self._all = not self._all
        self.post_message(self.Folded(None, self._all))

    def clicked(self, index: int, column: int, times: int) -> None:
        path = self._paths[index]
        if times == 2 or 2 * len(path) <= column <= 2 * len(path) + 1:
            self.action_turn()


def _divide(width: int) -> tuple[int, int, int]:
    # The columns of names, totals and rates.
    wide = width >= _TREE_NARROW
    total, rate = _TOTAL[wide], _RATE[wide]
    return width - total - rate - 1, total, rate


def _narrow(text: str, number: float, width: int) -> str:
    # A number is not cut, but rounded; the line below the table has it whole.
    return text if len(text) <= width else f"{float(number):.4g}"


class TablePane(Rows):
    """The numbers of one source.

    Attributes:
        titles: the columns as they are now: what each sorts by, and where it ends.
    """

    def __init__(self, history: History, mark: Callable[[str], str]) -> None:
        super().__init__(id="table")
        self.titles: list[tuple[str, int]] = []
        self.entries: list[Entry] = []
        self.since_reset = False
        self.total = False
        self.now = 0.0
        self._history = history
        self._mark = mark

    def show(self, entries: list[Entry], cursor: str) -> None:
        """Show numbers, with the cursor on one of them."""
        names = [entry.name for entry in entries]
        self.entries = entries
        self.set_count(len(entries), names.index(cursor) if cursor in names else self.cursor)
        self.show_cursor()

    @property
    def selected(self) -> Entry | None:
        """The file under the cursor."""
        return self.entries[self.cursor] if self.cursor < len(self.entries) else None

    def _columns(self, width: int) -> list[tuple[str, int]]:
        longest = max((len(entry.name) for entry in self.entries), default=0)
        wide = any(isinstance(entry.number, list) for entry in self.entries)
        value, rate = _VALUE[width >= _TABLE_NARROW], _RATE[width >= _TABLE_NARROW]
        # Names are cut before numbers are.
        name = max(_NAMES[0], min(longest, _NAMES[1], width - value - rate - 2))
        columns = [("name", name), ("value", _HISTOGRAM if wide and width >= 140 else value)]
        columns.append(("rate", rate))
        left = width - sum(taken + 1 for _, taken in columns)
        if self.since_reset and left <= value:
            columns[-1] = "since reset", rate
        elif self.since_reset:
            columns.append(("since reset", value))
            left -= value + 1
        bars = min(_BARS, left - 1)
        if bars > 7:
            columns.append(("2 minutes", bars))
            left -= bars + 1
        if left > _UNIT + 1:
            columns.append(("unit", _UNIT))
            left -= _UNIT + 1
        if left > 7:
            columns.append(("description", left))
        return columns

    def make_title(self, width: int) -> Sequence[Cell]:
        cells, self.titles, end = [], [], 0
        for name, taken in self._columns(width):
            end += taken + 1
            self.titles.append((name, end))
            right = name in ("value", "rate", "since reset")
            cells.append(Cell(fit(self._mark(name), taken, right=right) + " "))
        return cells

    def make_row(self, index: int, width: int) -> Sequence[Cell]:
        entry = self.entries[index]
        what = entry.what
        cells = []
        for name, taken in self._columns(width):
            match name:
                case "name":
                    cell = Cell(fit(entry.name, taken), "text" if entry.number else "dim")
                case "value":
                    cell = Cell(fit(self._shorten(entry, taken), taken, right=True), "number")
                case "rate":
                    cell = Cell(fit(entry.rate_text, taken, right=True), "rate")
                case "since reset":
                    moved = entry.moved if isinstance(entry.moved, int) else 0
                    text = _narrow(entry.moved_text, moved, taken)
                    cell = Cell(fit(text, taken, right=True), "rate")
                case "2 minutes":
                    cell = Cell(fit(self._draw(entry, taken), taken), "bars")
                case "unit":
                    cell = Cell(fit(describe_unit(what) if what else "", taken), "dim")
                case _:
                    cell = Cell(fit(what.description if what else "", taken), "dim")
            cells += [cell, Cell(" ")]
        return cells

    def _shorten(self, entry: Entry, width: int) -> str:
        if isinstance(entry.number, list):
            return entry.text if len(entry.text) <= width else entry.text.split("  ")[0]
        return _narrow(entry.text, entry.number, width)

    def _draw(self, entry: Entry, width: int) -> str:
        if isinstance(entry.number, list):
            return draw_buckets(entry.number, width)
        names = {other.name: None for other in self.entries}
        if entry.what is not None and entry.what.counts(names, self.total):
            return draw_bars(self._history.rates(entry.path, entry.name, self.now, width))
        return draw_bars(self._history.levels(entry.path, entry.name, self.now, width))
