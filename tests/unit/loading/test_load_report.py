"""Whether the CDN helped, as a report and a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from coldstream.engine.load_statistics import CdnReport, LoadStatistics
from coldstream.loading.load_report import cdn_report

URL = "https://cdn.example.com/"


def report(*, unused: str = "", **counted: Any) -> CdnReport:
    usual = {"requests": 10, "cdn_requests": 8, "received_bytes": 1000, "cdn_bytes": 800, "flying_seconds": 5.0}
    seconds = {"cdn_seconds": 2.0, "cdn_flying_seconds": 4.0, "bucket_seconds": 1.0}
    return cdn_report(URL, LoadStatistics(**(usual | seconds | counted)), unused=unused)


def test_what_did_not_come_through_the_cdn_came_from_the_bucket() -> None:
    found = report(cdn_statuses={"HIT": 8})
    assert (found.requests, found.bucket_requests) == (8, 2)
    assert (found.bytes, found.bucket_bytes) == (800, 200)
    assert (found.bytes_per_second, found.bucket_bytes_per_second) == (400.0, 200.0)
    assert (found.connection_bytes_per_second, found.bucket_connection_bytes_per_second) == (200.0, 200.0)


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ({"unused": "no manifest"}, "the CDN was not used: no manifest"),
        ({"cdn_requests": 0}, "nothing had to be fetched"),
        ({"cdn_gave_up": "it failed 8 times in a row"}, "the CDN was given up: it failed 8 times"),
        ({"cdn_statuses": {"HIT": 6, "MISS": 2}}, "6 of 8 answers HIT"),
        ({"cdn_statuses": {"DYNAMIC": 8}}, "did not help: all DYNAMIC"),
        ({"cdn_statuses": {"MISS": 8}}, "nothing cached yet (8 MISS)"),
        ({"cdn_statuses": {"none": 8}}, "so hits are unknown"),
        ({}, "it brought nothing"),
        ({"cdn_statuses": {"HIT": 7}, "fallbacks": 1}, "1 chunk came from the bucket"),
    ],
)
def test_the_summary(counted: dict[str, Any], words: str) -> None:
    assert words in report(**counted).summary
