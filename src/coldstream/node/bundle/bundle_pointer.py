"""The pointer: which archive belongs to a key, signed. Pure.

    hmac-sha256 <64 hexadecimal digits>
    {"format": 1, ...}

The signature is over the bytes of the second line as they stand, so nothing has to be parsed before it is verified.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from coldstream.errors import ConfigError, IntegrityError
from coldstream.node.bundle.archive import Archive, Sha256

FORMAT = 1
POINTER_BYTES_MAX = 256 << 10
READS_BYTES_MAX = 16 << 20
# 32 bytes in hexadecimal are what `coldstream setup` makes; less than half of that could be guessed.
_SECRET_CHARACTERS_MIN = 32
# So that no other HMAC by the same key counts.
_CONTEXT = b"coldstream bundle\n"
_SCHEME = b"hmac-sha256 "

Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Text = Annotated[str, Meta(max_length=16 << 10)]


class StoredReads(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the files that the start read, for the next node's read-ahead."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=READS_BYTES_MAX)]


class Pointer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A bundle.

    Attributes:
        key: Of the start that it fits: `Key.digest`.
        parts: What the key is made of.
        created: With a time zone.
        tool: The program that wrote it, with its version.
        ready_seconds: Duration of the start that built it: no restore may take longer.
    """

    format: int
    key: Sha256
    parts: dict[Text, Text]
    archive: Archive
    reads: StoredReads | None = None
    created: datetime
    tool: Text
    ready_seconds: Seconds


# Made here: two threads that make the first decoder of a type at once can crash msgspec 0.22.
_DECODER = msgspec.json.Decoder(Pointer)


def checked_secret(text: str | None) -> bytes | None:
    """The signing key, or None. Raises ConfigError when it is too short to be one."""
    if text is None:
        return None
    if len(text) < _SECRET_CHARACTERS_MIN:
        raise ConfigError(
            f"COLDSTREAM_BUNDLE_KEY has {len(text)} characters; at least {_SECRET_CHARACTERS_MIN} are needed",
            hint="make one: coldstream setup --bundle-key",
        )
    return text.encode()


def encode(pointer: Pointer, secret: bytes) -> bytes:
    """The bytes of a pointer, signed."""
    payload = msgspec.json.encode(pointer)
    return _SCHEME + _signature(payload, secret) + b"\n" + payload


def decode(data: bytes, secret: bytes) -> Pointer:
    """Reads a pointer, which anyone may have written.

    Raises:
        IntegrityError: It is not signed with this key, or is not a valid pointer.
    """
    if not is_signed(data, secret):
        raise IntegrityError("it is not signed with this COLDSTREAM_BUNDLE_KEY")
    return decode_unverified(data)


def is_signed(data: bytes, secret: bytes) -> bool:
    """Whether a pointer is signed with this key."""
    head, newline, payload = data.partition(b"\n")
    signature = head.removeprefix(_SCHEME)
    return bool(newline) and head != signature and hmac.compare_digest(signature, _signature(payload, secret))


def decode_unverified(data: bytes) -> Pointer:
    """What a pointer claims, for people: nothing may be unpacked for it. Raises IntegrityError if it is not valid."""
    try:
        pointer = _DECODER.decode(data.partition(b"\n")[2])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise IntegrityError(f"it is not a valid bundle pointer: {exc}") from exc
    if pointer.format != FORMAT:
        raise IntegrityError(f"it has format {pointer.format}, and this coldstream reads {FORMAT}")
    return pointer


def _signature(payload: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, _CONTEXT + payload, hashlib.sha256).hexdigest().encode()
