"""A file's hashes, from bytes that arrive by parts in any order.

SHA-256 and the chunks' hashes run through the file from its first byte to its last, parts are fetched side by side: a
part that is early waits in memory until its turn. Whoever brings the part whose turn it is hashes it, and all that
were waiting for it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

import xxhash

from coldstream.errors import IntegrityError
from coldstream.model.chunks import even_stops, segment_chunk_bytes, segment_stops, tensor_stops
from coldstream.model.header import LENGTH_BYTES, Header, header_stop, parse_header
from coldstream.model.manifest import Chunks, FileEntry, StoredObject
from coldstream.model.selection import is_weights
from coldstream.places.source import Source, SourceFile
from coldstream.units import MIB


@dataclass(frozen=True, slots=True)
class Digests:
    """What a file's bytes turned out to be.

    Attributes:
        sha256: Of all of them.
        git_blob_id: None unless it was asked for.
        chunks: How it is cut for streaming.
        segments: Each segment's stop and SHA-256; empty unless it is cut into segments.
    """

    sha256: str
    git_blob_id: str | None
    chunks: Chunks
    segments: tuple[tuple[int, str], ...] = ()

    def check(self, file: SourceFile, *, label: str) -> None:
        """Compares them with what the source promised.

        Raises:
            IntegrityError: They differ.
        """
        for kind, promised, found in (
            ("SHA-256", file.sha256, self.sha256),
            ("git blob id", file.git_blob_id, self.git_blob_id),
        ):
            if promised is not None and promised != found:
                raise IntegrityError(
                    f"{file.path}: its {kind} is {(found or '')[:12]}…, {label} promises {promised[:12]}…",
                    hint="run the same command again; if it stays, a proxy or a mirror (HF_ENDPOINT) alters the bytes",
                )

    def entry(
        self,
        file: SourceFile,
        objects: tuple[StoredObject, ...],
        *,
        object_bytes_max: int | None = None,
    ) -> FileEntry:
        """The manifest's entry of the file with these hashes that lies in these objects."""
        return FileEntry(
            path=file.path,
            size=file.size,
            sha256=self.sha256,
            git_blob_id=file.git_blob_id,
            objects=objects,
            chunks=self.chunks,
            object_bytes_max=object_bytes_max,
        )


class StreamDigest:
    """Hashes a file from front to back. Not thread-safe.

    A safetensors file's chunks follow its tensors, so its header is parsed, and checked, as it passes by.
    """

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
        """Begins.

        Args:
            path: For messages, and to tell weights from other files.
            size: What the file will have, in bytes.
            stops: How it is cut, when that is known; otherwise by its tensors or evenly.
            git: Whether to compute the git blob id too.
            object_bytes_max: For a safetensors file: cut it into segments of at most so many bytes, and hash those.
            on_segment: Called with each segment's stop and SHA-256 when its last byte has passed.
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
        self._segment_stops: list[int] = []
        self._segments: list[tuple[int, str]] = []
        self._segment = hashlib.sha256()

    def update(self, view: memoryview) -> None:
        """The next bytes of the file.

        Raises:
            HeaderError: It is named .safetensors and is none.
        """
        if self._stops is None and (self._head or not self._parse(view)):
            self._head += view
            if not self._parse(memoryview(self._head)):
                return
            view, self._head = memoryview(self._head), bytearray()
        self._sha256.update(view)
        if self._git:
            self._git.update(view)
        self._update_chunks(view)

    def finish(self) -> Digests:
        """The hashes of the whole file.

        Raises:
            IntegrityError: It ended early.
        """
        if self._stops is None:
            header_stop(self._head, file_bytes=self._size, path=self._path)  # says what is wrong with a short file
        if self._position != self._size:
            raise IntegrityError(f"{self._path} has {self._position} bytes, expected {self._size}")
        return Digests(
            sha256=self._sha256.hexdigest(),
            git_blob_id=self._git.hexdigest() if self._git else None,
            chunks=Chunks(stops=self._stops or (), xxh3_128="".join(self._hashes)),
            segments=tuple(self._segments),
        )

    def _parse(self, head: memoryview) -> bool:
        """Whether `head` reaches to the end of the header; then the chunks are known."""
        if len(head) < min(LENGTH_BYTES, self._size):
            return False
        if len(head) < header_stop(head, file_bytes=self._size, path=self._path):
            return False
        header = parse_header(head, file_bytes=self._size, path=self._path)
        self._stops, self._segment_stops = cut(header, self._object_bytes_max)
        return True

    def _update_chunks(self, view: memoryview) -> None:
        assert self._stops is not None
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
                if len(self._segments) < len(self._segment_stops) and stop == self._segment_stops[len(self._segments)]:
                    self._end_segment(stop)

    def _end_segment(self, stop: int) -> None:
        found = self._segment.hexdigest()
        self._segment = hashlib.sha256()
        self._segments.append((stop, found))
        if self._on_segment:
            self._on_segment(stop, found)


def cut(header: Header, object_bytes_max: int | None) -> tuple[tuple[int, ...], list[int]]:
    """The stops of a safetensors file's chunks and of its segments; none of these without `object_bytes_max`."""
    if object_bytes_max is None:
        return tuple(tensor_stops(header)), []
    stops = tensor_stops(header, chunk_bytes=segment_chunk_bytes(object_bytes_max))
    return tuple(stops), segment_stops(header, stops, object_bytes_max)


class OrderedDigest:
    """Brings parts that arrive in any order to a `StreamDigest` in theirs. Thread-safe."""

    def __init__(self, stream: StreamDigest) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[memoryview, Callable[[], None]]] = {}
        self._next = 0
        self._busy = False

    def offer(self, index: int, view: memoryview, hashed: Callable[[], None]) -> None:
        """Part `index` (from 0) is there. May hash others too before it returns.

        Args:
            index: Each exactly once.
            view: Must stay as it is until `hashed` is called.
            hashed: Called, from whichever thread, when this part has been hashed.

        Raises:
            IntegrityError: The bytes are wrong in themselves; nothing is hashed any more.
        """
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
        """The hashes, once every part has been hashed."""
        return self._stream.finish()


def read_header(source: Source, file: SourceFile) -> Header:
    """A safetensors file's header.

    Raises:
        HeaderError: It is none.
    """
    head = bytearray(min(MIB, file.size))
    source.read_into(file, 0, memoryview(head))
    stop = header_stop(head[:LENGTH_BYTES], file_bytes=file.size, path=file.path)
    if stop > len(head):
        head = bytearray(stop)
        source.read_into(file, 0, memoryview(head))
    return parse_header(head, file_bytes=file.size, path=file.path)
