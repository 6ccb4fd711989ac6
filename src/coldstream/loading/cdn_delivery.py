"""Whether the CDN in front of the bucket helped a load. Pure."""

from __future__ import annotations

from dataclasses import replace

from coldstream.engine.load_statistics import CdnReport, LoadStatistics
from coldstream.units import format_rate, plural

# Answers from the CDN's cache; an object that never changes is good even when it is stale.
_FROM_CACHE = ("HIT", "STALE", "REVALIDATED", "UPDATING")
_NEVER_CACHED = {"DYNAMIC", "BYPASS"}


def cdn_report(url: str, statistics: LoadStatistics, *, unused: str) -> CdnReport:
    """The report of the CDN at `url`; `unused` is why it was not used, or ""."""
    bucket_bytes = statistics.received_bytes - statistics.cdn_bytes
    bucket_flying_seconds = statistics.flying_seconds - statistics.cdn_flying_seconds
    report = CdnReport(
        url=url,
        unused=unused,
        gave_up=statistics.cdn_gave_up,
        requests=statistics.cdn_requests,
        bytes=statistics.cdn_bytes,
        bytes_per_second=_rate(statistics.cdn_bytes, statistics.cdn_seconds),
        connection_bytes_per_second=_rate(statistics.cdn_bytes, statistics.cdn_flying_seconds),
        statuses=statistics.cdn_statuses,
        fallbacks=statistics.fallbacks,
        failures=statistics.cdn_failures,
        bucket_requests=statistics.requests - statistics.cdn_requests,
        bucket_bytes=bucket_bytes,
        bucket_bytes_per_second=_rate(bucket_bytes, statistics.bucket_seconds),
        bucket_connection_bytes_per_second=_rate(bucket_bytes, bucket_flying_seconds),
    )
    return replace(report, summary=summary_of(report))


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
    statuses = [name for name in report.statuses if report.statuses[name]]
    back = f"{plural(report.fallbacks, 'chunk')} came from the bucket after all" if report.fallbacks else ""
    if not hits:
        return "; ".join(part for part in (_no_hits(report, answers, statuses), back) if part)
    rate = format_rate(report.bytes_per_second, 1)
    return "; ".join(
        part for part in (f"the CDN: {hits} of {plural(answers, 'answer')} HIT, {rate}", bucket, back) if part
    )


def _no_hits(report: CdnReport, answers: int, statuses: list[str]) -> str:
    rate = format_rate(report.bytes_per_second, 1)
    if not answers:
        return "the CDN did not help: it brought nothing"
    if statuses == ["none"]:
        return f"the CDN: {plural(answers, 'answer')}, {rate}; without cf-cache-status, so hits are unknown"
    if set(statuses) <= _NEVER_CACHED:
        how = f"all {statuses[0]}" if len(statuses) == 1 else "all DYNAMIC or BYPASS"
        return f"the CDN did not help: {how}, so every byte came from the bucket through it, {rate}"
    counted = ", ".join(f"{report.statuses[name]} {name}" for name in statuses)
    return f"the CDN had nothing cached yet ({counted}), {rate}; a next load nearby may find it there"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 1e-6 else 0.0
