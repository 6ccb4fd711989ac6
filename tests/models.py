"""Models for tests: small, generated, with real safetensors headers."""

from __future__ import annotations

import json
import random
from pathlib import Path


def safetensors_bytes(sizes: dict[str, int], *, seed: int = 0) -> bytes:
    """A safetensors file with U8 tensors of these sizes and random content."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(position)


def sharded_model(*, shards: int = 3, shard_bytes: int = 1 << 20, seed: int = 0) -> dict[str, bytes]:
    """Path to content of a model of several shards, with an index and what lies beside it."""
    files: dict[str, bytes] = {}
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        sizes = {f"layers.{number}.big": shard_bytes - 1000, f"layers.{number}.small": 1000}
        files[name] = safetensors_bytes(sizes, seed=seed * 1000 + number)
        weight_map |= dict.fromkeys(sizes, name)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["config.json"] = b'{"model_type": "llama"}'
    files["tokenizer.json"] = json.dumps({"seed": seed}).encode()
    files["1_Pooling/config.json"] = b"{}"
    return files


def write_model(folder: Path, files: dict[str, bytes]) -> Path:
    """The same as files below a folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder
