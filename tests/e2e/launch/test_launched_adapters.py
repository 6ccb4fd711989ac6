"""`coldstream launch` and `coldstream template` with adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.fleet.launches import Launches
from tests.adapters import adapter_files, base_files, llama_shapes
from tests.e2e.command import Command
from tests.e2e.test_tune import CONFIG
from tests.models import write_model
from tests.servers.fake_sky import FakeSky
from tests.servers.r2 import FakeR2
from tests.servers.stores import S3Server

LAUNCH = ("launch", "org/llama", "--gpus", "L4:1")
UP = (*LAUNCH, "--yes")
TEMPLATE = ("template", "org/llama", "--target", "sky-serve", "--gpus", "L4:1")
PREFIXES = ["org/llama/", ".coldstream/bundles/org/llama/", "me/chat/", "me/sql/"]


@pytest.fixture(scope="module", autouse=True)
def adapters(stocked: tuple[FakeR2, S3Server, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A model, two adapters of it, one that vLLM cannot serve, one of another shape, and one of another model."""
    _, moto, bucket = stocked
    folder = tmp_path_factory.mktemp("adapters")
    command = Command(moto, bucket, cwd=folder)
    made = {
        "org/llama": base_files() | {"config.json": json.dumps(CONFIG).encode()},
        "me/sql": adapter_files("org/llama", rank=16),
        "me/chat": adapter_files("org/llama"),
        "me/dora": adapter_files("org/llama", use_dora=True),
        "me/other": adapter_files("org/another"),
        "me/small": adapter_files("org/llama", shapes=llama_shapes(hidden=16)),
    }
    for name, files in made.items():
        command.run("upload", str(write_model(folder / name, files)), "--as", name, "--quiet")


