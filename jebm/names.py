"""What is said of a name that is not known."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """The message: what came, what there is, and which of these it may have meant.

    Example:
      >>> unknown("backbone", "laddr", ("vector", "ladder"))
      "unknown backbone 'laddr'; known: ['ladder', 'vector']; did you mean 'ladder'?"
    """
    return f"unknown {what} {value!r}; known: {sorted(known)}{nearest(value, known)}"


def nearest(value: object, known: Iterable[str]) -> str:
    """The end of such a message; empty where nothing known is near.

    Example:
      >>> nearest("xyz", ("vector", "ladder"))
      ''
    """
    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
