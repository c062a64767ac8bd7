"""How long a program is: its logical lines, without comments, blank lines and docstrings."""

import ast
import io
import tokenize
from pathlib import Path

__all__ = ["count_code_lines"]


def count_code_lines(path: Path) -> int:
    """Count the logical lines of a program: what stands over several lines in brackets is one."""
    text = path.read_text()
    ends = sum(
        token.type == tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = sum(
        isinstance(node, documented) and ast.get_docstring(node) is not None
        for node in ast.walk(ast.parse(text))
    )
    return ends - docstrings
