"""vLLM's side: the load format `coldstream`, and how its processes come by the tensors.

    extra       what `--model-loader-extra-config` may say; pure
    service     the process that holds the bucket's keys gives loads to processes that do not
    versions    which versions of vLLM this works with; pure
    loader      the load format itself; imports vLLM

`register` is the entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes.
"""

from __future__ import annotations

LOAD_FORMAT = "coldstream"


def register() -> None:
    """Tells vLLM of the load format. Idempotent, and imports nothing that vLLM has not imported itself."""
    from vllm.model_executor import model_loader

    if LOAD_FORMAT in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        return
    from coldstream.vllm.loader import ColdstreamLoader

    model_loader._LOAD_FORMAT_TO_MODEL_LOADER[LOAD_FORMAT] = ColdstreamLoader
