"""Messages come out as they went in, however they were cut on the way."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.engine import messages

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
digests = st.binary(min_size=16, max_size=16)
seconds = st.floats(0, 1e9)


@given(
    st.builds(
        messages.FetchRequest,
        chunk=u32,
        segment=u32,
        version=u32,
        start=u64,
        stop=u64,
        wire_start=u64,
        wire_stop=u64,
        offset=u64,
        skip=u64,
        is_local=st.booleans(),
        cdn=st.booleans(),
        checked=st.booleans(),
        hashed=st.booleans(),
        digest=digests,
    )
)
def test_fetch(fetch: messages.FetchRequest) -> None:
    assert messages.FetchRequest.unpack(fetch.pack()) == fetch


@given(
    st.builds(
        messages.FetchResult,
        kind=st.sampled_from(messages.KINDS),
        chunk=u32,
        received=u64,
        first_byte_seconds=seconds,
        cpu_seconds=seconds,
        retry_after_seconds=st.none() | seconds,
        digest=digests,
        cache=st.integers(0, 255),
        message=st.text(st.characters(exclude_categories=["Cs"]), max_size=900),
    )
)
def test_result(result: messages.FetchResult) -> None:
    assert messages.FetchResult.unpack(result.pack()) == result


def test_a_result_without_a_digest_has_zeros_and_a_long_message_is_cut() -> None:
    found = messages.FetchResult.unpack(messages.FetchResult(kind="broken", chunk=1, message="ä" * 5000).pack())
    assert found.digest == bytes(16)
    assert found.message == "ä" * 1000
    assert len(messages.FetchResult(kind="broken", chunk=1, message="🧊" * 5000).pack()) < messages.MESSAGE_BYTES_MAX


def test_invalid_text_does_not_stop_a_result() -> None:
    """File names on Linux are bytes."""
    broken = os.fsdecode(b"model-\xff.safetensors")
    assert (
        messages.FetchResult.unpack(messages.FetchResult(kind="local", chunk=1, message=broken).pack()).message
        == "model-?.safetensors"
    )


@given(u32, u32, u64, u64, digests)
def test_store(file: int, chunk: int, offset: int, size: int, digest: bytes) -> None:
    request = messages.StoreRequest(file, chunk, offset, size, digest)
    assert messages.StoreRequest.unpack(request.pack()) == request


@given(u32, u32, u64)
def test_ready(extent: int, order: int, offset: int) -> None:
    message = messages.READY_LAYOUT.pack(messages.READY, extent, order, offset)
    assert message[:1] == messages.READY
    assert messages.READY_LAYOUT.unpack(message) == (messages.READY, extent, order, offset)


@pytest.fixture
def ends() -> Iterator[tuple[messages.Frames, messages.Frames]]:
    one, other = socket.socketpair()
    with one, other:
        yield messages.Frames(one), messages.Frames(other)


def test_frames_arrive_whole_however_they_are_cut(ends: tuple[messages.Frames, messages.Frames]) -> None:
    one, other = ends
    whole = b"".join(messages.NUMBER.pack(len(data)) + b"x" + data for data in (b"", b"abc", b"q" * 70000))
    found = []
    for start in range(0, len(whole), 4999):
        one.socket.sendall(whole[start : start + 4999])
        assert other.receive()
        found += list(other.frames())
    assert found == [(b"x", b""), (b"x", b"abc"), (b"x", b"q" * 70000)]


def test_frames_carry_descriptors_in_order(ends: tuple[messages.Frames, messages.Frames]) -> None:
    one, other = ends
    pairs = [os.pipe() for _ in range(2)]
    for number, (read, _) in enumerate(pairs):
        one.send(messages.CONSUMER, bytes([number]), (read,))
        os.close(read)
    frames: list[tuple[bytes, bytes]] = []
    while len(frames) < 2:
        assert other.receive()
        frames += other.frames()
    for number, (_, write) in enumerate(pairs):
        descriptor = other.descriptor()
        os.write(write, bytes([number]))
        assert os.read(descriptor, 10) == bytes([number])
        os.close(descriptor)
        os.close(write)


def test_the_end_of_the_other_side_is_told(ends: tuple[messages.Frames, messages.Frames]) -> None:
    one, other = ends
    one.send(messages.LEAVE)
    one.socket.close()
    assert other.receive()
    assert list(other.frames()) == [(messages.LEAVE, b"")]
    assert not other.receive()
    assert other.closed


def test_nothing_to_read_is_no_end(ends: tuple[messages.Frames, messages.Frames]) -> None:
    _, other = ends
    other.socket.setblocking(False)
    assert other.receive()
    assert not other.closed
    assert list(other.frames()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
def test_the_user_at_the_other_end_is_known(ends: tuple[messages.Frames, messages.Frames]) -> None:
    assert messages.peer_uid(ends[0].socket) == os.getuid()


def test_letters_for_one_reader_differ() -> None:
    for letters in (
        (messages.MAP, messages.SOURCE, messages.START, messages.STOP),
        (messages.WAIT, messages.RELEASE, messages.LEAVE),
        (messages.HELLO, messages.READY, messages.END, messages.FAIL),
        (messages.SETTINGS, messages.PLAN, messages.DETACH, messages.LINK, messages.CONSUMER, messages.LEAVE),
        (messages.PROGRESS, messages.RENEW, messages.LISTENING, messages.STORED, messages.END, messages.FAIL),
    ):
        assert len(set(letters)) == len(letters)
