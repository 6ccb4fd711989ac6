"""Who is run, and what each is given."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coldstream.engines.vllm.program import find_program
from coldstream.errors import UsageError
from coldstream.model.job import Segment
from coldstream.model.uri import Uri
from coldstream.operate.bench.contestant import KINDS, NAMES, Contestant, Kind, Maker, Python, Skipped, Wishes, chosen
from coldstream.operate.bench.target import Target
from coldstream.places.origin import Shard
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
        "HF_TOKEN": "hf_token_of_somebody",
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


TARGET = Target(
    uri=Uri("org/m"),
    label="s3://models/below/org/m",
    name="org/m",
    kind="s3",
    store="s3://models/below",
    key="org/m",
    shards=(shard("https://account.r2.cloudflarestorage.com/models/below/org/m/model.safetensors?X-Amz-Signature=1"),),
    model=Model(name="org/m", bytes=900, parameters=450, dtype="BF16"),
)


def kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def maker(tmp_path: Path, *, target: Target = TARGET, packages: dict[str, str] | None = None) -> Maker:
    python = Python(sys.executable, EVERYTHING if packages is None else packages)
    return Maker(target, SETTINGS, [python], Wishes(), tmp_path)


def made(tmp_path: Path, name: str) -> Contestant:
    found = maker(tmp_path).make(kind(name))
    assert isinstance(found, Contestant)
    return found


def test_who_is_chosen() -> None:
    assert [one.name for one in chosen((), (), ())] == [
        "coldstream",
        "coldstream-warm",
        "runai",
        "runai-tuned",
        "vllm-default",
    ]
    assert [one.name for one in chosen(("boto3", "runai"), (), ("s3fs",))] == ["runai", "boto3", "s3fs"]
    assert [one.name for one in chosen((), ("runai", "coldstream-warm"), ())] == [
        "coldstream",
        "runai-tuned",
        "vllm-default",
    ]
    with pytest.raises(UsageError, match="no loader 'rclone'"):
        chosen((), ("rclone",), ())
    with pytest.raises(UsageError, match="no loader is left"):
        chosen(("runai",), ("runai",), ())


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_in_the_environment_alone(tmp_path: Path, name: str) -> None:
    one = made(tmp_path, name)
    assert SECRET not in " ".join(one.command)
    assert SECRET not in repr(one)
    assert SECRET not in one.environ["BENCH_OPTIONS"]
    assert SECRET in one.environ.values()
    assert not {"COLDSTREAM_BUNDLE_KEY", "CLOUDFLARE_API_TOKEN", "HF_TOKEN"} & one.environ.keys()


def test_what_steers_a_loader_from_outside_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNAI_STREAMER_CONCURRENCY", "99")
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    plain, tuned = made(tmp_path, "runai"), made(tmp_path, "runai-tuned")
    assert "RUNAI_STREAMER_CONCURRENCY" not in plain.environ
    assert "AWS_PROFILE" not in plain.environ
    assert plain.connections == 8
    assert int(tuned.environ["RUNAI_STREAMER_CONCURRENCY"]) == tuned.connections == 16
    assert int(tuned.environ["RUNAI_STREAMER_MEMORY_LIMIT"]) <= 2 << 30


def test_only_the_first_run_proves_bytes_and_fills_the_cache(tmp_path: Path) -> None:
    one = made(tmp_path, "coldstream-warm")
    first, then = json.loads(one.first_environ["BENCH_OPTIONS"]), json.loads(one.environ["BENCH_OPTIONS"])
    assert (first["verify"], first["mode"]) == (True, "fill")
    assert (then["verify"], then["mode"]) == (False, "warm")
    assert then["stream"]["cache"] is True
    assert one.environ["COLDSTREAM_CACHE_DIR"] == str(tmp_path / "cache")
    assert json.loads(made(tmp_path, "coldstream").environ["BENCH_OPTIONS"])["stream"]["cache"] is False


def test_the_bucket_as_others_name_it(tmp_path: Path) -> None:
    options = json.loads(made(tmp_path, "boto3").environ["BENCH_OPTIONS"])
    assert (options["bucket"], options["key"]) == ("models", "below/org/m")
    download = made(tmp_path, "vllm-default")
    assert download.environ["COLDSTREAM_STORE"] == "s3://models/below"
    assert "org/m" in json.loads(download.environ["BENCH_OPTIONS"])["download"]


def test_who_is_missing_is_skipped_with_what_installs_it(tmp_path: Path) -> None:
    found = maker(tmp_path, packages={"coldstream": "1", "torch": "2"}).make(kind("runai"))
    assert isinstance(found, Skipped)
    assert found.reason == "runai-model-streamer is not installed"
    assert found.hint == "run: pip install 'runai-model-streamer[s3]'"


def test_a_url_with_a_token_is_on_no_command_line(tmp_path: Path) -> None:
    web = replace(TARGET, kind="http", uri=Uri("https://cdn.example.com/m?token=marker"))
    vllm = find_program(str(fake_vllm(tmp_path / "env")))
    maker_of_web = maker(tmp_path, target=web)
    for one in (maker_of_web.make(kind("coldstream")), maker_of_web.start(kind("coldstream"), vllm, ["--port", "1"])):
        assert isinstance(one, Contestant)
        assert "marker" in one.environ["BENCH_OPTIONS"]
        assert "marker" not in " ".join(one.command) + repr(one)
    options = json.loads(one.environ["BENCH_OPTIONS"])
    assert "marker" not in " ".join(options["command"])
    assert options["arguments"][:2] == ["serve", "https://cdn.example.com/m?token=marker"]


def test_who_cannot_read_it_is_skipped(tmp_path: Path) -> None:
    web = replace(TARGET, kind="http", uri=Uri("https://cdn.example.com/m"))
    found = maker(tmp_path, target=web).make(kind("runai"))
    assert isinstance(found, Skipped)
    assert found.reason == "it reads buckets and local files alone"
    assert isinstance(maker(tmp_path, target=web).make(kind("coldstream")), Contestant)
    other = replace(TARGET, shards=(shard("https://account.r2.cloudflarestorage.com/models/objects/0123"),))
    found = maker(tmp_path, target=other).make(kind("boto3"))
    assert isinstance(found, Skipped)
    assert "other names" in found.reason
