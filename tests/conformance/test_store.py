"""The store's contract, one suite for every store."""

from __future__ import annotations

import threading
import urllib.request
from pathlib import Path

import pytest

from coldstream.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UploadNotFoundError,
    UsageError,
)
from coldstream.places.folder import Folder
from coldstream.places.place import Store, UploadPart, honours_conditions
from coldstream.places.s3_store import S3Store
from tests.conftest import fresh_bucket, quick_store
from tests.servers.stores import S3Server

PART = b"p" * (5 << 20)


def read(store: Store, key: str, start: int, stop: int) -> bytes:
    buffer = bytearray(stop - start)
    store.read_into(key, start, memoryview(buffer))
    return bytes(buffer)


def test_a_written_object_can_be_read_back(store: Store) -> None:
    etag = store.put("a/b.txt", b"hello")
    assert store.get("a/b.txt")[0] == b"hello"
    assert store.head("a/b.txt").size == 5
    assert store.head("a/b.txt").etag == etag
    assert [info.etag for info in store.list("a/")] == [etag]


@pytest.mark.parametrize("key", ["with space/x y.txt", "plus+sign/a+b=c&d.txt", "ünïcode/模型.bin", "a#b/c?d.txt"])
def test_unusual_keys_work(store: Store, key: str) -> None:
    store.put(key, b"x")
    assert store.get(key)[0] == b"x"
    assert [info.key for info in store.list(key.split("/", maxsplit=1)[0] + "/")] == [key]
    store.delete([key])
    assert list(store.list("")) == []


def test_ranges_are_exact(store: Store) -> None:
    body = bytes(range(256)) * 10
    store.put("k", body)
    for start, stop in ((0, 1), (0, 2560), (17, 1000), (2559, 2560), (5, 5)):
        assert read(store, "k", start, stop) == body[start:stop]


def test_a_range_past_the_end_is_an_error(store: Store) -> None:
    store.put("k", b"12345")
    with pytest.raises(IntegrityError):
        read(store, "k", 3, 9)
    with pytest.raises(IntegrityError):
        read(store, "k", 100, 110)


def test_a_stale_etag_is_a_conflict(store: Store) -> None:
    old = store.put("k", b"one")
    store.put("k", b"two")
    if store.pins_by_etag:
        with pytest.raises(ConflictError):
            store.read_piece("k", 0, 3, etag=old, where="k")
    with pytest.raises(ConflictError):
        store.read_into("k", 0, memoryview(bytearray(3)), if_match=old)
    store.read_into("k", 0, memoryview(bytearray(3)), if_match=store.head("k").etag)


