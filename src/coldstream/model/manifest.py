"""The manifest: what a model in the bucket consists of, and the hashes that prove it.

One object per model, `<name>/coldstream.json`, in one of two states. `uploading`: a journal, kept by the upload in
progress, of what is already stored; the model is not ready. `ready`: complete, written last. Both are replaced only
under a condition (If-Match, If-None-Match), so of several writers one wins and the others find out. The format is
described in docs/manifest.md. `parse` checks sizes, names, hashes and sums before it returns. Pure.
"""

from __future__ import annotations

import hashlib
import shlex
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Annotated, Literal

import msgspec
import xxhash
from msgspec import Meta

from coldstream.errors import ManifestError, NotFoundError
from coldstream.model.adapter import Adapter
from coldstream.model.chunks import CHUNK_BYTES, OBJECT_BYTES_MAX
from coldstream.model.names import MANIFEST_BYTES_MAX, path_fault
from coldstream.net.http_message import ETAG
from coldstream.net.reply import first_words
from coldstream.units import MIB

FORMAT = 1
XXH3_128_HEX = 32
# Of the headers of all files in a manifest, compressed. More would take as long to read as the headers themselves.
HEADERS_BYTES_MAX = 2 * MIB
# As git abbreviates them, and as `list` shows them.
_COMMIT_DIGITS_MIN = 7
_DIGEST_KEY = b',"digest":"'
_REPLACE = "remove the model and upload it again: coldstream remove, coldstream upload"

Size = Annotated[int, Meta(ge=0, le=OBJECT_BYTES_MAX)]
Count = Annotated[int, Meta(ge=0)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
GitBlobId = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}\Z")]
Text = Annotated[str, Meta(max_length=1024)]
ETag = Annotated[str, Meta(pattern=rf"^{ETAG}\Z")]
# Without a time zone it could not be compared with another.
Time = Annotated[datetime, Meta(tz=True)]


