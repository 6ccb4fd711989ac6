"""Models of usual shapes."""

from __future__ import annotations

from coldstream.tune.model_shape import Model

EIGHT = Model(
    name="8B",
    bytes=16_060_000_000,
    parameters=8_030_000_000,
    dtype="BF16",
    layers=32,
    heads=32,
    kv_heads=8,
    kv_bytes=131_072,
    context=8192,
)
SEVENTY = Model(
    name="70B",
    bytes=141_000_000_000,
    parameters=70_600_000_000,
    dtype="BF16",
    layers=80,
    heads=64,
    kv_heads=8,
    kv_bytes=327_680,
    context=131_072,
)
