"""The configuration of an adapter: what is read of it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coldstream.errors import IntegrityError, UsageError
from coldstream.model.adapter import CONFIG_BYTES_MAX, Adapter, parse_config
from tests.adapters import BASE, adapter_config


def parsed(data: bytes, base: str | None = None) -> Adapter:
    return parse_config(data, where="org/a/adapter_config.json", base=base)


def test_a_plain_lora_adapter() -> None:
    adapter = parsed(adapter_config(rank=16))
    assert adapter == Adapter(base=BASE, rank=16)
    assert adapter.refusal is None


def test_the_rank_is_the_largest_of_all_modules() -> None:
    assert parsed(adapter_config(rank=8, rank_pattern={"k_proj": 64, "q_proj": 4})).rank == 64
    assert parsed(adapter_config(rank=8, rank_pattern=None)).rank == 8


@pytest.mark.parametrize(
    ("settings", "features"),
    [
        ({"use_dora": True}, ("use_dora",)),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"bias": "all"}, ("bias",)),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, ("modules_to_save",)),
        ({"modules_to_save": ["score"]}, ()),
        ({"init_lora_weights": "pissa_niter_16"}, ("init_lora_weights",)),
        ({"init_lora_weights": "Gaussian"}, ()),
        ({"init_lora_weights": False}, ()),
        ({"alora_invocation_tokens": [1, 2]}, ("alora_invocation_tokens",)),
        ({"layer_replication": [[0, 4], [2, 5]]}, ("layer_replication",)),
        ({"use_bdlora": {"nblocks": 2}}, ("use_bdlora",)),
        ({"use_qalora": True, "use_dora": True}, ("use_dora", "use_qalora")),
        ({"use_rslora": True, "alpha_pattern": {"q_proj": 3.5}, "target_modules": "all-linear"}, ()),
        ({"target_modules": None, "target_parameters": ["experts.down_proj"]}, ()),
        ({"a_setting_of_a_later_version": {"x": 1}}, ()),
    ],
)
def test_what_vllm_does_not_support_is_named(settings: dict[str, Any], features: tuple[str, ...]) -> None:
    adapter = parsed(adapter_config(**settings))
    assert adapter.features == features
    assert adapter.refusal == (
        f"its configuration sets {' and '.join(features)}, which vLLM does not support" if features else None
    )


def test_a_rank_that_vllm_does_not_support() -> None:
    assert parsed(adapter_config(rank=512)).refusal is None
    assert parsed(adapter_config(rank=513)).refusal == "its rank is 513, and vLLM serves ranks up to 512"


def test_another_type_of_adapter_is_read_and_refused_for_serving() -> None:
    # AdaLoRA's rank_pattern holds lists, and IA3 has no rank.
    adapter = parsed(adapter_config(peft_type="ADALORA", rank_pattern={"q_proj": [True, False]}))
    assert (adapter.peft_type, adapter.rank) == ("ADALORA", 0)
    assert adapter.refusal == "its type is ADALORA, and vLLM serves only LORA"


@pytest.mark.parametrize("base", [None, "", 0])
def test_an_adapter_without_a_base(base: Any) -> None:
    with pytest.raises((UsageError, IntegrityError)) as caught:
        parsed(adapter_config(base))
    assert caught.value.hint
    assert "base" in str(caught.value)


@pytest.mark.parametrize(
    "base", ["/data/llama", "./llama", "../llama", "C:\\models\\llama", "a b", "org/..", "x" * 2000]
)
def test_a_base_that_is_no_name_is_replaced_by_the_caller_s(base: str) -> None:
    with pytest.raises(UsageError, match="is not a model's name") as caught:
        parsed(adapter_config(base))
    assert "--base" in (caught.value.hint or "")
    assert parsed(adapter_config(base), base="org/other").base == "org/other"


def test_its_base_is_known_by_its_name_or_by_its_repository() -> None:
    adapter = parsed(adapter_config("meta/llama"))
    assert adapter.is_of("meta/llama")
    assert adapter.is_of("prod/llama", "meta/llama")
    assert not adapter.is_of("prod/llama")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"r": -1},
        {"r": True},
        {"r": "8"},
        {"r": 1 << 40},
        {"r": None},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": ["q_proj"]},
        {"lora_alpha": "16"},
        {"target_modules": 1},
        {"use_dora": "yes"},
        {"peft_type": None},
        {"peft_type": "x" * 2000},
        {"peft_type": "IA3\nready"},
        {"peft_type": ""},
        {"base_model_name_or_path": ["a"]},
    ],
)
def test_a_malformed_field_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=f"is malformed: .*{next(iter(settings))}"):
        parsed(adapter_config(**settings))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_configuration(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"adapter_config\.json is (malformed|not JSON)"):
        parsed(data)


def test_a_configuration_without_rank_or_alpha() -> None:
    config = json.loads(adapter_config())
    for name in ("r", "lora_alpha"):
        with pytest.raises(IntegrityError, match=name):
            parsed(json.dumps({key: value for key, value in config.items() if key != name}).encode())


def test_a_configuration_that_is_too_long() -> None:
    with pytest.raises(IntegrityError, match="at most"):
        parsed(adapter_config(note="x" * CONFIG_BYTES_MAX))
