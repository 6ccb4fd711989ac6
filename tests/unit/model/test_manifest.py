"""The manifest: what is written is read back, and what was tampered with is refused."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from coldstream.errors import ManifestError
from coldstream.model.adapter import Adapter
from coldstream.model.manifest import (
    Chunks,
    FileEntry,
    Manifest,
    Provenance,
    StoredObject,
    digest_of,
    parse,
    serialize,
    upload_command,
)


def manifest() -> Manifest:
    entry = FileEntry(
        path="a.safetensors",
        size=10,
        sha256="a" * 64,
        objects=(StoredObject(key="a.safetensors", size=10, etag="e"),),
        chunks=Chunks(stops=(4, 10), xxh3_128="0" * 64),
    )
    when = datetime(2026, 11, 24, tzinfo=timezone.utc)
    return Manifest(name="org/m", source=Provenance(kind="folder"), created=when, tool="t", files=(entry,))


def resealed(document: dict[str, object]) -> bytes:
    document.pop("digest", None)
    body = json.dumps(document).encode()
    digest = "sha256:" + hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"digest":"{digest}"}}\n'.encode()


def test_what_is_written_is_read_back() -> None:
    data = serialize(manifest())
    assert parse(data, where="x") == manifest()
    assert digest_of(data).startswith("sha256:")
    assert list(manifest().files[0].chunks.ranges()) == [(0, 4, "0" * 32), (4, 10, "0" * 32)]


def test_a_file_may_be_in_segments_that_end_where_chunks_do() -> None:
    (entry,) = manifest().files
    pieces = tuple(StoredObject(key=f"/pool/{size}", size=size, etag="e") for size in (4, 6))
    cut = msgspec.structs.replace(entry, objects=pieces, object_bytes_max=6, plain=entry.objects[0])
    found = msgspec.structs.replace(manifest(), files=(cut,))
    assert parse(serialize(found), where="x") == found
    assert upload_command(found) == "coldstream upload FOLDER --as org/m --object-bytes-max 6"
    alone = msgspec.structs.replace(found, files=(msgspec.structs.replace(cut, plain=None),))
    assert upload_command(alone).endswith("--object-bytes-max 6 --no-plain")
    assert b"object_bytes_max" not in serialize(manifest())


def test_a_manifest_s_words_are_quoted_in_the_command_that_mends_it() -> None:
    source = Provenance(kind="hub", repo="org/m", revision="a; curl x|sh", commit="c" * 40)
    found = msgspec.structs.replace(manifest(), source=source, name="$(id)")
    words = ["coldstream", "upload", "org/m", "--revision", "a; curl x|sh", "--as", "$(id)"]
    assert shlex.split(upload_command(found)) == words


def test_unknown_fields_are_ignored() -> None:
    document = json.loads(serialize(manifest())) | {"later": 1}
    assert parse(resealed(document), where="x") == manifest()


def test_an_adapter_is_recorded_and_earlier_manifests_are_models() -> None:
    adapter = Adapter(base="org/base", rank=16, features=("use_dora",))
    record = msgspec.structs.replace(manifest(), kind="adapter", adapter=adapter)
    assert parse(serialize(record), where="x") == record
    document = json.loads(serialize(record))
    assert document["adapter"] == {"base": "org/base", "rank": 16, "features": ["use_dora"]}
    earlier = {key: value for key, value in document.items() if key not in {"kind", "adapter"}}
    assert parse(resealed(earlier), where="x") == manifest()
    later = document | {"kind": "of a later version", "adapter": None}
    assert parse(resealed(later), where="x").adapter is None


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"base": "../base", "rank": 8}, "not a model's name"),
        ({"base": "/base", "rank": 8}, "not a model's name"),
        ({"base": "org/base", "rank": -1}, "rank"),
        ({"base": "org/base", "rank": True}, "rank"),
        ({"base": "org/base"}, "rank"),
        ({"base": "org/base", "rank": 8, "features": "use_dora"}, "features"),
        ({"base": "org/base", "rank": 8, "features": ["\x1b[2J"]}, "features"),
        ({"base": "org/base", "rank": 8, "peft_type": "a\nb"}, "peft_type"),
        ([], "adapter"),
    ],
)
def test_a_wrong_adapter_is_refused(adapter: object, message: str) -> None:
    document = json.loads(serialize(manifest())) | {"kind": "adapter", "adapter": adapter}
    with pytest.raises(ManifestError, match=message):
        parse(resealed(document), where="x")


def test_a_model_with_an_adapter_s_facts_is_refused() -> None:
    document = json.loads(serialize(manifest())) | {"adapter": {"base": "org/base", "rank": 8}}
    with pytest.raises(ManifestError, match="its kind is 'model'"):
        parse(resealed(document), where="x")


@pytest.mark.parametrize("position", range(0, 300, 7))
def test_every_flipped_byte_is_noticed(position: int) -> None:
    data = bytearray(serialize(manifest()))
    data[position] ^= 1
    with pytest.raises(ManifestError):
        parse(bytes(data), where="x")


def test_a_newer_format_asks_for_an_upgrade() -> None:
    document = json.loads(serialize(manifest())) | {"format": 2}
    with pytest.raises(ManifestError, match="format 2") as caught:
        parse(resealed(document), where="x")
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("path", "../escape", r"\.\."),
        ("path", "/absolute", "absolute"),
        ("path", "nul\0", "control"),
        ("size", 11, "add up"),
        ("size", -1, "size"),
        ("size", True, "size"),
        ("sha256", "xyz", "sha256"),
        ("objects", [], "no object"),
        ("objects", [{"key": "../x", "size": 10, "etag": "e"}], r"\.\."),
        ("chunks", {"stops": [4, 4, 10], "xxh3_128": "0" * 96}, "grow"),
        (
            "objects",
            [{"key": "/x", "size": 5, "etag": "e"}, {"key": "/y", "size": 5, "etag": "e"}],
            "middle of a chunk",
        ),
        ("plain", {"key": "a", "size": 9, "etag": "e"}, "in one piece"),
        ("chunks", {"stops": [4], "xxh3_128": "0" * 32}, "cover"),
        ("chunks", {"stops": [4, 10], "xxh3_128": "0" * 32}, "digits"),
    ],
)
def test_inconsistent_files_are_refused(field: str, value: object, said: str) -> None:
    document = json.loads(serialize(manifest()))
    document["files"][0][field] = value
    with pytest.raises(ManifestError, match=said):
        parse(resealed(document), where="x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": []}, "unknown state"),
        ({"state": {}}, "unknown state"),
        ({"state": None}, "unknown state"),
        ({"state": 1}, "unknown state"),
        ({"format": "1"}, "format"),
        ({"format": True}, "format"),
        ({"format": 10**400}, "format"),
        ({"created": "2026-11-24T00:00:00"}, "timezone"),
        ({"created": 1}, "created"),
        ({"name": "\ud800"}, "JSON"),
        ({"source": {"kind": "hub", "repo": "\udc00"}}, "JSON"),
        ({"later": "\ud800"}, "JSON"),
        ({"files": {}}, "files"),
        ({"files": [{}]}, "path"),
        ({"files": [[]]}, "files"),
        ({"tool": None}, "tool"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        parse(resealed(json.loads(serialize(manifest())) | change), where="x")


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_object_is_refused(document: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(document, where="x")


@pytest.mark.parametrize("etag", ["", "é", "a\r\nX: y", 'a"b', "\x7f"])
def test_an_etag_that_cannot_be_sent_is_refused(etag: str) -> None:
    document = json.loads(serialize(manifest()))
    document["files"][0]["objects"][0]["etag"] = etag
    with pytest.raises(ManifestError, match="etag"):
        parse(resealed(document), where="x")


def test_a_manifest_of_nothing_takes_no_memory() -> None:
    data = b'{"format":1,"state":"ready","files":[' + b"{}," * 10_000_000 + b"{}]"
    data += f',"digest":"sha256:{hashlib.sha256(data + b"}").hexdigest()}"}}'.encode()
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="path"):
            parse(data, where="x")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()


def test_a_path_that_stands_twice_is_refused() -> None:
    document = json.loads(serialize(manifest()))
    document["files"] *= 2
    with pytest.raises(ManifestError, match="twice"):
        parse(resealed(document), where="x")


_TWO_AT_ONCE = """
import sys, threading
from coldstream.model.manifest import parse
data = open(sys.argv[1], "rb").read()
together = threading.Barrier(2)
def read():
    together.wait()
    parse(data, where="here")
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_two_threads_may_read_their_first_at_the_same_time(tmp_path: Path) -> None:
    """A stream and a folder are begun at once; msgspec ended the process where both made its decoder."""
    (tmp_path / "manifest").write_bytes(serialize(manifest()))
    for _ in range(8):
        subprocess.run([sys.executable, "-c", _TWO_AT_ONCE, str(tmp_path / "manifest")], check=True, timeout=60)


