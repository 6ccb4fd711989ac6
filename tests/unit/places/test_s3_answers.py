"""What servers leave out of their answers, or put in beside them."""

from __future__ import annotations

import datetime as dt
import gzip
import io
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber

from coldstream.errors import IntegrityError, UnavailableError
from coldstream.node.http_endpoint import free_port
from coldstream.places.s3_store import S3Store
from coldstream.settings import load_settings
from tests.servers.impostor import Reply, impostor

CONTENT = b"0123456789"
FLAGS = {
    "COLDSTREAM_STORE": "s3://bucket",
    "R2_ENDPOINT": "http://127.0.0.1:9",
    "R2_ACCESS_KEY": "a",
    "R2_SECRET_KEY": "s",
}


def body(content: bytes, length: int | None = None) -> StreamingBody:
    return StreamingBody(io.BytesIO(content), length)


@pytest.fixture
def store() -> S3Store:
    return S3Store("bucket", settings=load_settings(FLAGS, environ={}))


@pytest.fixture
def answers(store: S3Store) -> Iterator[Stubber]:
    with Stubber(store._client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def test_a_proxy_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:secret@127.0.0.1:{free_port()}")
    store = S3Store("bucket", settings=load_settings(FLAGS, environ={}))
    with pytest.raises(UnavailableError, match=r"cannot reach http://127\.0\.0\.1:9: .*proxy") as caught:
        list(store.list(""))
    assert not caught.value.retryable
    assert "HTTP_PROXY" in (caught.value.hint or "")
    assert "secret" not in str(caught.value)


def test_a_head_without_a_length_asks_for_one_byte(store: S3Store, answers: Stubber) -> None:
    answers.add_response("head_object", {"ETag": '"e"'})
    ranged = {"Bucket": "bucket", "Key": "k", "Range": "bytes=0-0"}
    answers.add_response("get_object", {"Body": body(b"0"), "ContentRange": "bytes 0-0/10"}, ranged)
    assert store.head("k").size == len(CONTENT)


def test_a_head_without_a_length_of_an_empty_object(store: S3Store, answers: Stubber) -> None:
    answers.add_response("head_object", {})
    answers.add_client_error("get_object", "InvalidRange", http_status_code=416)
    assert store.head("k").size == 0


def test_a_head_without_a_length_where_ranges_are_ignored(store: S3Store, answers: Stubber) -> None:
    answers.add_response("head_object", {})
    answers.add_response("get_object", {"Body": body(CONTENT)})
    with pytest.raises(IntegrityError, match="how long"):
        store.head("k")


def test_an_answer_without_a_length_is_read_to_its_end_and_no_further_than_allowed(
    store: S3Store, answers: Stubber
) -> None:
    for _ in range(3):
        answers.add_response("get_object", {"Body": body(CONTENT), "ETag": '"e"'})
    data, info = store.get("k")
    assert (data, info.size, info.etag) == (CONTENT, 10, "e")
    assert store.get("k", bytes_max=10)[0] == CONTENT
    with pytest.raises(IntegrityError, match="more than the 9 bytes"):
        store.get("k", bytes_max=9)


def test_a_range_without_a_length(store: S3Store, answers: Stubber) -> None:
    answers.add_response("get_object", {"Body": body(CONTENT[2:5]), "ContentRange": "bytes 2-4/10"})
    buffer = bytearray(3)
    store.read_into("k", 2, memoryview(buffer))
    assert buffer == CONTENT[2:5]


def test_what_was_compressed_before_it_was_stored_is_decompressed(store: S3Store, answers: Stubber) -> None:
    packed = gzip.compress(CONTENT * 1000)

    def add(content: bytes, coding: str) -> None:
        answer = {"Body": body(content, len(content)), "ContentLength": len(content), "ContentEncoding": coding}
        answers.add_response("get_object", answer)

    add(packed, "gzip")
    add(packed, "aws-chunked,gzip")
    add(CONTENT, "aws-chunked")
    add(CONTENT, "gzip")  # a label that is not true
    assert store.get("k", bytes_max=10_000)[0] == CONTENT * 1000
    assert store.get("k")[0] == CONTENT * 1000
    assert store.get("k", bytes_max=10)[0] == CONTENT
    assert store.get("k")[0] == CONTENT
    add(packed, "gzip")
    with pytest.raises(IntegrityError, match="more than the 9999 bytes"):
        store.get("k", bytes_max=9_999)
    add(packed[:-9], "gzip")
    with pytest.raises(IntegrityError, match="truncated"):
        store.get("k", bytes_max=10_000)


@pytest.mark.parametrize("etag", ["é", "a\x01b", "a\r\nX: y", 'a"b', ""])
def test_an_etag_that_cannot_be_sent_is_none(store: S3Store, answers: Stubber, etag: str) -> None:
    quoted: dict[str, Any] = {"ETag": f'"{etag}"'}
    answers.add_response("head_object", quoted | {"ContentLength": 10})
    answers.add_response("list_objects_v2", {"Contents": [quoted | {"Key": "k", "Size": 10}]})
    answers.add_response("get_object", quoted | {"Body": body(CONTENT, 10), "ContentLength": 10})
    assert store.head("k").etag == ""
    assert [info.etag for info in store.list("")] == [""]
    assert store.get("k")[1].etag == ""


def test_a_listing_without_time_zones_is_in_utc(store: S3Store, answers: Stubber) -> None:
    there = dt.datetime(2024, 1, 1, 12, tzinfo=dt.timezone.utc)
    answers.add_response(
        "list_objects_v2", {"Contents": [{"Key": "k", "Size": 1, "LastModified": there.replace(tzinfo=None)}]}
    )
    (info,) = store.list("")
    assert info.modified == there


def test_a_listing_with_a_hole_is_no_servers(store: S3Store, answers: Stubber) -> None:
    answers.add_response("list_objects_v2", {"Contents": [{"Key": "k"}]})
    with pytest.raises(UnavailableError, match=r"does not answer as an S3 server: .* without 'Size'"):
        list(store.list(""))


@pytest.mark.parametrize("name", ["Last-Modified", "x-amz-mp-parts-count"])
def test_a_header_that_botocore_cannot_read_is_named(name: str) -> None:
    reply = Reply(200, {"ETag": '"e"', name: "unreadable"}, CONTENT)
    with impostor(reply) as url:
        store = S3Store("bucket", settings=load_settings(FLAGS | {"R2_ENDPOINT": url}, environ={}))
        with pytest.raises(UnavailableError, match=r"does not answer as an S3 server: GetObject gets .*unreadable"):
            store.get("k")
