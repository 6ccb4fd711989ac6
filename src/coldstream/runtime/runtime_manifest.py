"""What a runtime contains, what it needs of a node, and the hashes of its bytes. Pure.

The SHA-256 of the manifest's bytes is the runtime's digest: deployment files pin it. The same environment always gives
the same bytes, so a manifest has no date.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from coldstream.errors import IntegrityError

FORMAT = 1
MANIFEST_BYTES_MAX = 4 << 20
# Small enough for 40 of them in a node's memory, and for the last one to come soon.
CHUNK_BYTES = 4 << 20

Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Bytes = Annotated[int, Meta(ge=0, le=1 << 40)]
Version = Annotated[str, Meta(pattern=r"^[\w.+!-]{0,64}\Z")]


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of the software in a runtime ("" of what it lacks), and what it needs of a node.

    Attributes:
        machine: The processor's kind, as `uname -m` prints it.
        glibc: The oldest C library that it runs with.
        origin: Of packages without vLLM: the SHA-256 of coldstream's files and the versions of the others.
        cuda: The version that torch was built for; None for a processor or ROCm.
        driver: The oldest driver of NVIDIA that CUDA runs with; None where it needs none.
    """

    machine: Version
    glibc: Version
    python: Version
    vllm: Version
    torch: Version
    coldstream: Version
    origin: Sha256Hex | None = None
    cuda: Version | None = None
    driver: Version | None = None


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """The squashfs image: its bytes, those of its files in whole blocks, how many files, and the hashes of its chunks.

    The last chunk may be shorter than `chunk_bytes`.
    """

    size: Bytes
    unpacked: Bytes
    files: Bytes
    chunk_bytes: Annotated[int, Meta(ge=1 << 16, le=64 << 20)]
    chunks: list[Sha256Hex]


class Unpacker(msgspec.Struct, frozen=True, kw_only=True):
    """A tar with the program that unpacks the image, and all that it needs."""

    size: Annotated[int, Meta(ge=0, le=64 << 20)]
    sha256: Sha256Hex


class RuntimeManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime."""

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    platform: Platform
    image: Image
    unpacker: Unpacker

    @property
    def digest(self) -> str:
        """The SHA-256 of its bytes, in hexadecimal."""
        return hashlib.sha256(encode_manifest(self)).hexdigest()


_DECODER = msgspec.json.Decoder(RuntimeManifest)


def encode_manifest(manifest: RuntimeManifest) -> bytes:
    """Its bytes in the bucket."""
    return msgspec.json.encode(manifest)


def decode_manifest(data: bytes, digest: str) -> RuntimeManifest:
    """Reads a manifest, which anyone may have written; IntegrityError: it has another digest, or is not valid."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityError("its manifest is not what was published: the SHA-256 differs")
    try:
        manifest = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise IntegrityError(f"its manifest is not valid: {exc}") from exc
    if len(manifest.image.chunks) != -(-manifest.image.size // manifest.image.chunk_bytes):
        raise IntegrityError("its manifest does not have one hash for each chunk")
    return manifest
