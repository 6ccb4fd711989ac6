"""Loads a model in vLLM and writes each rank's part of it: a program, run with vLLM's Python.

    python -m coldstream.engines.vllm.save_sharded OUT -- FOLDER --tensor-parallel-size 4 [any engine flag of vLLM]

What is written are the parameters of each rank, fused and split as vLLM has them: they fit the same version of vLLM,
the same kind of device, the same quantisation and the same number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from coldstream.engines.vllm import shard_writer

# Beside the shards: what they were made by.
RECORD_NAME = "coldstream-shards.json"


def main(arguments: Sequence[str]) -> None:
    """Does it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    import vllm
    from vllm import LLM

    out, _, folder, *flags = arguments
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    engine_args = EngineArgs.from_cli_args(parser.parse_args(["--model", folder, *flags]))
    # The load format writes them, in each rank.
    os.environ[shard_writer.VARIABLE] = out
    engine = LLM(**{field.name: getattr(engine_args, field.name) for field in dataclasses.fields(engine_args)})
    config = engine.llm_engine.vllm_config
    for rank in range(config.parallel_config.tensor_parallel_size):
        if not os.path.exists(first := os.path.join(out, shard_writer.PATTERN.format(rank=rank, part=0))):
            sys.exit(f"rank {rank} did not write {first}")
    record = {
        "vllm": vllm.__version__,
        "device": config.device_config.device_type,
        "tensor_parallel_size": config.parallel_config.tensor_parallel_size,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "quantization": config.model_config.quantization,
    }
    with open(os.path.join(out, RECORD_NAME), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)


if __name__ == "__main__":
    main(sys.argv[1:])
