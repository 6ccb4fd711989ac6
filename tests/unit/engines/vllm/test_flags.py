"""The user's flags, read as vLLM reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.engines.vllm.flags import Flags, checked_loader_config, load_options
from coldstream.errors import UsageError
from coldstream.loading.options import Options


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--max-model-len", "8192"], "8192"),
        (["--max-model-len=8192"], "8192"),
        (["--max_model_len", "8192"], "8192"),
        (["--max-model-len", "1", "--max-model-len", "2"], "2"),
        (["--max-model-len", "--enforce-eager"], ""),
        (["--max-model-len"], ""),
        (["--max-model-length", "1"], None),
        ([], None),
    ],
)
def test_a_flag_s_value(arguments: list[str], found: str | None) -> None:
    assert Flags(arguments).value("--max-model-len") == found


def test_numbers_and_short_names() -> None:
    assert Flags(["-tp", "4"]).number("--tensor-parallel-size") == 4
    assert Flags(["--tensor-parallel-size=x"]).number("--tensor-parallel-size") == 1
    assert Flags(["-tp=2", "--pipeline_parallel_size", "3"]).ranks == 6


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("api-key: [sesame", r"not valid YAML, line 1$"),
        ("served-model-name: 2026-13-01", "not valid YAML$"),
        ("", "must hold"),
        ("\0", "not valid"),
    ],
)
def test_a_configuration_file_that_vllm_would_refuse(content: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=why):
        Flags(["--config", str(path)])


@pytest.mark.parametrize(
    "arguments", [["--config"], ["--config", "a.json"], ["--config", "a.yaml", "--config", "b.yaml"]]
)
def test_a_configuration_file_that_is_named_wrongly(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="--config"):
        Flags(arguments)


def test_the_configuration_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text("port: 9001")
    flags = Flags(["--config", str(path)])
    path.unlink()
    assert flags.value("--port") == "9001"
    assert "--port" in flags
    assert "--host" not in flags


def test_the_options_arrive() -> None:
    config = {"uri": "s3://b/m", "concurrency": 32, "memory_limit": 5 << 30, "verify": False}
    assert checked_loader_config(config) == config
    options = Options(**load_options(config))
    assert (options.connections, options.memory, options.verify, options.cache) == (32, 5 << 30, False, True)
    assert Options(**load_options(checked_loader_config({}))) == Options()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"urI": "x"}, "unknown key 'urI'; known: uri, concurrency"),
        ({"uri": 1}, "uri must be"),
        ({"uri": ""}, "uri must be"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 on, not 0"),
        ({"concurrency": True}, "concurrency must be"),
        ({"memory_limit": "5GB"}, "memory_limit must be"),
        ({"verify": "yes"}, "verify must be true or false"),
        ([], "must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(given: object, said: str) -> None:
    with pytest.raises(ValueError, match="coldstream") as caught:
        checked_loader_config(given)
    assert said in str(caught.value)
