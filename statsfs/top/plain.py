"""What `top --once` and `top --csv` print: the files of a subtree, one a line.

Threading: pure.
"""

import csv
import io
import re

from statsfs.eyes.numbers import clean_text
from statsfs.eyes.rates import Rates
from statsfs.top.table import Entry, Find, list_entries

__all__ = ["CSV_HEADER", "format_csv", "format_table", "list_all"]

CSV_HEADER = "time,path,name,value,rate\n"


def list_all(rates: Rates, find: Find, pattern: re.Pattern[str] | None) -> list[Entry]:
    """Return the files of all sources, from the top down."""
    assert rates.after is not None
    found: list[Entry] = []
    for path, _ in rates.after.walk():
        found += list_entries(path, rates, find, pattern=pattern)
    return found


def format_table(entries: list[Entry]) -> str:
    """Return a line for each file: its path, its number, its rate."""
    cells = [
        (clean_text("/".join((*entry.path, entry.name))), entry.text, entry.rate_text)
        for entry in entries
    ]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
    return "".join(
        f"{name:{widths[0]}}  {number:>{widths[1]}}  {rate:>{widths[2]}}".rstrip() + "\n"
        for name, number, rate in cells
    )


def format_csv(time: float, entries: list[Entry]) -> str:
    """Return a row of CSV for each file: whole numbers as they are counted; buckets with blanks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for entry in entries:
        number = entry.number
        shown = " ".join(map(str, number)) if isinstance(number, list) else number
        rate = "" if entry.rate is None else f"{entry.rate:.6g}"
        writer.writerow((f"{time:.3f}", "/".join(entry.path), entry.name, shown, rate))
    return text.getvalue()
