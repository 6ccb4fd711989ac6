"""`coldstream load` and the library, over every kind of server and from the local cache."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

import coldstream
from coldstream.cache.cache import Cache
from coldstream.errors import ColdstreamError, UsageError
from coldstream.loading.options import Options
from coldstream.loading.streaming import Load
from coldstream.node.model_folder import model_folder
from coldstream.settings import load_settings
from tests.checkpoints import checkpoint_bytes, expected_tensors, raw_bytes, sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import sharded_model, write_model
from tests.servers.nginx import nginx
from tests.servers.ranged import RangedServer
from tests.servers.stores import Faults, S3Server, fault_proxy
from tests.unit.engine.test_mapped_files import until

NAME = "org/model"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=3, layers=4, rows=1024, columns=1024)


@pytest.fixture(scope="module")
def folder(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), files)


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return expected_tensors(tmp_path_factory.mktemp("expected"), files)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        yield server


@pytest.fixture
def before_rclone(rclone: S3Server) -> Iterator[tuple[S3Server, Faults]]:
    with fault_proxy(rclone) as proxy:
        yield proxy


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    settings = load_settings({"COLDSTREAM_CACHE_LIMIT": "20GB"}, environ={})
    return {"cache": tmp_path / "cache", "settings": settings} | more


def collected(loading: Any) -> dict[str, bytes]:
    return {name: raw_bytes(tensor) for name, tensor in loading}


@pytest.mark.parametrize("kind", ["rclone", "moto", "rclone without ETags", "folder"])
def test_uploaded_and_loaded_by_name(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, folder: Path, expected: dict[str, bytes]
) -> None:
    """coldstream upload FOLDER; coldstream load NAME, twice; the library"""
    if kind == "folder":
        command = Command(None, "", cwd=tmp_path)
        command.environ["COLDSTREAM_STORE"] = (tmp_path / "store").as_uri()
    else:
        server: S3Server = request.getfixturevalue(kind.removesuffix(" without ETags"))
        bucket = fresh_bucket(server)
        if kind == "rclone without ETags":
            server, faults = request.getfixturevalue("before_rclone")
            faults.drop_etag = True
        command = Command(server, bucket, cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    command.run("upload", str(folder), "--as", NAME)
    command.run("verify", NAME, "--deep")
    size = sum(map(len, expected.values()))
    first = command.json("load", NAME)
    assert first["bytes"] == size
    assert first["verified"] is True
    assert first["tensors"] == len(expected)
    second = command.json("load", NAME)
    assert second["cache_bytes"] == size
    assert second["received_bytes"] == 0
    if kind != "folder":
        assert first["received_bytes"] == size
        assert first["cached"] == "written"
        assert second["cached"] == "complete"
    settings = load_settings({}, environ=command.environ)
    with Load(NAME, Options(settings=settings, cache=False)) as loading:
        assert collected(loading) == expected
    text, err = command.run("load", NAME, "--no-cache")
    assert "verified" in text
    assert "limited" in text or "too short" in text
    assert not err
    if kind != "folder":
        uri = f"s3://{command.environ['R2_BUCKET']}/{NAME}"
        assert command.json("load", uri, "--no-cache")["received_bytes"] == size


def test_tensors_are_torch_s_with_every_dtype(tmp_path: Path) -> None:
    spec = {
        dtype: (dtype, (3, 4))
        for dtype in (
            *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64"),
            *("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0", "F4"),
        )
    }
    content = checkpoint_bytes(spec, pad=3)
    # Any byte but 0 and 1 is no bool, and torch refuses to compare it.
    (tmp_path / "model.safetensors").write_bytes(content.replace(b"\xff", b"\x01"))
    from safetensors.torch import load_file

    reference = load_file(tmp_path / "model.safetensors")
    found = coldstream.load(str(tmp_path), settings=load_settings({}, environ={}))
    assert found.keys() == reference.keys()
    for name, tensor in reference.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert raw_bytes(found[name]) == raw_bytes(tensor), name


def test_without_torch_tensors_are_typed_buffers(folder: Path, expected: dict[str, bytes]) -> None:
    with coldstream.stream(str(folder), framework="buffer", settings=load_settings({}, environ={})) as loading:
        for name, buffer in loading:
            assert buffer.name == name
            assert buffer.dtype in {"BF16", "F32", "F16", "F8_E4M3"}
            assert bytes(buffer.data) == expected[name]


def test_in_order(folder: Path) -> None:
    with coldstream.stream(str(folder), in_order=True, settings=load_settings({}, environ={})) as loading:
        names = [name for name, _ in loading if not name.endswith("nothing")]
    parts = [name.split(".")[0] for name in names]
    assert parts == sorted(parts)


@pytest.mark.parametrize("limit", [1, 8 << 20, 20 << 20])
def test_little_memory_is_enough(limit: int, server: RangedServer, tmp_path: Path, expected: dict[str, bytes]) -> None:
    loading = coldstream.stream(f"{server.url}/m", **options(tmp_path, memory=limit, cache=False))
    with loading:
        assert collected(loading) == expected
    assert loading.report is not None
    if limit >= 20 << 20:
        assert loading.report.memory_bytes <= limit
        assert not loading.report.grown_bytes


def test_tensors_that_are_kept_stay_as_they_are(
    server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """More is kept than the limit allows: the arena grows and says so, and nothing is overwritten."""
    with coldstream.stream(f"{server.url}/m", **options(tmp_path, memory=16 << 20, cache=False)) as loading:
        kept = dict(loading)
    assert {name: raw_bytes(tensor) for name, tensor in kept.items()} == expected
    assert loading.report is not None
    assert loading.report.grown_bytes > 0


def test_one_tensor_kept_from_each_step_outlives_the_load(
    server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    kept = {}
    with coldstream.stream(f"{server.url}/m", **options(tmp_path, memory=64 << 20, cache=False)) as loading:
        for name, tensor in loading:
            if name.endswith("norm"):
                kept[name] = tensor.view(2, -1)[1:]  # a view of a view
    assert kept
    for name, tensor in kept.items():
        assert raw_bytes(tensor) == expected[name][len(expected[name]) // 2 :]


def test_a_killed_load_is_continued_from_the_cache(files: dict[str, bytes], tmp_path: Path) -> None:
    """kill -9 of everything in the middle; the next load fetches the rest"""
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        server.bytes_per_second = 2e6
        uri = f"{server.url}/m"
        process = command.start("load", uri, "--connections", "8", "--quiet")
        journals = "models/*/*/.coldstream/journal"
        deadline = time.monotonic() + 60
        while sum(path.stat().st_size for path in (tmp_path / "cache").glob(journals)) < 24 * 5:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.bytes_per_second = None
        report = command.json("load", uri)
        assert 0 < report["cache_bytes"] < report["bytes"]
        assert report["received_bytes"] + report["cache_bytes"] == report["bytes"]
        assert report["cached"] == "written"
        assert command.json("load", uri)["received_bytes"] == 0


def test_a_cache_with_wrong_bytes_is_found_out(
    files: dict[str, bytes], tmp_path: Path, expected: dict[str, bytes], server: RangedServer
) -> None:
    uri = f"{server.url}/m"
    with coldstream.stream(uri, **options(tmp_path)) as loading:
        assert collected(loading) == expected
        assert loading.wait_for_cache() == "written"
    # The process that wrote the copy syncs it once more; until then no other one can repair it.
    until(lambda: not Cache(tmp_path / "cache").entries()[0].writing)
    for path in (tmp_path / "cache").glob("models/*/*/*-00002-*.safetensors"):
        with open(path, "r+b") as file:
            file.seek(len(files[path.name]) // 2)
            file.write(b"\x00corrupt\x00")
    with coldstream.stream(uri, **options(tmp_path)) as loading:
        assert collected(loading) == expected
        loading.wait_for_cache()
    assert loading.report is not None
    assert loading.report.corrupt == 1
    assert loading.report.received_bytes > 0
    with coldstream.stream(uri, **options(tmp_path)) as loading:
        assert collected(loading) == expected
    assert loading.report is not None
    assert loading.report.corrupt == 0
    assert loading.report.received_bytes == 0


def test_with_the_server_gone_the_cache_stands_in(
    files: dict[str, bytes], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        uri = f"{server.url}/m"
        with coldstream.stream(uri, **options(tmp_path)) as loading:
            collected(loading)
            assert loading.wait_for_cache() == "written"
    with coldstream.stream(uri, **options(tmp_path)) as loading:
        assert collected(loading) == expected
    assert loading.report is not None
    assert loading.report.offline


def test_a_cache_that_cannot_be_written_costs_nothing(
    server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """RLIMIT_FSIZE stands for a full disk: the tee's writes fail."""
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    command.environ["COLDSTREAM_CACHE_LIMIT"] = "1MB"
    out, _ = command.run("load", f"{server.url}/m")
    assert "the local cache was not written" in out
    assert f"{len(expected)} tensors" in out


