"""Text from guests and strangers made harmless: what could act on a terminal does not get to one.

Escape sequences, other control characters (those above 0x7f too) and marks that turn the direction of writing are
replaced; letters of every script and emoji are left.
"""

from __future__ import annotations

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, *, keep: str = "\n\t") -> str:
    """The text with a replacement character for each one that cannot be printed, but for those to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _REPLACEMENT for c in text)
