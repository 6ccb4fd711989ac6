"""What `coldstream.model.adapter` says that vLLM refuses is what vLLM refuses."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from coldstream.model.adapter import VLLM_RANKS, parse_config
from tests.adapters import adapter_config
from tests.vllm.conftest import PYTHON, clean_environ

_CODE = """
import json, sys
from typing import get_args
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.lora.peft_helper import PEFTHelper

def refuses(config):
    try:
        PEFTHelper.from_dict(config).validate_legal(LoRAConfig(max_lora_rank=512))
    except ValueError as exc:
        return True
    return False

answers = [refuses(config) for config in json.load(sys.stdin)]
print(json.dumps({"ranks": get_args(MaxLoRARanks), "refused": answers}))
"""
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"rank": 512},
    {"rank": 513},
    {"rank_pattern": {"q_proj": 600}},
    {"use_dora": True},
    {"lora_bias": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"modules_to_save": []},
    {"modules_to_save": ["score"]},
    {"modules_to_save": ["classifier", "score"]},
    {"modules_to_save": ["embed_tokens", "lm_head"]},
    *({"init_lora_weights": init} for init in (False, "gaussian", "Eva", "orthogonal", "mica", "lora_ga")),
    *({"init_lora_weights": init} for init in ("pissa", "pissa_niter_16", "olora", "corda", "loftq")),
    {"alora_invocation_tokens": [1]},
    {"alora_invocation_tokens": []},
    {"layer_replication": [[0, 2]]},
    {"use_bdlora": {"nblocks": 2}},
    {"use_qalora": True},
    {"use_rslora": True, "alpha_pattern": {"q_proj": 4.5}, "rank_pattern": {"q_proj": 4}},
)


def test_the_same_adapters_are_refused() -> None:
    configs = [adapter_config(**settings) for settings in SETTINGS]
    ended = subprocess.run(
        [str(PYTHON), "-c", _CODE],
        input=json.dumps([json.loads(config) for config in configs]),
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert tuple(answer["ranks"]) == VLLM_RANKS
    ours = [parse_config(config, where="x").refusal is not None for config in configs]
    assert dict(zip(map(str, SETTINGS), ours, strict=True)) == dict(
        zip(map(str, SETTINGS), answer["refused"], strict=True)
    )
