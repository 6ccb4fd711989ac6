"""Runtimes in a store: published, listed, chosen, verified and removed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest

from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.places.place import Store
from coldstream.runtime import runtime_store
from coldstream.runtime.runtime_manifest import Image, Platform, RuntimeManifest, Unpacker, encode_manifest
from coldstream.runtime.runtime_store import Runtime

UNPACKER = b"a tar"


@dataclass(frozen=True)
class Published:
    """A runtime with an image of random bytes."""

    manifest: RuntimeManifest
    path: Path

    @property
    def folder(self) -> str:
        return f"{runtime_store.ROOT}/{self.manifest.digest}"

    def publish(self, store: Store) -> tuple[bool, int]:
        """Whether it was new, and how many bytes of the image were sent."""
        counts: list[int] = []
        is_new = runtime_store.publish(store, self.manifest, self.path, UNPACKER, on_sent=counts.append)
        return is_new, sum(counts)


def make(folder: Path, *, vllm: str = "1", size: int = 300_000) -> Published:
    data, chunk = os.urandom(size), 1 << 16
    path = folder / f"image-{vllm}"
    path.write_bytes(data)
    chunks = [hashlib.sha256(data[start : start + chunk]).hexdigest() for start in range(0, size, chunk)]
    manifest = RuntimeManifest(
        format=1,
        platform=Platform(machine="x86_64", glibc="2.17", python="3.11", vllm=vllm, torch="2", coldstream="0.1"),
        image=Image(size=size, unpacked=size, files=1, chunk_bytes=chunk, chunks=chunks),
        unpacker=Unpacker(size=len(UNPACKER), sha256=hashlib.sha256(UNPACKER).hexdigest()),
    )
    return Published(manifest, path)


@pytest.fixture
def runtime(tmp_path: Path) -> Published:
    return make(tmp_path)


def only(store: Store) -> Runtime:
    (entry,) = runtime_store.runtimes(store)
    return entry


def test_publishing_twice_sends_nothing(store: Store, runtime: Published) -> None:
    assert runtime_store.runtimes(store) == []
    assert runtime.publish(store) == (True, 300_000)
    assert runtime.publish(store) == (False, 0)
    entry = only(store)
    assert (entry.digest, entry.state, entry.manifest) == (runtime.manifest.digest, "ready", runtime.manifest)
    assert entry.bytes == 300_000 + len(UNPACKER) + len(encode_manifest(runtime.manifest))
    counts: list[int] = []
    runtime_store.verify(store, entry, on_read=counts.append)
    assert sum(counts) == 300_000


def test_an_image_in_several_parts(store: Store, tmp_path: Path) -> None:
    large = make(tmp_path, size=20_000_000)
    assert large.publish(store) == (True, 20_000_000)
    runtime_store.verify(store, only(store), on_read=lambda count: None)


@pytest.mark.parametrize("name", ["image", "unpacker", "manifest.json"])
def test_a_missing_object_is_published_again(store: Store, runtime: Published, name: str) -> None:
    runtime.publish(store)
    store.delete([f"{runtime.folder}/{name}"])
    entry = only(store)
    assert entry.state == ("incomplete" if name == "manifest.json" else "damaged")
    if name == "manifest.json":
        with pytest.raises(IntegrityError, match="is incomplete"):
            runtime_store.verify(store, entry, on_read=lambda count: None)
    assert runtime.publish(store)[0]
    assert only(store).state == "ready"


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"x" * (5 << 20)])
def test_another_manifest_is_damaged(store: Store, runtime: Published, data: bytes) -> None:
    runtime.publish(store)
    store.put(f"{runtime.folder}/manifest.json", data)
    entry = only(store)
    assert (entry.state, entry.manifest) == ("damaged", None)
    with pytest.raises(IntegrityError, match="is damaged"):
        runtime_store.verify(store, entry, on_read=lambda count: None)
    assert runtime.publish(store)[0]
    assert only(store).state == "ready"


def test_an_image_of_another_size_is_damaged(store: Store, runtime: Published) -> None:
    runtime.publish(store)
    store.put(f"{runtime.folder}/image", runtime.path.read_bytes()[:-1])
    assert only(store).state == "damaged"


@pytest.mark.parametrize(("name", "words"), [("image", "1 of 5 chunks of its image"), ("unpacker", "its unpacker")])
def test_a_flipped_byte_fails_verification(store: Store, runtime: Published, name: str, words: str) -> None:
    runtime.publish(store)
    data = bytearray(runtime.path.read_bytes() if name == "image" else UNPACKER)
    data[-1] ^= 1
    store.put(f"{runtime.folder}/{name}", bytes(data))
    with pytest.raises(IntegrityError, match=words) as caught:
        runtime_store.verify(store, only(store), on_read=lambda count: None)
    assert caught.value.exit_code == 13
    assert "coldstream runtime remove" in (caught.value.hint or "")


def test_an_interrupted_publication_leaves_no_upload(store: Store, tmp_path: Path) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    large = make(tmp_path, size=40_000_000)
    with pytest.raises(KeyboardInterrupt):
        runtime_store.publish(store, large.manifest, large.path, UNPACKER, on_sent=interrupt)
    assert list(store.uploads(f"{runtime_store.ROOT}/")) == []
    assert runtime_store.runtimes(store) == []


def test_remove(store: Store, tmp_path: Path) -> None:
    """One of two, with an upload that a killed publication left."""
    one, other = make(tmp_path, vllm="1"), make(tmp_path, vllm="2")
    for runtime in (one, other):
        runtime.publish(store)
    store.put("org/m/config.json", b"{}")
    store.create_upload(f"{one.folder}/image")
    entry = runtime_store.choose(runtime_store.runtimes(store), one.manifest.digest[:8])
    runtime_store.remove(store, entry)
    assert only(store).digest == other.manifest.digest
    assert list(store.uploads(f"{runtime_store.ROOT}/")) == []
    runtime_store.remove(store, entry)
    assert [info.key for info in store.list("org/")] == ["org/m/config.json"]


def entries(*digests: str) -> list[Runtime]:
    published = datetime.now(timezone.utc)
    return [Runtime(digest=digest, state="ready", manifest=None, bytes=1, published=published) for digest in digests]


def test_choose() -> None:
    known = entries("abcd" + "0" * 60, "abce" + "0" * 60)
    assert runtime_store.choose(known, "abcd") is known[0]
    assert runtime_store.choose(known, "sha256:abce" + "0" * 60) is known[1]
    for name in ("", "abc", "sha256:", "sha256:abc"):
        with pytest.raises(UsageError, match="is too short"):
            runtime_store.choose(known, name)
    with pytest.raises(NotFoundError, match="no runtime ffff"):
        runtime_store.choose(known, "ffff")
    with pytest.raises(UsageError, match="2 runtimes begin with abcd"):
        runtime_store.choose([*known, *entries("abcd" + "1" * 60)], "abcd")