def test_the_keys_open_the_named_adapters_only(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/llama --gpus L4:1 --adapters me/chat,me/sql; coldstream launch renew llama"""
    out, err = command.run(*LAUNCH, "--adapters", "me/chat,me/sql", "--dry-run")
    assert "adapters  me/chat, me/sql\n" in err
    assert "read-only for org/llama and 2 adapters, expire" in err
    assert "--adapters me/chat,me/sql" in out.splitlines()[0]
    document = command.json(*UP, "--adapters", "me/chat,me/sql", "--no-wait")
    assert document["adapters"] == ["me/chat", "me/sql"]
    assert document["keys"]["prefixes"][:4] == PREFIXES
    assert "--adapters me/chat,me/sql" in launches.file("llama").read_text()
    assert launches.find("llama").adapters == ("me/chat", "me/sql")
    renewed = command.json("launch", "renew", "llama", "--yes")
    assert renewed["launch"]["adapters"] == ["me/chat", "me/sql"]
    assert len(sky.calls("launch", "-y")) == 2


def test_all_adapters_are_those_that_the_bucket_has_now(command: Command) -> None:
    """coldstream launch org/llama … --adapters all --dry-run; coldstream template org/llama … --adapters all"""
    document = command.json(*LAUNCH, "--adapters", "all", "--dry-run")
    assert document["adapters"] == ["me/chat", "me/sql"]
    assert document["keys"]["prefixes"][:4] == PREFIXES
    assert "--adapters me/chat,me/sql" in document["commands"][0]
    out, err = command.run(*TEMPLATE, "--adapters", "all")
    assert "warning: an adapter is left out: vLLM cannot serve me/dora: its configuration sets use_dora" in err
    assert "warning: an adapter is left out: me/small does not fit org/llama: model.layers.0.self_attn.q_proj is" in err
    assert "adapters: me/chat, me/sql\n" in err
    assert "--adapters me/chat,me/sql --" in out


@pytest.mark.parametrize(
    ("adapters", "code", "message"),
    [
        ("me/sql,me/sql", 2, "--adapters lists me/sql twice"),
        ("org/llama", 2, "org/llama is a model, not an adapter"),
        ("me/other", 2, "me/other is an adapter of org/another, not of org/llama"),
        ("me/dora", 2, "vLLM cannot serve me/dora: its configuration sets use_dora"),
        (
            "me/small",
            2,
            "me/small does not fit org/llama: model.layers.0.self_attn.q_proj is for a weight of the shape",
        ),
        ("me/sqk", 10, "there is no model me/sqk"),
        ("me/sql,,me/chat", 2, "is not valid for --adapters"),
        ("../x", 2, "is not a model's name"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_rented(
    command: Command, sky: FakeSky, launches: Launches, adapters: str, code: int, message: str
) -> None:
    for arguments in (UP, TEMPLATE):
        _, err = command.run(*arguments, "--adapters", adapters, code=code)
        assert message in err
        assert "hint:" in err
    assert not sky.calls()
    assert not launches.folder.exists()


def test_a_named_adapter_with_other_names_is_the_engine_s_to_refuse(command: Command, tmp_path: Path) -> None:
    """coldstream launch org/llama --gpus L4:1 --adapters me/fused --dry-run"""
    files = adapter_files("org/llama", modules=["qkv"], shapes={"model.layers.0.qkv": (32, 32)})
    command.run("upload", str(write_model(tmp_path / "fused", files)), "--as", "me/fused", "--quiet")
    _, err = command.run(*LAUNCH, "--adapters", "me/fused", "--dry-run")
    assert "warning: me/fused does not fit org/llama: model.layers.0.qkv is not in the base" in err
    assert "adapters  me/fused\n" in err


def test_an_adapter_by_itself_is_not_a_model(command: Command) -> None:
    """coldstream launch me/sql --gpus L4:1"""
    _, err = command.run("launch", "me/sql", "--gpus", "L4:1", "--yes", code=2)
    assert "me/sql is an adapter of org/llama, not a model" in err
    assert "--adapters me/sql" in err


def test_a_model_without_adapters(command: Command) -> None:
    """coldstream template org/m … --adapters all"""
    _, err = command.run(*(word.replace("org/llama", "org/m") for word in TEMPLATE), "--adapters", "all", code=2)
    assert "there are no adapters of org/m to serve in s3://" in err


DRAFT = ("--speculative-config", '{"model": "org/draft", "num_speculative_tokens": 3}')


@pytest.fixture(scope="module")
def draft(stocked: tuple[FakeR2, S3Server, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    _, moto, bucket = stocked
    folder = tmp_path_factory.mktemp("drafts")
    command = Command(moto, bucket, cwd=folder)
    files = base_files() | {"config.json": json.dumps(CONFIG).encode()}
    command.run("upload", str(write_model(folder / "draft", files)), "--as", "org/draft", "--quiet")
    weights = {path: content for path, content in files.items() if path.endswith(".safetensors")}
    command.run("upload", str(write_model(folder / "bare", weights)), "--as", "org/bare", "--quiet")


@pytest.mark.usefixtures("draft")
def test_the_keys_open_the_draft_model(command: Command, sky: FakeSky, launches: Launches) -> None:
    """coldstream launch org/llama --gpus L4:1 --speculative-config '{"model": "org/draft"}'; launch renew llama"""
    _, err = command.run(*LAUNCH, *DRAFT, "--adapters", "me/sql", "--dry-run")
    assert "draft     org/draft\n" in err
    assert "read-only for org/llama, org/draft and 1 adapter, expire" in err
    document = command.json(*UP, *DRAFT, "--no-wait")
    assert document["draft"] == "org/draft"
    assert document["keys"]["prefixes"][:3] == [*PREFIXES[:2], "org/draft/"]
    file = launches.file("llama").read_text()
    assert f"--speculative-config '{DRAFT[1]}'" in file or DRAFT[1] in file
    assert launches.find("llama").draft == "org/draft"
    renewed = command.json("launch", "renew", "llama", "--yes")
    assert renewed["launch"]["draft"] == "org/draft"
    assert len(sky.calls("launch", "-y")) == 2


@pytest.mark.usefixtures("draft")
@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ('{"model": "org/absent"}', 10, "there is no model org/absent"),
        ('{"model": "org/bare"}', 2, "the draft model org/bare has no config.json"),
        ('{"model": "/here/draft"}', 2, "the draft model /here/draft is a folder of this machine"),
        ("{model: org/draft}", 2, "vLLM's --speculative-config is not valid JSON"),
    ],
)
def test_a_draft_model_that_cannot_be_read_is_refused(
    command: Command, sky: FakeSky, config: str, code: int, message: str
) -> None:
    for arguments in (UP, TEMPLATE):
        _, err = command.run(*arguments, "--speculative-config", config, code=code)
        assert message in err
    assert not sky.calls()
    _, err = command.run(*TEMPLATE, *DRAFT, "--loader", "runai", code=2)
    assert "--speculative-config and --loader runai contradict each other" in err
    out, _ = command.run(*TEMPLATE, "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}')
    assert "ngram" in out
