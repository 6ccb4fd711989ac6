"""Which draft model vLLM's flags name, and the flags with its folder instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coldstream.engines.vllm.draft_flag import draft_flag
from coldstream.engines.vllm.flags import Flags
from coldstream.errors import NotFoundError, UsageError
from coldstream.node.model_folder import NOTE_NAME

EAGLE = {"method": "eagle3", "model": "org/head", "num_speculative_tokens": 2}


def uri(*arguments: str, in_bucket: bool = True) -> str | None:
    flag = draft_flag(Flags(arguments))
    named = flag.uri(in_bucket=in_bucket) if flag else None
    return None if named is None else named.full


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--speculative-config", '{"model": "org/draft"}', "--port", "1"], '{"model": "/f"}'),
        (['--speculative_config={"model": "org/draft", "max-model-len": 8}'], '{"model": "/f", "max-model-len": 8}'),
        (["-sc", json.dumps(EAGLE | {"model": "org/draft"})], json.dumps(EAGLE | {"model": "/f"})),
        (["--speculative-config.model", "org/draft", "--speculative-config.method", "eagle"], None),
        (["--spec-model=org/draft", "--spec-tokens", "3"], None),
    ],
)
def test_a_draft_model_in_the_bucket_becomes_a_folder(arguments: list[str], expected: str | None) -> None:
    flags = Flags(arguments)
    flag = draft_flag(flags)
    assert flag is not None
    assert str(flag.uri(in_bucket=True)) == "org/draft"
    assert flag.uri(in_bucket=False) is None, "the Hub has it: vLLM reads it itself"
    replaced = flag.arguments(flags, Path("/f"))
    assert replaced[-2:] == (flag.flag, expected or "/f")
    assert "org/draft" not in " ".join(replaced)
    others = [word for word in arguments if "--port" in word or "--spec-tokens" in word or "method" in word]
    assert set(others) <= {*replaced, *arguments[-1:]}


def test_the_configuration_file_of_vllm_is_overridden(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text("speculative-config: {model: org/draft, num_speculative_tokens: 3}\nport: 9\n")
    flags = Flags(["--config", str(path)])
    flag = draft_flag(flags)
    assert flag is not None
    assert flag.arguments(flags, Path("/f")) == (
        *("--config", str(path)),
        *("--speculative-config", '{"model": "/f", "num_speculative_tokens": 3}'),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4},
        {"model": "ngram", "num_speculative_tokens": 3},
        {"model": "[ngram]"},
        {"method": "mtp", "num_speculative_tokens": 1},
        {"method": "suffix", "model": "org/draft"},
        {"model": "my_package.MyProposer"},
        {"method": "custom_class", "model": "org/draft"},
        {},
        None,
    ],
)
def test_methods_without_a_model_of_their_own_are_left_alone(config: object) -> None:
    assert uri("--speculative-config", json.dumps(config)) is None


def test_what_a_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert uri("-sc", '{"model": "org/draft", "revision": "abc"}') == "org/draft@abc"
    for full in ("hf://org/draft", "s3://b/org/draft", "https://h/org/draft?token=x"):
        assert uri("--spec-model", full, in_bucket=False) == full
    assert uri("--spec-model", "ngram") is None
    assert uri("--spec-method", "ngram", "--spec-model", "org/draft") is None
    assert uri() is None
    # A local folder, as vLLM looks for it, even if it looks like a name.
    (tmp_path / "org/draft").mkdir(parents=True)
    for folder in ("org/draft", "./org/draft", str(tmp_path / "org/draft")):
        assert uri("--spec-model", folder) is None
    # One of `coldstream.prepare` has no weights.
    (tmp_path / "org/draft" / NOTE_NAME).write_text('{"uri": "s3://b/m", "version": "v", "name": "m"}')
    assert uri("--spec-model", "org/draft") == "s3://b/m"
    with pytest.raises(NotFoundError, match=r"--spec-model: there is no folder \./absent"):
        uri("--spec-model", "./absent")
    with pytest.raises(UsageError, match="--speculative-config is not valid JSON"):
        uri("--speculative-config", "{model: org/draft}")
