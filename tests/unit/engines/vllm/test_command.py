"""What runs: the user's flags win, secrets are masked, and each loader gets what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.engines.vllm.command import plain, runai, streamed
from coldstream.engines.vllm.flags import Flags, with_config
from coldstream.errors import UsageError
from coldstream.machine.child_environment import CREDENTIALS
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


CONFIG = """
port: 9001
tensor_parallel_size: 4
served-model-name: [mine, other]
compilation-config: {level: 3}
enforce-eager: true
enable-prefix-caching: false
middleware: []
"""


def test_vllm_s_configuration_file_counts_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text(CONFIG)
    arguments = ["--max-model-len", "8", "--config", str(path), "-tp", "2"]
    assert with_config(arguments) == [
        *("--port", "9001", "--tensor_parallel_size", "4", "--served-model-name", "mine", "other"),
        *("--compilation-config", '{"level": 3}', "--enforce-eager", "--no-enable-prefix-caching"),
        *("--max-model-len", "8", "-tp", "2"),
    ]
    assert Flags(arguments).value("--port") == "9001"
    assert Flags(arguments).ranks == 2
    assert Flags(arguments[:-2]).ranks == 4
    command = streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(arguments), service="/x")
    assert "--served-model-name" not in command.arguments, "its own name wins over what we would add"
    path.write_text("load_format: auto")
    with pytest.raises(UsageError, match="--load-format auto"):
        streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(arguments), service="/x")


def test_the_streamed_one_has_no_key_and_only_what_is_missing() -> None:
    command = streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(["--port", "1"]), service="/tmp/x/loads")
    assert command.arguments == (
        *("/bin/vllm", "serve", "/cache/m", "--load-format", "coldstream"),
        *("--served-model-name", "org/m", "--shutdown-timeout", "15", "--port", "1"),
    )
    assert command.environment == {VARIABLE: "/tmp/x/loads"}
    assert set(command.without) == CREDENTIALS - {"VLLM_API_KEY"}
    named = streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(["--served-model-name=mine"]), service="/x")
    assert "org/m" not in named.arguments
    aborting = streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(["--shutdown_timeout", "0"]), service="/x")
    assert aborting.arguments[-2:] == ("--shutdown_timeout", "0")
    assert "--shutdown-timeout" not in aborting.arguments
    with pytest.raises(UsageError, match="--load-format auto"):
        streamed(("/bin/vllm",), "/cache/m", "org/m", Flags(["--load-format", "auto"]), service="/x")


def test_run_ai_gets_r2_s_environment_and_nothing_secret_is_shown() -> None:
    command = runai("vllm", "s3://models/org/m", "org/m", Flags([]), settings(), concurrency=32, memory_limit=1 << 30)
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


def test_run_ai_on_a_folder_needs_no_bucket() -> None:
    assert runai("vllm", "/models/m", "m", Flags([]), load_settings({}, environ={})).environment == {}


def test_sharded_takes_its_numbers_from_the_environment_and_checks_the_ranks() -> None:
    command = runai("vllm", "s3://models/org/m-tp4", "org/m", Flags([]), settings(), ranks=4, concurrency=8)
    assert "--model-loader-extra-config" not in command.arguments
    assert command.environment["RUNAI_STREAMER_CONCURRENCY"] == "8"
    assert command.arguments[command.arguments.index("--tensor-parallel-size") + 1] == "4"
    with pytest.raises(UsageError, match="sharded for 4 ranks"):
        runai("vllm", "s3://m/x-tp4", "x", Flags(["-tp", "2"]), settings(), ranks=4)


def test_the_default_loader_is_left_alone() -> None:
    assert plain("vllm", "/m", "m", Flags(["--load-format", "auto"])).arguments == (
        *("vllm", "serve", "/m", "--served-model-name", "m", "--shutdown-timeout", "15", "--load-format", "auto"),
    )


def test_the_secrets_of_the_cdn_are_kept_from_every_vllm() -> None:
    secrets = {"COLDSTREAM_CDN_HEADER", "CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET"}
    for command in (
        streamed(["vllm"], "/f", "org/m", Flags([]), service="/run/x"),
        plain("vllm", "/f", "org/m", Flags([])),
        runai("vllm", "s3://models/org/m", "org/m", Flags([]), settings()),
    ):
        assert secrets <= set(command.without)
