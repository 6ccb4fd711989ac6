"""What every consumer of a load is told: its files with their headers, and its extents. Pure.

It travels in a shared descriptor: u64 length of the JSON, the JSON, the heads of the files one after the other.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from coldstream.engine.messages import SIZE


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """What a consumer knows of a file: enough to find its tensors.

    Attributes:
        path: Relative to its model.
        size: In bytes.
        head: The file's first bytes, up to its data: its length and its safetensors header, checked by who planned.
        head_stops: One past the last byte of each chunk that lies in the head altogether.
    """

    path: str
    size: int
    head: bytes
    head_stops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """The files, and of each extent (file, first byte in it, one past the last)."""

    files: tuple[CatalogFile, ...]
    extents: tuple[tuple[int, int, int], ...]

    def pack(self) -> bytes:
        """For a shared descriptor."""
        index = {
            "files": [[file.path, file.size, len(file.head), list(file.head_stops)] for file in self.files],
            "extents": [list(extent) for extent in self.extents],
        }
        text = json.dumps(index).encode()
        return b"".join([SIZE.pack(len(text)), text, *(file.head for file in self.files)])

    @classmethod
    def unpack(cls, data: bytes | mmap.mmap) -> Catalog:
        """What `pack` packed."""
        (length,) = SIZE.unpack_from(data)
        position = SIZE.size + length
        index = json.loads(data[SIZE.size : position])
        files = []
        for path, size, head_bytes, stops in index["files"]:
            files.append(CatalogFile(path, size, bytes(data[position : position + head_bytes]), tuple(stops)))
            position += head_bytes
        return cls(tuple(files), _triples(index["extents"]))


def _triples(entries: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((file, start, stop) for file, start, stop in entries)