def _read(address: str, results: Any, pause: float) -> None:
    found = {}
    for name, tensor in coldstream.attach(address, framework="buffer"):
        time.sleep(pause)
        found[name] = xxhash.xxh3_128_hexdigest(tensor.data)
    results.put((os.getpid(), found))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_several_processes_read_one_load(
    method: str, server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    context: Any = multiprocessing.get_context(method)
    with coldstream.share(f"{server.url}/m", consumers=3, **options(tmp_path, memory=32 << 20)) as shared:
        results = context.SimpleQueue()
        readers = [context.Process(target=_read, args=(shared.address, results, 0.002 * n)) for n in range(3)]
        for reader in readers:
            reader.start()
        found = [results.get() for _ in readers]
        for reader in readers:
            reader.join(30)
            assert reader.exitcode == 0
        report = shared.wait(30)
    assert report is not None
    assert report.received_bytes == report.bytes, "the bytes crossed the network once"
    assert len({pid for pid, _ in found}) == 3
    for _, digests in found:
        assert digests == {name: xxhash.xxh3_128_hexdigest(content) for name, content in expected.items()}


def test_a_reader_that_dies_does_not_hold_the_others(
    server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    context: Any = multiprocessing.get_context("fork")
    with coldstream.share(f"{server.url}/m", consumers=2, **options(tmp_path, memory=24 << 20)) as shared:
        holds = context.SimpleQueue()
        reader = context.Process(target=_hold_for_ever, args=(shared.address, holds))
        reader.start()
        iterator = coldstream.attach(shared.address, framework="buffer")
        name, tensor = next(iterator)
        found = {name: raw_bytes(tensor)}
        assert holds.get() is True, "killed before it attached, it would be waited for"
        os.kill(reader.pid, signal.SIGKILL)
        reader.join(30)
        found |= collected(iterator)
    assert found == expected


def test_a_reader_that_leaves_early_keeps_its_tensors_and_delays_no_other(
    server: RangedServer, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with coldstream.share(f"{server.url}/m", consumers=2, **options(tmp_path, memory=24 << 20)) as shared:
        early = coldstream.attach(shared.address, framework="buffer")
        kept = dict(next(early) for _ in range(8))
        early.close()
        del early
        # Nothing refers to its end of the connection now but the tensors that it made.
        gc.collect()
        found = collected(coldstream.attach(shared.address, framework="buffer"))
        assert {name: raw_bytes(tensor) for name, tensor in kept.items()} == {name: expected[name] for name in kept}
        kept.clear()
        assert shared.wait(30)
    assert found == expected


def test_a_reader_that_never_comes_ends_the_load(server: RangedServer, tmp_path: Path) -> None:
    limits = options(tmp_path, memory=24 << 20, attach_seconds=0.5)
    with coldstream.share(f"{server.url}/m", consumers=2, **limits) as shared:
        with pytest.raises(ColdstreamError, match="only 1 of 2 readers attached"):
            list(coldstream.attach(shared.address, framework="buffer"))
        with pytest.raises(ColdstreamError, match="only 1 of 2 readers attached"):
            shared.wait(10)


def _hold_for_ever(address: str, holds: Any) -> None:
    attached = coldstream.attach(address, framework="buffer")
    held = [next(attached)]
    holds.put(True)
    held += attached
    signal.pause()
    del held


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.inner = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 32, bias=False)
        self.head.weight = self.embed.weight


def test_load_into_a_module(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = Small()
    state = {"model.embed.weight": source.embed.weight.detach().clone()}
    state |= {f"model.inner.{n}": p.detach().to(torch.bfloat16) for n, p in source.inner.named_parameters()}
    save_file(state | {"model.extra": torch.zeros(3)}, tmp_path / "model.safetensors")
    target = Small()
    settings = load_settings({}, environ={})
    with pytest.raises(UsageError, match=r"missing embed\.weight and \d more, unexpected model\.") as caught:
        coldstream.load_into(target, str(tmp_path), settings=settings)
    assert (caught.value.hint or "").startswith("the names begin with 'model.': use prefix='model.'")
    with pytest.raises(UsageError, match=r"unexpected model\.extra"):
        coldstream.load_into(target, str(tmp_path), prefix="model.", settings=settings)
    found = coldstream.load_into(target, str(tmp_path), prefix="model.", strict=False, settings=settings)
    assert found.missing == ()
    assert found.unexpected == ("model.extra",)
    assert torch.equal(target.head.weight, source.embed.weight)
    assert torch.equal(target.inner.weight, source.inner.weight.to(torch.bfloat16).float())
    with pytest.raises(UsageError, match="shape"):
        coldstream.load_into(torch.nn.Linear(4, 4), str(tmp_path), prefix="model.inner.", settings=settings)
    with pytest.raises(UsageError, match="meta"):
        coldstream.load_into(torch.nn.Linear(8, 8, device="meta"), str(tmp_path), settings=settings)


def test_bad_options_and_bad_names_are_one_line(tmp_path: Path) -> None:
    command = Command(None, "", cwd=tmp_path)
    _, err = command.run("load", str(tmp_path / "nothing"), code=10)
    assert err.startswith("error: ")
    _, err = command.run("load", str(tmp_path), "--device", "cuda:77", code=10)
    assert err.startswith("error: ")
    write_model(tmp_path / "m", {"model.safetensors": checkpoint_bytes({"a": ("F32", (4,))})})
    _, err = command.run("load", str(tmp_path / "m"), "--device", "warp", code=2)
    assert "the device 'warp' is not available" in err
    command.run("load", str(tmp_path / "m"), "--memory", "lots", code=2)
    with pytest.raises(UsageError, match="connections"):
        coldstream.stream("x", connections=0)
    with pytest.raises(UsageError, match="framework"):
        coldstream.stream("x", framework="tf")


def test_with_few_open_files_allowed(server: RangedServer, tmp_path: Path) -> None:
    """ulimit -n 256"""
    import resource
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "coldstream", "load", f"{server.url}/m", "--no-cache", "--connections", "256", "--json"],
        env=os.environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_within_a_second_with_130(server: RangedServer, tmp_path: Path) -> None:
    server.bytes_per_second = 1e5
    command = Command(None, "", cwd=tmp_path)
    process = command.start("load", f"{server.url}/m", "--no-cache")
    deadline = time.monotonic() + 60
    while server.count("safetensors") < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_from_nginx(
    scheme: str, folder: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """coldstream load https://host/prefix, with connections that the server ends after ten requests"""
    with nginx(folder, tls=True, keepalive_requests=10) as server:
        url = server.url if scheme == "http" else server.tls_url
        command = Command(None, "", cwd=tmp_path)
        if scheme == "https":
            _, err = command.run("load", str(url), "--no-cache", code=1)
            assert "certificate" in err
            monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
            command = Command(None, "", cwd=tmp_path)
        report = command.json("load", str(url), "--no-cache")
        assert report["received_bytes"] == report["bytes"] == sum(map(len, expected.values()))
        with coldstream.stream(str(url), **options(tmp_path)) as loading:
            assert collected(loading) == expected
            loading.wait_for_cache()
        with coldstream.stream(str(url), **options(tmp_path)) as loading:
            assert collected(loading) == expected
        assert loading.report is not None
        assert loading.report.received_bytes == 0


def test_a_component_is_verified_and_files_left_out_are_reported(tmp_path: Path) -> None:
    """coldstream upload ./pipeline; coldstream load org/pipeline/transformer; coldstream load ./stale"""
    files = sharded_model(shards=2, shard_bytes=100_000)
    write_model(tmp_path / "pipeline", {f"transformer/{path}": content for path, content in files.items()})
    index = "model.safetensors.index.json"
    single = next(content for path, content in files.items() if path.endswith(".safetensors"))
    write_model(tmp_path / "stale", {"config.json": b"{}", "model.safetensors": single, index: files[index]})
    command = Command(None, "", cwd=tmp_path)
    command.environ["COLDSTREAM_STORE"] = (tmp_path / "store").as_uri()
    command.run("upload", "./pipeline", "--as", "org/pipeline")
    report = command.json("load", "org/pipeline/transformer")
    assert (report["verified"], report["files"], report["left_out"]) == (True, 2, {})
    out, _ = command.run("load", "./stale")
    assert f"not loaded: {index} (left over: it names model-00001-of-00002.safetensors" in out
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ={})
    assert list(model_folder(str(tmp_path / "stale"), settings).left_out) == [index]
    _, err = command.run("upload", "./stale", "--as", "org/stale")
    assert f"skipping {index}" in err
    assert command.json("verify", "org/stale")["ok"]
