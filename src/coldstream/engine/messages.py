"""The messages between the engine's processes: fixed layouts, little-endian; nothing is pickled.

Between the streamer and its workers, and between it and its consumers, run sockets that keep messages apart
(SOCK_SEQPACKET): a message is sent by one system call from any thread and arrives whole. Between it and its owner runs
a stream with frames, since a plan can be megabytes.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MESSAGE_BYTES_MAX = 160 << 10
FRAME_BYTES_MAX = 1 << 30

# Streamer to worker, on its control socket: one letter, then what it names.
MAP = b"M"  # u64: the arena has so many bytes; map it
SOURCE = b"F"  # u32 segment, u32 version of its link, JSON of its job.SegmentSource
START = b"C"  # u32 connection: give it a thread
STOP = b"S"  # u32 connection, u32 chunk: end that fetch
NUMBER = struct.Struct("<I")
NUMBERS = struct.Struct("<II")
SIZE = struct.Struct("<Q")

# Streamer to the tee.
_STORE = struct.Struct("<IIQQ16s")  # file, chunk of the file, offset in the arena, bytes, digest

# Consumer to streamer.
WAIT = b"W"  # u32: ready extents looked at so far
RELEASE = b"R"  # u32 extent
LEAVE = b"X"  # u32: ready extents looked at; it looks at no more, and releases what it holds one by one
# Streamer to consumer.
HELLO = b"H"  # u32 consumer, u32 how many there are, u64 bytes of arena and catalog; with their descriptors
READY = b"Y"  # u32 extent, u32 order, u64 offset
END = b"E"  # every extent has been ready; to the owner with JSON of the report
FAIL = b"!"  # JSON of the failure
_READY = struct.Struct("<cIIQ")
_HELLO = struct.Struct("<cIIQQ")

# Owner to streamer, in frames.
SETTINGS = b"S"  # JSON of job.JobOptions; the plan follows
PLAN = b"P"  # JSON of the files; with the catalog's descriptor
DETACH = b"D"  # go on without being asked until the local copy is written, or the owner's process ends
LINK = b"L"  # u32 segment, JSON {url, headers}, or nothing when there is none to be had
QUIT = b"X"  # end the load
CONSUMER = b"C"  # with one end of a socket: a consumer attaches through it
# Streamer to owner.
PROGRESS = b"p"  # JSON
RENEW = b"r"  # u32 segment: its link is refused
LISTENING = b"l"  # consumers of other processes can connect
STORED = b"t"  # JSON: the local copy is as complete as it will be

_FETCH = struct.Struct("<IIIQQQQ????16s")
_ANSWER = struct.Struct("<BBIQddd16s")

# The kinds of answers by their number on the wire. "done" is none of FetchError's.
KINDS = (
    "done",
    "broken",
    "tls",
    "busy",
    "refused",
    "gone",
    "changed",
    "range",
    "protocol",
    "cancelled",
    "corrupt",
    "local",
    "unexpected",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """To a connection: receive `[start + skip, stop)` of a file.

    Attributes:
        chunk: The chunk's number in the load.
        segment: The number, over all files, of the segment that it lies in.
        version: The version of the segment's link to use, at least.
        start: The chunk's first byte in the file.
        stop: One past its last.
        offset: Where the chunk starts in the arena.
        skip: How many of its bytes are there already.
        here: Read the local file.
        cdn: Ask the CDN.
        checked: Compare with `digest`.
        hashed: Compute the digest for the answer.
        digest: XXH3-128.
    """

    chunk: int
    segment: int
    version: int
    start: int
    stop: int
    offset: int
    skip: int
    here: bool
    cdn: bool
    checked: bool
    hashed: bool
    digest: bytes

    def pack(self) -> bytes:
        """For the wire."""
        return _FETCH.pack(
            self.chunk,
            self.segment,
            self.version,
            self.start,
            self.stop,
            self.offset,
            self.skip,
            self.here,
            self.cdn,
            self.checked,
            self.hashed,
            self.digest,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Fetch:
        """What `pack` packed."""
        chunk, segment, version, start, stop, offset, skip, here, cdn, checked, hashed, digest = _FETCH.unpack(data)
        return cls(
            chunk=chunk,
            segment=segment,
            version=version,
            start=start,
            stop=stop,
            offset=offset,
            skip=skip,
            here=here,
            cdn=cdn,
            checked=checked,
            hashed=hashed,
            digest=digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """From a connection: what became of a fetch.

    Attributes:
        kind: One of KINDS.
        chunk: The chunk's number.
        received: Bytes in place, counted from where the request began.
        first_byte_seconds: From the request to the first byte of the answer.
        cpu_seconds: Of the whole worker process so far.
        retry_after_seconds: What the server asked for, or None.
        digest: XXH3-128 of the chunk; zeros when it was not computed.
        cache: What the CDN's cache did, by its number in `cdn.STATUSES`; 0 when it was not asked.
        message: For people.
    """

    kind: str
    chunk: int
    received: int = 0
    first_byte_seconds: float = 0.0
    cpu_seconds: float = 0.0
    retry_after_seconds: float | None = None
    digest: bytes = b""
    cache: int = 0
    message: str = ""

    def pack(self) -> bytes:
        """For the wire."""
        asked = -1.0 if self.retry_after_seconds is None else self.retry_after_seconds
        fixed = _ANSWER.pack(
            KINDS.index(self.kind),
            self.cache,
            self.chunk,
            self.received,
            self.first_byte_seconds,
            self.cpu_seconds,
            asked,
            self.digest,
        )
        return fixed + self.message[:1000].encode("utf-8", "replace")

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        """What `pack` packed."""
        kind, cache, chunk, received, first_byte, cpu, asked, digest = _ANSWER.unpack_from(data)
        return cls(
            kind=KINDS[kind],
            chunk=chunk,
            received=received,
            first_byte_seconds=first_byte,
            cpu_seconds=cpu,
            retry_after_seconds=None if asked < 0 else asked,
            digest=digest,
            cache=cache,
            message=data[_ANSWER.size :].decode("utf-8", "replace"),
        )


def pack_store(file: int, chunk: int, offset: int, size: int, digest: bytes) -> bytes:
    """A chunk that the tee should write to the local copy."""
    return _STORE.pack(file, chunk, offset, size, digest)


def unpack_store(data: bytes) -> tuple[int, int, int, int, bytes]:
    """(file, chunk of the file, offset in the arena, bytes, digest)."""
    file, chunk, offset, size, digest = _STORE.unpack(data)
    return file, chunk, offset, size, digest


def pack_ready(extent: int, order: int, offset: int) -> bytes:
    """An extent that a consumer may look at."""
    return _READY.pack(READY, extent, order, offset)


def unpack_ready(data: bytes) -> tuple[int, int, int]:
    """(extent, order, offset)."""
    _, extent, order, offset = _READY.unpack(data)
    return extent, order, offset


def pack_hello(consumer: int, consumers: int, arena_bytes: int, catalog_bytes: int) -> bytes:
    """What a consumer is told when it attaches."""
    return _HELLO.pack(HELLO, consumer, consumers, arena_bytes, catalog_bytes)


def unpack_hello(data: bytes) -> tuple[int, int, int, int]:
    """(consumer, how many there are, bytes of the arena, bytes of the catalog)."""
    _, consumer, consumers, arena_bytes, catalog_bytes = _HELLO.unpack(data)
    return consumer, consumers, arena_bytes, catalog_bytes


class Frames:
    """A stream socket as frames: u32 length, letter, payload; descriptors may ride along. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        """For selectors."""
        return self.socket.fileno()

    def send(self, letter: bytes, payload: bytes = b"", descriptors: tuple[int, ...] = ()) -> None:
        """Sends a frame, blocking until it is on its way."""
        frame = NUMBER.pack(len(payload)) + letter + payload
        sent = socket.send_fds(self.socket, [frame[:65536]], list(descriptors)) if descriptors else 0
        self.socket.sendall(frame[sent:])

    def receive(self) -> bool:
        """Reads what is there, blocking if nothing is; False when the other side is gone."""
        try:
            data, descriptors = receive_descriptors(self.socket, 1 << 20, 8)
        except BlockingIOError:
            return True
        except OSError as exc:
            if exc.errno == errno.EMFILE:
                raise
            data, descriptors = b"", []
        self._descriptors += descriptors
        self._buffer += data
        self.closed |= not data
        return bool(data)

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """The whole frames that have been read, each once."""
        while len(self._buffer) >= NUMBER.size + 1:
            (length,) = NUMBER.unpack_from(self._buffer)
            assert length <= FRAME_BYTES_MAX
            stop = NUMBER.size + 1 + length
            if len(self._buffer) < stop:
                return
            letter, payload = bytes(self._buffer[4:5]), bytes(self._buffer[5:stop])
            del self._buffer[:stop]
            yield letter, payload

    def descriptor(self) -> int:
        """The next descriptor that came along."""
        return self._descriptors.pop(0)


def receive_descriptors(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """What was sent, and the descriptors that came along.

    Raises:
        OSError: EMFILE: this process may not have so many open files; the kernel has thrown descriptors away.
    """
    data, descriptors, flags, _ = socket.recv_fds(sock, size, count)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, descriptors


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket (Linux)."""
    credentials = array.array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return credentials[1]
