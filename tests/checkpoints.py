"""Checkpoints for the engine's tests: real safetensors files with known tensors, and what they must come back as."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open

from coldstream.model.header import DTYPE_BITS

KIB = 1 << 10
MIB = 1 << 20

Spec = Mapping[str, tuple[str, tuple[int, ...]]]  # name to dtype and shape


def checkpoint_bytes(spec: Spec, *, seed: int = 0, pad: int = 0) -> bytes:
    """A safetensors file of these tensors with random bytes; `pad` spaces make its header longer, and offsets odd."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in spec.items():
        count = 1
        for size in shape:
            count *= size
        size = count * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    return len(text).to_bytes(8, "little") + text + random.Random(seed).randbytes(position)


def layered(*, layers: int = 4, rows: int = 512, columns: int = 1024, prefix: str = "model") -> Spec:
    """Tensors like a transformer's: some of a MiB and more, many small ones, a scalar, one without elements."""
    spec: dict[str, tuple[str, tuple[int, ...]]] = {f"{prefix}.embed": ("BF16", (4 * rows, columns))}
    for layer in range(layers):
        spec[f"{prefix}.layers.{layer}.q"] = ("BF16", (rows, columns))
        spec[f"{prefix}.layers.{layer}.k"] = ("F8_E4M3", (rows // 4, columns))
        spec[f"{prefix}.layers.{layer}.norm"] = ("F32", (columns,))
        spec[f"{prefix}.layers.{layer}.scale"] = ("F32", ())
    spec[f"{prefix}.nothing"] = ("F16", (0, 8))
    return spec


def sharded_checkpoint(
    *, shards: int = 3, layers: int = 4, rows: int = 512, columns: int = 1024, seed: int = 0
) -> dict[str, bytes]:
    """Path to content of a model in several shards, with its index and configuration."""
    files: dict[str, bytes] = {}
    weight_map = {}
    for number in range(1, shards + 1):
        path = f"model-{number:05d}-of-{shards:05d}.safetensors"
        spec = layered(layers=layers, rows=rows, columns=columns, prefix=f"part{number}")
        files[path] = checkpoint_bytes(spec, seed=1000 * seed + number)
        weight_map |= dict.fromkeys(spec, path)
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["config.json"] = b'{"architectures": ["LlamaForCausalLM"]}'
    return files


def expected_tensors(folder: Path, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Name to bytes, as the reference implementation reads them."""
    found: dict[str, bytes] = {}
    for path, content in files.items():
        if path.endswith(".safetensors"):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            with safe_open(target, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is no mapping
                    found[name] = raw_bytes(opened.get_tensor(name))
    return found


def raw_bytes(tensor: object) -> bytes:
    """The bytes of a torch tensor or a typed buffer."""
    import torch

    if isinstance(tensor, torch.Tensor):
        return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return bytes(tensor.data)  # type: ignore[attr-defined]
