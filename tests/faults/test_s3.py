"""What a bucket does on a bad day, survived or said in one line."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from coldstream.errors import (
    BucketNotFoundError,
    CancelledError,
    ColdstreamError,
    CredentialsError,
    IntegrityError,
    UnavailableError,
    UploadNotFoundError,
)
from coldstream.net.retry import Backoff, Retry
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_store
from coldstream.places.place import Store
from coldstream.settings import load_settings
from tests.conftest import fresh_bucket, quick_store
from tests.models import safetensors_bytes
from tests.servers.impostor import PORTAL
from tests.servers.stores import Faults, S3Server

Proxied = tuple[Store, Faults]


def test_a_busy_bucket_is_survived_and_counted(proxied: Proxied) -> None:
    store, faults = proxied
    faults.add("fail", "^PUT", times=3)
    store.put("k", b"x")
    assert store.retry.count == 3
    assert store.get("k")[0] == b"x"


def test_a_bucket_that_stays_busy_is_given_up_on(moto: S3Server, proxied: Proxied) -> None:
    store, faults = proxied
    store.retry.backoff = Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=0.3)
    faults.add("fail", "", times=10_000)
    with pytest.raises(UnavailableError, match="503 SlowDown") as caught:
        store.put("k", b"x")
    assert caught.value.hint
    assert caught.value.exit_code == 1


def test_retry_after_is_honoured(proxied: Proxied) -> None:
    store, faults = proxied
    waits: list[float] = []
    store.retry.on_retry = lambda _error, seconds: waits.append(seconds)
    faults.add("fail", "^PUT", status=429, code="TooManyRequests", retry_after="1")
    store.put("k", b"x")
    assert 1.0 <= waits[0] <= 2.0


def test_a_cut_answer_is_continued_where_it_ended(proxied: Proxied) -> None:
    store, faults = proxied
    body = bytes(range(256)) * 20_000
    store.put("k", body)
    faults.requests.clear()
    faults.add("cut_response", "^GET", after_bytes=3_000_000)
    buffer = bytearray(len(body))
    store.read_into("k", 0, memoryview(buffer))
    assert bytes(buffer) == body
    starts = [int(ranged.split("=")[1].split("-")[0]) for _, ranged in faults.requests if ranged]
    assert starts[0] == 0
    assert 2_000_000 < starts[1] <= 3_000_000


@pytest.mark.parametrize("text", [PORTAL, ""])
def test_a_page_in_place_of_a_range_is_a_fault_to_retry(proxied: Proxied, text: str) -> None:
    store, faults = proxied
    body = bytes(range(256)) * 8
    store.put("k", body)
    etag = store.head("k").etag
    faults.add("page", "^GET", times=3, text=text)
    buffer = bytearray(1000)
    store.read_into("k", 5, memoryview(buffer), if_match=etag)
    assert bytes(buffer) == body[5:1005]
    store.retry.backoff = Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=0.2)
    faults.add("page", "^GET", times=1000, text=text)
    expected = 'gets 200 text/html "Sign in to Hotel Wi-Fi"' if text else "gets 200 text/html without content"
    with pytest.raises(UnavailableError, match=expected):
        store.read_into("k", 5, memoryview(buffer), if_match=etag)


def test_a_header_is_asked_for_again_when_the_store_has_answered(proxied: Proxied) -> None:
    store, faults = proxied
    store.put("m/model.safetensors", safetensors_bytes({"a": 100}))
    faults.add("cut_response", "^GET .*safetensors")
    (shard,) = ModelReader(store, "m", label="m", name="m").checkpoint().shards
    assert shard.path == "model.safetensors"


def test_a_cut_request_is_sent_again(proxied: Proxied) -> None:
    store, faults = proxied
    upload_id = store.create_upload("k")
    faults.add("cut_request", "partNumber=1", after_bytes=100_000)
    counts: list[int] = []
    body = b"z" * (6 << 20)
    store.put_part("k", upload_id, 1, body, on_sent=counts.append)
    store.complete_upload("k", upload_id, store.parts("k", upload_id))
    assert sum(counts) == len(body)
    assert store.get("k")[0] == body


def test_a_conditional_put_whose_answer_is_lost_succeeds(proxied: Proxied) -> None:
    store, faults = proxied
    faults.add("lose_answer", "^PUT")
    etag = store.put("k", b"x", if_absent=True)
    assert store.head("k").etag == etag


def test_completing_twice_says_that_the_upload_is_gone(rclone: S3Server) -> None:
    store = quick_store(rclone.environ(fresh_bucket(rclone)))
    upload_id = store.create_upload("k")
    store.put_part("k", upload_id, 1, b"x")
    parts = store.parts("k", upload_id)
    store.complete_upload("k", upload_id, parts)
    with pytest.raises(UploadNotFoundError):
        store.complete_upload("k", upload_id, parts)


@pytest.mark.parametrize(
    "change", [{"R2_SECRET_KEY": "not-the-secret-at-all"}, {"R2_ACCESS_KEY": "not-the-key-at-all"}]
)
def test_wrong_keys_are_refused_without_showing_them(rclone: S3Server, change: dict[str, str]) -> None:
    flags = rclone.environ(fresh_bucket(rclone)) | change
    with pytest.raises(CredentialsError) as caught:
        quick_store(flags).put("k", b"x")
    assert caught.value.exit_code == 12
    assert caught.value.hint
    for secret in (flags["R2_SECRET_KEY"], flags["R2_ACCESS_KEY"]):
        assert secret not in f"{caught.value.message} {caught.value.hint}"


def test_a_missing_bucket_is_named(rclone: S3Server) -> None:
    with pytest.raises(BucketNotFoundError, match="never-made") as caught:
        quick_store(rclone.environ("never-made")).put("k", b"x")
    assert "setup" in (caught.value.hint or "")


def test_a_wrong_clock_is_reported(proxied: Proxied) -> None:
    store, faults = proxied
    faults.add("fail", "", status=403, code="RequestTimeTooSkewed")
    with pytest.raises(ColdstreamError, match="clock"):
        store.put("k", b"x")


def test_a_refused_connection_is_reported_immediately() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        flags = {"R2_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}", "R2_BUCKET": "models"}
        keys = {"R2_ACCESS_KEY": "a" * 16, "R2_SECRET_KEY": "s" * 16}
        store = open_store(load_settings(flags | keys, environ={}))
        waited: list[float] = []
        store.retry.on_retry = lambda _error, seconds: waited.append(seconds)
        with pytest.raises(UnavailableError, match="cannot reach"):
            store.put("k", b"x")
    assert waited == []


def test_a_stripped_range_is_noticed(proxied: Proxied) -> None:
    store, faults = proxied
    store.put("k", b"0123456789")
    faults.drop_range = True
    with pytest.raises(IntegrityError, match="ignores ranges"):
        store.read_into("k", 5, memoryview(bytearray(2)))


def test_cancelling_ends_a_wait(proxied: Proxied) -> None:
    store, faults = proxied
    retry: Retry = store.retry
    retry.backoff = Backoff(first_seconds=30, give_up_seconds=600)
    retry.on_retry = lambda _error, _seconds: threading.Thread(target=retry.cancel.set).start()
    faults.add("fail", "", times=100)
    began = time.monotonic()
    with pytest.raises(CancelledError):
        store.put("k", b"x")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("nth", range(1, 8))
def test_any_one_failing_request_is_survived(proxied: Proxied, nth: int) -> None:
    store, faults = proxied
    seen = 0

    def arm(_line: str) -> None:
        nonlocal seen
        seen += 1
        if seen == nth - 1:
            faults.add("fail", "", status=500, code="InternalError")

    faults.on_request = arm
    if nth == 1:
        faults.add("fail", "", status=500, code="InternalError")
    upload_id = store.create_upload("k")
    for number in (1, 2):
        store.put_part("k", upload_id, number, b"%d" % number * (5 << 20))
    store.complete_upload("k", upload_id, store.parts("k", upload_id))
    assert store.head("k").size == 10 << 20
    assert [info.key for info in store.list("")] == ["k"]
    assert store.retry.count == 1
