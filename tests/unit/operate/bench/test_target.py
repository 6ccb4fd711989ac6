"""The model to load, as other loaders need it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coldstream.errors import NotFoundError
from coldstream.operate.bench.contestant import find_target
from coldstream.settings import load_settings
from tests.checkpoints import sharded_checkpoint
from tests.servers.ranged import RangedServer
from tests.unit.operate.bench.test_contestant import TARGET, shard


@pytest.fixture
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=2)


def test_a_local_folder(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    for path, content in files.items():
        (tmp_path / "m" / path).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    target = find_target("./m", load_settings(environ={}))
    assert (target.kind, target.folder, target.store) == ("folder", str(tmp_path / "m"), "")
    assert target.uri.full == str(tmp_path / "m"), "child processes run in another directory"
    shards = {path: content for path, content in files.items() if path.endswith(".safetensors")}
    assert target.files == [(path, len(content)) for path, content in sorted(shards.items())]
    assert 0 < target.model.bytes < sum(map(len, shards.values()))
    assert not target.verified


def test_a_web_server(files: dict[str, bytes]) -> None:
    with RangedServer({f"/org/m/{path}": content for path, content in files.items()}) as server:
        target = find_target(f"{server.url}/org/m", load_settings(environ={}))
    assert (target.kind, target.name, target.folder) == ("http", "org/m", "")
    assert target.is_loopback
    assert not target.is_tls


def test_a_model_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        find_target(str(tmp_path / "missing"), load_settings(environ={}))


def test_the_bucket_and_the_folder_in_it() -> None:
    assert (TARGET.bucket, TARGET.prefix) == ("models", "below/org/m")
    assert replace(TARGET, store="s3://models").prefix == "org/m"
    assert TARGET.is_tls
    assert not TARGET.is_loopback


@pytest.mark.parametrize(
    ("path", "is_plain"),
    [
        ("below/org/m/model.safetensors?X-Amz-Signature=1", True),
        ("below/org%2Fm/model.safetensors", True),
        ("below/org/m/model-1.safetensors", False),
        ("objects/0123", False),
    ],
)
def test_files_under_their_own_names(path: str, *, is_plain: bool) -> None:
    target = replace(TARGET, shards=(shard(f"https://account.r2.cloudflarestorage.com/models/{path}"),))
    assert target.has_plain_names is is_plain
