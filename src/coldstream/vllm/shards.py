"""Writes what a rank holds of a model, as Run:ai's sharded loader of vLLM reads it.

It is written between loading and vLLM's own preparation of the weights for its kernels. vLLM's `save_sharded_state` comes
after that, and saves too little or too much: on a CPU with AVX-512 the prepared weights are in a format of oneDNN, and
no longer in the model; and the loader prepares once more what it reads.
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


def write(model: torch.nn.Module, folder: str) -> None:
    """Writes this rank's parts: the model's state as it is before vLLM prepares it.

    Raises:
        ColdstreamError: vLLM quantises the model while it loads, so that there is no such state.
        OSError: The disk is full, or the folder is not to be written to.
    """
    from vllm.model_executor.model_loader import ShardedStateLoader

    if any(getattr(getattr(module, "quant_method", None), "uses_meta_device", False) for module in model.modules()):
        raise ColdstreamError(
            "vLLM quantises this model while it loads: what a rank holds then cannot be loaded as it is",
            hint="shard it without --quantization, or a checkpoint that is quantised already",
        )
    ShardedStateLoader.save_model(model, folder, PATTERN, _PART_BYTES_MAX)
