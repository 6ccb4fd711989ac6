"""The types of option values."""

from __future__ import annotations

import click
import pytest

from coldstream.cli.shared_options import AGE, SIZE, SPEED, count

CASES = (
    (
        AGE,
        {"30s": 30, "1.5m": 90, "12h": 43200, "7d": 604800, "2w": 1209600},
        ("7", "d", "-1d", "7 days"),
        "is not an age",
    ),
    (SIZE, {"64MiB": 64 << 20, "5GB": 5 * 10**9}, ("lots", "16"), "is "),
    (count(1, 64), {"1": 1, "64": 64}, ("0", "65", "x", "1.5"), "is not a whole number from 1 to 64"),
    (SPEED, {"10Gbit": 1.25e9, "500 mbit/s": 62.5e6}, ("fast", "0Gbit", "10GB"), "is not a speed"),
)


@pytest.mark.parametrize(("kind", "values", "_invalid", "_error"), CASES)
def test_reads_values(kind: click.ParamType, values: dict[str, float], _invalid: object, _error: object) -> None:
    assert [kind.convert(text, None, None) for text in values] == list(values.values())


@pytest.mark.parametrize(("kind", "_values", "invalid", "error"), CASES)
def test_rejects_invalid_values(kind: click.ParamType, _values: object, invalid: tuple[str, ...], error: str) -> None:
    for text in invalid:
        with pytest.raises(click.BadParameter, match=error):
            kind.convert(text, None, None)
