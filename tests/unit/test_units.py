"""Quantities, as they are read and as they are shown."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import UsageError
from coldstream.units import (
    GIB,
    MIB,
    format_age,
    format_bytes,
    format_dollars,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_duration,
    plural,
)

NOW = datetime(2026, 11, 30, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("64MiB", 64 * MIB),
        ("64 mib", 64 * MIB),
        (" 1.5GiB ", 3 * GIB // 2),
        ("5GB", 5 * 10**9),
        ("5g", 5 * 10**9),
        ("2k", 2000),
        ("10B", 10),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.MiB", "1 5MB", "5XB", "1e6", "٣x", "0x10", "NaN"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_bytes(text)
    assert "64MiB" in (caught.value.hint or "")


def test_a_forgotten_unit_is_not_taken_for_bytes_or_seconds() -> None:
    with pytest.raises(UsageError, match="'16' is a size without a unit") as size:
        parse_bytes("16")
    assert size.value.hint == "write 16GB or 16MiB"
    assert parse_bytes("16B") == 16
    with pytest.raises(UsageError, match="'24' is a duration without a unit") as duration:
        parse_duration("24")
    assert duration.value.hint == "write 24h or 24d"
    assert parse_duration("24s") == 24


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (532, "532 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_600, "1.00 MB"),
        (16_060_000_000, "16.1 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_are_shown_in_three_digits(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 10**15))
def test_a_size_shown_is_near_the_size_meant(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006, abs=0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0384, "38 ms"),
        (0.9996, "1.0 s"),
        (7.44, "7.4 s"),
        (9.96, "10 s"),
        (41, "41 s"),
        (99.4, "99 s"),
        (119.6, "2 m 00 s"),
        (125, "2 m 05 s"),
        (3599.7, "1 h 00 m"),
        (3725, "1 h 02 m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400, "1 day ago"),
        (200_000, "2 days ago"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert format_age(NOW - timedelta(seconds=seconds), now=NOW) == text


def test_rates_money_and_counts() -> None:
    assert format_rate(393_000_000, 1) == "393 MB/s"
    assert format_rate(1, 0) == "-"
    assert format_dollars(0) == "$0.00"
    assert format_dollars(0.004) == "under $0.01"
    assert format_dollars(1234.5) == "$1,234.50"
    assert plural(1, "part") == "1 part"
    assert plural(1921, "chunk") == "1,921 chunks"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("3600", 3600), ("45s", 45), (" 90 m ", 5400), ("1.5h", 5400), ("24H", 86400), ("7d", 604800)],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1w", "1h30m", "inf", "1e3", "1,5h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)
