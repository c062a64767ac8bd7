"""What is asked and told over the panes: whether to write 0, and the keys.

Threading: textual's.
"""

from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label, Static

__all__ = ["Help", "Question"]

_KEYS: Final = """\
[b]F1 ?[/b]           these keys
[b]Tab[/b]            from the tree to the numbers, and back
[b]↑ ↓ PgUp PgDn Home End[/b], or [b]k j[/b]
[b]→ ←  + -[/b]       unfold, fold; [b]Enter Space[/b] both, [b]*[/b] all
[b]F3 F4 / \\\\[/b]      filter as you type: a regular expression
               [b]Enter[/b] keeps it, [b]Esc[/b] takes it away
[b]F6 > <[/b]         sort by the next column, the one before
[b]I[/b]              turn the order round
[b]Z p[/b]            hold, go on
[b]r[/b]              reset: rates begin anew, and a column says
               what moved since then
[b]F9 0[/b]           write 0: clear the value; it asks
[b]c y[/b]            copy the numbers as text
[b]F10 q[/b]          quit

A click selects, one on a title sorts, a double click folds.
The tree shows the total of the value under the cursor.
[dim]Any key closes this.[/dim]"""


class Help(ModalScreen[None]):
    """The keys."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > Static { width: 66; padding: 1 2; background: $panel; border: round $primary; }
    """

    def compose(self) -> ComposeResult:
        yield Static(_KEYS)

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
