"""Measures plain reads: no checks, no tensors, one reused buffer for each thread.

Reads {"links": [{"url", "headers", "size"}], "connections", "seconds"} or {"files": [path], "threads", "seconds"} from
standard input, because links may be signed. Prints the rates, measured after a ramp, and for files whether the reads
bypassed the page cache.
"""

from __future__ import annotations

import http.client
import itertools
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from coldstream.net.tls import ssl_context
from coldstream.units import MIB

_RANGE_BYTES = 8 * MIB
_READ_BYTES = MIB
_DISK_READ_BYTES = 4 * MIB
_RAMP_SHARE = 0.3
_TIMEOUT_SECONDS = 15.0
# Consecutive failures after which a thread gives up.
_FAILURES_MAX = 3


def main() -> None:
    """Runs one request."""
    request = json.load(sys.stdin)
    print(json.dumps(read_links(**request) if "links" in request else read_files(**request)))


def read_links(*, links: list[dict[str, Any]], connections: int, seconds: float) -> dict[str, float]:
    """Reads ranges of all files over this many connections."""
    counts, stopped = [0] * connections, threading.Event()
    ranges = [
        (link, start, min(start + _RANGE_BYTES, link["size"]))
        for link in links
        for start in range(0, link["size"], _RANGE_BYTES)
    ]

    def work(number: int) -> None:
        view = memoryview(bytearray(_READ_BYTES))
        failures = 0
        connection: http.client.HTTPConnection | None = None
        # The connections begin at evenly spaced places.
        place = number * max(1, len(ranges) // connections) % len(ranges)
        for link, start, stop in itertools.cycle(ranges[place:] + ranges[:place]):
            if stopped.is_set() or failures >= _FAILURES_MAX:
                return
            url = urlsplit(link["url"])
            try:
                # All files of a model are on one server.
                connection = connection or _connect(url)
                path = f"{url.path}?{url.query}" if url.query else url.path
                headers = {**dict(link["headers"]), "Range": f"bytes={start}-{stop - 1}"}
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                if response.status not in {200, 206}:
                    raise http.client.HTTPException(f"HTTP {response.status}")
                while not stopped.is_set() and (count := response.readinto(view)):
                    counts[number] += count
                failures = 0
            except (OSError, http.client.HTTPException):
                failures += 1
                connection = None

    return _measure(work, counts, stopped, seconds)


def _connect(url: SplitResult) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme != "https":
        return http.client.HTTPConnection(host, url.port, timeout=_TIMEOUT_SECONDS)
    return http.client.HTTPSConnection(host, url.port, timeout=_TIMEOUT_SECONDS, context=ssl_context())


def read_files(*, files: list[str], threads: int, seconds: float) -> dict[str, float]:
    """Reads files from the start, bypassing the page cache where the file system allows it."""
    counts, stopped = [0] * threads, threading.Event()
    direct = threading.Event()
    lock = threading.Lock()
    blocks = ((path, start) for path in files for start in range(0, os.path.getsize(path), _DISK_READ_BYTES))

    def work(number: int) -> None:
        # O_DIRECT needs page-aligned memory.
        buffer = mmap.mmap(-1, _DISK_READ_BYTES)
        while not stopped.is_set():
            with lock:
                block = next(blocks, None)
            if block is None:
                return
            counts[number] += _read_block(*block, buffer, direct)

    return _measure(work, counts, stopped, seconds) | {"direct": direct.is_set()}


def _read_block(path: str, start: int, buffer: mmap.mmap, direct: threading.Event) -> int:
    for flag in (getattr(os, "O_DIRECT", 0), 0):
        try:
            descriptor = os.open(path, os.O_RDONLY | flag)
            try:
                count = os.preadv(descriptor, [buffer], start)
            finally:
                os.close(descriptor)
        except OSError:
            # tmpfs, among others, has no direct reads.
            continue
        if flag:
            direct.set()
        return count
    return 0


def _measure(
    work: Callable[[int], None], counts: list[int], stopped: threading.Event, seconds: float
) -> dict[str, float]:
    # Each thread adds to its own element of the counts, so that none waits for another.
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(counts))]
    # Reads that finish before the ramp does are counted from the start.
    since, before, used = began, _, _ = time.monotonic(), 0, 0.0
    for thread in threads:
        thread.start()
    ramping = True
    while time.monotonic() < began + seconds and any(thread.is_alive() for thread in threads):
        time.sleep(0.002)
        if ramping and time.monotonic() > began + _RAMP_SHARE * seconds:
            ramping = False
            since, before, used = time.monotonic(), sum(counts), time.process_time()
    moved, took, spent = sum(counts) - before or 1, time.monotonic() - since, time.process_time() - used
    stopped.set()
    return {"bytes_per_second": moved / max(took, 1e-9), "cpu_seconds_per_byte": spent / moved}


if __name__ == "__main__":
    main()
    # Do not wait for threads that are still blocked on a server.
    sys.stdout.flush()
    os._exit(0)
