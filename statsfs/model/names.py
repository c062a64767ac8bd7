"""Names: of files for any text, and of labels.

Threading: pure.
"""

import re
from hashlib import blake2b
from typing import Final

from statsfs.exceptions import InvalidNameError

__all__ = ["check_label", "safe_name", "show_text"]

_MOST: Final = 255  # bytes; NAME_MAX of Linux
# "%" itself, or two texts would have one name; lone surrogates have no UTF-8.
_UNSAFE: Final = re.compile("[/%\x00-\x1f\x7f-\x9f\ud800-\udfff]|^[.]")
_HASHED: Final = 8  # bytes
_UNSHOWN: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LABEL: Final = re.compile("(?!__|le$)[a-zA-Z_][a-zA-Z0-9_]*")


def safe_name(text: str) -> str:
    """Return a readable file name for any text. Two texts never have one name.

    As in a URL, "%" and two hexadecimal digits stand for each byte of "/", "%", control characters
    and a "." at the start; nothing is "%". `urllib.parse.unquote` returns the text. Only a name
    of more than 255 bytes is cut: it ends in "%~" and a hash of the text.

    >>> safe_name("/item/{id}"), safe_name("50%"), safe_name("")
    ('%2Fitem%2F{id}', '50%25', '%')

    Raises:
        TypeError: it is not a text.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is not a str: {text!r}")
    if not text:
        return "%"
    name = _UNSAFE.sub(_quote, text)
    encoded = name.encode()
    if len(encoded) <= _MOST:
        return name
    hashed = blake2b(text.encode(errors="surrogatepass"), digest_size=_HASHED).hexdigest()
    kept = encoded[: _MOST - 2 - len(hashed)].decode(errors="ignore")
    return f"{kept}%~{hashed}"


def show_text(text: str) -> str:
    """Return a text whose control characters and lone surrogates are shown as `ascii` does."""
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


def check_label(label: str, what: str) -> str:
    """Return a label that Prometheus takes as it is, or raise InvalidNameError."""
    if not _LABEL.fullmatch(label):
        # If it were rewritten silently, queries for it would find nothing.
        rule = 'letters, digits and "_" of ASCII, no digit in front, and not "le" or "__…"'
        raise InvalidNameError(f"{what} {label[:40]!r}: Prometheus takes {rule}", label)
    return label


def _quote(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode(errors="surrogatepass"))
