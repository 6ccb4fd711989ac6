"""What others wrote, as a terminal may be given it."""

from __future__ import annotations

import pytest

from coldstream.printable import printable


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("org/m ü 模型 …→", "org/m ü 模型 …→"),
        ("a\x1b[2J\x1b]0;title\x07b", r"a\x1b[2J\x1b]0;title\x07b"),
        ("a\x9b31mb\x85c\x7f", r"a\x9b31mb\x85c\x7f"),
        ("gpj\u202egnp.exe\u2066", r"gpj\u202egnp.exe\u2066"),
        ("a\nerror: b\r\u2028", r"a\nerror: b\r\u2028"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped


def test_what_a_caller_lays_out_with_may_stay() -> None:
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"
