"""Untrusted text for terminals."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""Escapes control characters, line ends, text direction marks and lone surrogates, except for those in `keep`.

    >>> printable("a\x1b[2Jb\nerror: fake")
    'a\\x1b[2Jb\\nerror: fake'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
