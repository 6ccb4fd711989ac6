"""The messages between the engine's processes: fixed layouts, little-endian; nothing is pickled.

Workers and consumers talk to the streamer over SOCK_SEQPACKET sockets: one system call from any thread sends a message,
which arrives whole. The owner uses a stream of frames, since a plan can be megabytes.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

MESSAGE_BYTES_MAX = 160 << 10
FRAME_BYTES_MAX = 1 << 30

# Streamer to worker, on its control socket: a letter, then the payload.
MAP = b"M"  # u64: size of the arena to map
SOURCE = b"F"  # u32 segment, u32 version of its link, JSON of its job.SegmentSource
START = b"C"  # u32 connection: start its thread
STOP = b"S"  # u32 connection, u32 chunk: end that fetch
NUMBER = struct.Struct("<I")
NUMBERS = struct.Struct("<II")
SIZE = struct.Struct("<Q")

_STORE = struct.Struct("<IIQQ16s")  # streamer to the tee

# Consumer to streamer.
WAIT = b"W"  # u32: ready extents seen so far
RELEASE = b"R"  # u32 extent
LEAVE = b"X"  # u32: ready extents seen; the consumer reads no more, and releases what it holds one by one
# Streamer to consumer.
HELLO = b"H"  # u32 consumer, u32 consumers, u64 bytes of arena and catalog; with their descriptors
READY = b"Y"  # u32 extent, u32 order, u64 offset
END = b"E"  # every extent has been ready; to the owner with the final statistics
FAIL = b"!"  # JSON of the failure
READY_LAYOUT = struct.Struct("<cIIQ")
HELLO_LAYOUT = struct.Struct("<cIIQQ")

# Owner to streamer, in frames.
SETTINGS = b"S"  # JSON of job.JobOptions; the plan follows
PLAN = b"P"  # JSON of the files; with the catalog's descriptor
DETACH = b"D"  # finish the local copy, then end; end with the owner's process
LINK = b"L"  # u32 segment, JSON {url, headers}, or null if the link cannot be renewed
QUIT = b"X"  # end the load
CONSUMER = b"C"  # with one end of a socket that a consumer uses
# Streamer to owner.
PROGRESS = b"p"  # statistics
RENEW = b"r"  # u32 segment whose link was refused
LISTENING = b"l"  # consumers of other processes can connect
STORED = b"t"  # JSON: the local copy is finished, or failed

_FETCH = struct.Struct("<IIIQQQQQQ????16s")
_RESULT = struct.Struct("<BBIQddd16s")

# Outcomes of a fetch by their number on the wire: "done", or a kind of failure.
KINDS = (
    "done", "broken", "tls", "busy", "refused", "gone", "changed", "range", "protocol", "cancelled", "corrupt", "local",
    "unexpected",
)  # fmt: skip


class FetchRequest(NamedTuple):
    """To a connection: receive a chunk from its byte `skip` on."""

    chunk: int  # the chunk's number in the load
    segment: int  # the number, over all files, of the segment that holds it
    version: int  # the minimum version of the segment's link
    start: int  # the chunk's first byte in the file
    stop: int  # one past its last
    wire_start: int  # the same in the object that holds the chunk: the range of its request
    wire_stop: int
    offset: int  # where the chunk starts in the arena
    skip: int  # how many of its bytes are already in place
    is_local: bool  # read the local file
    cdn: bool  # use the CDN
    checked: bool  # compare with `digest`
    hashed: bool  # compute the digest for the result
    digest: bytes  # XXH3-128

    def pack(self) -> bytes:
        return _FETCH.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> FetchRequest:
        return cls(*_FETCH.unpack(data))


class FetchResult(NamedTuple):
    """From a connection: the outcome of a fetch."""

    kind: str  # one of KINDS
    chunk: int  # the chunk's number
    received: int = 0  # bytes in place, counted from where the request began
    first_byte_seconds: float = 0.0  # from the request to the first byte of the answer
    cpu_seconds: float = 0.0  # of the whole worker process so far
    retry_after_seconds: float | None = None  # what the server asked for, or None
    digest: bytes = b""  # XXH3-128 of the chunk; zeros if it was not computed
    cache: int = 0  # number of the CDN's cache status in `cdn_choice.STATUSES`; 0 if the CDN was not used
    message: str = ""  # for users

    def pack(self) -> bytes:
        kind, chunk, received, first_byte, cpu, retry_after, digest, cache, message = self
        retry_after = -1.0 if retry_after is None else retry_after
        fixed = _RESULT.pack(KINDS.index(kind), cache, chunk, received, first_byte, cpu, retry_after, digest)
        return fixed + message[:1000].encode("utf-8", "replace")

    @classmethod
    def unpack(cls, data: bytes) -> FetchResult:
        kind, cache, chunk, received, first_byte, cpu, retry_after, digest = _RESULT.unpack_from(data)
        message = data[_RESULT.size :].decode("utf-8", "replace")
        wait = None if retry_after < 0 else retry_after
        return cls(KINDS[kind], chunk, received, first_byte, cpu, wait, digest, cache, message)


class StoreRequest(NamedTuple):
    """To the tee: write a chunk to the local copy; one of size 0 there was wrong, and is forgotten."""

    file: int
    chunk: int
    offset: int
    size: int
    digest: bytes

    def pack(self) -> bytes:
        return _STORE.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> StoreRequest:
        return cls(*_STORE.unpack(data))


class Frames:
    """A stream socket as frames: u32 length, letter, payload, with descriptors. Not thread-safe."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._buffer = bytearray()
        self._descriptors: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, letter: bytes, payload: bytes = b"", descriptors: tuple[int, ...] = ()) -> None:
        """Sends a frame; blocks until the kernel has it."""
        frame = NUMBER.pack(len(payload)) + letter + payload
        sent = socket.send_fds(self.socket, [frame[:65536]], list(descriptors)) if descriptors else 0
        self.socket.sendall(frame[sent:])

    def receive(self) -> bool:
        """Reads available data, or blocks; False if the peer has closed."""
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
        """The complete frames that have been read, each once."""
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
        """The next descriptor that was received."""
        return self._descriptors.pop(0)


def receive_descriptors(sock: socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """Receives data and descriptors; EMFILE: the limit of open files is reached, and the kernel has dropped some."""
    data, descriptors, flags, _ = socket.recv_fds(sock, size, count)
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return data, descriptors


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket (Linux)."""
    credentials = array.array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return credentials[1]
