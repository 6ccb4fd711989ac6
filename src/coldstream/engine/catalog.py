"""What every consumer gets: the files with their headers, and the extents. Pure.

Shared through a descriptor: u64 length of the JSON, the JSON, the heads of the files one after the other.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass

from coldstream.engine.messages import SIZE


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file as a consumer sees it: enough to find its tensors.

    Attributes:
        path: Relative to its model.
        size: In bytes.
        head: The file's first bytes, up to its data: the safetensors header and its length, already checked.
        head_stops: One past the last byte of each chunk that lies completely in the head.
    """

    path: str
    size: int
    head: bytes
    head_stops: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Catalog:
    """The files; for each extent (file, first byte in it, one past the last)."""

    files: tuple[CatalogFile, ...]
    extents: tuple[tuple[int, int, int], ...]

    def pack(self) -> bytes:
        index = {
            "files": [[file.path, file.size, len(file.head), list(file.head_stops)] for file in self.files],
            "extents": [list(extent) for extent in self.extents],
        }
        text = json.dumps(index).encode()
        return b"".join([SIZE.pack(len(text)), text, *(file.head for file in self.files)])

    @classmethod
    def unpack(cls, data: bytes | mmap.mmap) -> Catalog:
        (length,) = SIZE.unpack_from(data)
        position = SIZE.size + length
        index = json.loads(data[SIZE.size : position])
        files = []
        for path, size, head_bytes, stops in index["files"]:
            files.append(CatalogFile(path, size, bytes(data[position : position + head_bytes]), tuple(stops)))
            position += head_bytes
        return cls(tuple(files), tuple((file, start, stop) for file, start, stop in index["extents"]))
