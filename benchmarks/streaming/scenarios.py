"""The scenarios: each returns rows of samples, or figures of its own, as JSON."""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.servers.nginx import nginx

from coldstream.model.header import header_stop, parse_header
from coldstream.operate.bench.contestant import Contestant
from coldstream.operate.bench.programs.mount import unmount
from coldstream.operate.bench.runner import RunFailed, interleave, run
from streaming.contestants import RUNAI_CLIENTS, Contestants, Served
from streaming.link import Link, capped_link, metered, rise_seconds
from streaming.model import GIB, LISTING, Model, llama_tensors, make_model, small_tensors

BUCKET = "bench"
OTHERS = ("obstore", "boto3", "s3fs", "huggingface")
LINK_BITS_PER_SECOND = 5e9
CONNECTION_BYTES_PER_SECOND = 30_000_000
CAPPED_CONNECTIONS = 16
# The answer to ListObjectsV2, which a mount sends.
NGINX_LISTING = f"location = /{BUCKET} {{ default_type application/xml; try_files /{BUCKET}/{LISTING} =404; }}"
# What OpenSSL is told to do without, by bits of CPUID's leaf 7 (EBX, then ECX): AVX-512, and with it VAES. The first
# kind is the processor as it is.
PROCESSORS = {
    "all instructions": {},
    "no AVX-512": {"OPENSSL_ia32cap": ":~0xd0230000"},
    "no AVX-512, no VAES": {"OPENSSL_ia32cap": ":~0x600d0230000"},
}
# As R2 is reported to be (median of small reads 50 to 100 ms, the slowest twentieth from 170 ms; 20 to 70 MB/s).
FAR_RATES = (20e6, 70e6)
FAR_SIGMA = 0.7
FAR_LINKS = {"5 Gbit/s": (5e9, 0.06), "8 Gbit/s": (8e9, 0.06), "5 Gbit/s, first byte 150 ms": (5e9, 0.15)}
FAR_IN_FLIGHT_MAX = 100
FAULTS = {"slow": 0.01, "busy": 0.05, "reset": 0.03}
MEMORY_LIMIT = 512 << 20
TINY_TENSORS, TINY_BYTES = 60_000, 16 << 10
SMALL_TENSORS, SMALL_BYTES = 100, 91_000_000
Sample = dict[str, Any]
_SERVERS = Path(__file__).resolve().parent / "servers.py"


@dataclass
class Bench:
    """The options and what is made once: the models and the rows' maker."""

    root: Path
    contestants: Contestants
    gib: float
    rounds: int
    search_rounds: int
    only_rows: Sequence[str] = ()
    far_links: int = len(FAR_LINKS)
    _models: dict[str, Model] = field(default_factory=dict)

    def model(self, name: str, make: Callable[[], Model]) -> Model:
        """A model, made at its first use."""
        if name not in self._models:
            say(f"making model {name}")
            self._models[name] = make()
        return self._models[name]

    def llama(self) -> Model:
        """The model of most scenarios."""
        return self.model("llama", lambda: self.make("llama", self.gib))

    def small(self) -> Model:
        """A quarter of a GiB, to check that rows give the right bytes."""
        return self.model("small", lambda: self.make("small", 0.25))

    def make(self, name: str, gib: float) -> Model:
        """A Llama-like model in four shards."""
        return make_model(self.root, f"{BUCKET}/{name}", llama_tensors(int(gib * GIB)), shards=4)

    def wants(self, name: str) -> bool:
        """Whether a row was selected."""
        return not self.only_rows or any(part in name.lower() for part in self.only_rows)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def run_row(
    row: Contestant, *, size: int | None = None, round_number: int | None = None, **options: Any
) -> Sample | None:
    """Runs a row once, and says how it went; None if it failed.

    Args:
        row: Which one.
        size: The bytes that it must have received, at least; None for any.
        round_number: Of a timed round.
        options: Of `coldstream.operate.bench.runner.run`.
    """
    label = f"round {round_number}  {row.name:<18}" if round_number else row.name
    try:
        done = run(row.command, row.environ, **options)
        if size is not None and done.result.get("bytes", 0) < size:
            raise RunFailed(f"received {done.result.get('bytes')} of {size} bytes")
    except RunFailed as exc:
        say(f"  {label}: {exc}")
        return None
    finally:
        for folder in row.emptied:
            unmount(folder)
            shutil.rmtree(folder, ignore_errors=True)
    result = done.result
    # The other loaders' imports, above all torch, are not charged to them. `coldstream load` reports none: all of it
    # counts.
    seconds = done.whole_seconds - result.get("import_seconds", 0.0)
    cpu_seconds = done.whole_cpu_seconds - result.get("import_cpu_seconds", 0.0)
    if round_number and size:
        say(
            f"  {label} {seconds:7.2f} s  {cpu_seconds / size * GIB:5.2f} CPU-s/GiB  {size / seconds / GIB:5.2f} GiB/s"
            f"  {done.memory_bytes / (1 << 20):6.0f} MiB"
        )
    more = {name: done.measured[name] for name in ("settled_seconds", "user_seconds")}
    return {**done.document(), "seconds": seconds, "cpu_seconds": cpu_seconds, "result": {**result, **more}}