def in_segments(*sizes: int) -> FileEntry:
    return FileEntry(
        path="a.safetensors",
        size=10,
        sha256="a" * 64,
        objects=tuple(StoredObject(key=f"/objects/{n}", size=size, etag="e") for n, size in enumerate(sizes)),
        chunks=Chunks(stops=(4, 6, 10), xxh3_128="0" * 96),
    )


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (4, 2, 4), (10,)])
def test_a_file_may_lie_in_several_objects(sizes: tuple[int, ...]) -> None:
    record = msgspec.structs.replace(manifest(), files=(in_segments(*sizes),))
    assert parse(serialize(record), where="x") == record


@pytest.mark.parametrize(("sizes", "why"), [((5, 5), "0 ends at byte 5"), ((4, 0, 6), "empty"), ((4, 6, 0), "empty")])
def test_an_object_ends_where_a_chunk_does(sizes: tuple[int, ...], why: str) -> None:
    document = json.loads(serialize(msgspec.structs.replace(manifest(), files=(in_segments(4, 6),))))
    document["files"][0]["objects"] = [{"key": f"{n}", "size": size, "etag": "e"} for n, size in enumerate(sizes)]
    with pytest.raises(ManifestError, match=rf"a\.safetensors: .*{why}"):
        parse(resealed(document), where="x")
