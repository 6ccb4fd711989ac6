"""Loads of files on this machine, read in place, while those files are damaged, replaced and removed."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.cache.cache import Cache
from coldstream.engine import attach
from coldstream.errors import ColdstreamError
from coldstream.loading import load_plan
from coldstream.loading.streaming import Load
from coldstream.settings import load_settings
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.faults.test_engine import manifest_of
from tests.servers.ranged import RangedServer
from tests.unit.engine.test_mapped_files import until

LIMITS = {"COLDSTREAM_CACHE_LIMIT": "20GB", "COLDSTREAM_RETRY_SECONDS": "10"}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=3, layers=4, rows=1024, columns=1024)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


class Warm:
    """A model in a bucket with a complete copy on this machine."""

    def __init__(self, server: RangedServer, cache: Path) -> None:
        self.server, self.cache = server, cache
        self.uri = f"{server.url}/m"
        self.options: dict[str, Any] = {"cache": cache, "settings": load_settings(LIMITS, environ={})}
        with self.stream() as loading:
            for _ in loading:
                pass
            assert loading.wait_for_cache() == "written"
        # The process that wrote the copy syncs it once more; until then no other one can repair it.
        until(lambda: not Cache(cache).entries()[0].writing)
        self.copies = sorted(cache.glob("models/*/*/*.safetensors"))

    def stream(self, **more: Any) -> Load:
        return coldstream.stream(self.uri, framework="buffer", **self.options | more)

    def damage(self, number: int) -> None:
        with open(self.copies[number], "r+b") as file:
            file.seek(self.copies[number].stat().st_size // 2)
            file.write(b"\x00damage\x00")


@pytest.fixture
def warm(files: dict[str, bytes], tmp_path: Path) -> Iterator[Warm]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        etags = {path: server.etags[f"/m/{path}"].strip('"') for path in files}
        server.put("/m/coldstream.json", manifest_of(files, etags))
        yield Warm(server, tmp_path / "cache")


def collected(loading: Any) -> dict[str, bytes]:
    return {name: raw_bytes(tensor) for name, tensor in loading}


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(attach.subprocess, "Popen", refuse)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("verify", [True, False])
def test_a_load_from_a_folder_starts_no_process(
    verify: bool, files: dict[str, bytes], expected: dict[str, bytes], tmp_path: Path
) -> None:
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    seen: list[tuple[int, int]] = []
    with coldstream.stream(
        str(tmp_path), framework="buffer", verify=verify, on_progress=lambda *progress: seen.append(progress)
    ) as loading:
        assert collected(loading) == expected
    report = loading.report
    assert report is not None
    assert report.cache_bytes == report.bytes == loading.bytes
    assert report.received_bytes == report.memory_bytes == report.connections == 0
    assert report.cached == "off"
    assert seen[-1] == (report.bytes, report.bytes)
    assert loading.outcome is report


def test_a_complete_copy_is_read_in_place(warm: Warm, expected: dict[str, bytes], no_process: None) -> None:
    with warm.stream() as loading:
        assert collected(loading) == expected
    report = loading.report
    assert report is not None
    assert report.verified
    assert report.cached == "complete"
    assert report.received_bytes == report.corrupt == 0
    assert loading.wait_for_cache() == "complete"


@pytest.mark.parametrize("in_order", [True, False])
def test_a_damaged_chunk_comes_from_the_bucket_and_is_repaired(
    in_order: bool, warm: Warm, expected: dict[str, bytes]
) -> None:
    warm.damage(1)
    with warm.stream(in_order=in_order, memory=24 << 20) as loading:
        assert collected(loading) == expected
        loading.wait_for_cache()
    report = loading.report
    assert report is not None
    assert report.corrupt == 1
    assert 0 < report.received_bytes < report.bytes / 2
    assert report.verified
    # What was read in place behind the damaged extent, and again by the streamer, is counted once.
    assert report.bytes - report.received_bytes <= report.cache_bytes <= report.bytes
    with warm.stream() as loading:
        assert collected(loading) == expected
    assert loading.report is not None
    assert loading.report.corrupt == loading.report.received_bytes == 0


def test_a_damaged_chunk_of_a_folder_names_the_file(files: dict[str, bytes], tmp_path: Path) -> None:
    etags = dict.fromkeys(files, "-")
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    (tmp_path / "coldstream.json").write_bytes(manifest_of(files, etags))
    damaged = sorted(tmp_path.glob("*.safetensors"))[1]
    with open(damaged, "r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(b"\x00damage\x00")
    with pytest.raises(ColdstreamError, match=damaged.name), coldstream.stream(str(tmp_path)) as loading:
        for _ in loading:
            pass


def test_without_the_bucket_a_damaged_chunk_is_an_error(warm: Warm) -> None:
    warm.damage(1)
    warm.server.close()
    with pytest.raises(ColdstreamError, match=warm.copies[1].name), warm.stream() as loading:
        for _ in loading:
            pass


def test_a_copy_that_is_evicted_stays_valid_for_its_tensors(warm: Warm, expected: dict[str, bytes]) -> None:
    with warm.stream() as loading:
        tensors = dict(loading)
    shutil.rmtree(warm.cache)
    gc.collect()
    assert {name: raw_bytes(tensor) for name, tensor in tensors.items()} == expected


def test_a_file_that_is_removed_after_the_plan_is_fetched(
    warm: Warm, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_files(prepared: load_plan.PreparedLoad, options: Any) -> Any:
        warm.copies[1].unlink()
        return map_files(prepared, options)

    map_files = load_plan.PreparedLoad.map_files
    monkeypatch.setattr(load_plan.PreparedLoad, "map_files", without_files)
    with warm.stream() as loading:
        assert collected(loading) == expected
    assert loading.report is not None
    assert loading.report.received_bytes > 0


def test_a_file_that_is_cut_off_while_it_is_read_is_fetched(warm: Warm, expected: dict[str, bytes]) -> None:
    with warm.stream(memory=1) as loading:
        name, tensor = next(loading)
        found = {name: raw_bytes(tensor)}
        del tensor
        os.truncate(warm.copies[2], 4096)
        found |= collected(loading)
    assert found == expected
    assert loading.report is not None
    assert loading.report.received_bytes > 0


def test_what_is_written_to_a_tensor_stays_in_this_process(warm: Warm, expected: dict[str, bytes]) -> None:
    with warm.stream() as loading:
        for _, tensor in loading:
            tensor.data[:1] = bytes(len(tensor.data[:1]))
    with warm.stream() as loading:
        assert collected(loading) == expected
    assert loading.report is not None
    assert loading.report.corrupt == 0


@pytest.mark.parametrize(
    "code", ["for _, tensor in stream: tensor.data[:1] = bytes(len(tensor.data[:1]))\nkill()", "next(stream); kill()"]
)
def test_a_process_that_is_killed_leaves_the_copy_as_it_was(
    code: str, warm: Warm, expected: dict[str, bytes], no_process: Callable[[], None]
) -> None:
    script = (
        "import os, signal, sys, coldstream\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stream = coldstream.stream({warm.uri!r}, framework='buffer', cache=sys.argv[1])\n{code}\n"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", script, str(warm.cache)], os.environ)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    with warm.stream() as loading:
        assert collected(loading) == expected