def play_rounds(
    bench: Bench, rows: Sequence[Contestant], *, size: int, rounds: int, **options: Any
) -> dict[str, list[Sample | None]]:
    """Runs every selected row once a round; None where a row failed."""
    selected = {row.name: row for row in rows if bench.wants(row.name)}
    return interleave(
        selected, rounds, 0, lambda name, number: run_row(selected[name], size=size, round_number=number, **options)
    )


@contextmanager
def served_by_nginx(model: Model, *, tls: bool, **options: Any) -> Iterator[Served]:
    """A model behind nginx, which can be mounted; over TLS every client gets AES-128-GCM."""
    with nginx(model.root, tls=tls, aes_128=True, extra=NGINX_LISTING, **options) as server:
        yield Served(server.tls_url or server.url, server.authority, model)


def throughput(bench: Bench, *, tls: bool) -> dict[str, Any]:
    """All rows against nginx on loopback."""
    model, make = bench.llama(), bench.contestants
    search: dict[str, list[Sample | None]] = {}
    with served_by_nginx(model, tls=tls) as served:
        clients: list[int] = []
        if bench.wants("run:ai"):
            rows = [make.runai(served, count) for count in RUNAI_CLIENTS]
            search = play_rounds(bench, rows, size=_most(model), rounds=bench.search_rounds)
            clients = sorted({best_clients(search, "cpu_seconds"), best_clients(search, "seconds")})
        rows = [make.coldstream(served), make.floor(served), make.runai(served, None)]
        rows += [make.runai(served, count) for count in clients]
        rows += [make.other(name, served) for name in OTHERS]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    return {"bytes": model.size, "rows": found, "search": search, "runai_best_clients": clients}


def best_clients(search: dict[str, list[Sample | None]], figure: str) -> int:
    """The number of clients with the lowest figure in the search rounds."""
    lowest: dict[int, float] = {}
    for count, runs in zip(RUNAI_CLIENTS, search.values(), strict=True):
        values = [run[figure] for run in runs if run is not None]
        if values:
            lowest[count] = min(values)
    return min(lowest, key=lambda count: lowest[count])


@contextmanager
def served_with_sendfile(
    model: Model,
    *,
    faults: dict[str, float] | None = None,
    rate: float = 0.0,
    far: dict[str, Any] | None = None,
    link: Link | None = None,
) -> Iterator[tuple[Served, dict[str, int]]]:
    """A model behind the sendfile server; its counts of answers are filled in when the context ends."""
    counts: dict[str, int] = {}
    host = link.host if link else "127.0.0.1"
    command = [sys.executable, str(_SERVERS), "--root", str(model.root), "--faults", json.dumps(faults or {})]
    command += ["--rate", str(rate), "--host", host]
    if far:
        command += ["--far", json.dumps(far), "--workers", "1"]
    with link.server_side() if link else nullcontext():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        port = int(process.stdout.readline())
        try:
            yield Served(f"http://{host}:{port}", None, model), counts
        finally:
            process.stdin.close()
            counts.update(json.loads(process.stdout.readline() or "{}"))


