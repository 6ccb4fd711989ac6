"""The queries of the machines."""

from __future__ import annotations

from tests.launch.names import name_in


def test_the_name_in_a_query() -> None:
    header, question = b"\0\7\1\0\0\1" + bytes(6), b"\5Files\4pypi\3org\0"
    assert name_in(header + question + b"\0\1\0\1") == ("files.pypi.org", len(header + question))
