"""Hashes a file whose parts arrive in any order.

SHA-256 and the chunk hashes run through the file from its first byte to its last, but parts are fetched in parallel.
The thread that brings the next part hashes it, and all the waiting parts that follow it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from coldstream.errors import IntegrityError
from coldstream.model.chunks import CHUNK_BYTES, even_stops, segment_stops, tensor_stops
from coldstream.model.header import LENGTH_BYTES, Header, header_stop, parse_header
from coldstream.model.manifest import Chunks
from coldstream.model.selection import is_weights
from coldstream.places.place import ObjectInfo
from coldstream.units import MIB


@dataclass(frozen=True, slots=True)
class Digests:
    """The hashes of a whole file, and the stop and SHA-256 of each segment; the git blob id only if requested."""

    sha256: str
    git_blob_id: str | None
    chunks: Chunks
    segments: tuple[tuple[int, str], ...] = ()

    def check(self, file: ObjectInfo, *, label: str) -> None:
        for kind, promised, actual in (
            ("SHA-256", file.sha256, self.sha256),
            ("git blob id", file.git_blob_id, self.git_blob_id),
        ):
            if promised is not None and promised != actual:
                raise IntegrityError(
                    f"{file.key}: {kind} is {(actual or '')[:12]}…, but {label} promises {promised[:12]}…",
                    hint="run the same command again; if it fails again, a proxy or mirror (HF_ENDPOINT) alters bytes",
                )


class StreamDigest:
    """Hashes a file from front to back, and parses the header of a safetensors file on the way. Not thread-safe."""

    def __init__(
        self,
        path: str,
        size: int,
        *,
        stops: tuple[int, ...] | None = None,
        git: bool = False,
        object_bytes_max: int | None = None,
        on_segment: Callable[[int, str], None] | None = None,
    ) -> None:
        """Without `stops`, weights are cut by their tensors, other files evenly. `git` also computes the git blob id.

        With `object_bytes_max`, a safetensors file's segments of at most this many bytes are hashed, and `on_segment`
        is called with each one's stop and SHA-256, after its last byte.
        """
        self._path, self._size = path, size
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if git else None
        if stops is None and not is_weights(path):
            stops = tuple(even_stops(0, size))
        self._stops = stops
        self._head = bytearray()
        self._hashes: list[str] = []
        self._chunk = xxhash.xxh3_128()
        self._position = 0
        self._object_bytes_max, self._on_segment = object_bytes_max, on_segment
        self._segment_stops: frozenset[int] = frozenset()
        self._segments: list[tuple[int, str]] = []
        self._segment = hashlib.sha256()

    def update(self, view: memoryview) -> None:
        """Hashes the next bytes; raises HeaderError for a .safetensors file that is not one."""
        if self._stops is None and (self._head or not self._parse(view)):
            self._head += view
            if not self._parse(memoryview(self._head)):
                return
            view, self._head = memoryview(self._head), bytearray()
        assert self._stops is not None
        self._sha256.update(view)
        if self._git:
            self._git.update(view)
        taken = 0
        while taken < len(view):
            if len(self._hashes) == len(self._stops):
                raise IntegrityError(f"{self._path} is longer than its {self._size} bytes")
            stop = self._stops[len(self._hashes)]
            piece = view[taken : taken + stop - self._position]
            self._chunk.update(piece)
            if self._segment_stops:
                self._segment.update(piece)
            taken += len(piece)
            self._position += len(piece)
            if self._position == stop:
                self._hashes.append(self._chunk.hexdigest())
                self._chunk.reset()
                if stop in self._segment_stops:
                    self._segments.append((stop, self._segment.hexdigest()))
                    self._segment = hashlib.sha256()
                    if self._on_segment:
                        self._on_segment(*self._segments[-1])

    def finish(self) -> Digests:
        """Returns the hashes of the whole file; raises IntegrityError if the file ended early."""
        if self._stops is None:
            header_stop(self._head, file_bytes=self._size, path=self._path)  # raises: the file is shorter than a header
        if self._position != self._size:
            raise IntegrityError(f"{self._path} has {self._position} bytes, expected {self._size}")
        return Digests(
            sha256=self._sha256.hexdigest(),
            git_blob_id=self._git.hexdigest() if self._git else None,
            chunks=Chunks(stops=self._stops or (), xxh3_128="".join(self._hashes)),
            segments=tuple(self._segments),
        )

    def _parse(self, head: memoryview) -> bool:
        """Sets the chunk stops if `head` holds the whole header; whether it does."""
        if len(head) < min(LENGTH_BYTES, self._size):
            return False
        if len(head) < header_stop(head, file_bytes=self._size, path=self._path):
            return False
        header = parse_header(head, file_bytes=self._size, path=self._path)
        self._stops, segment_ends = cut(header, self._object_bytes_max)
        self._segment_stops = frozenset(segment_ends)
        return True


def cut(header: Header, object_bytes_max: int | None) -> tuple[tuple[int, ...], list[int]]:
    """Returns the chunk stops and segment stops of a safetensors file; no segments without `object_bytes_max`."""
    if object_bytes_max is None:
        return tuple(tensor_stops(header)), []
    stops = tensor_stops(header, chunk_bytes=min(CHUNK_BYTES, object_bytes_max))
    return tuple(stops), segment_stops(header, stops, object_bytes_max)


class OrderedDigest:
    """Passes parts that arrive in any order to a `StreamDigest` in file order. Thread-safe."""

    def __init__(self, stream: StreamDigest) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[memoryview, Callable[[], None]]] = {}
        self._next = 0
        self._busy = False

    def offer(self, index: int, view: memoryview, hashed: Callable[[], None]) -> None:
        """Takes part `index` (from 0, each once); `view` must not change until `hashed` is called, by any thread."""
        with self._lock:
            self._waiting[index] = (view, hashed)
            if self._busy:
                return
            self._busy = True
        while True:
            with self._lock:
                turn = self._waiting.pop(self._next, None)
                if turn is None:
                    self._busy = False
                    return
                self._next += 1
            self._stream.update(turn[0])
            turn[1]()

    def finish(self) -> Digests:
        return self._stream.finish()


def read_header(read_start: Callable[[memoryview], object], *, path: str, size: int) -> Header:
    """Reads and checks the header of a safetensors file; `read_start` fills a buffer with the file's first bytes."""
    head = bytearray(min(MIB, size))
    read_start(memoryview(head))
    stop = header_stop(head[:LENGTH_BYTES], file_bytes=size, path=path)
    if stop > len(head):
        head = bytearray(stop)
        read_start(memoryview(head))
    return parse_header(head, file_bytes=size, path=path)
