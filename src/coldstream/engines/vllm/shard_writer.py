"""Writes what a rank holds of a model, as Run:ai's sharded loader of vLLM reads it.

It is written between loading and vLLM's own preparation of the weights for its kernels. vLLM's `save_sharded_state`
comes after that: on a CPU with AVX-512 the linear layers are then in a format of oneDNN, and no longer in the model;
and what it has written is prepared a second time where it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    import torch

# The folder, for the ranks.
VARIABLE = "COLDSTREAM_SHARDS_DIR"
PATTERN = "model-rank-{rank}-part-{part}.safetensors"
# As vLLM's own example: parts that load side by side.
_PART_BYTES_MAX = 5 << 30


def check(model: torch.nn.Module) -> None:
    """Whether a model can be written at all; known before it is loaded.

    Raises:
        ColdstreamError: vLLM quantises it while it loads: there is no state that could be loaded as it is.
    """
    if any(getattr(getattr(module, "quant_method", None), "uses_meta_device", False) for module in model.modules()):
        raise ColdstreamError(
            "vLLM quantises this model while it loads, and its ranks hold nothing that a loader could read back: shard "
            "it without --quantization, or a checkpoint that is quantised already"
        )


def write(model: torch.nn.Module, folder: str) -> None:
    """Writes this rank's parts: the model's state as it is before vLLM prepares it.

    Raises:
        OSError: The disk is full, or the folder is not to be written to.
    """
    from vllm.model_executor.model_loader import ShardedStateLoader

    ShardedStateLoader.save_model(model, folder, PATTERN, _PART_BYTES_MAX)
