"""Loads a model in vLLM and writes each rank's part of it: a program, run with vLLM's Python.

    python -m coldstream.engines.vllm.save_sharded OUT -- FOLDER --tensor-parallel-size 4 [any engine flag of vLLM]

The load format writes, in each rank, the parameters that the rank holds, fused and split as vLLM has them, as Run:ai's
sharded loader reads them: they fit the same version of vLLM, kind of device, quantisation and number of ranks. It
writes before vLLM prepares the weights for its kernels. vLLM's `save_sharded_state` writes afterwards: on a CPU with
AVX-512 the linear layers are then in a format of oneDNN, and the weights are prepared again where they are loaded.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coldstream.errors import ColdstreamError

if TYPE_CHECKING:
    import torch

# The folder, for the ranks.
VARIABLE = "COLDSTREAM_SHARDS_DIR"
_PATTERN = "model-rank-{rank}-part-{part}.safetensors"
# As vLLM's own example: parts that load side by side.
_PART_BYTES_MAX = 5 << 30
# Beside the shards: how they were made.
_RECORD_NAME = "coldstream-shards.json"


def check_shardable(model: torch.nn.Module) -> None:
    """Raises ColdstreamError, before the load, if vLLM quantises a model while it loads."""
    if any(getattr(getattr(module, "quant_method", None), "uses_meta_device", False) for module in model.modules()):
        raise ColdstreamError(
            "vLLM quantises this model while it loads, and its ranks hold nothing that a loader could read back: shard "
            "it without --quantization, or a checkpoint that is quantised already"
        )


def write_shard(model: torch.nn.Module, folder: str) -> None:
    """Writes this rank's parts: the model's state as it is before vLLM prepares it."""
    from vllm.model_executor.model_loader import ShardedStateLoader

    ShardedStateLoader.save_model(model, folder, _PATTERN, _PART_BYTES_MAX)


def main(arguments: Sequence[str]) -> None:
    """Loads the model, and checks that each rank has written its part."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    import vllm
    from vllm import LLM

    out, _, folder, *flags = arguments
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    engine_args = EngineArgs.from_cli_args(parser.parse_args(["--model", folder, *flags]))
    os.environ[VARIABLE] = out
    engine = LLM(**{field.name: getattr(engine_args, field.name) for field in dataclasses.fields(engine_args)})
    config = engine.llm_engine.vllm_config
    for rank in range(config.parallel_config.tensor_parallel_size):
        if not os.path.exists(first := os.path.join(out, _PATTERN.format(rank=rank, part=0))):
            sys.exit(f"rank {rank} did not write {first}")
    record = {
        "vllm": vllm.__version__,
        "device": config.device_config.device_type,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
    }
    with open(os.path.join(out, _RECORD_NAME), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)


if __name__ == "__main__":
    main(sys.argv[1:])
