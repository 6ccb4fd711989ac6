"""Servers that cannot be listed: tokens, redirects, pages instead of answers, and trouble on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coldstream.errors import (
    CancelledError,
    ConflictError,
    CredentialsError,
    HeaderError,
    IntegrityError,
    ManifestError,
    NotFoundError,
    UnavailableError,
)
from coldstream.net.pool import read
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.model_reader import ModelReader
from coldstream.places.model_records import looks_like_record
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings
from tests.models import safetensors_bytes, sharded_model
from tests.servers.ranged import RangedServer

FILES = sharded_model(shards=2, shard_bytes=200_000)
SINGLE = safetensors_bytes({"w": 400_000, "v": 10})
PAGE = b"<!DOCTYPE html><html><body>This app needs JavaScript</body></html>"


def opened(url: str, retry: Retry | None = None) -> ModelReader:
    quick = Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=1.0)
    return open_model_reader(url, load_settings(environ={}), retry=retry or Retry(quick))


@pytest.fixture
def server() -> Iterator[RangedServer]:
    with RangedServer({f"/org/m/{path}": data for path, data in FILES.items()}) as server:
        yield server


def paths(checkpoint: Checkpoint) -> list[str]:
    return [shard.path for shard in checkpoint.shards]


def test_a_token_in_the_query_goes_with_every_request_and_is_not_shown(server: RangedServer) -> None:
    server.query_token = "secret-token"
    origin = opened(f"{server.url}/org/m/?token=secret-token")
    checkpoint = origin.checkpoint()
    assert checkpoint.uri == f"{server.url}/org/m"
    assert checkpoint.name == "org/m"
    assert "config.json" in origin.names()
    shown = repr((origin, origin.label, checkpoint))
    assert "secret-token" not in shown
    assert all("token=secret-token" in (shard.segments[0].url or "") for shard in checkpoint.shards)
    with pytest.raises(CredentialsError) as caught:
        opened(f"{server.url}/org/m?token=wrong-token").checkpoint()
    assert "wrong-token" not in f"{caught.value!r} {caught.value} {caught.value.hint}"


def test_a_redirect_is_followed_once_and_again_when_the_link_has_ended(server: RangedServer) -> None:
    with RangedServer({"/cas/1": SINGLE}, query_token="signed-1") as storage:
        server.put("/single/model.safetensors", b"")
        server.add("redirect", "single/model.safetensors", times=None, location=storage.link("/cas/1"))
        origin = opened(f"{server.url}/single")
        shard = origin.checkpoint().shards[0]
        assert shard.segments[0].url == storage.link("/cas/1")
        assert "signed-1" not in repr(shard)
        server.heal()
        storage.query_token = "signed-2"
        server.add("redirect", "single/model.safetensors", times=None, location=storage.link("/cas/1"))
        url, headers = origin.renew("model.safetensors")
        assert url == storage.link("/cas/1")
        assert read(url, start=3, stop=9, headers=headers, etag=shard.segments[0].etag).body == SINGLE[3:9]


@pytest.mark.parametrize("name", ["coldstream.json", "model.safetensors.index.json"])
def test_a_page_instead_of_a_404_counts_as_absent(server: RangedServer, name: str) -> None:
    server.put("/single/model.safetensors", SINGLE)
    server.put(f"/single/{name}", PAGE)
    checkpoint = opened(f"{server.url}/single").checkpoint()
    assert paths(checkpoint) == ["model.safetensors"]
    assert not checkpoint.verified


def test_a_server_of_pages_alone_has_no_model(server: RangedServer) -> None:
    for name in ("coldstream.json", "model.safetensors.index.json", "model.safetensors", "config.json"):
        server.put(f"/app/{name}", PAGE)
    origin = opened(f"{server.url}/app")
    with pytest.raises(HeaderError, match="not a safetensors file"):
        origin.checkpoint()
    assert origin.names() == []


def test_a_server_that_hides_what_is_missing(server: RangedServer) -> None:
    server.put("/single/model.safetensors", SINGLE)
    server.add("status", "json", status=403, times=None)
    assert paths(opened(f"{server.url}/single").checkpoint()) == ["model.safetensors"]
    server.add("status", "", status=403, times=None)
    with pytest.raises(CredentialsError, match="refuses \\(403\\)"):
        opened(f"{server.url}/single").checkpoint()


def test_refusals_that_are_no_matter_of_rights(server: RangedServer) -> None:
    server.add("status", "00001-of", status=413)
    with pytest.raises(UnavailableError, match="answers 413") as caught:
        opened(f"{server.url}/org/m").checkpoint()
    assert not caught.value.retryable
    server.add("status", "00001-of", status=400, code="ExpiredToken")
    with pytest.raises(CredentialsError, match="refuses"):
        opened(f"{server.url}/org/m").checkpoint()


def test_no_model_says_what_was_looked_for(server: RangedServer) -> None:
    with pytest.raises(
        NotFoundError, match=r"none of coldstream\.json, .*index\.json and model\.safetensors"
    ) as caught:
        opened(f"{server.url}/nothing").checkpoint()
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["cut", "reset", "unanswered"])
def test_a_broken_answer_is_read_again(server: RangedServer, kind: str) -> None:
    retry = Retry(Backoff(first_seconds=0.01, longest_seconds=0.05, give_up_seconds=5.0))
    server.add(kind, "00002-of-00002.safetensors", at=100)  # type: ignore[arg-type]
    server.requests_per_connection = 1
    assert len(paths(opened(f"{server.url}/org/m", retry).checkpoint())) == 2


def test_a_busy_server_is_waited_for_as_it_asks(server: RangedServer) -> None:
    waits: list[float] = []
    retry = Retry(on_retry=lambda _error, seconds: waits.append(seconds))
    server.add("status", "00001-of", status=503, retry_after="0.2")
    opened(f"{server.url}/org/m", retry).checkpoint()
    assert retry.count == 1
    assert 0.2 <= waits[0] <= 0.8
    server.add("status", "", status=429, times=None)
    with pytest.raises(UnavailableError, match="answered 429"):
        opened(f"{server.url}/org/m").checkpoint()


def test_cancelling_ends_the_waiting(server: RangedServer) -> None:
    retry = Retry()
    retry.on_retry = lambda _error, _seconds: retry.cancel.set()
    server.add("status", "", status=503, times=None)
    with pytest.raises(CancelledError):
        opened(f"{server.url}/org/m", retry).checkpoint()


def test_a_server_that_ignores_ranges_is_named(server: RangedServer) -> None:
    server.put("/large/model.safetensors", safetensors_bytes({"w": 600_000}))
    server.add("whole", "large/model.safetensors", times=None)
    with pytest.raises(UnavailableError, match="range was ignored") as caught:
        opened(f"{server.url}/large").checkpoint()
    assert not caught.value.retryable


def test_without_an_etag_nothing_is_pinned(server: RangedServer) -> None:
    server.put("/single/model.safetensors", SINGLE)
    server.add("no-etag", "", times=None)
    one = opened(f"{server.url}/single").checkpoint()
    two = opened(f"{server.url}/single?v=2").checkpoint()
    assert not one.pinned
    assert one.shards[0].segments[0].etag is None
    assert one.version != two.version
    assert "v=2" not in repr(two)


def test_a_file_replaced_between_two_reads_of_its_header(server: RangedServer) -> None:
    long = safetensors_bytes({f"{'x' * 200}.{number}": 7 for number in range(2000)})
    server.put("/single/model.safetensors", long)
    server.add("etag", "model.safetensors\\?", first=2, times=None, value='"another"')
    with pytest.raises(ConflictError, match=r"model\.safetensors was replaced"):
        opened(f"{server.url}/single").checkpoint()


@pytest.mark.parametrize(
    "index",
    [
        b'{"weight_map": {"w": "../up.safetensors"}}',
        b'{"weight_map": {"w": "/etc/passwd"}}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"w": "model-1.safetensors"',
        b"{}",
    ],
)
def test_an_index_that_lies_is_refused(server: RangedServer, index: bytes) -> None:
    server.put("/bad/model.safetensors.index.json", index)
    with pytest.raises(IntegrityError):
        opened(f"{server.url}/bad").checkpoint()
    assert server.count("passwd|up.safe") == 0


def test_an_index_of_other_files_is_refused(server: RangedServer) -> None:
    server.put("/bad/model.safetensors.index.json", b'{"weight_map": {"w": "sub/a.safetensors", "v": "b.bin"}}')
    with pytest.raises(IntegrityError, match=r"'b\.bin', which is no safetensors file at the top"):
        opened(f"{server.url}/bad").checkpoint()


def test_a_damaged_manifest_is_no_absent_one(server: RangedServer) -> None:
    server.put("/org/m/coldstream.json", b'{"format":1,"state":"ready","name":"org/m"')
    with pytest.raises(ManifestError, match="not JSON"):
        opened(f"{server.url}/org/m").checkpoint()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", True),
        (b'{"form', True),
        (b'{"format":2,"what":1}', True),
        (b'X"format":1,"state":"ready"', True),
        (b'{"name":1,"digest":"sha256:00"}', True),
        (PAGE, False),
        (b'{"error":"not found"}', False),
        (b"Not Found", False),
    ],
)
def test_what_looks_like_a_manifest(data: bytes, expected: bool) -> None:
    assert looks_like_record(data) == expected


def test_connections_are_kept_within_a_checkpoint_and_closed_after_it(server: RangedServer) -> None:
    opened(f"{server.url}/org/m").checkpoint()
    assert server.count() == 4
    assert server.connections <= 2
