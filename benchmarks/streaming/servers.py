"""An HTTP server that sends files with `sendfile`, from several processes, and can misbehave by a fixed share.

    python servers.py --root FOLDER [--host 127.0.0.1] [--workers 2] [--faults '{"slow": 0.01}'] [--rate BYTES]
    python servers.py --root FOLDER --far '{"first_byte": [0.06, 0.7], "rates": [2e7, 7e7]}'

Prints its port, serves until its standard input ends, then prints one line of JSON: what it answered. Standard library
only, and importable for its `Server`: benchmarks/gpu.py uses it on machines that have no nginx.

Faults strike only ranged answers of 64 KiB and more. In every 200 such answers of a process, exactly the share given is
struck, at shuffled places: `busy` answers 503, `reset` breaks the connection (RST) somewhere in the body, `slow` sends
at 300 KB/s. `--rate` slows every answer down, in bytes per second and connection.

`--far` makes it a distant object store: every answer waits for a lognormal time (median in seconds, sigma), every
connection has a rate drawn from a range, in bytes per second, and with `in_flight_max` all requests above that number
get a 503 (per process: run one worker).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

KINDS = ("answered", "small", "busy", "reset", "slow")
_DECK = 200
_FAULT_BYTES_MIN = 64 << 10
_SLOW_BYTES_PER_SECOND = 300_000
_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 9\r\n\r\nslow down"


@dataclass(frozen=True)
class Far:
    """How an object store in a data centre far away answers."""

    first_byte: tuple[float, float]  # a lognormal time until the first byte: its median in seconds, and sigma
    rates: tuple[float, float]  # bytes per second of a connection: the range that they are drawn from
    in_flight_max: int = 1 << 60  # more requests at a time are refused


class Server:
    """Serves descriptors by path until closed. Forks its workers at once: make it before threads and CUDA."""

    def __init__(
        self,
        files: Mapping[str, tuple[int, int, str]],
        *,
        host: str = "127.0.0.1",
        workers: int = 2,
        faults: Mapping[str, float] | None = None,
        rate: float = 0.0,
        far: Far | None = None,
        seed: int = 1,
    ) -> None:
        """Starts.

        Args:
            files: URL path to (descriptor, size, ETag without quotes).
            host: The address to listen on.
            workers: How many processes accept connections.
            faults: Kind to share of answers.
            rate: Bytes per second and connection; 0 is no limit.
            far: The distances and rates of an object store.
            seed: Of the places of faults, and of what `far` draws.
        """
        self._listening = socket.create_server((host, 0), backlog=511)
        self.port: int = self._listening.getsockname()[1]
        # One row of counters per process, in memory that all share.
        self._counters = mmap.mmap(-1, 8 * len(KINDS) * workers)
        self._pids = []
        for number in range(workers):
            pid = os.fork()
            if pid == 0:
                try:
                    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                    worker = _Worker(
                        self._listening, files, faults or {}, rate, far, seed + number, self._counters, number
                    )
                    worker.run()
                finally:
                    os._exit(1)
            self._pids.append(pid)

    def counts(self) -> dict[str, int]:
        """How many answers of each kind there were so far."""
        numbers = struct.unpack(f"{len(self._counters) // 8}q", self._counters[:])
        return {kind: sum(numbers[index :: len(KINDS)]) for index, kind in enumerate(KINDS)}

    def close(self) -> None:
        """Ends the workers. Idempotent."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        self._pids.clear()
        self._listening.close()


