"""The dialogs over the panes: whether to write 0, and the keys.

Threading: textual's.
"""

from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label, Static

__all__ = ["Help", "Question"]

_KEYS: Final = (
    ("F1 ?", "these keys"),
    ("Tab", "from the tree to the numbers, and back"),
    ("↑ ↓ k j", "up and down; PgUp, PgDn, Home, End"),
    ("→ ← + -", "unfold, fold; Enter and Space do both, * all"),
    ("F3 F4 / \\", "filter as you type: a regular expression"),
    ("", "Enter keeps it, Esc takes it away"),
    ("F6 > <", "sort by the next column, the one before"),
    ("I", "turn the order round"),
    ("Z p", "hold, go on"),
    ("r", "reset: rates begin anew, and a column says"),
    ("", "what moved since then"),
    ("F9 0", "write 0: clear the value; it asks"),
    ("c y", "copy the numbers as text"),
    ("F10 q", "quit"),
    ("", ""),
    ("", "of a recording:"),
    ("Z p", "pause, play"),
    (". ,", "pause, one sample on, one back"),
    ("] [", "twice as fast, half"),
    ("} {", "a minute on, back"),
    ("1 … 9", "to a tenth of it; Ctrl-Home and Ctrl-End"),
)
_REST: Final = """
A click selects, one on a title sorts, a double click folds.
The tree shows the total of the value under the cursor.
Any key closes this."""


def _list_keys() -> Text:
    # No markup: a key is a backslash.
    text = Text()
    for keys, what in _KEYS:
        text.append(f"{keys:12}", "bold").append(f"{what}\n")
    return text.append(_REST)


class Help(ModalScreen[None]):
    """The keys."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > Static { width: 66; padding: 1 2; background: $panel; border: round $primary; }
    """

    def compose(self) -> ComposeResult:
        yield Static(_list_keys())

    def on_key(self) -> None:
        """Any key closes it."""
        self.dismiss()

    def on_click(self) -> None:
        """So does the mouse."""
        self.dismiss()


class Question(ModalScreen[bool]):
    """A question that y answers; anything else is no."""

    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical {
        width: auto; max-width: 90%; height: auto; padding: 1 2;
        background: $panel; border: round $error;
    }
    Question Label { width: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,Y", "answer(True)", "Yes"),
        Binding("n,N,escape,enter,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label(self._question, markup=False)
            yield Label("\n[b]y[/b] yes   [b]n[/b] no")

    def action_answer(self, yes: bool) -> None:
        """Answer, and close."""
        self.dismiss(yes)