def processors(bench: Bench) -> dict[str, Any]:
    """TLS with the instructions of older processors: OpenSSL and AWS-LC do without those that a variable masks."""
    model, make = bench.llama(), bench.contestants
    with served_by_nginx(model, tls=True) as served:
        rows = [make.coldstream(served), make.floor(served), make.runai(served, 1)]
        rows = [
            replace(row, name=f"{row.name}, {kind}", environ={**row.environ, **environ})
            for kind, environ in PROCESSORS.items()
            for row in rows
        ]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    return {"bytes": model.size, "rows": found}


def link(bench: Bench) -> dict[str, Any]:
    """Coldstream and the C loop through a link of 5 Gbit/s."""
    model, make = bench.llama(), bench.contestants
    with ExitStack() as stack:
        capped = stack.enter_context(capped_link(LINK_BITS_PER_SECOND))
        with capped.server_side():
            server = stack.enter_context(nginx(model.root, host=capped.host, extra=NGINX_LISTING))
        served = Served(server.url, None, model)
        rows = [make.coldstream(served), make.floor(served, threads=8), make.runai(served, None)]
        rows += [make.mounted(served, "off"), make.mounted(served, "full")]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds, prefix=capped.enter)
        allowed = capped.payload_bytes_per_second
    return {"bytes": model.size, "rows": found, "allowed_bytes_per_second": allowed}


def far(bench: Bench) -> dict[str, Any]:
    """Links to a bucket as R2 is reported to be, and one that refuses more than 100 requests at a time."""
    model, make = bench.llama(), bench.contestants
    found: dict[str, Any] = {}
    for name, (bits_per_second, first_byte_seconds) in list(FAR_LINKS.items())[: bench.far_links]:
        options: dict[str, Any] = {"first_byte": [first_byte_seconds, FAR_SIGMA], "rates": FAR_RATES}
        with ExitStack() as stack:
            capped = stack.enter_context(capped_link(bits_per_second))
            served, _ = stack.enter_context(served_with_sendfile(model, far=options, link=capped))
            refusing = {**options, "in_flight_max": FAR_IN_FLIGHT_MAX}
            served_refusing, counts = stack.enter_context(served_with_sendfile(model, far=refusing, link=capped))
            rows = [
                make.coldstream(served, uri=served.bucket_uri),
                make.coldstream(
                    served_refusing,
                    "--connections",
                    "256",
                    name="coldstream, refused above 100",
                    uri=served.bucket_uri,
                ),
                make.floor(served, threads=64),
                make.runai(served, None),
                make.runai(served, 16),
                # Only once, on the first link: it reads with one connection, whatever the link.
                *([] if found else [make.mounted(served, "full")]),
            ]
            selected = {row.name: row for row in rows if bench.wants(row.name)}

            def attempt(name: str, number: int, rows: dict[str, Contestant] = selected, link: Link = capped) -> Any:
                with metered(link) as samples:
                    done = run_row(rows[name], size=_most(model), round_number=number, prefix=link.enter)
                return done and {**done, "rise_seconds": rise_seconds(samples)}

            timed = interleave(selected, bench.rounds, 0, attempt)
            allowed = capped.payload_bytes_per_second
        found[name] = {"bytes": model.size, "rows": timed, "allowed_bytes_per_second": allowed, "answers": counts}
    return {"links": found}


