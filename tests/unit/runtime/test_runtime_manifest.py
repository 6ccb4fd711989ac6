"""The manifest of a runtime: its digest, and what is refused in one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldstream.errors import IntegrityError
from coldstream.runtime.runtime_manifest import (
    Image,
    Platform,
    RuntimeManifest,
    Unpacker,
    decode_manifest,
    encode_manifest,
)

HASH = "0123456789abcdef" * 4


def manifest() -> RuntimeManifest:
    return RuntimeManifest(
        format=1,
        platform=Platform(
            machine="x86_64", glibc="2.36", python="3.11.7", vllm="0.32.0+cpu", torch="2.13.0", coldstream="0.1.0"
        ),
        image=Image(size=200_000, unpacked=400_000, files=7, chunk_bytes=1 << 16, chunks=[HASH] * 4),
        unpacker=Unpacker(size=1000, sha256=HASH),
    )


def decoded(document: Any) -> RuntimeManifest:
    data = json.dumps(document).encode()
    return decode_manifest(data, hashlib.sha256(data).hexdigest())


def test_the_digest_is_of_the_bytes() -> None:
    data = encode_manifest(manifest())
    assert data == encode_manifest(manifest())
    assert manifest().digest == hashlib.sha256(data).hexdigest()
    assert decode_manifest(data, manifest().digest) == manifest()


def test_another_digest_is_refused() -> None:
    with pytest.raises(IntegrityError, match="the SHA-256 differs"):
        decode_manifest(encode_manifest(manifest()), HASH)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 2),
        ("platform.machine", "x86_64; rm"),
        ("platform.glibc", None),
        ("platform.vllm", "v" * 65),
        ("image.size", -1),
        ("image.size", 1 << 41),
        ("image.size", 300_000),
        ("image.chunk_bytes", 1),
        ("image.chunk_bytes", 1 << 30),
        ("image.chunks", [HASH] * 3),
        ("image.chunks", [HASH] * 3 + [HASH + "\n"]),
        ("image.chunks", [HASH] * 3 + [HASH.upper()]),
        ("unpacker.size", 1 << 30),
        ("unpacker.sha256", "../x"),
        ("unpacker", None),
    ],
)
def test_what_is_not_valid_is_refused(path: str, value: object) -> None:
    document = json.loads(encode_manifest(manifest()))
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(IntegrityError, match=r"its manifest (is not valid|does not have one hash)"):
        decoded(document)


def test_later_versions_may_add_fields() -> None:
    document = json.loads(encode_manifest(manifest()))
    document["platform"]["sglang"] = "0.5"
    assert decoded(document) == manifest()


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_manifest(data, hashlib.sha256(data).hexdigest())


def test_deep_nesting() -> None:
    data = b"[" * 100_000
    with pytest.raises(IntegrityError):
        decode_manifest(data, hashlib.sha256(data).hexdigest())
