from __future__ import annotations

from datetime import datetime, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import ConfigError, IntegrityError
from coldstream.node.bundle.archive import Archive
from coldstream.node.bundle.bundle_pointer import (
    Pointer,
    StoredReads,
    checked_secret,
    decode,
    decode_unverified,
    encode,
    is_signed,
)

SECRET = b"s" * 32


def pointer(**changes: object) -> Pointer:
    made = Pointer(
        format=1,
        key="1" * 64,
        parts={"vllm": "0.32.0"},
        archive=Archive(sha256="2" * 64, size=10, files=1, bytes=20),
        reads=StoredReads(sha256="3" * 64, size=5),
        created=datetime(2026, 1, 2, tzinfo=timezone.utc),
        tool="coldstream",
        ready_seconds=12.5,
    )
    return msgspec.structs.replace(made, **changes)


def test_round_trip() -> None:
    assert decode(encode(pointer(), SECRET), SECRET) == pointer()


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_every_changed_byte_is_noticed(position: int, change: int) -> None:
    data = bytearray(encode(pointer(), SECRET))
    data[position % len(data)] ^= change
    with pytest.raises(IntegrityError, match="not signed"):
        decode(bytes(data), SECRET)


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data: bytes) -> None:
    for hostile in (data, b"hmac-sha256 \n" + data, data + b"\n" + encode(pointer(), SECRET)):
        with pytest.raises(IntegrityError):
            decode(hostile, SECRET)
    with pytest.raises(IntegrityError):
        decode_unverified(data)


def test_another_key_and_a_truncated_pointer_are_no_signature() -> None:
    data = encode(pointer(), SECRET)
    assert is_signed(data, SECRET)
    assert not is_signed(data, b"t" * 32)
    assert not is_signed(data[:-1], SECRET)
    assert not is_signed(data.partition(b"\n")[2], SECRET)


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"key": "no digest"},
        {"archive": {"sha256": "2" * 64, "size": 1 << 50, "files": 1, "bytes": 1}},
        {"archive": {"sha256": "../../x", "size": 1, "files": 1, "bytes": 1}},
        {"archive": {"sha256": "2" * 64, "size": -1, "files": 1, "bytes": 1}},
        {"reads": {"sha256": "2" * 64, "size": 1 << 40}},
        {"ready_seconds": -1},
        {"created": "yesterday"},
    ],
)
def test_what_makes_no_sense_is_refused_though_it_is_signed(changed: dict[str, object]) -> None:
    record = {**msgspec.to_builtins(pointer()), **changed}
    from coldstream.node.bundle import bundle_pointer as module

    payload = msgspec.json.encode(record)
    data = b"hmac-sha256 " + module._signature(payload, SECRET) + b"\n" + payload
    assert is_signed(data, SECRET)
    with pytest.raises(IntegrityError):
        decode(data, SECRET)


def test_a_short_key_is_no_key() -> None:
    assert checked_secret(None) is None
    assert checked_secret("k" * 32) == b"k" * 32
    with pytest.raises(ConfigError, match="31 characters"):
        checked_secret("k" * 31)