def test_a_missing_object_is_not_found(store: Store) -> None:
    for attempt in (
        lambda: store.head("none"),
        lambda: store.get("none"),
        lambda: store.read_into("none", 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(NotFoundError) as caught:
            attempt()
        assert type(caught.value) is NotFoundError
        assert (caught.value.operation is None) == isinstance(store, Folder)


def test_a_large_object_is_not_read_whole(store: Store) -> None:
    store.put("k", b"x" * 100)
    with pytest.raises(IntegrityError, match="at most 99"):
        store.get("k", bytes_max=99)


def test_conditional_writes_work_where_declared(store: Store) -> None:
    store.put("k", b"one")
    if not honours_conditions(store, "k", b"one"):
        assert "127.0.0.1" in repr(store)  # rclone; found out, not trusted
        return
    with pytest.raises(ConflictError):
        store.put("k", b"two", if_absent=True)
    with pytest.raises(ConflictError):
        store.put("k", b"two", if_match="0" * 32)
    assert store.get("k")[0] == b"one"
    etag = store.put("k", b"two", if_match=store.head("k").etag)
    store.delete(["k"])
    with pytest.raises((ConflictError, NotFoundError)):
        store.put("k", b"three", if_match=etag)


def test_of_concurrent_creations_one_wins(store: Store) -> None:
    store.put("probe", b"x")
    if not honours_conditions(store, "probe", b"x"):
        return
    won: list[int] = []

    def create(number: int) -> None:
        try:
            store.put("k", b"%d" % number, if_absent=True)
        except ConflictError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("k")[0] == b"%d" % won[0]


def test_listing_is_by_prefix_and_in_order(store: Store) -> None:
    for key in ("b/2", "a/1", "a/10", "ab/1", "a/sub/x"):
        store.put(key, b"x")
    assert [info.key for info in store.list("a/")] == ["a/1", "a/10", "a/sub/x"]
    assert [info.key for info in store.list("")] == ["a/1", "a/10", "a/sub/x", "ab/1", "b/2"]
    assert list(store.list("none/")) == []


def test_long_listings_are_paged(moto: S3Server) -> None:
    store = quick_store(moto.environ(fresh_bucket(moto)))
    assert isinstance(store, S3Store)
    # Pages of 10 instead of 1,000, which this server would need long to fill.
    store._client.meta.events.register(
        "provide-client-params.s3.ListObjectsV2", lambda params, **_: {**params, "MaxKeys": 10}
    )
    keys = [f"k/{number:05d}" for number in range(35)]
    for key in keys:
        store.put(key, b"")
    assert [info.key for info in store.list("k/")] == keys
    store.delete([*keys, *(f"never/{number}" for number in range(1000))])
    assert list(store.list("k/")) == []


def test_deleting_a_missing_object_succeeds(store: Store) -> None:
    store.put("k", b"x")
    store.delete(["k", "never-there"])
    store.delete([])
    assert list(store.list("")) == []


def test_parts_in_any_order_make_the_object(store: Store) -> None:
    upload_id = store.create_upload("m/big")
    pieces = {1: PART, 2: b"q" * len(PART), 3: b"tail"}
    etags = {number: store.put_part("m/big", upload_id, number, pieces[number]) for number in (3, 1, 2)}
    assert [(part.number, part.size) for part in store.parts("m/big", upload_id)] == [
        (1, len(PART)),
        (2, len(PART)),
        (3, 4),
    ]
    for number, piece in pieces.items():
        assert etags[number] == store.part_etag(memoryview(piece))
    assert [pending.key for pending in store.uploads("m/")] == ["m/big"]
    assert list(store.uploads("other/")) == []
    assert list(store.list("m/")) == []
    store.complete_upload("m/big", upload_id, store.parts("m/big", upload_id))
    whole = b"".join(pieces.values())
    assert read(store, "m/big", 0, len(whole)) == whole
    assert store.head("m/big").etag == next(iter(store.list("m/"))).etag
    assert list(store.uploads("")) == []
    with pytest.raises(UploadNotFoundError):
        store.parts("m/big", upload_id)


def test_a_part_can_be_copied_from_another_object(store: Store) -> None:
    whole = bytes(range(256)) * (24 << 10)
    store.put("org/m 1/a+b.safetensors", whole)
    etag = store.head("org/m 1/a+b.safetensors").etag
    upload_id = store.create_upload("k")
    found = store.copy_part("k", upload_id, 1, "org/m 1/a+b.safetensors", 1000, 6_000_999, if_match=etag)
    if found is None:
        assert "127.0.0.1" in repr(store)  # rclone; it cannot, and that is found out
        store.abort_upload("k", upload_id)
        return
    assert found == store.part_etag(whole[1000:6_000_999])
    assert [(part.size, part.etag) for part in store.parts("k", upload_id)] == [(5_999_999, found)]
    store.complete_upload("k", upload_id, store.parts("k", upload_id))
    assert store.get("k")[0] == whole[1000:6_000_999]
    upload_id = store.create_upload("k")
    with pytest.raises(NotFoundError):
        store.copy_part("k", upload_id, 1, "none", 0, 5, if_match=etag)
    if isinstance(store, Folder):  # moto ignores the condition
        with pytest.raises(ConflictError):
            store.copy_part("k", upload_id, 1, "org/m 1/a+b.safetensors", 0, 5, if_match="0" * 32)
    store.abort_upload("k", upload_id)


def test_a_part_can_be_replaced(store: Store) -> None:
    upload_id = store.create_upload("k")
    store.put_part("k", upload_id, 1, b"wrong")
    try:
        store.put_part("k", upload_id, 1, b"right")
    except UnsupportedError:  # rclone streams parts on, and cannot
        return
    store.complete_upload("k", upload_id, store.parts("k", upload_id))
    assert store.get("k")[0] == b"right"


def test_completing_with_another_part_is_refused(store: Store) -> None:
    upload_id = store.create_upload("k")
    store.put_part("k", upload_id, 1, b"real")
    with pytest.raises(ConflictError):
        store.complete_upload("k", upload_id, [UploadPart(1, 4, "0" * 32)])
    with pytest.raises(NotFoundError):
        store.head("k")
    store.abort_upload("k", upload_id)


def test_aborting_leaves_nothing_and_may_be_repeated(store: Store) -> None:
    upload_id = store.create_upload("k")
    store.put_part("k", upload_id, 1, b"x")
    store.abort_upload("k", upload_id)
    store.abort_upload("k", upload_id)
    assert list(store.uploads("")) == []
    with pytest.raises(UploadNotFoundError):
        store.parts("k", upload_id)


def test_progress_adds_up(store: Store) -> None:
    body = bytes(3 << 20)
    counts: list[int] = []
    store.put("k", body, on_sent=counts.append)
    assert sum(counts) == len(body)
    upload_id = store.create_upload("m")
    counts.clear()
    store.put_part("m", upload_id, 1, memoryview(body), on_sent=counts.append)
    assert sum(counts) == len(body)
    counts.clear()
    store.read_into("k", 0, memoryview(bytearray(len(body))), on_read=counts.append)
    assert sum(counts) == len(body)
    store.abort_upload("m", upload_id)


def test_the_engine_reads_what_is_located_without_credentials(store: Store) -> None:
    store.put("a/k", b"0123456789")
    location = store.locate("a/k")
    if location.local is not None:
        assert Path(location.local).read_bytes() == b"0123456789"
        with pytest.raises(UsageError, match="local"):
            store.renew("a/k", where="a/k")
        return
    for url, headers in ((location.url, location.headers), store.renew("a/k", where="a/k")):
        assert url
        request = urllib.request.Request(url, headers={**dict(headers), "Range": "bytes=2-4"})
        with urllib.request.urlopen(request) as answer:
            assert answer.read() == b"234"


def test_a_piece_says_where_the_rest_is(store: Store) -> None:
    store.put("a/k", b"0123456789")
    with store.session():
        piece = store.read_piece("a/k", 2, 5, etag=None, where="a/k")
        assert (piece.body, piece.size) == (b"234", 10)
        assert piece.stamp
        assert (piece.location.url is None) != (piece.location.local is None)
        assert store.read_piece("a/k", 8, 20, etag=None, where="a/k").body == b"89"
    with pytest.raises(NotFoundError):
        store.read_piece("none", 0, 1, etag=None, where="none")


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_metadata_is_kept(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    store = quick_store(server.environ(fresh_bucket(server)))
    store.put("k", b"x", metadata={"coldstream-sha256": "abc"})
    assert store.head("k").metadata["coldstream-sha256"] == "abc"


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_prefix_is_a_world_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(kind)
    bucket = fresh_bucket(server)
    whole = quick_store(server.environ(bucket))
    inner = quick_store(server.environ(bucket) | {"COLDSTREAM_STORE": f"s3://{bucket}/team/a"})
    inner.put("k", b"x")
    whole.put("k", b"y")
    upload_id = inner.create_upload("m")
    assert [info.key for info in inner.list("")] == ["k"]
    assert whole.get("team/a/k")[0] == b"x"
    assert [pending.key for pending in inner.uploads("")] == ["m"]
    inner.abort_upload("m", upload_id)
    inner.delete(["k"])
    assert whole.get("k")[0] == b"y"


def test_a_folder_store_refuses_to_be_left(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        Folder(tmp_path / "store").put("../outside", b"x")
    assert not (tmp_path / "outside").exists()
