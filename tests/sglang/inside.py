"""Runs in SGLang's environment: loads models as SGLang's scheduler does, on the CPU.

    .venv-sglang/bin/python -m tests.sglang.inside JOBS.json RESULTS.json [RANK WORLD PORT]

JOBS has names and folders; RESULTS gets, for each, the digests of all parameters by name, after the load and after a
reload, or the error. A name that begins with "alone" is loaded without a load service. SGLang starts a process for each
rank, and so do the tests.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

LOADER = "sglang.srt.model_loader.loader"


def main(jobs: Path, results: Path, rank: int = 0, world: int = 1, port: int = 0) -> None:
    """Does all jobs."""
    found: dict[str, Any] = {"plugin": plugged()}
    for name, folder in json.loads(jobs.read_text()).items():
        if name.startswith("alone"):
            os.environ.pop("COLDSTREAM_SERVICE", None)
        try:
            found[name] = loads(folder, rank, world, port)
        except Exception as exc:  # the test wants to see it
            found[name] = {"error": f"{type(exc).__name__}: {exc}"}
    results.write_text(json.dumps(found))


def plugged() -> dict[str, Any]:
    """What the plugin costs a process, and when it changes the loader."""
    before = set(sys.modules)
    import coldstream.engines.sglang

    coldstream.engines.sglang.register()
    coldstream.engines.sglang.register()
    light = {name.partition(".")[0] for name in set(sys.modules) - before} & {"torch", "sglang", "numpy", "boto3"}
    from sglang.srt.plugins import load_plugins

    load_plugins()
    waits = LOADER not in sys.modules
    from sglang.srt.model_loader.loader import DefaultModelLoader

    streaming = DefaultModelLoader._get_weights_iterator
    coldstream.engines.sglang.register()
    return {
        "light": sorted(light),
        "waits": waits,
        "streams": streaming.__wrapped__.__module__ == LOADER,
        "once": DefaultModelLoader._get_weights_iterator is streaming,
    }


def loads(folder: str, rank: int, world: int, port: int) -> dict[str, dict[str, str]]:
    """The digests of the parameters after a start, and after what `update_weights_from_disk` does."""
    import torch
    from sglang.srt.configs.device_config import DeviceConfig
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import DefaultModelLoader, get_model_loader
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    config = configured(folder, rank, world, port)
    loader = get_model_loader(LoadConfig(load_format="auto"), config)
    model = loader.load_model(model_config=config, device_config=DeviceConfig("cpu"))
    found = {"first": digests(model)}
    for parameter in model.parameters():
        parameter.data.zero_()
    loader = get_model_loader(LoadConfig(load_format="auto"), config)
    tensors = loader._get_weights_iterator(DefaultModelLoader.Source.init_new(config, model))
    with set_default_torch_dtype(config.dtype):
        loader.load_weights_and_postprocess(model, tensors, torch.device("cpu"))
    return found | {"reloaded": digests(model)}


def digests(model: Any) -> dict[str, str]:
    """The digests of a model's parameters, by name."""
    import torch

    return {
        name: hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in model.named_parameters()
    }


def configured(folder: str, rank: int, world: int, port: int) -> Any:
    """SGLang's configuration of the model, after what its scheduler sets up before a load."""
    import torch
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed.parallel_state import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers.dp_attention import init_dp_gathered_buffer, initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path=folder, device="cpu", tp_size=world, attention_backend="torch_native")
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=rank))
    initialize_moe_config()
    config = ModelConfig.from_server_args(args)
    if not torch.distributed.is_initialized():
        init_distributed_environment(
            world_size=world,
            rank=rank,
            local_rank=0,
            distributed_init_method=f"tcp://127.0.0.1:{port}",
            backend="gloo",
        )
        initialize_model_parallel()
        initialize_dp_attention(args)
        init_dp_gathered_buffer(config)
    return config


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
