"""Everything that depends on vLLM: `vllm_engine` implements `coldstream.node.inference_engine` for `serve`.

vLLM calls `register`, the entry point of the group `vllm.general_plugins`, in each of its processes. `loader` is the
load format `coldstream`, and `lora_hooks` loads adapters.
"""

from __future__ import annotations

from typing import Any

from coldstream.node.import_hook import after_import
from coldstream.node.module_reads import report_modules

LOAD_FORMAT = "coldstream"


def register() -> None:
    """Registers the load format, and adapters from the bucket. Idempotent.

    The API server and the engine never import vLLM's loaders, which would take each of them more than a second, and
    only the API server has a list of models. So each is extended when, and only if, it is imported.
    """
    after_import("vllm.model_executor.model_loader", _add)
    after_import("vllm.entrypoints.openai.models.serving", _add_adapters)
    after_import("vllm.lora.request", _tell_versions_apart)
    report_modules()


def _add_adapters(module: Any) -> None:
    from coldstream.engines.vllm.lora_hooks import add_hooks

    add_hooks(module)


def _tell_versions_apart(module: Any) -> None:
    """Makes two versions of an adapter, which have one name and two numbers, two for vLLM's workers.

    vLLM compares by name, so a worker would notice that a batch uses one of them, let go of the other when it needs its
    slot, and die of the missing one.
    """

    def key(request: Any) -> tuple[str, int]:
        return request.lora_name, request.lora_int_id

    kind = module.LoRARequest
    kind.__eq__ = lambda self, other: isinstance(other, kind) and key(self) == key(other)
    kind.__hash__ = lambda self: hash(key(self))


def _add(module: Any) -> None:
    formats = module._LOAD_FORMAT_TO_MODEL_LOADER
    if LOAD_FORMAT not in formats:
        theirs = module.DefaultModelLoader
        explaining = _explaining(theirs)
        formats |= {name: explaining for name, loader in formats.items() if loader is theirs}
        formats[LOAD_FORMAT] = _make_loader
    # vLLM's attention (0.32) uses AMX's registers without requesting them from the kernel. Only oneDNN does, at its
    # first use: if the first prompt is too short for that, the worker dies of SIGILL.
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import torch

        torch.cpu._init_amx()  # does nothing where there is none


def _explaining(loader: type[Any]) -> type[Any]:
    """Makes vLLM's own loader explain why it fails on our folders: safetensors names neither file nor reason."""

    def load_weights(self: Any, model: Any, model_config: Any) -> None:
        try:
            loader.load_weights(self, model, model_config)
        except Exception as exc:
            from coldstream.errors import UsageError
            from coldstream.node.model_folder import read_note

            if (note := read_note(model_config.model)) is None:
                raise
            folder, name = model_config.model, self.load_config.load_format
            raise UsageError(
                f"{folder} has the configuration of {note.name} but not its weights, which load format {name} cannot "
                'fetch: pass load_format="coldstream" to LLM, or --load-format coldstream to vllm serve'
            ) from exc

    return type(loader.__name__, (loader,), {"__module__": loader.__module__, "load_weights": load_weights})


def _make_loader(load_config: Any) -> Any:
    # Processes that never use the class do not import it.
    from coldstream.engines.vllm.loader import ColdstreamLoader

    return ColdstreamLoader(load_config)
