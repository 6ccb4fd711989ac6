"""Hashes of a file whose parts arrive in any order, against hashlib's and xxhash's of the whole."""

from __future__ import annotations

import hashlib
import random
import threading

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import HeaderError, IntegrityError
from coldstream.mirror.digest import Digests, OrderedDigest, StreamDigest
from coldstream.model.chunks import even_stops, tensor_stops
from coldstream.model.header import parse_header
from tests.models import safetensors_bytes

FILE = safetensors_bytes({"a": 1000, "b": 20, "c": 3000, "empty": 0})


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    stops = sorted({edge % (len(data) + 1) for edge in edges} | {len(data)})
    return [data[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def expected(data: bytes, stops: list[int]) -> tuple[str, str, list[tuple[int, int, str]]]:
    ranges = [
        (start, stop, xxhash.xxh3_128_hexdigest(data[start:stop]))
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), ranges


def found(digests: Digests) -> tuple[str, str | None, list[tuple[int, int, str]]]:
    return digests.sha256, digests.git_blob_id, list(digests.chunks.ranges())


@given(st.lists(st.integers(0, 10_000), max_size=12), st.randoms(use_true_random=False))
def test_parts_in_any_order_give_the_whole_files_hashes(edges: list[int], rng: random.Random) -> None:
    pieces = [piece for piece in cut(FILE, edges) if piece]
    digest = OrderedDigest(StreamDigest("model.safetensors", len(FILE), git=True))
    hashed: list[int] = []
    for index in rng.sample(range(len(pieces)), len(pieces)):
        digest.offer(index, memoryview(pieces[index]), lambda index=index: hashed.append(index))
    assert hashed == list(range(len(pieces)))
    stops = tensor_stops(parse_header(FILE, file_bytes=len(FILE), path="x"))
    assert found(digest.finish()) == expected(FILE, stops)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_other_files_are_cut_evenly(data: bytes, edges: list[int]) -> None:
    digest = StreamDigest("tokenizer.json", len(data), git=True)
    for piece in cut(data, edges):
        digest.update(memoryview(piece))
    assert found(digest.finish()) == expected(data, even_stops(0, len(data)))


@given(st.lists(st.integers(0, 10_000), max_size=6), st.lists(st.integers(1, len(FILE) - 1), max_size=6))
def test_given_stops_are_followed(edges: list[int], given_stops: list[int]) -> None:
    stops = sorted({*given_stops, len(FILE)})
    digest = StreamDigest("model.safetensors", len(FILE), stops=tuple(stops))
    for piece in cut(FILE, edges):
        digest.update(memoryview(piece))
    assert found(digest.finish())[2] == expected(FILE, stops)[2]


def test_without_being_asked_there_is_no_git_blob_id() -> None:
    digest = StreamDigest("x.json", 0)
    assert digest.finish().git_blob_id is None


@pytest.mark.parametrize("missing", [1, len(FILE) - 5, len(FILE)])
def test_a_file_that_ends_early_is_refused(missing: int) -> None:
    digest = StreamDigest("model.safetensors", len(FILE))
    digest.update(memoryview(FILE)[: len(FILE) - missing])
    with pytest.raises(IntegrityError):
        digest.finish()


def test_a_file_that_is_too_long_is_refused() -> None:
    digest = StreamDigest("model.safetensors", len(FILE))
    with pytest.raises(IntegrityError, match="longer"):
        digest.update(memoryview(FILE + b"more"))


def test_what_is_named_safetensors_and_is_none_is_refused() -> None:
    digest = OrderedDigest(StreamDigest("model.safetensors", 100))
    with pytest.raises(HeaderError):
        digest.offer(0, memoryview(b"<html>" + b" " * 94), lambda: None)


def test_many_threads_hash_one_file() -> None:
    data = safetensors_bytes({"a": 400_000}, seed=5)
    pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    digest = OrderedDigest(StreamDigest("model.safetensors", len(data)))
    hashed: list[int] = []
    order = random.Random(3).sample(range(len(pieces)), len(pieces))

    def offer(numbers: list[int]) -> None:
        for index in numbers:
            digest.offer(index, memoryview(pieces[index]), lambda index=index: hashed.append(index))

    threads = [threading.Thread(target=offer, args=(order[number::8],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashed == list(range(len(pieces)))
    assert digest.finish().sha256 == hashlib.sha256(data).hexdigest()
