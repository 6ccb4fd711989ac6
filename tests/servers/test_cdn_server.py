"""The caching proxy keeps Cloudflare's rules."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Mapping

import boto3
import pytest
from botocore.config import Config

from tests.conftest import fresh_bucket
from tests.servers.cdn import Cdn, _above, cdn_proxy
from tests.servers.stores import S3Server

LIMIT = 3_000_000


def put(server: S3Server, bucket: str, key: str, body: bytes) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    client.put_object(Bucket=bucket, Key=key, Body=body)
    client.close()


def get(cdn: Cdn, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(cdn.url + path, headers=asked)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.headers, exc.read()


@pytest.fixture
def bucket(moto: S3Server) -> str:
    return fresh_bucket(moto)


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_kept(moto: S3Server, bucket: str, ranges: bool) -> None:
    body = bytes(range(256)) * 8000
    put(moto, bucket, "a/b c", body)
    put(moto, bucket, "large", b"x" * (LIMIT + 1))
    with cdn_proxy(moto, bucket, limit_bytes=LIMIT, ranges=ranges) as cdn:
        for expected in ("MISS", "HIT"):
            status, headers, found = get(cdn, "/a/b%20c", Range="bytes=1000-1999")
            assert (status, headers["cf-cache-status"], found) == (206, expected, body[1000:2000])
            assert headers["Content-Range"] == f"bytes 1000-1999/{len(body)}"
        later = get(cdn, "/a/b%20c", Range="bytes=1500000-1500009")
        # Whole objects are kept whole; of ranges only those that were asked for.
        assert (later[1]["cf-cache-status"], later[2]) == ("MISS" if ranges else "HIT", body[1500000:1500010])
        for _ in range(2):
            status, headers, found = get(cdn, "/large", Range="bytes=5-6")
            assert (status, headers["cf-cache-status"], found) == (206, "BYPASS", b"xx")
        put(moto, bucket, "a/b c", b"changed")
        assert get(cdn, "/a/b%20c", Range="bytes=1000-1999")[2] == body[1000:2000]
        cdn.purge(["/a/b c"])
        assert get(cdn, "/a/b%20c")[2] == b"changed"
        assert get(cdn, "/later")[0] == 404
        put(moto, bucket, "later", b"here")
        assert get(cdn, "/later")[0] == 404
        assert [row.status for row in cdn.log() if row.path == "/later"] == [404, 404]


def test_nothing_is_kept_without_a_rule(moto: S3Server, bucket: str) -> None:
    put(moto, bucket, "a", b"bytes")
    with cdn_proxy(moto, bucket, rule=False) as cdn:
        for _ in range(2):
            status, headers, found = get(cdn, "/a")
            assert (status, headers["cf-cache-status"], found) == (200, "DYNAMIC", b"bytes")


def test_a_secret_opens_it(moto: S3Server, bucket: str) -> None:
    put(moto, bucket, "a", b"bytes")
    with cdn_proxy(moto, bucket, secret=("X-Key", "s3cret")) as cdn:
        status, headers, found = get(cdn, "/a")
        assert (status, headers["Content-Type"]) == (403, "text/html")
        assert b"<html>" in found
        assert get(cdn, "/a", X_Key="wrong")[0] == 403
        assert get(cdn, "/a", X_Key="s3cret")[2] == b"bytes"


@pytest.mark.parametrize("limit", [1, 9, 10, 99, 100, 512_000_000, 3_000_000, 1999])
def test_numbers_above_a_limit(limit: int) -> None:
    pattern = re.compile(_above(limit))
    for number in {0, 1, limit - 1, limit, limit + 1, limit * 2, limit * 10, limit // 2, limit + 1000}:
        assert bool(pattern.fullmatch(str(number))) == (number > limit), number
