"""What two reads say of an object."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coldstream.operate.cdn.edge_cache import CdnObject, EdgeAnswer, judge

ITEM = CdnObject(
    model="org/m",
    key="org/m/m.safetensors",
    label="m.safetensors",
    size=1000,
    etag="abc",
    sha256="0" * 64,
    is_weights=True,
    is_read=True,
)
GOOD = EdgeAnswer(status=206, cache="HIT", size=1000, etag="abc")


@pytest.mark.parametrize(
    ("first", "second", "state", "mend"),
    [
        ("MISS", "HIT", "kept", ""),
        ("HIT", "HIT", "kept", ""),
        ("STALE", "UPDATING", "kept", ""),
        ("MISS", "MISS", "coming", "cdn warm"),
        ("EXPIRED", "REVALIDATED", "kept", ""),
        ("DYNAMIC", "DYNAMIC", "not kept", "cdn rule"),
        ("BYPASS", "BYPASS", "not kept", "Cache-Control"),
        ("", "", "not kept", "proxied"),
    ],
)
def test_the_status_of_two_reads(first: str, second: str, state: str, mend: str) -> None:
    found = judge(ITEM, replace(GOOD, cache=first), replace(GOOD, cache=second), 1000)
    assert (found.state, found.first, found.second) == (state, first, second)
    assert mend in found.fix
    assert bool(found.fix) == bool(mend)


def test_what_is_too_large_is_so_whatever_the_cache_says() -> None:
    found = judge(ITEM, GOOD, GOOD, 999)
    assert found.state == "too large"
    assert "--object-bytes-max" in found.fix


@pytest.mark.parametrize(
    ("answer", "state", "mend"),
    [
        (EdgeAnswer(status=0, fault="refused"), "unreachable", "refused"),
        (EdgeAnswer(status=403), "refused", "COLDSTREAM_CDN_HEADER"),
        (EdgeAnswer(status=401), "refused", "CF_ACCESS_CLIENT_ID"),
        (EdgeAnswer(status=302), "refused", "redirects"),
        (EdgeAnswer(status=404), "wrong", "404"),
        (EdgeAnswer(status=522), "wrong", "522"),
        (replace(GOOD, is_page=True, status=200), "wrong", "HTML"),
        (replace(GOOD, size=999), "wrong", "999"),
        (replace(GOOD, etag="old"), "wrong", "older version is kept: coldstream cdn purge org/m"),
        (replace(GOOD, sha256="1" * 64), "wrong", "other bytes"),
    ],
)
def test_an_answer_that_is_not_the_bucket_s(answer: EdgeAnswer, state: str, mend: str) -> None:
    found = judge(ITEM, GOOD, answer, 1000)
    assert found.state == state
    assert mend in found.fix


@pytest.mark.parametrize(
    ("cache", "in_bucket", "state", "mend"),
    [
        ("HIT", True, "kept 404", "coldstream cdn purge org/m, or wait 3 minutes"),
        ("STALE", True, "kept 404", "the bucket has the object"),
        ("MISS", True, "wrong", "is it this bucket's domain?"),
        ("EXPIRED", True, "wrong", "is it this bucket's domain?"),
        ("", True, "wrong", "is it this bucket's domain?"),
        ("HIT", False, "wrong", "the bucket has none either: coldstream verify org/m"),
    ],
)
def test_what_is_not_found(cache: str, in_bucket: bool, state: str, mend: str) -> None:
    answer = EdgeAnswer(status=404, cache=cache)
    found = judge(ITEM, answer, answer, 1000, in_bucket=in_bucket)
    assert found.state == state
    assert mend in found.fix


def test_a_weak_etag_says_nothing() -> None:
    assert judge(ITEM, GOOD, replace(GOOD, etag=None), 1000).state == "kept"
