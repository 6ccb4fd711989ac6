"""What of a model decides how it is served: its bytes, and the shape of its attention. Pure.

Bytes and dtypes come from the headers of its shards, so they are what will be loaded; the rest from its config.json, of
which other names and missing values are common: what is not said is not guessed, but left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coldstream.model.header import Header

# Keys and values are kept in 16 bits, unless vLLM is told otherwise.
_KV_VALUE_BYTES = 2
# Dtypes that hold several weights in one value: `shape` does not tell how many there are.
_PACKED = {"I32", "U8", "F4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is known of a model.

    Attributes:
        name: For people.
        bytes: Of its tensors.
        parameters: How many; None when they are packed.
        dtype: Of most of its bytes, as safetensors writes it.
        layers: Of the decoder; None when config.json does not say.
        heads: Of attention, likewise.
        kv_heads: That keep keys and values, likewise.
        kv_bytes: Of keys and values for each token, over all layers and heads; None likewise.
        context: The most tokens it was made for; None likewise.
    """

    name: str
    bytes: int
    parameters: int | None
    dtype: str
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    kv_bytes: int | None = None
    context: int | None = None

    @property
    def size(self) -> float:
        """Parameters; those of a 16-bit model of so many bytes when they cannot be counted."""
        return float(self.parameters if self.parameters is not None else self.bytes / 2)


def describe(name: str, headers: Sequence[Header], config: Mapping[str, Any]) -> Model:
    """A model out of its shards' headers and its config.json.

    Args:
        name: For people.
        headers: Of all shards.
        config: May say anything, or nothing.
    """
    size: Counter[str] = Counter()
    count = 0
    for header in headers:
        for tensor in header.tensors:
            size[tensor.dtype] += tensor.stop - tensor.start
            count += _product(tensor.shape)
    dtype = size.most_common(1)[0][0] if size else ""
    # Multimodal models have their decoder's numbers one level down.
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
    # Latent attention (DeepSeek) keeps one compressed vector for all heads.
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


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
