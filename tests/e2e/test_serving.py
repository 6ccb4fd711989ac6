"""The folder that vLLM is given, and the service that its ranks ask; vLLM itself is in tests/vllm."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import coldstream
from coldstream.env import Settings, load_settings
from coldstream.errors import ColdstreamError, ConflictError, IntegrityError, UnavailableError
from coldstream.folder import model_folder, read_note
from coldstream.loading import Options
from coldstream.vllm.service import FIRST, LoadService, ask
from tests.checkpoints import expected_tensors, raw_bytes, sharded_checkpoint
from tests.servers.ranged import RangedServer


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    found = sharded_checkpoint(shards=2, layers=2)
    return {**found, "tokenizer.json": b"{}", "1_Pooling/config.json": b"{}"}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        yield server


def settings(tmp_path: Path) -> Settings:
    given = {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "COLDSTREAM_RETRY_SECONDS": "1"}
    return load_settings(given, environ={})


def test_the_folder_has_all_but_the_weights(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    path = Path(coldstream.prepare(uri, settings=settings(tmp_path)))
    for name, content in files.items():
        if name.endswith(".safetensors"):
            header = 8 + int.from_bytes(content[:8], "little")
            assert (path / name).read_bytes() == content[:header], "a stub: the header alone"
        elif name in {"config.json", "model.safetensors.index.json"}:
            assert (path / name).read_bytes() == content
    note = read_note(path)
    assert note is not None
    assert note.uri == uri
    asked = server.count("config.json")
    assert coldstream.prepare(uri, settings=settings(tmp_path)) == str(path)
    assert server.count("config.json") == asked, "made once"


def test_another_version_gets_another_folder_and_without_network_the_last_one_serves(
    server: RangedServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    uri = f"{server.url}/m"
    first = model_folder(uri, settings(tmp_path))
    changed = sharded_checkpoint(shards=2, layers=2, seed=9)
    for path, content in changed.items():
        server.put(f"/m/{path}", content)
    server.put("/m/config.json", b'{"changed": 1}')
    second = model_folder(uri, settings(tmp_path))
    assert second.path != first.path
    assert json.loads((second.path / "config.json").read_text()) == {"changed": 1}
    with server.refusing():
        third = model_folder(uri, settings(tmp_path))
    assert third.offline
    assert third.path == second.path


def test_without_network_and_without_a_folder_it_says_so(server: RangedServer, tmp_path: Path) -> None:
    with server.refusing(), pytest.raises(UnavailableError):
        model_folder(f"{server.url}/m", settings(tmp_path))


def test_a_broken_file_leaves_no_folder(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    server.put("/m/config.json", b"")
    server.add("status", "config.json", status=503, times=None)
    with pytest.raises((UnavailableError, IntegrityError)):
        model_folder(f"{server.url}/m", settings(tmp_path))
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "config" in path.name]
    assert not left


def service(uri: str, tmp_path: Path) -> LoadService:
    return LoadService(uri, options=Options(settings=settings(tmp_path), cache=False))


def test_ranks_share_a_load_and_reload(server: RangedServer, files: dict[str, bytes], tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    expected = expected_tensors(tmp_path / "x", files)
    size = sum(map(len, expected.values()))
    with service(uri, tmp_path) as loads:
        # The number was not known yet.
        loads.begin(consumers=1)
        for number in (FIRST, "2"):
            before = server.bytes_sent
            found: list[dict[str, bytes]] = []

            def rank(number: str = number, found: list[Any] = found) -> None:
                address = ask(loads.address, uri, number, consumers=2)
                found.append({name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")})

            ranks = [threading.Thread(target=rank) for _ in range(2)]
            for thread in ranks:
                thread.start()
            for thread in ranks:
                thread.join(60)
            assert found == [expected, expected]
            if number != FIRST:
                assert server.bytes_sent - before < 1.5 * size, "once for both"
        # Another engine of this node counts from one again.
        address = ask(loads.address, uri, FIRST, consumers=1)
        again = {name: raw_bytes(t) for name, t in coldstream.attach(address, framework="buffer")}
        assert again == expected


def test_the_streamer_ends_when_the_last_rank_has_let_go(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with service(uri, tmp_path) as loads:
        share = loads.begin(consumers=1)
        held = list(coldstream.attach(ask(loads.address, uri, FIRST, consumers=1), framework="buffer"))
        assert held
        assert not share.is_gone
        del held
        assert share.wait_until_gone(10)


def test_what_the_service_refuses(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with service(uri, tmp_path) as loads:
        with pytest.raises(ColdstreamError, match="is not what is streamed here"):
            ask(loads.address, "s3://other/model", FIRST, consumers=1)
        with pytest.raises(ColdstreamError, match="not understood"):
            ask(loads.address, uri, FIRST, consumers=0)
        loads.begin(consumers=1)
        with pytest.raises(ConflictError, match="replaced"):
            loads.expect("f" * 64)
        for path, content in sharded_checkpoint(shards=2, layers=2, seed=9).items():
            server.put(f"/m/{path}", content)
        with pytest.raises(ColdstreamError, match="was replaced since vLLM was started"):
            ask(loads.address, uri, "2", consumers=1)
        address = loads.address
    with pytest.raises(ColdstreamError, match="does not answer"):
        ask(address, uri, FIRST, consumers=1)
