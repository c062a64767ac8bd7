"""The app of `statsfs top`: panes, keys, and what each tick shows.

Threading: textual's loop; `Feed` has a thread of its own, and its answers come here.
"""

import asyncio
import contextlib
import errno
import os
import re
import signal
import termios
import time
from typing import Any, ClassVar, Final, Literal

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, Input, Static

from statsfs.exceptions import SampleError
from statsfs.eyes.descriptions import Path
from statsfs.eyes.numbers import clean_text
from statsfs.eyes.places import Place, Player
from statsfs.eyes.rates import Rates
from statsfs.eyes.samples import Sample
from statsfs.model.counts import count_of
from statsfs.top.detail import LINES, describe_entry
from statsfs.top.dialogs import Help, Question
from statsfs.top.feed import Feed
from statsfs.top.history import History
from statsfs.top.known import Known
from statsfs.top.outline import Outline, natural_key
from statsfs.top.panes import TablePane, TreePane
from statsfs.top.plain import format_table
from statsfs.top.playing import PLAYER_BINDINGS, describe_position, move
from statsfs.top.rows import Rows
from statsfs.top.table import ORDERS, list_entries, measure, sort_entries

__all__ = ["TopApp"]

_TREE_ORDERS: Final = ("name", "value", "rate")
_Severity = Literal["information", "warning", "error"]

_PREFERRED: Final = "exits"
_OWN: Final = "statsfs"
_SILENCE: Final = 2.0  # seconds until it is told


