"""Parses and formats quantities: bytes, rates, durations, money, ages.

Output has decimal units (GB = 10^9 bytes), as cloud bills do; MiB and GiB are only for memory and part sizes.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

from coldstream.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_SUFFIX_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
# A plain number means bytes or seconds; below these limits, a unit was probably forgotten.
_PLAIN_BYTES_MIN = 64 * KIB
_PLAIN_SECONDS_MIN = 60
_SUFFIX_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(text: str) -> int:
    """Parses a size such as "64MiB", "5 GB" or "1048576"; raises UsageError, also for "16", which lacks a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    factor = _SUFFIX_BYTES.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size", hint="write it like 64MiB, 5GB or 1048576")
    if not match[2] and 0 < float(match[1]) < _PLAIN_BYTES_MIN:
        raise UsageError(f"{text!r} is a size without a unit", hint=f"write {match[1]}GB or {match[1]}MiB")
    return int(float(match[1]) * factor)


def parse_duration(text: str) -> int:
    """Parses a duration such as "24h", "7d", "90m" or "3600", as whole seconds; raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([a-zA-Z]*)\s*", text)
    factor = _SUFFIX_SECONDS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a duration", hint="write it like 24h, 7d, 90m or 3600")
    if not match[2] and 0 < float(match[1]) < _PLAIN_SECONDS_MIN:
        raise UsageError(f"{text!r} is a duration without a unit", hint=f"write {match[1]}h or {match[1]}d")
    return round(float(match[1]) * factor)


def format_bytes(count: float) -> str:
    """A size with three significant digits: 532 B, 16.1 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            break
        count /= 1000
    if unit == "B":
        return f"{count:.0f} B"
    digits = 0 if abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {unit}"


def format_rate(byte_count: float, seconds: float) -> str:
    """Bytes per second, such as 393 MB/s; "-" for zero seconds."""
    return f"{format_bytes(byte_count / seconds)}/s" if seconds > 0 else "-"


def format_seconds(seconds: float) -> str:
    """A duration: 38 ms, 7.4 s, 41 s, 2 m 05 s, 1 h 02 m."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"


def format_age(moment: datetime, *, now: datetime | None = None) -> str:
    """How long ago a moment was: just now, 5 minutes ago, 2 days ago."""
    seconds = ((now or datetime.now(timezone.utc)) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    unit, length = next(pair for pair in (("day", 86400), ("hour", 3600), ("minute", 60)) if seconds >= pair[1])
    return f"{plural(int(seconds // length), unit)} ago"


def format_dollars(amount: float) -> str:
    """Money: $0.24, $12.40, "under $0.01" instead of a misleading $0.00."""
    return "under $0.01" if 0 < amount < 0.005 else f"${amount:,.2f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 part, 249 parts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