# Unknown fields of the same format are passed over, not refused: fields are only ever added.
class StoredObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object that holds a file or, when there are several, a consecutive segment of it."""

    key: str  # relative to the model's folder; with a leading "/", to the root of the store
    size: Size  # in bytes
    etag: ETag  # as HEAD gives it, without quotes: the version that was verified
    part_bytes: Size | None = None  # the size of all parts but the last; None when it was stored in one piece

    def __post_init__(self) -> None:
        if fault := path_fault(self.key.removeprefix("/")):
            raise ValueError(f"key {self.key[:80]!r}: {fault}")


class Chunks(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a file is cut for streaming, with a hash for each piece."""

    stops: tuple[Size, ...]  # one past the last byte of each chunk
    xxh3_128: Annotated[str, Meta(pattern=r"^[0-9a-f]*\Z")]  # their digests, 32 hexadecimal digits each, joined
    # Of a safetensors file: its first chunk, which is its header, compressed; see `unpack_header`. Empty if it is too
    # large, None in manifests of earlier versions.
    header: bytes | None = None

    def __post_init__(self) -> None:
        if any(stop <= start for start, stop in pairwise((0, *self.stops))):
            raise ValueError("chunk stops do not grow")
        if len(self.xxh3_128) != XXH3_128_HEX * len(self.stops):
            raise ValueError(f"{len(self.xxh3_128)} hash digits for {len(self.stops)} chunks")

    def ranges(self) -> Iterable[tuple[int, int, str]]:
        """Each chunk as (start, stop, XXH3-128 in hexadecimal)."""
        for index, (start, stop) in enumerate(pairwise((0, *self.stops))):
            yield start, stop, self.xxh3_128[index * XXH3_128_HEX : (index + 1) * XXH3_128_HEX]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file of the model."""

    path: str  # relative to the model's folder, as on Hugging Face
    size: Size  # in bytes
    sha256: Sha256  # of the whole content, computed while it was stored
    git_blob_id: GitBlobId | None = None  # what the Hub knows a small file by, or None
    # Where the bytes are, in order; their sizes add up to `size`, and each but the last ends where a chunk does. Empty
    # in a journal for a file whose bytes are all sent and verified while its object is not yet known to be complete.
    objects: tuple[StoredObject, ...]
    chunks: Chunks  # see `Chunks`
    object_bytes_max: Size | None = None  # what it was cut into segments by; None for a file in one piece
    # Of a file in segments: the same bytes once more in one piece, for loaders that know no segments.
    plain: StoredObject | None = None

    def __post_init__(self) -> None:
        if fault := path_fault(self.path):
            raise ValueError(f"path {self.path[:80]!r}: {fault}")
        if self.objects and sum(stored.size for stored in self.objects) != self.size:
            raise ValueError(f"{self.path}: its objects do not add up to its {self.size} bytes")
        if (self.chunks.stops[-1] if self.chunks.stops else 0) != self.size:
            raise ValueError(f"{self.path}: its chunks do not cover its {self.size} bytes")
        if self.plain and self.plain.size != self.size:
            raise ValueError(f"{self.path}: its copy in one piece has {self.plain.size} of its {self.size} bytes")
        if len(self.objects) < 2:
            return
        # A chunk is fetched by one request, so it lies in one object.
        stops = set(self.chunks.stops)
        for stored, stop in zip(self.objects, accumulate(stored.size for stored in self.objects), strict=True):
            if not stored.size:
                raise ValueError(f"{self.path}: {stored.key}, one of its objects, is empty")
            if stop not in stops:
                raise ValueError(f"{self.path}: {stored.key} ends at byte {stop}, in the middle of a chunk")


class Provenance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a model came from: for the Hub, `revision` is what was asked for and `commit` what it was."""

    kind: Literal["hub", "folder"]
    repo: Text | None = None
    commit: Text | None = None
    revision: Text | None = None


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """An upload in progress, or one that was broken off."""

    format: Literal[1] = 1
    state: Literal["uploading"] = "uploading"
    name: Text
    kind: Text = "model"  # or "adapter"
    adapter: Adapter | None = None  # of an adapter
    source: Provenance
    created: Time
    tool: Text
    writer: Text  # a random identity of the process that writes it
    planned_files: Count  # how many files the model will have
    planned_bytes: Count  # how many bytes they will have
    planned_shards: Count = 0  # how many of them are weights
    files: tuple[FileEntry, ...]  # what is stored already, from this upload or an earlier one


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A complete model. The digest covers everything else in it."""

    format: Literal[1] = 1
    state: Literal["ready"] = "ready"
    name: Text
    kind: Text = "model"  # or "adapter"; a reader takes what it does not know for a model
    adapter: Adapter | None = None  # of an adapter that `upload` recognised
    source: Provenance
    created: Time
    tool: Text
    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for entry in self.files:
            if entry.path in seen:
                raise ValueError(f"{entry.path} is listed twice")
            if not entry.objects:
                raise ValueError(f"{entry.path} has no object")
            seen.add(entry.path)
        if self.adapter and self.kind != "adapter":
            raise ValueError(f"it describes an adapter, but its kind is {self.kind[:80]!r}")

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What tells how to read the rest. Everything else is passed over and takes no memory."""

    format: int = FORMAT
    state: msgspec.Raw = msgspec.Raw()
    digest: msgspec.Raw = msgspec.Raw()


# Made here, once: msgspec 0.22 crashes when two threads make the first decoder of a type at the same time.
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_DECODERS: dict[bytes, msgspec.json.Decoder[Manifest] | msgspec.json.Decoder[Journal]] = {
    b'"ready"': msgspec.json.Decoder(Manifest),
    b'"uploading"': msgspec.json.Decoder(Journal),
}


def serialize(record: Manifest | Journal) -> bytes:
    """The bytes to store: compact JSON with its own digest as the last key."""
    body = msgspec.json.encode(record)
    return body[:-1] + _DIGEST_KEY + f'{_digest(body)}"}}\n'.encode()


