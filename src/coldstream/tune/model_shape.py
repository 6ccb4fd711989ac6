"""The properties of a model that decide how it is served: its size, and the shape of its attention.

Sizes are exact, from the headers. config.json often lacks values; a missing value is left out, not guessed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coldstream.errors import ColdstreamError, UsageError
from coldstream.model.header import Header
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings

_CONFIG_BYTES_MAX = 16 << 20
# vLLM's KV cache has 16 bits per value by default.
_KV_VALUE_BYTES = 2
# Dtypes that may hold several weights in one value, so that the shapes do not give the number of parameters.
_PACKED = {"I32", "U8", "F4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's size and shape. What config.json does not say is None."""

    name: str
    bytes: int
    parameters: int | None  # none if they are packed
    dtype: str  # that of most of its bytes, as in safetensors headers
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    kv_bytes: int | None = None  # KV cache per token, over all layers and heads
    context: int | None = None  # the maximum context length in tokens

    @property
    def size(self) -> float:
        """The number of parameters; if unknown, that of a 16-bit model with the same number of bytes."""
        return float(self.parameters if self.parameters is not None else self.bytes / 2)


def read_model(uri: str, settings: Settings) -> Model:
    """Describes a model by its shards' headers and its config.json, which may be missing.

    Raises UsageError for an adapter, which is served with its base.
    """
    origin = open_model_reader(uri, settings)
    checkpoint = origin.checkpoint()
    if adapter := origin.adapter():
        hint = f"name {adapter.base} instead; launch, template and serve take --adapters {checkpoint.name}"
        raise UsageError(f"{checkpoint.name} is an adapter of {adapter.base}, not a model", hint=hint)
    config: object = None
    with suppress(ColdstreamError, ValueError, RecursionError):
        config = json.loads(origin.read("config.json", _CONFIG_BYTES_MAX))
    headers = [shard.header for shard in checkpoint.shards]
    return describe(checkpoint.name, headers, config if isinstance(config, dict) else {})


def describe(name: str, headers: Sequence[Header], config: Mapping[str, Any]) -> Model:
    """Describes a model by the headers of all its shards, and its config.json, which is not trusted."""
    size: Counter[str] = Counter()
    count = 0
    for header in headers:
        for tensor in header.tensors:
            size[tensor.dtype] += tensor.stop - tensor.start
            count += math.prod(tensor.shape)
    dtype = size.most_common(1)[0][0] if size else ""
    # Multimodal models have the decoder's values one level down.
    inner = config.get("text_config")
    shape = {**config, **inner} if isinstance(inner, Mapping) else config
    layers, heads = _number(shape, "num_hidden_layers", "n_layer"), _number(shape, "num_attention_heads", "n_head")
    kv_heads = _number(shape, "num_key_value_heads", "num_kv_heads") or heads
    return Model(
        name=name,
        bytes=sum(size.values()),
        parameters=None if dtype in _PACKED else count,
        dtype=dtype,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        kv_bytes=_kv_bytes(shape, layers, heads, kv_heads),
        context=_number(shape, "max_position_embeddings", "n_positions"),
    )


def _kv_bytes(shape: Mapping[str, Any], layers: int | None, heads: int | None, kv_heads: int | None) -> int | None:
    if layers is None:
        return None
    # Latent attention (DeepSeek) caches one compressed vector for all heads.
    latent, rope = _number(shape, "kv_lora_rank"), _number(shape, "qk_rope_head_dim")
    if latent is not None:
        return layers * (latent + (rope or 0)) * _KV_VALUE_BYTES
    hidden = _number(shape, "hidden_size", "n_embd")
    head = _number(shape, "head_dim") or (hidden // heads if hidden and heads else None)
    return 2 * layers * kv_heads * head * _KV_VALUE_BYTES if kv_heads and head else None


def _number(shape: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = shape.get(name)
        if type(value) is int and 0 < value < 1 << 40:
            return value
    return None