class TopApp(App[None]):
    """A tree and its numbers, live.

    Args:
        place: where samples are read.
        interval: seconds between two.
        pattern: what the paths of files must have in them, or None.
    """

    TITLE = "statsfs top"
    ENABLE_COMMAND_PALETTE = False
    CSS = f"""
    #head {{ height: 1; background: $primary; color: $text; text-style: bold; }}
    #tree {{ width: 34%; max-width: 60; min-width: 40; }}
    #right {{ width: 1fr; border-left: vkey $primary-darken-2; }}
    #table {{ height: 1fr; }}
    #detail {{ height: {LINES + 1}; max-height: 50%; border-top: hkey $primary-darken-2;
        color: $text-muted; background: $surface; }}
    #filter {{ display: none; height: 1; border: none; padding: 0 1; background: $boost; }}
    #filter.shown {{ display: block; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,question_mark", "help", "Help", key_display="F1"),
        Binding("f4,f3,slash,backslash", "filter", "Filter", key_display="F4"),
        Binding("f6,greater_than_sign", "sort(1)", "Sort", key_display="F6"),
        Binding("less_than_sign", "sort(-1)", "Sort", show=False),
        Binding("I", "turn_round", "Invert", show=False),
        Binding("Z,z,p", "hold", "Hold", key_display="Z"),
        Binding("r", "reset", "Reset"),
        Binding("f9,0", "clear", "Write 0", key_display="F9"),
        Binding("c,y", "copy", "Copy"),
        *PLAYER_BINDINGS,
        Binding("escape", "unfilter", "No filter", show=False),
        Binding("f10,q", "quit", "Quit", key_display="F10"),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
    ]

    def __init__(
        self, place: Place, interval: float = 1.0, pattern: re.Pattern[str] | None = None
    ) -> None:
        super().__init__()
        self._place = place
        self._player = place if isinstance(place, Player) else None
        self._known = Known(place)
        self._feed = Feed(place, self._known, interval, self._hear, self._hear_refusal)
        self._rates = Rates()
        self._history = History()
        self._since: Sample | None = None
        self._error = ""
        self._finished = False
        self._pattern = pattern
        self._order = ORDERS[0]
        self._reverse = False
        self._tree_order = _TREE_ORDERS[0]
        self._source: Path = ()
        self._value = _PREFERRED
        self._outline = Outline()
        self._tree = TreePane(self._outline, self._rates, self._known.find)
        self._table = TablePane(self._history, self._mark)
        self._filtered: Rows = self._table

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        with Horizontal():
            yield self._tree
            with Vertical(id="right"):
                yield self._table
                yield Static(id="detail")
        yield Input(id="filter", placeholder="a regular expression", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to read, and end when a signal says so: the terminal is to be as it was."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # SIGHUP also under nohup, which ignores it: a screen has no use without its terminal.
            loop.add_signal_handler(number, self._leave)
        self._tree.name_of_root = self._place.name.rstrip("/").rpartition("/")[2] or "/"
        self._tree.focus()
        self._feed.start()
        self.set_interval(_SILENCE, self._notice_silence)

    def _leave(self) -> None:
        if _is_hung_up():
            os._exit(0)  # textual would wait for ever until the terminal takes its last bytes
        self.exit()

    def on_unmount(self) -> None:
        """End reading."""
        self._feed.stop()

    # Ticks

    def _hear(self, sample: Sample | None, error: SampleError | None) -> None:
        self._call(self.take, sample, error)

    def _hear_refusal(self, error: SampleError) -> None:
        self._call(self._tell, error.message, severity="error")

    def _call(self, call: Any, *arguments: Any, **named: Any) -> None:
        # From the feed's thread. It does not wait.
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the app has ended
            self._loop.call_soon_threadsafe(lambda: call(*arguments, **named))

    def _tell(self, text: str, severity: _Severity = "information") -> None:
        self.notify(clean_text(text), severity=severity, markup=False)

    def take(self, sample: Sample | None, error: SampleError | None) -> None:
        """Show the next sample, or why there is none."""
        if not self.is_running or self._feed.held:
            return
        self._error = "" if error is None else error.message
        self._finished = sample is None and error is None
        if error is not None:
            self._history.interrupt()
        if sample is not None:
            if self._rates.after is None:
                self._outline.begin(sample)
                self._begin(sample)
            self._jump(sample)
            if sample is not self._rates.after:  # which it is of a recording that stands still
                self._rates.add(sample)
            self._history.add(sample, {*self._tree.shown, self._source})
        self._show()

    def _jump(self, sample: Sample) -> None:
        # Rates at a moment that was jumped to are those of the interval before it.
        start = None if self._player is None else self._player.start_of(sample)
        if self._rates.after is not None and sample.moment < self._rates.after.moment:
            self._history.reset()
            self._since = None
            self._rates.before = self._rates.after = None
        if start is not None and sample is not self._rates.after:
            self._rates.add(start)

    def _begin(self, sample: Sample) -> None:
        # The cursor begins where there are numbers: a mount's root has none.
        node = sample.root
        while not node["values"] and node["subordinates"]:
            # Rather the numbers of programs than those that a daemon has of itself.
            name = min(node["subordinates"], key=lambda name: (name == _OWN, natural_key(name)))
            node = node["subordinates"][name]
            self._source = (*self._source, name)
        if self._value not in node["values"]:
            self._value = next(iter(node["values"]), "")

    def _show(self) -> None:
        sample = self._rates.after
        if sample is not None:
            self._tree.total_of = self._value
            self._tree.title = self._title_tree()
            self._tree.show(self._outline.rows(sample, self._source), self._source)
            node = sample.find(self._source)
            entries = list_entries(
                self._source, self._rates, self._known.find,
                since=self._since, pattern=self._pattern,
            )  # fmt: skip
            # What has gone keeps its last numbers, as the line at the top says.
            if node is not None:
                self._table.total = bool(node["subordinates"])
                self._table.now = sample.moment
                self._table.since_reset = self._since is not None
                self._table.show(sort_entries(entries, self._order, self._reverse), self._value)
        self._show_detail()
        self._show_head()

    def _show_head(self) -> None:
        sample = self._rates.after
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(" statsfs top")
        # What matters most comes first: a narrow terminal cuts the rest.
        if self._feed.held:
            head.append("  HELD", "reverse")
        if self._player is not None and self._player.paused:
            head.append("  PAUSED", "reverse")
        if self._finished:
            head.append("  END OF THE RECORDING", "reverse")
        if self._error:
            head.append(f"  waiting: {self._error}", "reverse")
        elif (waited := self._feed.waited) >= _SILENCE:
            head.append(f"  waiting: no answer for {waited:.0f} s", "reverse")
        if sample is not None and sample.find(self._source) is None:
            head.append(f"  waiting: {'/'.join(self._source)} has gone", "reverse")
        if self._player is not None and sample is not None:
            head.append(f"  {describe_position(self._player, sample.time)}")
        head.append(f"  {self._place.name}")
        if self._player is None and sample is not None:
            head.append(f"  {time.strftime('%H:%M:%S', time.localtime(sample.time))}")
        if self._player is None:
            head.append(f"  every {self._feed.pace:.3g} s")
        if self._pattern is not None:
            head.append(f"  filter: {self._pattern.pattern}")
        head.plain = clean_text(head.plain)
        self.query_one("#head", Static).update(head)

    def _notice_silence(self) -> None:
        # A server that hangs, or is stopped, answers nothing, not even an error.
        if self._feed.waited >= _SILENCE:
            self._show_head()

    def _show_detail(self) -> None:
        entry = self._table.selected
        detail = self.query_one("#detail", Static)
        lines = [] if entry is None else describe_entry(entry, detail.size.width)
        detail.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))

    def _title_tree(self) -> str:
        mark = "" if self._tree_order == "name" else f" by {self._tree_order}"
        pattern = self._outline.pattern
        return f"source{mark}{'' if pattern is None else f' /{pattern.pattern}/'}"

    def _mark(self, name: str) -> str:
        return f"{name}{'▲' if self._reverse else '▼'}" if name == self._order else name

    # What the panes tell

    def on_rows_moved(self, message: Rows.Moved) -> None:
        """Show the source under the tree's cursor, or the total of the table's value."""
        if message.rows is self._tree:
            self._source = self._tree.selected
            self._table.scroll_home(animate=False)
            assert self._rates.after is not None, "there is no row without a sample"
            self._history.add(self._rates.after, [self._source])
        else:
            entry = self._table.selected
            self._value = self._value if entry is None else entry.name
        self._show()

    def on_rows_title_clicked(self, message: Rows.TitleClicked) -> None:
        """Sort by the column; a second click turns the order round."""
        if message.rows is self._tree:
            self.action_sort(1)
            return
        name = next((name for name, end in self._table.titles if message.column < end), "")
        if name == self._order:
            self._reverse = not self._reverse
        elif name in ORDERS:
            self._order, self._reverse = name, False
        self._show()

    def on_tree_pane_folded(self, message: TreePane.Folded) -> None:
        """Fold or unfold."""
        if message.path is not None:
            self._outline.open(message.path, message.opened)
        elif self._rates.after is not None:
            self._outline.open_all(self._rates.after, message.opened)
        self._show()

    # Keys

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_sort(self, by: int) -> None:
        """Sort the pane that has the focus by its next column."""
        if self._tree.has_focus:
            orders = _TREE_ORDERS
            self._tree_order = orders[(orders.index(self._tree_order) + by) % len(orders)]
            measures = {
                "value": lambda path: measure(self._total(path)),
                "rate": lambda path: measure(self._rates.rate(path, self._value)),
            }
            self._outline.measure = measures.get(self._tree_order)
        else:
            self._order = ORDERS[(ORDERS.index(self._order) + by) % len(ORDERS)]
        self._show()

    def _total(self, path: Path) -> Any:
        return None if self._rates.after is None else self._rates.after.number(path, self._value)

    def action_turn_round(self) -> None:
        """Turn the order of the pane with the focus round."""
        if self._tree.has_focus:
            self._outline.reverse = not self._outline.reverse
        else:
            self._reverse = not self._reverse
        self._show()

    def action_hold(self) -> None:
        """Stop, or go on."""
        if self._player is not None:
            self._player.paused = not self._player.paused
        else:
            self._feed.held = not self._feed.held
        self._feed.wake()
        self._show()

    def action_play(self, what: str, number: float) -> None:
        """Go to another moment of a recording, or play it at another speed."""
        if self._player is None:
            self._tell(f"{self._place.name} is live, not a recording", severity="warning")
            return
        move(self._player, what, number)
        self._feed.wake()
        self._show()

    def action_reset(self) -> None:
        """Let the rates begin anew, and count what moves from now on."""
        self._since = self._rates.after
        self._rates.before = None
        self._history.reset()
        self._show()

    def action_clear(self) -> None:
        """Ask, and then write 0 to the value under the table's cursor."""
        entry = self._table.selected
        if entry is None:
            return
        path = "/".join((*entry.path, entry.name))
        if not self._place.writable:
            self._tell(f"{self._place.name} is read-only", severity="warning")
        elif entry.what is None or not entry.what.writable:
            self._tell(f"{path} cannot be cleared", severity="warning")
        else:
            below = " and all that is counted below" if self._table.total else ""

            def answer(yes: bool | None) -> None:
                if yes:
                    self._feed.clear(entry.path, entry.name)

            self.push_screen(Question(clean_text(f"Write 0 to {path}{below}?")), answer)

    def action_copy(self) -> None:
        """Copy the numbers as text."""
        self.copy_to_clipboard(format_table(self._table.entries))
        self._tell(f"copied {count_of(len(self._table.entries), 'line')}")

    # The filter

    def action_filter(self) -> None:
        """Filter the pane that has the focus, while one types."""
        self._filtered = self._tree if self._tree.has_focus else self._table
        pattern = self._outline.pattern if self._filtered is self._tree else self._pattern
        line = self.query_one("#filter", Input)
        line.value = "" if pattern is None else pattern.pattern
        line.add_class("shown")
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show what matches so far."""
        self._set_filter(event.value)

    def on_input_submitted(self) -> None:
        """Keep the filter."""
        self._leave_filter()

    def action_unfilter(self) -> None:
        """Take the filter away."""
        if self.query_one("#filter", Input).has_focus:
            self._leave_filter()
        else:
            self._filtered = self._tree if self._tree.has_focus else self._table
        self._set_filter("")

    def _leave_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("shown")
        self._filtered.focus()

    def _set_filter(self, text: str) -> None:
        try:
            pattern = re.compile(text) if text else None
        except (re.error, OverflowError, RecursionError):
            pattern = re.compile(re.escape(text))  # half of an expression, while one types
        if self._filtered is self._tree:
            self._outline.pattern = pattern
        else:
            self._pattern = pattern
        self._show()
        if (entry := self._table.selected) is not None and entry.name != self._value:
            self._value = entry.name
            self._show()


def _is_hung_up() -> bool:
    # Whether the terminal was closed.
    try:
        termios.tcgetattr(0)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    return False
