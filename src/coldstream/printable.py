"""Names, keys and errors of others, as a terminal may be given them. Pure."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""A text without control characters, line ends, marks of the writing direction and lone surrogates.

    Args:
        text: From anywhere.
        keep: Such characters that may stay.

    >>> printable("a\x1b[2Jb\nerror: fake")
    'a\\x1b[2Jb\\nerror: fake'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