def connections(bench: Bench) -> dict[str, Any]:
    """Sixteen connections of 30 MB/s each.

    nginx waits after each turn for as long as the turn's bytes should have taken, in whole milliseconds: turns of
    300,000 bytes are 10 ms exactly.
    """
    model, make = bench.llama(), bench.contestants
    count = CAPPED_CONNECTIONS
    options = {"limit_rate": CONNECTION_BYTES_PER_SECOND, "send_bytes": 300_000}
    with served_by_nginx(model, tls=False, **options) as served:
        rows = [
            make.coldstream(served, "--connections", str(count)),
            make.floor(served, threads=count),
            make.runai(served, count),
            # Without a cache, which reads the same bytes often, it would take minutes for each GiB.
            make.mounted(served, "full"),
        ]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    return {"bytes": model.size, "rows": found, "allowed_bytes_per_second": float(count * CONNECTION_BYTES_PER_SECOND)}


def faults(bench: Bench) -> dict[str, Any]:
    """Coldstream against a server that is clean, slow, busy or resets, and the same with every tensor's hash."""
    model, make = bench.llama(), bench.contestants
    small = bench.small()
    truth = tensor_hashes(small)
    right: dict[str, bool | None] = {}
    counts: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        rows = []
        for kind in ("clean", *FAULTS):
            share = {kind: FAULTS[kind]} if kind in FAULTS else {}
            served, counts[kind] = stack.enter_context(served_with_sendfile(model, faults=share))
            rows.append(make.coldstream(served, name=f"coldstream, {kind}"))
            others = [make.runai(served, None)]
            if kind in {"busy", "reset"}:
                others.append(make.runai(served, None, retry_seconds=60))
            rows += [replace(row, name=f"{row.name}, {kind}") for row in others]
            # Ten times the share, since the small model has few ranges.
            harder = {name: 10 * value for name, value in share.items()}
            with served_with_sendfile(small, faults=harder) as (served_small, _):
                right[kind] = bench_hashes(make.script(served_small, "drain", verify=True), truth)
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    return {"bytes": model.size, "rows": found, "right_bytes": right, "answers": counts}


def first(bench: Bench) -> dict[str, Any]:
    """The first tensor after the call, in a process that has imported the library."""
    model, make = bench.llama(), bench.contestants
    figures: dict[str, list[float]] = {}
    for tls in (False, True):
        with served_by_nginx(model, tls=tls) as served:
            row = make.script(served, "first", repeats=max(5, bench.rounds))
            sample = run_row(row)
            figures["TLS" if tls else "HTTP"] = sample["result"]["first_seconds"] if sample else []
    return {"seconds": figures}


