"""Plain reads, as fast as this machine's network and disk give them: no checks, no tensors, one reused buffer a thread.

    python -m coldstream.operate.bench.programs.raw < request

A request is {"links": [{"url", "headers", "size"}], "connections", "seconds"} or {"files": [path], "threads",
"seconds"}, on standard input, since links may be signed. Prints {"bytes_per_second", "cpu_seconds_per_byte"}, both of
the time after a ramp, and of files `direct`: whether they were read past the page cache.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from coldstream.units import MIB

_RANGE_BYTES = 8 * MIB
_READ_BYTES = MIB
_DISK_READ_BYTES = 4 * MIB
_RAMP_SHARE = 0.3
_TIMEOUT_SECONDS = 15.0
# A thread that fails so often in a row stops.
_FAILURES_MAX = 3


def main() -> None:
    """Runs one request."""
    request = json.load(sys.stdin)
    found = network(**request) if "links" in request else disk(**request)
    print(json.dumps(found))


class _Count:
    """Bytes of all threads. Each adds to its own place, so none waits for another."""

    def __init__(self, threads: int) -> None:
        self.each = [0] * threads
        self.stopped = threading.Event()

    @property
    def bytes(self) -> int:
        return sum(self.each)


def network(*, links: list[dict[str, Any]], connections: int, seconds: float) -> dict[str, float]:
    """Ranges of all files, over so many connections."""
    count = _Count(connections)

    def work(number: int) -> None:
        view = memoryview(bytearray(_READ_BYTES))
        places = _ranges(links, number, connections)
        failures = 0
        connection: http.client.HTTPConnection | None = None
        while not count.stopped.is_set() and failures < _FAILURES_MAX:
            link, start, stop = next(places)
            split = urlsplit(link["url"])
            try:
                # All files of a model are on one server.
                connection = connection or _connection(split)
                path = f"{split.path}?{split.query}" if split.query else split.path
                headers = {**dict(link["headers"]), "Range": f"bytes={start}-{stop - 1}"}
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                if answer.status not in {200, 206}:
                    raise http.client.HTTPException(f"HTTP {answer.status}")
                while not count.stopped.is_set() and (got := answer.readinto(view)):
                    count.each[number] += got
                failures = 0
            except (OSError, http.client.HTTPException):
                failures += 1
                connection = None

    return _timed(work, count, seconds)


def disk(*, files: list[str], threads: int, seconds: float) -> dict[str, float]:
    """Files from their beginnings on, past the page cache where the file system allows that."""
    count = _Count(threads)
    direct = threading.Event()
    lock = threading.Lock()
    pieces = iter([
        (path, start) for path in files for start in range(0, os.path.getsize(path), _DISK_READ_BYTES)
    ])  # fmt: skip

    def work(number: int) -> None:
        # O_DIRECT wants memory that begins with a page.
        buffer = mmap.mmap(-1, _DISK_READ_BYTES)
        while not count.stopped.is_set():
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            count.each[number] += _read(piece[0], piece[1], buffer, direct)

    return _timed(work, count, seconds) | {"direct": direct.is_set()}


def _read(path: str, start: int, buffer: mmap.mmap, direct: threading.Event) -> int:
    for flag in (getattr(os, "O_DIRECT", 0), 0):
        try:
            descriptor = os.open(path, os.O_RDONLY | flag)
            try:
                got = os.preadv(descriptor, [buffer], start)
            finally:
                os.close(descriptor)
        except OSError:
            # tmpfs and some others do not know it.
            continue
        if flag:
            direct.set()
        return got
    return 0


def _timed(work: Callable[[int], None], count: _Count, seconds: float) -> dict[str, float]:
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(count.each))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    middle: tuple[float, int, float] | None = None
    while time.monotonic() < began + seconds and any(thread.is_alive() for thread in threads):
        time.sleep(0.002)
        if middle is None and time.monotonic() > began + _RAMP_SHARE * seconds:
            middle = time.monotonic(), count.bytes, time.process_time()
    stop, bytes_, spent = time.monotonic(), count.bytes, time.process_time()
    count.stopped.set()
    # What was over before the ramp was is taken as a whole.
    since, before, used = middle or (began, 0, 0.0)
    moved = max(bytes_ - before, 1)
    return {"bytes_per_second": moved / max(stop - since, 1e-9), "cpu_seconds_per_byte": (spent - used) / moved}


def _ranges(links: list[dict[str, Any]], number: int, connections: int) -> Any:
    """This connection's ranges, for ever: each begins where the one before it, of another connection, ends."""
    every = [
        (link, start, min(start + _RANGE_BYTES, link["size"]))
        for link in links
        for start in range(0, link["size"], _RANGE_BYTES)
    ]
    place = number * max(1, len(every) // connections)
    while True:
        yield every[place % len(every)]
        place += 1


def _connection(split: Any) -> http.client.HTTPConnection:
    if split.scheme != "https":
        return http.client.HTTPConnection(split.hostname, split.port, timeout=_TIMEOUT_SECONDS)
    context = ssl.create_default_context()
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        context.load_verify_locations(bundle)
    return http.client.HTTPSConnection(split.hostname, split.port, timeout=_TIMEOUT_SECONDS, context=context)


if __name__ == "__main__":
    main()
    # Threads that still wait for a server are not waited for.
    sys.stdout.flush()
    os._exit(0)
