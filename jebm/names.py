"""Messages for names that are not known."""

import difflib
from collections.abc import Iterable


def unknown_name_message(what: str, value: object, known: Iterable[str]) -> str:
    """Returns a message with the value, the known names, and the nearest of these.

    Example:
      >>> unknown_name_message("backbone", "laddr", ("vector", "ladder"))
      "unknown backbone 'laddr'; known: ['ladder', 'vector']; did you mean 'ladder'?"
    """
    return (
        f"unknown {what} {value!r}; known: {sorted(known)}{did_you_mean(value, known)}"
    )


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """Returns the end of such a message; empty if no known name is near.

    Example:
      >>> did_you_mean("xyz", ("vector", "ladder"))
      ''
    """
    close = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