def small(bench: Bench) -> dict[str, Any]:
    """A model of 91 MB in processes that are warm: what a load costs beside its bytes."""
    tensors = small_tensors(SMALL_TENSORS, SMALL_BYTES // SMALL_TENSORS)
    model = bench.model("embedding", lambda: make_model(bench.root, f"{BUCKET}/embedding", tensors, shards=1))
    make, repeats = bench.contestants, max(5, bench.rounds)
    with served_by_nginx(model, tls=False) as served:
        rows = [make.repeated(served, "coldstream", repeats=repeats)]
        rows += [make.repeated(served, "runai", repeats=repeats, clients=clients) for clients in (None, 1, 4)]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    seconds = {
        name: [value for run in runs if run for value in run["result"]["repeated_seconds"]]
        for name, runs in found.items()
    }
    return {"bytes": model.size, "seconds": seconds}


def memory(bench: Bench) -> dict[str, Any]:
    """The proportional sets of the consumer and all engine processes, against a limit of 512 MiB."""
    model, make = bench.llama(), bench.contestants
    found: dict[str, list[float]] = {"HTTP": [], "TLS": []}
    for tls in (False, True):
        with served_by_nginx(model, tls=tls) as served:
            row = make.script(served, "drain", stream={"memory": MEMORY_LIMIT})
            for _ in range(bench.rounds):
                sample = run_row(row, size=_most(model), pss=True, interval_seconds=0.1)
                if sample:
                    found["TLS" if tls else "HTTP"].append(float(sample["memory_bytes"]))
    return {"limit_bytes": MEMORY_LIMIT, "peak_bytes": found}


def warm(bench: Bench) -> dict[str, Any]:
    """A load from the local cache with its pages in memory, against safetensors' mmap and a copy; both in process."""
    model, make = bench.llama(), bench.contestants
    folder = bench.root / "cache"
    environ = {"COLDSTREAM_CACHE_DIR": str(folder)}
    with served_by_nginx(model, tls=False) as served:
        row = make.script(served, "drain", environ=environ, stream={"cache": True})
        # The first fills the cache, behind the load and a little beyond its end.
        run_row(make.script(served, "fill", environ=environ, stream={"cache": True}), size=_most(model))
        rows = [row, make.mapped(served, reuse=True), make.mapped(served, reuse=False)]
        found = play_rounds(bench, rows, size=_most(model), rounds=bench.rounds)
    shutil.rmtree(folder, ignore_errors=True)
    # A load that asked the server after all was not warm.
    runs = found.get(row.name, [])
    found[row.name] = [run if run and not run["result"]["report"]["received_bytes"] else None for run in runs]
    return {"bytes": model.size, "rows": found}


def tiny(bench: Bench) -> dict[str, Any]:
    """60,000 tensors of 16 KiB, against the same bytes in a Llama's tensors."""
    gib = TINY_TENSORS * TINY_BYTES / GIB
    many = bench.model(
        "tiny",
        lambda: make_model(bench.root, f"{BUCKET}/tiny", small_tensors(TINY_TENSORS, TINY_BYTES), shards=4),
    )
    few = bench.model("few", lambda: bench.make("few", gib))
    with served_by_nginx(many, tls=False) as served:
        rows = [
            bench.contestants.coldstream(served, name="coldstream, 60,000 tensors"),
            bench.contestants.coldstream(replace(served, model=few), name="coldstream, few tensors"),
        ]
        found = play_rounds(bench, rows, size=min(_most(many), _most(few)), rounds=2 * bench.rounds)
    return {"bytes": many.size, "few_bytes": few.size, "tensors": TINY_TENSORS - few.tensors, "rows": found}


def leave(bench: Bench) -> dict[str, Any]:
    """Leaving after the first tensor on a server that gives each connection 1 MB/s."""
    model, make = bench.small(), bench.contestants
    found: dict[str, list[float]] = {"close_seconds": [], "gone_seconds": []}
    with served_with_sendfile(model, rate=1e6) as (served, _):
        for _ in range(bench.rounds):
            sample = run_row(make.script(served, "leave"))
            for name, values in found.items():
                if sample:
                    values.append(sample["result"][name])
    return found


def bench_hashes(row: Contestant, truth: dict[str, str]) -> bool | None:
    """Whether a row gave exactly these tensors; None where it failed."""
    sample = run_row(row)
    return sample and sample["result"]["tensors"] == truth


def tensor_hashes(model: Model) -> dict[str, str]:
    """SHA-256 of every tensor, read from the files by our own parser of headers."""
    hashes = {}
    for name, size in model.files:
        with (model.folder / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            head = memoryview(content[: header_stop(memoryview(content[:8]), file_bytes=size, path=name)])
            for tensor in parse_header(head, file_bytes=size, path=name).tensors:
                hashes[tensor.name] = hashlib.sha256(content[tensor.start : tensor.stop]).hexdigest()
    return hashes


def _most(model: Model) -> int:
    """What a row must have received at least: readers of tensors leave the headers out."""
    return model.size - (64 << 10) * len(model.files) - 256 * model.tensors


SCENARIOS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "http": lambda bench: throughput(bench, tls=False),
    "tls": lambda bench: throughput(bench, tls=True),
    "processors": processors,
    "link": link,
    "r2": far,
    "connections": connections,
    "faults": faults,
    "first": first,
    "small": small,
    "memory": memory,
    "warm": warm,
    "tiny": tiny,
    "leave": leave,
}
