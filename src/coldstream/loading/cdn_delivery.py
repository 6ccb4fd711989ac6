"""What the CDN in front of the bucket did for a load, and whether it helped. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coldstream.units import format_rate, plural

# Answers that came out of the cache; what is stale is what an object that never changes is, too.
_FROM_CACHE = ("HIT", "STALE", "REVALIDATED", "UPDATING")
_NEVER_CACHED = {"DYNAMIC", "BYPASS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CdnReport:
    """What came through the CDN, and what from the bucket itself.

    Attributes:
        url: The CDN's; no secret.
        unused: Why nothing was asked of it; empty when it was.
        gave_up: Why it was given up in the midst of the load; empty when it was not.
        requests: Asked of it.
        bytes: Received from it, of what was no good too.
        bytes_per_second: The same over the time in which at least one request to it was under way.
        connection_bytes_per_second: What one connection to it gave.
        statuses: Of answers that brought what they should, by what `cf-cache-status` said: HIT, MISS, EXPIRED, STALE,
            BYPASS, REVALIDATED, UPDATING, DYNAMIC, none, other.
        fallbacks: Chunks that it did not bring, or not well, and the bucket was asked for.
        failures: How often it failed, by kind: see `engine.message.FetchError`; "corrupt" and "slow".
        bucket_requests: Asked of the bucket for chunks.
        bucket_bytes: Received from the bucket.
        bucket_bytes_per_second: As `bytes_per_second`.
        bucket_connection_bytes_per_second: What one connection to the bucket gave.
        summary: Whether it helped, as a sentence.
    """

    url: str
    unused: str
    gave_up: str
    requests: int
    bytes: int
    bytes_per_second: float
    connection_bytes_per_second: float
    statuses: Mapping[str, int]
    fallbacks: int
    failures: Mapping[str, int]
    bucket_requests: int
    bucket_bytes: int
    bucket_bytes_per_second: float
    bucket_connection_bytes_per_second: float
    summary: str = ""


def cdn_report(url: str, found: Mapping[str, Any], *, unused: str) -> CdnReport:
    """The report, out of the streamer's account.

    Args:
        url: The CDN's.
        found: The account.
        unused: Why nothing was to come through it, or "".
    """
    count, others = found["cdn_bytes"], found["received_bytes"] - found["cdn_bytes"]
    flying, total = found["cdn_flying_seconds"], found["flying_seconds"]
    made = CdnReport(
        url=url,
        unused=unused,
        gave_up=found["cdn_gave_up"],
        requests=found["cdn_requests"],
        bytes=count,
        bytes_per_second=_rate(count, found["cdn_seconds"]),
        connection_bytes_per_second=_rate(count, flying),
        statuses=found["cdn_statuses"],
        fallbacks=found["fallbacks"],
        failures=found["cdn_failures"],
        bucket_requests=found["requests"] - found["cdn_requests"],
        bucket_bytes=others,
        bucket_bytes_per_second=_rate(others, found["bucket_seconds"]),
        bucket_connection_bytes_per_second=_rate(others, total - flying),
    )
    return CdnReport(**{name: getattr(made, name) for name in CdnReport.__slots__} | {"summary": summary_of(made)})


def summary_of(report: CdnReport) -> str:
    """Whether the CDN helped, as a sentence."""
    if report.unused:
        return f"the CDN was not used: {report.unused}"
    if not report.requests:
        return "the CDN was not asked: nothing had to be fetched"
    bucket = f"the bucket gave {format_rate(report.bucket_bytes_per_second, 1)}" if report.bucket_bytes else ""
    if report.gave_up:
        back = f"{plural(report.bucket_requests, 'request')} went to the bucket"
        return f"the CDN was given up: {report.gave_up}; {back}" + (f", {bucket}" if bucket else "")
    answers = sum(report.statuses.values())
    hits = sum(report.statuses.get(name, 0) for name in _FROM_CACHE)
    said = [name for name in report.statuses if report.statuses[name]]
    back = f"{plural(report.fallbacks, 'chunk')} came from the bucket after all" if report.fallbacks else ""
    if not hits:
        return "; ".join(part for part in (_no_hits(report, answers, said), back) if part)
    rate = format_rate(report.bytes_per_second, 1)
    return "; ".join(
        part for part in (f"the CDN: {hits} of {plural(answers, 'answer')} HIT, {rate}", bucket, back) if part
    )


def _no_hits(report: CdnReport, answers: int, said: list[str]) -> str:
    rate = format_rate(report.bytes_per_second, 1)
    if not answers:
        return "the CDN did not help: it brought nothing"
    if said == ["none"]:
        return f"the CDN: {plural(answers, 'answer')}, {rate}; it does not say what it had cached"
    if set(said) <= _NEVER_CACHED:
        how = f"all {said[0]}" if len(said) == 1 else "all DYNAMIC or BYPASS"
        return f"the CDN did not help: {how}, so every byte came from the bucket through it, {rate}"
    counted = ", ".join(f"{report.statuses[name]} {name}" for name in said)
    return f"the CDN had nothing cached yet ({counted}), {rate}; a next load nearby may find it there"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 1e-6 else 0.0
