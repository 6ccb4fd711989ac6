"""LoRA adapters in PEFT's form, and small bases for them: generated, with the names and shapes of a Llama."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

BASE = "org/base"
Shapes = Mapping[str, tuple[int, int]]  # module to the shape of its weight: (out, in)


def llama_shapes(*, layers: int = 2, hidden: int = 32) -> dict[str, tuple[int, int]]:
    """The linear modules of a small Llama with grouped queries."""
    one = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (2 * hidden, hidden),
        "mlp.up_proj": (2 * hidden, hidden),
        "mlp.down_proj": (hidden, 2 * hidden),
    }
    return {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in one.items()}


def base_files(shapes: Shapes | None = None, *, hidden: int = 32, seed: int = 0) -> dict[str, bytes]:
    """A base model of these modules: path to content."""
    noise = np.random.default_rng(seed)
    tensors = {
        f"{module}.weight": noise.standard_normal(shape, dtype=np.float32)
        for module, shape in (shapes or llama_shapes(hidden=hidden)).items()
    }
    tensors["model.embed_tokens.weight"] = noise.standard_normal((64, hidden), dtype=np.float32)
    tensors["model.norm.weight"] = np.ones(hidden, dtype=np.float32)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden}
    return {"model.safetensors": save(tensors), "config.json": json.dumps(config).encode()}


def adapter_config(base: str | None = BASE, *, rank: int = 8, **settings: Any) -> bytes:
    """An `adapter_config.json` as PEFT writes it, with `settings` in place of its own."""
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 2 * rank,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(config | settings).encode()


def adapter_files(
    base: str | None = BASE,
    *,
    rank: int = 8,
    modules: Iterable[str] = ("self_attn.q_proj", "self_attn.v_proj"),
    shapes: Shapes | None = None,
    seed: int = 1,
    **settings: Any,
) -> dict[str, bytes]:
    """An adapter of the modules with these last names: path to content. Its values are not zero."""
    noise = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in (shapes or llama_shapes()).items():
        if module.endswith(tuple(modules)):
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = noise.standard_normal((rank, columns), dtype=np.float32) / 8
            tensors[f"{prefix}.lora_B.weight"] = noise.standard_normal((rows, rank), dtype=np.float32) / 8
    names = sorted({module.rpartition(".")[2] for module in modules})
    config = adapter_config(base, rank=rank, **{"target_modules": names, **settings})
    return {"adapter_config.json": config, "adapter_model.safetensors": save(tensors), "README.md": b"# An adapter\n"}
