"""Ways to receive over TLS with the OpenSSL of `cryptography`: CPU per GiB of the processes that receive.

    apt-get install nginx openssl
    python benchmarks/tls_receives.py --rounds 3 --gib 1 --connections 16
    python benchmarks/tls_receives.py --rounds 3 --gib 1 --connections 64

Two processes with half of the connections each receive ranges of 8 MiB from nginx on loopback into memory that is
reused; nothing is hashed. Rounds are interleaved. CPU is that of the process from when its connections are open.

    socket      the engine: a thread per connection; OpenSSL reads the socket, twice a record
    memory      a thread per connection; one receive of up to 256 KiB, which OpenSSL decrypts from memory
    locked      the same, but one thread of a process decrypts at a time
    loop        the same in one thread, an event loop over all connections
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "src")]

from tests.servers.nginx import nginx  # noqa: E402

from coldstream.net import tls  # noqa: E402
from coldstream.net.connection import Connection  # noqa: E402
from coldstream.net.http_message import Target, conditions, parse_target, request_bytes  # noqa: E402

WAYS = ("socket", "memory", "locked", "loop")
CHUNK_BYTES = 8 << 20
FILE_BYTES = 256 << 20
RECEIVE_BYTES = 256 << 10
PROCESSES = 2
_RECORD_BYTES_MAX = 16 << 10


class MemoryStream(tls.CryptographyStream):
    """OpenSSL reads from memory, in which one call has received many records. For this measurement only."""

    lock: Any = nullcontext()

    def __init__(self, sock: socket.socket, context: Any, host: str, poll_seconds: float) -> None:
        super().__init__(sock, context, host, poll_seconds)
        self._encrypted = memoryview(bytearray(RECEIVE_BYTES))
        self.output = self._lib.BIO_new(self._lib.BIO_s_mem())
        self._lib.SSL_set_bio(self._ssl, self._lib.BIO_new(self._lib.BIO_s_mem()), self.output)

    def feed(self, encrypted: memoryview) -> None:
        """Lets OpenSSL read from here until it wants more."""
        source = self._lib.BIO_new_mem_buf(self._ffi.from_buffer(encrypted), len(encrypted))
        self._lib.BIO_set_mem_eof_return(source, -1)
        self._lib.SSL_set_bio(self._ssl, source, self.output)

    def read(self, view: memoryview) -> int:
        """Decrypts what there is for the view."""
        read, done, size = self._lib.SSL_read, 0, len(view)
        with self.lock, self._ffi.from_buffer(view, require_writable=True) as place:
            while done < size and (count := read(self._ssl, place + done, size - done)) > 0:
                done += count
        return done

    def handshake(self) -> bool:
        is_done = super().handshake()
        self._flush()
        if not is_done:
            self._receive_input(0)
        return is_done

    def send(self, data: bytes) -> None:
        super().send(data)
        self._flush()

    def receive(self, view: memoryview) -> int:
        done = self.read(view)
        while done < len(view):
            self._flush()
            if not self._receive_input(len(view) - done):
                return done or -1
            done += self.read(view[done:])
        return done

    def receive_some(self, view: memoryview) -> int:
        while not (done := self.read(view)):
            if not self._receive_input(0):
                return -1
        return done

    def _flush(self) -> None:
        scratch = self._ffi.new("char[]", 4096)
        while (count := self._lib.BIO_read(self.output, scratch, len(scratch))) > 0:
            self.sock.sendall(self._ffi.buffer(scratch, count))

    def _receive_input(self, expected: int) -> bool:
        # So many bytes certainly come, however they are divided into records.
        certain = min(expected - _RECORD_BYTES_MAX, RECEIVE_BYTES)
        flags = socket.MSG_WAITALL if certain > 0 else 0
        try:
            count = self.sock.recv_into(self._encrypted, max(certain, 0), flags)
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionResetError("closed")
        self.feed(self._encrypted[:count])
        return True


def run_loop(connections: list[Connection], target: Target, view: memoryview, starts: Iterator[int]) -> None:
    """One thread for all connections: each receive goes to the same memory, which stays in the cache."""
    streams: list[Any] = [connection._stream for connection in connections]
    received, head = memoryview(bytearray(RECEIVE_BYTES)), memoryview(bytearray(_RECORD_BYTES_MAX))
    done = [0] * len(streams)
    waiting = select.epoll()

    def ask(number: int) -> bool:
        start = next(starts, None)
        if start is not None:
            streams[number].send(request_bytes(target, conditions(start, start + CHUNK_BYTES, None), proxy=None))
            done[number] = -1
        return start is not None

    for stream in streams:
        stream.sock.settimeout(0)
        waiting.register(stream.sock, select.EPOLLIN)
    numbers = {stream.sock.fileno(): number for number, stream in enumerate(streams)}
    running = sum(ask(number) for number in range(len(streams)))
    while running:
        for descriptor, _ in waiting.poll():
            number = numbers[descriptor]
            stream, place = streams[number], view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
            count = stream.sock.recv_into(received)
            if count == 0:
                raise ConnectionResetError("closed")
            stream.feed(received[:count])
            if done[number] < 0 and (count := stream.read(head)):
                stop = bytes(head[:count]).index(b"\r\n\r\n") + 4
                done[number] = count - stop
                place[: count - stop] = head[stop:count]
            if done[number] >= 0:
                done[number] += stream.read(place[done[number] :])
                if done[number] == CHUNK_BYTES:
                    running -= not ask(number)


def receive(way: str, url: str, authority: str, chunks: int, count: int) -> None:
    """One process: receives and prints the CPU seconds of it."""
    if way != "socket":
        tls.CryptographyStream = MemoryStream  # type: ignore[misc]
        MemoryStream.lock = threading.Lock() if way == "locked" else nullcontext()
    settings = tls.TlsSettings(ca_files=(authority,), backend="cryptography")
    target = parse_target(url)
    memory = mmap.mmap(-1, CHUNK_BYTES * count)
    memory[:] = b"\1" * len(memory)
    view = memoryview(memory)
    connections = [Connection(target, tls=settings) for _ in range(count)]
    starts = iter([number * CHUNK_BYTES % FILE_BYTES for number in range(chunks)])
    taking = threading.Lock()

    def fetch(number: int) -> None:
        place = view[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        while True:
            with taking:
                start = next(starts, None)
            if start is None:
                return
            stop = start + CHUNK_BYTES
            connections[number].get(target, start, stop, place, etag=None, size=FILE_BYTES)

    for connection in connections:
        connection.get(target, 0, 1000, view[:1000], etag=None, size=FILE_BYTES)
    before = resource.getrusage(resource.RUSAGE_SELF)
    if way == "loop":
        run_loop(connections, target, view, starts)
    else:
        threads = [threading.Thread(target=fetch, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))


def main() -> None:
    """Runs the rounds and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--receive", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.receive:
        way, url, authority, chunks, count = args.receive
        receive(way, url, authority, int(chunks), int(count))
        return
    chunks = int(args.gib * (1 << 30)) // CHUNK_BYTES // PROCESSES
    figures: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "model").write_bytes(os.urandom(1 << 20) * (FILE_BYTES >> 20))
        with nginx(Path(folder), tls=True, aes_128=True) as server:
            for number in range(args.rounds):
                for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                    options = [way, f"{server.tls_url}/model", str(server.authority), str(chunks)]
                    command = [sys.executable, __file__, "--receive", *options, str(args.connections // PROCESSES)]
                    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
                    spent = sum(float(process.communicate()[0]) for process in running)
                    figures[way].append(spent / (chunks * PROCESSES * CHUNK_BYTES) * (1 << 30))
    print("| Way | CPU-s/GiB | over `socket` |\n|---|---|---|")
    for way, values in figures.items():
        ratio = statistics.median(a / b for a, b in zip(values, figures["socket"], strict=True))
        print(f"| {way} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) | {ratio:.2f} |")


if __name__ == "__main__":
    main()
