"""The JSON of a safetensors header, decoded with its types checked and no key twice. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

# What a signed 64-bit integer holds.
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_METADATA_KEY = "__metadata__"
# An entry has five strings: its name, three keys and the dtype.
_ENTRY_QUOTES = 10


class HeaderEntry(msgspec.Struct, gc=False):
    """What stands for one tensor. Other keys are ignored, as the reference implementation does."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


# Made here: two threads that make the first decoder of a type at once can crash msgspec 0.22.
_HEADER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(HeaderEntry)
_METADATA = msgspec.json.Decoder(dict[str, str] | None)


class HeaderJsonError(Exception):
    """It is not the JSON of a header."""


def decode_header(raw: bytes) -> tuple[Mapping[str, str], list[tuple[str, HeaderEntry]]]:
    """The metadata, and each tensor's name and entry in the order of the text.

    Raises:
        HeaderJsonError: It is not valid JSON, a value has the wrong type or range, or a key is listed twice.
    """
    name = ""
    try:
        texts = _HEADER.decode(raw)
        metadata: Mapping[str, str] = {}
        stored = b""
        if _METADATA_KEY in texts:
            name = _METADATA_KEY
            stored = bytes(texts.pop(name))
            # The reference implementation takes null for an absent map.
            metadata = _METADATA.decode(stored) or {}
            _check_keys(stored)
        entries = []
        for name, text in texts.items():
            entries.append((name, _ENTRY.decode(text)))
        # msgspec lets duplicate keys pass, of which the last would count: one tensor would hide another. Duplicates
        # make more quotes than expected; so may escapes and unknown keys, and only then is the text read again.
        quotes = _ENTRY_QUOTES * len(entries) + stored.count(b'"') + (2 if stored else 0)
        if raw.count(b'"') != quotes or raw.count(b"\\") != stored.count(b"\\"):
            _check_keys(raw)
    except msgspec.ValidationError as exc:
        raise HeaderJsonError(f"{f'tensor {name[:80]!r}' if name else 'the header'}: {exc}") from exc
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise HeaderJsonError(f"the header is not valid JSON: {str(exc)[:120]}") from exc
    return metadata, entries


def _check_keys(text: bytes) -> None:
    """Refuses JSON with a duplicate key in any of its objects."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("duplicate key")

    json.loads(text, object_pairs_hook=check)
