"""Progress of long operations, which the command line draws. Methods are called from many threads and must not wait."""

from __future__ import annotations


class Progress:
    """Ignores everything: the default, and the base of classes that draw.

    Work is on files, whose bytes are first fetched and then stored. A verification only fetches.
    """

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        """Starts `path`; `stages` is 1 if its bytes are only fetched, 2 if they are also stored."""

    def fetched(self, path: str, count: int) -> None:
        """`count` more bytes have arrived."""

    def stored(self, path: str, count: int) -> None:
        """`count` more bytes have been stored; negative for a retry."""

    def end(self, path: str, note: str) -> None:
        """Finishes `path`; `note` is its outcome ("sha256 ok", "kept")."""

    def say(self, text: str) -> None:
        """Prints a line, such as a long wait before a retry."""
