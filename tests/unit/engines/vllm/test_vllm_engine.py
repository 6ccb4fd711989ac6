"""What runs: the user's flags win, secrets are masked, and each loader gets what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.vllm_engine import VllmEngine
from coldstream.errors import UsageError
from coldstream.loading.options import Options
from coldstream.machine.child_environment import CREDENTIALS
from coldstream.model.names import Uri
from coldstream.node.child import Command
from coldstream.node.engine_flags import with_config
from coldstream.node.inference_engine import ServeRequest
from coldstream.node.load_service import VARIABLE
from coldstream.settings import Settings, load_settings

BUCKET = {
    "R2_ENDPOINT": "https://abc.r2.cloudflarestorage.com",
    "R2_BUCKET": "models",
    "R2_ACCESS_KEY": "AKEXAMPLE",
    "R2_SECRET_KEY": "s3cr3t-s3cr3t",
    "R2_SESSION_TOKEN": "t0k3n-t0k3n",
}


def settings(**more: str) -> Settings:
    return load_settings({}, environ=BUCKET | more)


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "bin/vllm"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def engine(program: str, *arguments: str, uri: str = "org/m", loader: str = "coldstream", **options: int) -> VllmEngine:
    request = ServeRequest(
        uri=Uri(uri), arguments=arguments, loader=loader, options=Options(**options), program=program
    )
    return VllmEngine(request)


def streamed(program: str, model: Path, *arguments: str) -> Command:
    return engine(program, *arguments).streaming_command(model, "/tmp/x/loads", "/tmp/x")


def runai(program: str, *arguments: str, uri: str = "org/m", loader: str = "runai", **options: int) -> Command:
    return engine(program, *arguments, uri=uri, loader=loader, **options).own_command(settings(), lambda _: None)


CONFIG = """
port: 9001
tensor_parallel_size: 4
served-model-name: [mine, other]
compilation-config: {level: 3}
enforce-eager: true
enable-prefix-caching: false
middleware: []
"""


def test_vllm_s_configuration_file_counts_and_the_command_line_wins(tmp_path: Path, program: str, model: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text(CONFIG)
    arguments = ["--max-model-len", "8", "--config", str(path), "-tp", "2"]
    assert with_config(arguments, "vLLM") == [
        *("--port", "9001", "--tensor_parallel_size", "4", "--served-model-name", "mine", "other"),
        *("--compilation-config", '{"level": 3}', "--enforce-eager", "--no-enable-prefix-caching"),
        *("--max-model-len", "8", "-tp", "2"),
    ]
    assert Flags(arguments).value("--port") == "9001"
    assert Flags(arguments).ranks == 2
    assert Flags(arguments[:-2]).ranks == 4
    command = streamed(program, model, *arguments)
    assert "--served-model-name" not in command.arguments, "its own name wins over what we would add"
    path.write_text("load_format: auto")
    with pytest.raises(UsageError, match="--load-format auto"):
        streamed(program, model, *arguments)


def test_the_streamed_one_has_no_key_and_only_what_is_missing(
    program: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = streamed(program, model, "--port", "1")
    assert command.arguments == (
        *(program, "serve", str(model), "--load-format", "coldstream"),
        *("--served-model-name", "org/m", "--shutdown-timeout", "15", "--port", "1"),
    )
    assert command.environment == {VARIABLE: "/tmp/x/loads", "VLLM_RPC_BASE_PATH": "/tmp/x"}
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp/mine")
    assert streamed(program, model).environment == {VARIABLE: "/tmp/x/loads"}
    assert set(command.without) == CREDENTIALS - {"VLLM_API_KEY"}
    named = streamed(program, model, "--served-model-name=mine")
    assert "org/m" not in named.arguments
    aborting = streamed(program, model, "--shutdown_timeout", "0")
    assert aborting.arguments[-2:] == ("--shutdown_timeout", "0")
    assert "--shutdown-timeout" not in aborting.arguments
    with pytest.raises(UsageError, match="--load-format auto"):
        streamed(program, model, "--load-format", "auto")


def test_run_ai_gets_r2_s_environment_and_nothing_secret_is_shown(program: str) -> None:
    command = runai(program, connections=32, memory=1 << 30)
    assert command.arguments[2] == "s3://models/org/m"
    extra = command.arguments[command.arguments.index("--model-loader-extra-config") + 1]
    assert json.loads(extra) == {"concurrency": 32, "memory_limit": 1 << 30}
    environment = command.environment
    assert environment["AWS_ENDPOINT_URL"] == environment["RUNAI_STREAMER_S3_ENDPOINT"] == BUCKET["R2_ENDPOINT"]
    assert environment["AWS_REGION"] == "auto"
    assert environment["AWS_EC2_METADATA_DISABLED"] == "true"
    assert environment["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] == "0"
    assert environment["AWS_SESSION_TOKEN"] == BUCKET["R2_SESSION_TOKEN"]
    shown = "\n".join([command.shown(), *command.shown_environment(), repr(command)])
    assert BUCKET["R2_SECRET_KEY"] not in shown
    assert BUCKET["R2_SESSION_TOKEN"] not in shown
    assert "AWS_SECRET_ACCESS_KEY=****" in shown


def test_run_ai_on_a_folder_needs_no_bucket(program: str) -> None:
    local = engine(program, uri="/models/m", loader="runai")
    assert local.own_command(load_settings({}, environ={}), lambda _: None).environment == {}


def test_sharded_takes_its_numbers_from_the_environment_and_checks_the_ranks(program: str) -> None:
    command = runai(program, uri="org/m-tp4", loader="runai-sharded", connections=8)
    assert "--model-loader-extra-config" not in command.arguments
    assert command.environment["RUNAI_STREAMER_CONCURRENCY"] == "8"
    assert command.arguments[command.arguments.index("--tensor-parallel-size") + 1] == "4"
    with pytest.raises(UsageError, match="sharded for 4 ranks"):
        runai(program, "-tp", "2", uri="s3://m/x-tp4", loader="runai-sharded")


def plain(program: str, model: Path, *arguments: str) -> Command:
    return engine(program, *arguments, uri=str(model), loader="default").own_command(settings(), lambda _: None)


def test_the_default_loader_is_left_alone(program: str, model: Path) -> None:
    folder = str(model)
    assert plain(program, model, "--load-format", "auto").arguments == (
        *(
            program,
            "serve",
            folder,
            "--served-model-name",
            "model",
            "--shutdown-timeout",
            "15",
            "--load-format",
            "auto",
        ),
    )


def test_the_secrets_of_the_cdn_are_kept_from_every_vllm(program: str, model: Path) -> None:
    secrets = {"COLDSTREAM_CDN_HEADER", "CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET"}
    for command in (streamed(program, model), plain(program, model), runai(program)):
        assert secrets <= set(command.without)


def test_a_draft_model_of_another_loader_is_vllm_s(program: str, model: Path, tmp_path: Path) -> None:
    config = ("--speculative-config", '{"model": "org/draft", "num_speculative_tokens": 3}', "-tp", "2", "-pp", "2")
    made = engine(program, *config)
    assert made.draft is not None
    assert (str(made.draft.uri), made.draft.ranks, made.ranks) == ("org/draft", 2, 4)
    assert not [line for line in made.warnings({}) if "draft" in line]
    with pytest.raises(UsageError, match=r"the draft model org/draft has no config\.json"):
        made.use_draft(tmp_path)
    made.use_draft(model)
    command = made.streaming_command(model, "/tmp/x/loads", "/tmp/x")
    assert command.arguments[-2:] == ("--speculative-config", f'{{"model": "{model}", "num_speculative_tokens": 3}}')
    other = engine(program, *config, loader="runai")
    assert other.warnings({})[-1] == "--loader runai leaves the draft model org/draft to vLLM"
    assert config[1] in runai(program, *config).arguments
    assert engine(program, *config, uri="hf://org/m").draft is None, "what the Hub has is vLLM's"
