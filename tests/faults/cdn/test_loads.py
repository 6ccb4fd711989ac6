"""Loads through a CDN that injects faults."""

from __future__ import annotations

import pytest

from tests.checkpoints import MIB, raw_bytes
from tests.faults.cdn.fake_cdn import PREFIX, Place, bytes_of, reports_of


def test_everything_comes_through_it(place: Place, expected: dict[str, bytes]) -> None:
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = reports_of(loading)
    assert report.verified
    assert report.retries == report.corrupt == 0
    assert set(cdn.failures) <= {"slow"}, "a connection that this machine made wait may be taken over by the bucket"
    # What the bucket took over may in turn be taken over.
    assert cdn.fallbacks <= report.hedges == cdn.bucket_requests
    assert cdn.bytes + cdn.bucket_bytes == report.received_bytes == report.bytes
    assert cdn.bytes > 0.8 * report.bytes
    assert cdn.statuses == {"HIT": cdn.requests - cdn.fallbacks}
    assert cdn.bytes_per_second > 0
    assert " answers HIT, " in cdn.summary
    # The bucket served only the manifest, the headers and the fallbacks.
    assert len(place.bucket_reads) == 3 + cdn.bucket_requests
    assert all(request.path.startswith(f"/{PREFIX}/objects/") for request in place.cdn.requests)


def test_without_it_the_bucket_gives_everything(place: Place, expected: dict[str, bytes]) -> None:
    loading = place.load(via="s3")
    assert bytes_of(loading) == expected
    assert loading.report is not None
    assert loading.report.cdn is None
    assert not place.cdn.requests


BAD: dict[str, list[tuple[str, dict[str, object]]]] = {
    "503": [("status", {"status": 503, "retry_after": "60"})],
    "429": [("status", {"status": 429})],
    "403": [("status", {"status": 403})],
    "404": [("status", {"status": 404})],
    "520": [("status", {"status": 520})],
    "resets": [("reset", {"at": 30_000})],
    "cuts": [("cut", {"at": 30_000})],
    "closes before it answers": [("unanswered", {})],
    "silent": [("stall", {"at": 10_000})],
    "slow": [("slow", {"bytes_per_second": 30_000.0})],
    "ranges ignored": [("whole", {})],
    "another range": [("wrong-range", {"by": 64})],
    "a short body": [("short", {"by": 100})],
    "no Content-Range": [("no-range", {})],
    "compressed": [("gzip", {})],
    "an old object by its ETag": [("etag", {"value": '"0123456789abcdef0123456789abcdef"'})],
    "an old object of another size": [("size", {"by": 9})],
    "a wrong bit": [("flip", {"at": 777})],
    "an old object without an ETag": [("no-etag", {}), ("flip", {"at": 3})],
    "no HTTP": [("garbage", {})],
    "a redirect": [("redirect", {"location": "https://example.invalid/"})],
}


@pytest.mark.parametrize("how", BAD)
def test_what_it_gets_wrong_the_bucket_gives(how: str, place: Place, expected: dict[str, bytes]) -> None:
    for kind, options in BAD[how]:
        place.cdn.add(kind, times=None, **options)  # type: ignore[arg-type]
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = reports_of(loading)
    assert report.verified
    assert report.retries == report.corrupt == 0, "the load itself has met no fault"
    assert cdn.gave_up
    assert 8 <= cdn.fallbacks <= 32
    assert sum(cdn.failures.values()) == cdn.fallbacks
    assert cdn.summary.startswith("the CDN was given up: ")
    if how == "ranges ignored":
        # Whole objects were offered and not taken: what the kernels' buffers hold is all that was sent.
        assert report.received_bytes == report.bytes


@pytest.mark.parametrize("how", BAD)
def test_what_it_gets_wrong_now_and_then_costs_a_request_each(
    how: str, place: Place, expected: dict[str, bytes]
) -> None:
    for kind, options in BAD[how]:
        place.cdn.add(kind, times=2, first=6, **options)  # type: ignore[arg-type]
    loading = place.load()
    assert bytes_of(loading) == expected
    report, cdn = reports_of(loading)
    assert report.retries == report.corrupt == 0
    assert not cdn.gave_up
    assert cdn.fallbacks <= 2 * len(BAD[how]) + report.hedges
    assert cdn.statuses["HIT"] > 50
    # A kept-alive connection that is closed unanswered is no fault: the CDN is asked again over a new one.
    if cdn.fallbacks or how != "closes before it answers":
        assert "came from the bucket after all" in cdn.summary


def test_a_page_for_everything(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.page = True
    loading = place.load()
    assert bytes_of(loading) == expected
    _, cdn = reports_of(loading)
    assert cdn.gave_up
    assert not cdn.bytes


def test_it_dies_in_the_midst(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.bytes_per_second = 8e6
    loading = place.load(memory=8 * MIB)
    found = {}
    with loading:
        for number, (name, tensor) in enumerate(loading):
            found[name] = raw_bytes(tensor)
            del tensor
            if number == 5:
                place.cdn.close()
    assert found == expected
    report, cdn = reports_of(loading)
    assert cdn.bytes > 2 * MIB
    assert cdn.bucket_bytes > 2 * MIB
    assert "failed 8 times in a row" in cdn.gave_up or "failed" in cdn.gave_up
    assert "went to the bucket, the bucket gave " in cdn.summary
    assert report.retries == 0


def test_the_bucket_s_links_are_renewed_as_ever(place: Place, expected: dict[str, bytes]) -> None:
    place.cdn.page = True
    loading = place.load(memory=8 * MIB)
    with loading:
        name, tensor = next(loading)
        found = {name: raw_bytes(tensor)}
        del tensor
        place.faults.add("fail", r"GET .*/objects/", times=2, status=403, code="AccessDenied")
        found |= {name: raw_bytes(tensor) for name, tensor in loading}
    assert found == expected
    assert loading.report is not None
    assert loading.report.renewals >= 1


STATUSES = {
    "MISS": "had nothing cached yet",
    "EXPIRED": "had nothing cached yet",
    "DYNAMIC": "did not help: all DYNAMIC, so every byte came from the bucket through it",
    "BYPASS": "did not help: all BYPASS",
    "STALE": "HIT",
    "WEIRD": "had nothing cached yet",
    None: "so hits are unknown",
}


@pytest.mark.parametrize("status", STATUSES)
def test_cache_statuses_are_reported(status: str | None, place: Place) -> None:
    place.cdn.status = status
    loading = place.load()
    bytes_of(loading)
    _, cdn = reports_of(loading)
    assert sum(cdn.statuses.values()) == cdn.requests - cdn.fallbacks
    assert list(cdn.statuses) == [{"WEIRD": "other", None: "none"}.get(status, status)]
    assert STATUSES[status] in cdn.summary
