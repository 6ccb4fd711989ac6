"""The key of a start, which names what its caches depend on, and the signed pointer from a key to an archive. Pure.

    hmac-sha256 <64 hexadecimal digits>
    {"format": 1, ...}

The signature of a pointer is over the bytes of the second line, so nothing has to be parsed before it is verified.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
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

# The version of the key itself: with another number, no old bundle fits.
_KEY_VERSION = 1
# How a bundle that does not fit was built. Other parts are versions of packages.
_BUILT = {
    "model": "for another version of the model",
    "device": "on {theirs} (this is {ours})",
    "processor": "on a processor with other instruction sets",
    "loader": "with --loader {theirs} (this is {ours})",
    "tensor-parallel": "with --tensor-parallel-size {theirs} (this is {ours})",
    "pipeline-parallel": "with --pipeline-parallel-size {theirs} (this is {ours})",
    "caches": "with its caches in {theirs} (here: {ours})",
    "site": "with its packages in {theirs} (here: {ours})",
}
# Where a flag or a variable begins within its part; values may contain spaces.
_BEGINS = re.compile(r" (?=--?[A-Za-z]|[A-Z][A-Z0-9_]*=)")
_DIFFERENCES_MAX = 3
_VALUE_MAX = 60

Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Text = Annotated[str, Meta(max_length=16 << 10)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the caches of a start depend on: model, processor, device, paths and what the engine adds.

    Whatever could make restored code run incorrectly has to be one of `parts`: Inductor, for example, compiles for the
    very processor that it runs on. Each part is in words, without secrets, for `coldstream bundle show`.
    """

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name all parts."""
        text = json.dumps([_KEY_VERSION, sorted(self.parts.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, parts: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the parts that differ from `parts`."""
        return tuple(sorted(n for n in {*self.parts, *parts} if self.parts.get(n) != parts.get(n)))

    def explain(self, parts: Mapping[str, str]) -> str:
        """How a bundle with `parts` was built, for people: "with vllm 0.31.0 (this is 0.32.0)"."""
        built: list[str] = []
        for name in self.differences(parts):
            theirs, ours = parts.get(name, "none"), self.parts.get(name, "none")
            if name in {"arguments", "environment"}:
                built += _changed(theirs, ours)
            else:
                text = _BUILT.get(name, f"with {name} {{theirs}} (this is {{ours}})")
                built.append(text.format(theirs=_short(theirs), ours=_short(ours)))
        more = len(built) - _DIFFERENCES_MAX
        return "; ".join(built[:_DIFFERENCES_MAX]) + (f"; and {more} more differences" if more > 0 else "")


def _changed(theirs: str, ours: str) -> list[str]:
    """The differences between the flags or the variables of two keys."""
    before, now = (dict(item.partition("=")[::2] for item in _BEGINS.split(text) if item) for text in (theirs, ours))
    built = []
    for name in sorted(n for n in {*before, *now} if before.get(n) != now.get(n)):
        if name not in before:
            built.append(f"without {name}")
        elif name not in now:
            built.append(f"with {name} {_short(before[name])}".rstrip() + " (this is without)")
        else:
            built.append(f"with {name} {_short(before[name])} (this is {_short(now[name])})")
    return built


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_MAX else f"{text[: _VALUE_MAX - 1]}…"


class StoredReads(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the files that the start read, for the next node's read-ahead."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=0, le=READS_BYTES_MAX)]


class Pointer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A bundle: the caches of a start that took `ready_seconds`, for starts with the same `Key.digest`."""

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


def decode(data: bytes, secret: bytes, *, key: str | None = None) -> Pointer:
    """Reads the pointer of `key` (None: of any). Raises IntegrityError if it is not signed with `secret`, or wrong."""
    if not is_signed(data, secret):
        raise IntegrityError("it is not signed with this COLDSTREAM_BUNDLE_KEY")
    pointer = decode_unverified(data)
    if key not in {None, pointer.key}:
        raise IntegrityError(f"it is the bundle of another start, {pointer.key[:12]}")
    return pointer


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
