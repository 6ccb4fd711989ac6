"""The real engine, in its real processes, against a server that fails in every way that servers do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from coldstream.errors import (
    ColdstreamError,
    ConflictError,
    CredentialsError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.model.manifest import Chunks, FileEntry, Manifest, Provenance, StoredObject, serialize
from coldstream.settings import load_settings
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.servers.impostor import PORTAL
from tests.servers.ranged import RangedServer

DEADLINE_SECONDS = 60.0


def manifest_of(files: dict[str, bytes], etags: dict[str, str]) -> bytes:
    """A manifest such as an upload would have written."""
    import hashlib
    from datetime import datetime, timezone

    from coldstream.model.chunks import even_stops, tensor_stops
    from coldstream.model.header import parse_header

    entries = []
    for path, content in files.items():
        if path.endswith(".safetensors"):
            stops = tensor_stops(parse_header(content, file_bytes=len(content), path=path))
        else:
            stops = even_stops(0, len(content))
        hashes = "".join(
            xxhash.xxh3_128_hexdigest(content[start:stop]) for start, stop in zip([0, *stops[:-1]], stops, strict=True)
        )
        entries.append(
            FileEntry(
                path=path,
                size=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                objects=(StoredObject(key=path, size=len(content), etag=etags[path]),),
                chunks=Chunks(stops=tuple(stops), xxh3_128=hashes),
            )
        )
    return serialize(
        Manifest(
            name="m",
            source=Provenance(kind="folder"),
            created=datetime(2026, 1, 1, tzinfo=timezone.utc),
            tool="test",
            files=tuple(entries),
        )
    )


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=3, layers=6, rows=1024, columns=1024)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}, seed=7) as server:
        etags = {path: server.etags[f"/m/{path}"].strip('"') for path in files}
        server.put("/m/coldstream.json", manifest_of(files, etags))
        yield server


def load(server: RangedServer, **options: object) -> Load:
    settings = load_settings({"COLDSTREAM_RETRY_SECONDS": "20"}, environ={})
    options = {"framework": "buffer", "cache": False, "settings": settings, "connections": 8} | options
    return Load(f"{server.url}/m", Options(**options))  # type: ignore[arg-type]


def bytes_of(loading: Load) -> dict[str, bytes]:
    with loading:
        return {name: raw_bytes(tensor) for name, tensor in loading}


def test_clean(server: RangedServer, expected: dict[str, bytes]) -> None:
    loading = load(server)
    assert bytes_of(loading) == expected
    report = loading.report
    assert report is not None
    assert report.verified
    # On a busy machine a connection may be taken for a slow one; in the simulation's virtual time none is.
    assert report.retries == report.corrupt == 0
    assert report.received_bytes == report.bytes


FAULTS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "503 now and then": [("status", {"status": 503, "probability": 0.2, "times": None})],
    "429 with Retry-After": [("status", {"status": 429, "retry_after": "0", "times": 5})],
    "500": [("status", {"status": 500, "times": 4})],
    "reset in the middle": [("reset", {"at": 300_000, "probability": 0.2, "times": None})],
    "cut in the middle": [("cut", {"at": 300_000, "probability": 0.2, "times": None})],
    "closed before it answers": [("unanswered", {"times": 5})],
    "slow ranges": [("slow", {"bytes_per_second": 200_000.0, "times": 3, "first": 8})],
    "a stall": [("stall", {"at": 100_000, "times": 2, "first": 8})],
    "a slow first byte": [("late", {"seconds": 0.5, "times": 3})],
    "short body": [("short", {"by": 100, "times": 1})],
    "long body": [("long", {"by": 100, "times": 1})],
    "another range": [("wrong-range", {"by": 64, "times": 1})],
    "200 with the range": [("ok-range", {"times": None})],
    "the whole once": [("whole", {"times": 1})],
    "gzip once": [("gzip", {"times": 1})],
    "chunked": [("chunked", {"by": 70_001, "times": None})],
    "a flipped bit": [("flip", {"at": 4321, "times": 2})],
    "Connection: close": [("close", {"times": None})],
    "garbage": [("garbage", {"times": 3})],
    "endless headers": [("endless", {"times": 1})],
    "a captive portal's page": [("page", {"value": PORTAL, "times": 8})],
    "a page with an ETag of its own": [("page", {"value": PORTAL, "times": 4}), ("etag", {"value": '"a"', "times": 4})],
    "an empty page": [("page", {"value": "", "times": 8})],
    "a redirect to a login": [("redirect", {"location": "http://127.0.0.1:1/login", "times": 8})],
    "everything": [
        ("status", {"status": 503, "probability": 0.05, "times": None}),
        ("reset", {"at": 500_000, "probability": 0.05, "times": None}),
        ("cut", {"at": 10, "probability": 0.05, "times": None}),
        ("flip", {"at": 99, "probability": 0.02, "times": None}),
    ],
}


@pytest.mark.parametrize("name", FAULTS)
def test_survives(name: str, server: RangedServer, expected: dict[str, bytes]) -> None:
    loading = load(server)
    iterator = iter(loading)
    # The headers are read by another part, which has tests of its own: the faults begin behind them.
    first_name, first = next(iterator)
    found = {first_name: raw_bytes(first)}
    del first
    for kind, options in FAULTS[name]:
        server.add(kind, r"safetensors", **options)  # type: ignore[arg-type]
    with loading:
        found |= {tensor_name: raw_bytes(tensor) for tensor_name, tensor in iterator}
    assert found.keys() == expected.keys()
    assert found == expected
    assert loading.report is not None
    assert loading.report.verified


def failing(server: RangedServer, kind: str, **options: object) -> ColdstreamError:
    """The error of a load whose server fails in this way from the second tensor on."""
    with load(server, memory=24 << 20) as loading:
        next(loading)
        server.add(kind, r"safetensors", **options)  # type: ignore[arg-type]
        with pytest.raises(ColdstreamError) as caught:
            list(loading)
    assert caught.value.exit_code
    return caught.value


def test_a_wrong_bit_that_stays_names_file_and_range(server: RangedServer) -> None:
    error = failing(server, "flip", at=5, times=None)
    assert isinstance(error, IntegrityError)
    assert ".safetensors: bytes " in error.message
    assert "the manifest says" in error.message


def test_a_replaced_model_ends_the_load(server: RangedServer) -> None:
    error = failing(server, "etag", value='"another"', times=None)
    assert isinstance(error, ConflictError)
    assert "replaced while loading" in error.message


def test_a_removed_object(server: RangedServer) -> None:
    assert isinstance(failing(server, "status", status=404, times=None), NotFoundError)


def test_refused_for_good(server: RangedServer) -> None:
    assert isinstance(failing(server, "status", status=403, times=None), CredentialsError)


def test_ranges_ignored_for_good(server: RangedServer) -> None:
    assert isinstance(failing(server, "whole", times=None), IntegrityError)


def test_a_page_for_good_is_named(server: RangedServer) -> None:
    loading = load(server, memory=24 << 20, settings=load_settings({"COLDSTREAM_RETRY_SECONDS": "1"}, environ={}))
    with loading:
        next(loading)
        server.add("page", r"safetensors", value=PORTAL, times=None)
        with pytest.raises(UnavailableError, match=r'200 text/html "Sign in to Hotel Wi-Fi"'):
            list(loading)


def test_down_for_good(server: RangedServer) -> None:
    loading = load(
        server,
        memory=24 << 20,
        settings=load_settings({"COLDSTREAM_RETRY_SECONDS": "1.5"}, environ={}),
    )
    with loading:
        next(loading)
        server.add("status", r"safetensors", status=503, times=None)
        with pytest.raises(UnavailableError):
            list(loading)


def test_leaving_early_on_a_slow_server_ends_every_process(server: RangedServer) -> None:
    loading = load(server, memory=24 << 20)
    name, tensor = next(loading)
    server.add("stall", r"safetensors", at=1000, times=None)
    processes = engine_processes(loading)
    assert len(processes) >= 2
    kept = raw_bytes(tensor)
    loading.close()
    wait_until_gone(processes)
    assert raw_bytes(tensor) == kept, "a tensor outlives its load"
    assert name


def test_memory_and_workers_are_given_up_before_the_load_ends(server: RangedServer, expected: dict[str, bytes]) -> None:
    largest = max(map(len, expected.values()))
    loading = load(server)
    with loading:
        for number, _tensor in enumerate(loading, 1):
            if number == len(expected):
                deadline = time.monotonic() + DEADLINE_SECONDS
                while arena_bytes(loading) > largest + (1 << 20) or engine_processes(loading)[1:]:
                    assert time.monotonic() < deadline, f"{arena_bytes(loading)} bytes, {engine_processes(loading)}"
                    time.sleep(0.01)


def test_a_killed_worker_is_replaced(server: RangedServer, expected: dict[str, bytes]) -> None:
    server.bytes_per_second = 20e6
    loading = load(server, workers=2, memory=32 << 20)
    found = {}
    with loading:
        for number, (name, tensor) in enumerate(loading):
            found[name] = raw_bytes(tensor)
            if number in {1, 5}:
                workers = [pid for pid in engine_processes(loading) if pid != streamer_of(loading)]
                os.kill(workers[number % len(workers)], signal.SIGKILL)
    assert found == expected


def test_a_killed_streamer_is_one_clear_error(server: RangedServer) -> None:
    server.bytes_per_second = 5e6
    loading = load(server, memory=24 << 20)
    next(loading)
    processes = engine_processes(loading)
    os.kill(streamer_of(loading), signal.SIGKILL)
    with pytest.raises(ColdstreamError, match=r"was killed \(SIGKILL\)"):
        list(loading)
    loading.close()
    wait_until_gone(processes)


def test_expired_links_are_renewed(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    served = {f"/m/{path}": content for path, content in files.items()}
    with RangedServer(served, query_token="one") as server:
        options = Options(framework="buffer", cache=False, memory=24 << 20, settings=load_settings({}, environ={}))
        loading = Load(f"{server.url}/m?token=one", options)
        found = {}
        renewed = 0
        with loading:
            for name, tensor in loading:
                found[name] = raw_bytes(tensor)
                if len(found) == 3:
                    # The web has one link for ever; a store would sign a new one.
                    server.query_token = "two"
                    assert loading._prepared is not None
                    origin = loading._prepared.origin
                    assert origin is not None

                    def renew(path: str, segment: int = 0, server: RangedServer = server) -> tuple[str, tuple[()]]:
                        nonlocal renewed
                        renewed += 1
                        return f"{server.url}/m/{path}?token=two", ()

                    origin.renew = renew  # type: ignore[method-assign]
        assert found == expected
        assert renewed
        assert loading.report is not None
        assert loading.report.renewals == renewed


def streamer_of(loading: Load) -> int:
    assert loading._owner is not None
    return loading._owner.pid


def arena_bytes(loading: Load) -> int:
    """The memory that the arena takes."""
    files = Path(f"/proc/{streamer_of(loading)}/fd").iterdir()
    return next(file.stat().st_blocks * 512 for file in files if "coldstream-arena" in os.readlink(file))


def engine_processes(loading: Load) -> list[int]:
    """The streamer and its children."""
    streamer = streamer_of(loading)
    text = Path(f"/proc/{streamer}/task/{streamer}/children").read_text()
    return [streamer, *map(int, text.split())]


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    for pid in processes:
        while _runs(pid):
            assert time.monotonic() < deadline, f"{pid} still runs"
            time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