def parse(data: bytes, *, where: str) -> Manifest | Journal:
    """Reads what `serialize` wrote, here or elsewhere; a ManifestError is permanent."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"{where} has {len(data)} bytes; a manifest has at most {MANIFEST_BYTES_MAX}")
    try:
        envelope = _ENVELOPE.decode(data)
    except msgspec.ValidationError as exc:
        raise ManifestError(f"{where}: {exc}", hint=_REPLACE) from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        begins = f'it begins with "{words}"' if (words := first_words(data)) else "it is empty"
        raise ManifestError(f"{where} is not JSON: {exc if data.startswith(b'{') else begins}", hint=_REPLACE) from exc
    if envelope.format > FORMAT:
        raise ManifestError(
            f"{where} has the manifest format {envelope.format}; this version reads up to {FORMAT}",
            hint="upgrade coldstream on this machine",
        )
    # The digest is over the bytes in front of it, so that no two JSON writers need to agree on anything.
    body, comma, _ = data.rpartition(_DIGEST_KEY)
    body += b"}"
    if not comma or bytes(envelope.digest) != f'"{_digest(body)}"'.encode():
        raise ManifestError(f"{where} was altered: its digest does not match", hint=_REPLACE)
    decoder = _DECODERS.get(bytes(envelope.state))
    if decoder is None:
        raise ManifestError(f"{where} has an unknown state", hint=_REPLACE)
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ManifestError(f"{where}: {exc}", hint=_REPLACE) from exc


def pack_header(first_chunk: bytes | bytearray) -> bytes:
    """The value of `Chunks.header`, of a chunk of at most `CHUNK_BYTES`."""
    return zlib.compress(first_chunk)


def unpack_header(entry: FileEntry) -> bytes | None:
    """A file's first chunk, out of its entry; None if that has no copy. ManifestError: the copy differs from the file.

    The hash that the copy must have is that of the chunk in the file, so the two cannot differ unnoticed.
    """
    if not entry.chunks.header:
        return None
    _, size, digest = next(iter(entry.chunks.ranges()), (0, 0, ""))
    decompressor, first_chunk = zlib.decompressobj(), b""
    with suppress(zlib.error):
        # One byte more shows what is longer, and anything larger is never decompressed.
        first_chunk = decompressor.decompress(entry.chunks.header, min(size, CHUNK_BYTES) + 1)
    is_whole = decompressor.eof and not decompressor.unused_data and len(first_chunk) == size
    if not is_whole or xxhash.xxh3_128_hexdigest(first_chunk) != digest:
        raise ManifestError(f"{entry.path}: the manifest's copy of its header is not what was uploaded", hint=_REPLACE)
    return first_chunk


def entries_below(files: Iterable[FileEntry], folder: str, *, model: str) -> tuple[FileEntry, ...]:
    """The files in a folder of a model, as those of a model of its own."""
    prefix = f"{folder}/"

    def moved(stored: StoredObject) -> StoredObject:
        key = stored.key
        outside = key if key.startswith("/") else f"/{model}/{key}"
        return msgspec.structs.replace(stored, key=key.removeprefix(prefix) if key.startswith(prefix) else outside)

    return tuple(
        msgspec.structs.replace(
            entry,
            path=entry.path.removeprefix(prefix),
            objects=tuple(map(moved, entry.objects)),
            plain=moved(entry.plain) if entry.plain else None,
        )
        for entry in files
        if entry.path.startswith(prefix)
    )


def digest_of(data: bytes) -> str:
    """The digest that `serialize` put at the end of `data`: "sha256:…". It names this version of the model."""
    return data.rpartition(_DIGEST_KEY)[2].partition(b'"')[0].decode()


def check_revision(source: Provenance | None, revision: str | None, *, where: str) -> None:
    """Refuses a stored model of another revision: a branch or tag as it was uploaded by, a commit or 7 digits of it."""
    if revision is None:
        return
    commit = (source.commit or "") if source else ""
    if source and (
        source.revision == revision or (len(revision) >= _COMMIT_DIGITS_MIN and commit.startswith(revision))
    ):
        return
    if source and source.repo:
        upload = shlex.join(["coldstream", "upload", f"{source.repo}@{revision}"])
        raise NotFoundError(
            f"{where} holds revision {source.revision} (commit {commit[:_COMMIT_DIGITS_MIN]}), not {revision}",
            hint=f"a name holds one revision; to store this one beside it: {upload} --as NAME",
        )
    raise NotFoundError(f"{where} has no record of its revision", hint=f"name it without @{revision}")


def upload_command(record: Manifest | Journal) -> str:
    """The command that completes or repairs a model."""
    source, revision = record.source.repo or "FOLDER", record.source.revision
    words = ["coldstream", "upload", source]
    words += ["--revision", revision] if revision is not None and revision != "main" else []
    words += ["--as", record.name] if record.name != record.source.repo else []
    words += ["--base", record.adapter.base] if record.adapter else []
    return shlex.join(words) + layout_flags(record.files)


def layout_flags(files: Iterable[FileEntry]) -> str:
    """What an upload has to be told to store these files in the same way, with a space in front; "" for nothing."""
    segmented = [entry for entry in files if entry.object_bytes_max is not None]
    if not segmented:
        return ""
    plain = "" if all(entry.plain for entry in segmented) else " --no-plain"
    return f" --object-bytes-max {segmented[-1].object_bytes_max}{plain}"


def _digest(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()
