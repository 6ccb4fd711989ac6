"""Loads a model in vLLM and writes each rank's part of it: a program, run with vLLM's Python.

    python -m coldstream.vllm.save_sharded OUT -- FOLDER --tensor-parallel-size 4 [any engine flag of vLLM]

What is written is what the ranks hold once vLLM has prepared the weights: it fits the same version of vLLM, the same
kind of device, the same quantisation and the same number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence

# Beside the shards: what they were made by.
RECORD_NAME = "coldstream-shards.json"
PATTERN = "model-rank-{rank}-part-{part}.safetensors"
# As vLLM's own example: parts that load side by side.
_PART_BYTES_MAX = 5 << 30


def main(arguments: Sequence[str]) -> None:
    """Does it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    import vllm
    from vllm import LLM

    out, _, folder, *flags = arguments
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    given = EngineArgs.from_cli_args(parser.parse_args(["--model", folder, *flags]))
    engine = LLM(**{field.name: getattr(given, field.name) for field in dataclasses.fields(given)})
    core = engine.llm_engine.engine_core
    core.save_sharded_state(path=out, pattern=PATTERN, max_size=_PART_BYTES_MAX)
    config = engine.llm_engine.vllm_config
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
