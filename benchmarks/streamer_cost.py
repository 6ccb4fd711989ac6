"""What the streamer and a consumer spend on a load besides receiving it: CPU seconds per GiB and per chunk.

    .venv/bin/python benchmarks/streamer_cost.py --gib 10 --connections 64
    .venv/bin/python benchmarks/streamer_cost.py --gib 10 --connections 272 --rate 12.5e9      a link of 100 Gbit/s
    .venv/bin/python benchmarks/streamer_cost.py --gib 10 --profile streamer.prof

The workers are real processes with real sockets and threads, but a fetch only waits as long as the chunk would take at
the stated rate, and touches no memory, so whatever is counted is the cost of deciding and of messages. The consumer
takes every extent and drops it at once. `extent` is the size of a tensor: large ones need fewer messages to consumers.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / "src")]

from coldstream.engine import messages, worker  # noqa: E402
from coldstream.engine.attach import Consumer  # noqa: E402
from coldstream.engine.streamer import Streamer  # noqa: E402
from coldstream.model.job import Catalog, CatalogFile, FileJob, JobOptions, Segment, pack  # noqa: E402
from coldstream.units import GIB, MIB  # noqa: E402


def simulate(seconds_per_byte: float, first_byte_seconds: float) -> None:
    """Replaces what workers do by waiting."""

    def fetch(_self: worker.Worker, _connection: int, request: messages.FetchRequest) -> messages.FetchResult:
        size = request.stop - request.start - request.skip
        time.sleep(first_byte_seconds + size * seconds_per_byte)
        return messages.FetchResult("done", request.chunk, size, first_byte_seconds, digest=request.digest)

    worker.Worker._fetch = fetch  # type: ignore[method-assign]


def job(total_bytes: int, extent_bytes: int, chunk_bytes: int) -> tuple[FileJob, Catalog]:
    """One file of equal tensors, each an extent."""
    stops = tuple(range(chunk_bytes, total_bytes + 1, chunk_bytes))
    each = extent_bytes // chunk_bytes
    runs = tuple((first, min(first + each, len(stops))) for first in range(0, len(stops), each))
    size = stops[-1]
    segment = Segment(stop=size, etag="1", url="http://127.0.0.1:1/")
    file = FileJob(path="model", segments=(segment,), stops=stops, digests=b"\1" * 16 * len(stops), extents=runs)
    extents = tuple((0, first * chunk_bytes, stop * chunk_bytes) for first, stop in runs)
    return file, Catalog((CatalogFile("model", size, b""),), extents)


def cpu_seconds() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_streamer(theirs: socket.socket, args: argparse.Namespace, owner_pid: int, result: str) -> None:
    """In a process of its own."""
    simulate(args.connections / args.rate, args.first_byte)
    streamer = Streamer(
        messages.Frames(theirs), owner_pid=owner_pid, workers=args.workers, connections=args.connections
    )
    before = cpu_seconds()
    profile = cProfile.Profile() if args.profile else None
    if profile:
        profile.enable()
    streamer.run()
    if profile:
        profile.disable()
        profile.dump_stats(args.profile)
    Path(result).write_text(str(cpu_seconds() - before))
    streamer.stop()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One load."""
    mine, theirs = socket.socketpair()
    owner_pid = os.getpid()
    with tempfile.NamedTemporaryFile() as result:
        pid = os.fork()
        if not pid:
            try:
                mine.close()
                run_streamer(theirs, args, owner_pid, result.name)
            finally:
                os._exit(0)
        theirs.close()
        file, catalog = job(int(args.gib * GIB), int(args.extent * MIB), int(args.chunk * MIB))
        frames = messages.Frames(mine)
        descriptor = os.memfd_create("catalog")
        os.write(descriptor, catalog.pack())
        frames.send(messages.SETTINGS, pack(JobOptions(memory_limit=int(args.memory * GIB), answer_seconds=0.06)))
        frames.send(messages.PLAN, pack([file]), (descriptor,))
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        frames.send(messages.CONSUMER, b"", (other.fileno(),))
        other.close()
        consumer = Consumer(own)
        began, before = time.monotonic(), cpu_seconds()
        for _ in consumer.extents():
            pass
        seconds, consumer_seconds = time.monotonic() - began, cpu_seconds() - before
        end: dict[str, float] = {}
        while not end and frames.receive():
            end = next((json.loads(payload) for letter, payload in frames.frames() if letter == messages.END), {})
        frames.send(messages.QUIT)
        os.waitpid(pid, 0)
        streamer_seconds = float(Path(result.name).read_text())
    chunks = len(file.stops)
    return {
        "seconds": seconds,
        "peak": end["connections_peak"],
        "streamer_s_per_gib": streamer_seconds / args.gib,
        "consumer_s_per_gib": consumer_seconds / args.gib,
        "streamer_us_per_chunk": 1e6 * streamer_seconds / chunks,
        "consumer_us_per_chunk": 1e6 * consumer_seconds / chunks,
        "streamer_core_share": streamer_seconds / seconds,
    }


def main() -> None:
    """Measures as often as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--extent", type=float, default=8.0, help="MiB of a tensor")
    parser.add_argument("--chunk", type=float, default=8.0, help="MiB of a chunk")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of the arena")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e9, help="bytes per second of all connections")
    parser.add_argument("--first-byte", type=float, default=0.0, help="seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", help="write the streamer's profile to this file")
    args = parser.parse_args()
    results = [measure(args) for _ in range(args.rounds)]
    for name in results[0]:
        values = sorted(result[name] for result in results)
        print(f"{name:24}{statistics.median(values):10.4f}   ({values[0]:.4f} to {values[-1]:.4f})")


if __name__ == "__main__":
    main()
