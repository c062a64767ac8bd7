"""Counts and their nouns, for lines that people read.

Threading: pure.
"""

__all__ = ["count_of"]


def count_of(count: int, noun: str, form: str = "") -> str:
    """Return `1 byte`, `2 bytes`; the number has this format."""
    return f"{count:{form}} {noun if count == 1 else f'{noun}s'}"
