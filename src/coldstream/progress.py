"""What long work tells whoever watches. The command line draws it; by default nobody does.

Methods are called from many threads and must return at once.
"""

from __future__ import annotations


class Progress:
    """Ignores everything: the default, and the base of those that draw.

    Work is on named items (files), each of which moves by bytes: `fetched` from where it comes from, `stored` to where
    it goes. A verification only fetches.
    """

    def begin(self, path: str, size: int, *, stages: int = 2) -> None:
        """Work on `path` starts; `stages` is 1 when its bytes are fetched only, 2 when they are stored as well."""

    def fetched(self, path: str, count: int) -> None:
        """`count` more bytes have arrived."""

    def stored(self, path: str, count: int) -> None:
        """`count` more bytes have been stored; negative when an attempt is repeated."""

    def end(self, path: str, note: str) -> None:
        """`path` is finished; `note` says how ("sha256 ok", "kept")."""

    def say(self, text: str) -> None:
        """One line for people, such as a retry that takes long."""