class _Worker:
    """One process: a thread for each connection, which spends its time in `sendfile`, outside the interpreter lock."""

    def __init__(
        self,
        listening: socket.socket,
        files: Mapping[str, tuple[int, int, str]],
        faults: Mapping[str, float],
        rate: float,
        far: Far | None,
        seed: int,
        counters: mmap.mmap,
        number: int,
    ) -> None:
        self._listening, self._files, self._rate, self._far = listening, files, rate, far
        self._in_flight = 0
        self._faults, self._random = faults, random.Random(seed)
        self._deck: list[str] = []
        self._counters, self._row = counters, number * len(KINDS)
        self._lock = threading.Lock()

    def run(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rate = self._random.uniform(*self._far.rates) if self._far else self._rate
            buffered = b""
            try:
                while True:
                    while (end := buffered.find(b"\r\n\r\n")) < 0:
                        piece = connection.recv(16384)
                        if not piece or len(buffered) > 65536:
                            return
                        buffered += piece
                    head, buffered = buffered[:end].decode("latin-1"), buffered[end + 4 :]
                    if not self._answer_from_afar(connection, head, rate):
                        return
            except ConnectionError:
                return

    def _answer_from_afar(self, connection: socket.socket, head: str, rate: float) -> bool:
        """Answers one request after the time that `far` draws, or refuses it; whether the connection goes on."""
        if self._far is None:
            return self._answer(connection, head, rate)
        with self._lock:
            self._in_flight += 1
            is_refused = self._in_flight > self._far.in_flight_max
        try:
            median, sigma = self._far.first_byte
            time.sleep(median * math.exp(self._random.gauss(0.0, sigma)))
            if is_refused:
                self._count("busy")
                connection.sendall(_BUSY)
                return True
            return self._answer(connection, head, rate)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer(self, connection: socket.socket, head: str, rate: float) -> bool:
        """Answers one request; whether the connection goes on."""
        line, *lines = head.split("\r\n")
        method, path, _ = line.split(" ", 2)
        fields = {name.strip().lower(): value.strip() for name, _, value in (entry.partition(":") for entry in lines)}
        # Run:ai asks with the whole URL, as one asks a proxy; every HTTP/1.1 server must take that.
        found = self._files.get(urlsplit(path).path)
        if found is None:
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        descriptor, size, etag = found
        if fields.get("if-match", "*").strip('"') not in {"*", etag}:
            connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            return True
        start, stop = _range(fields.get("range"), size)
        if start >= stop and size:
            connection.sendall(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n")
            return True
        kind = self._draw() if "range" in fields and stop - start >= _FAULT_BYTES_MIN else "small"
        if kind == "busy":
            connection.sendall(_BUSY)
            return True
        text = (
            f"HTTP/1.1 {'206 Partial Content' if 'range' in fields else '200 OK'}\r\nContent-Length: {stop - start}\r\n"
        )
        text += f'ETag: "{etag}"\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n'
        if "range" in fields:
            text += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        connection.sendall(text.encode() + b"\r\n")
        if method == "HEAD":
            return True
        if kind == "reset":
            self._send(connection, descriptor, start, start + self._random.randrange(stop - start), rate)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        self._send(connection, descriptor, start, stop, _SLOW_BYTES_PER_SECOND if kind == "slow" else rate)
        return "close" not in fields.get("connection", "").lower()

    def _send(self, connection: socket.socket, descriptor: int, start: int, stop: int, rate: float) -> None:
        due = time.monotonic()
        step = max(1, int(rate / 20)) if rate else 1 << 30
        while start < stop:
            sent = os.sendfile(connection.fileno(), descriptor, start, min(step, stop - start))
            if not sent:
                raise ConnectionError("the file became shorter")
            start += sent
            if rate:
                # What a full link has delayed is not made up for by a burst.
                due = max(due + sent / rate, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))

    def _draw(self) -> str:
        with self._lock:
            if not self._deck:
                for kind, share in self._faults.items():
                    self._deck += [kind] * round(share * _DECK)
                self._deck += ["answered"] * (_DECK - len(self._deck))
                self._random.shuffle(self._deck)
            kind = self._deck.pop()
        self._count(kind)
        return kind

    def _count(self, kind: str) -> None:
        place = 8 * (self._row + KINDS.index(kind))
        with self._lock:
            (count,) = struct.unpack_from("q", self._counters, place)
            struct.pack_into("q", self._counters, place, count + 1)


def _range(field: str | None, size: int) -> tuple[int, int]:
    """`[start, stop)` of a Range header of one range; the whole file without one."""
    if not field:
        return 0, size
    first, _, last = field.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(int(last) + 1 if last else size, size)


def folder_files(root: Path) -> dict[str, tuple[int, int, str]]:
    """Every file below a folder, opened, with the ETag that nginx would give it."""
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            found = path.stat()
            tag = f"{int(found.st_mtime):x}-{found.st_size:x}"
            # A bucket's listing is served at the bucket, for mounts.
            name = path.relative_to(root).as_posix().removesuffix("/listing.xml")
            files["/" + name] = (os.open(path, os.O_RDONLY), found.st_size, tag)
    return files


def main() -> None:
    """Serves a folder until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--far", type=json.loads)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = Server(
        folder_files(args.root),
        host=args.host,
        workers=args.workers,
        faults=args.faults,
        rate=args.rate,
        far=Far(**args.far) if args.far else None,
    )
    print(server.port, flush=True)
    sys.stdin.buffer.read()
    print(json.dumps(server.counts()), flush=True)
    server.close()


if __name__ == "__main__":
    main()
