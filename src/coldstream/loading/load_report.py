"""Makes the report of a load from the streamer's statistics, and tells whether a CDN helped. Pure."""

from __future__ import annotations

from dataclasses import fields, replace

from coldstream.engine.bottleneck import find_bottleneck
from coldstream.engine.load_statistics import CdnReport, LoadReport, LoadStatistics
from coldstream.loading.load_plan import PreparedLoad
from coldstream.loading.options import Options
from coldstream.machine.hardware import cores, link_bytes_per_second
from coldstream.units import GIB, format_rate, plural

# Answers from the CDN's cache; an object that never changes is good even when it is stale.
_FROM_CACHE = ("HIT", "STALE", "REVALIDATED", "UPDATING")
_NEVER_CACHED = {"DYNAMIC", "BYPASS"}
# What a report takes over as it is.
_SAME = {field.name for field in fields(LoadReport)} & {field.name for field in fields(LoadStatistics)}


def make_report(
    prepared: PreparedLoad,
    options: Options,
    statistics: LoadStatistics,
    *,
    consumers: int = 1,
    seconds: float,
    first_tensor_seconds: float,
    cached: str,
) -> LoadReport:
    """The report of a finished load that `consumers` read; `cached` is the outcome of the local copy.

    Its seconds count from the call, to the last tensor and to the first one.
    """
    checkpoint = prepared.checkpoint
    limit, limited_by = find_bottleneck(
        statistics,
        cores=cores(),
        is_tls=any((part.url or "").startswith("https:") for shard in checkpoint.shards for part in shard.segments),
        consumers=consumers,
        link_bytes_per_second=link_bytes_per_second(),
        device=options.device,
    )
    values = {name: getattr(statistics, name) for name in _SAME}
    values |= {
        "uri": checkpoint.uri,
        "name": checkpoint.name,
        "version": checkpoint.version,
        "verified": checkpoint.verified and options.verify,
        "offline": prepared.offline,
        "files": len(checkpoint.shards),
        "tensors": sum(len(header.tensors) for header in prepared.headers),
        "bytes": prepared.bytes,
        "cache_bytes": statistics.local_bytes,
        "seconds": seconds,
        "first_tensor_seconds": first_tensor_seconds,
        "cpu_seconds_per_gib": statistics.cpu_seconds / max(prepared.bytes / GIB, 1e-9),
        "connections": statistics.connections_peak,
        "consumer_wait_seconds": statistics.consumer_wait_seconds / consumers,
        "limit": limit,
        "limited_by": limited_by,
        "cached": cached,
        "left_out": dict(checkpoint.left_out),
    }
    if checkpoint.cdn is not None:
        values["cdn"] = cdn_report(checkpoint.cdn[0], statistics, unused=prepared.cdn_unused)
    return LoadReport(**values)


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
