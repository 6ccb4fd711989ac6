"""vLLM's side: the load format `coldstream`, and how its processes come by the tensors.

    extra         what `--model-loader-extra-config` may say; pure
    service       the process that holds the bucket's keys gives loads to processes that do not
    telling       which modules each of vLLM's processes has read, told to the service
    versions      which versions of vLLM this works with; pure
    launch        vLLM's command with a patient garbage collector
    loader        the load format itself; imports vLLM
    shards        what a rank holds, written as files
    save_sharded  a program for `coldstream shard`, run with vLLM's Python

`register` is the entry point of the group `vllm.general_plugins`: vLLM calls it in each of its processes.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coldstream.node.module_reads import tell_when_asked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

LOAD_FORMAT = "coldstream"
_MODULE = "vllm.model_executor.model_loader"


def register() -> None:
    """Tells vLLM of the load format. Idempotent, and imports nothing but what vLLM has imported.

    The API server and the engine never import vLLM's loaders, and would take more than a second each to do so; there
    the format is added when, and if, they are imported.
    """
    if _MODULE in sys.modules:
        _add(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())
    tell_when_asked()


class _Waiting(MetaPathFinder):
    """Waits for the import of vLLM's loaders, once, and changes nothing about how they are found."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add(module)

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def _add(module: Any) -> None:
    # vLLM calls what it finds there; a class of ours would have to be imported first, by who may never use it.
    formats = module._LOAD_FORMAT_TO_MODEL_LOADER
    if LOAD_FORMAT not in formats:
        theirs = module.DefaultModelLoader
        explaining = _explaining(theirs)
        formats |= {name: explaining for name, loader in formats.items() if loader is theirs}
        formats[LOAD_FORMAT] = _make_loader
    _ask_for_amx()


def _explaining(loader: type[Any]) -> type[Any]:
    """VLLM's own loader, which says why it fails on a folder of ours: safetensors names neither file nor reason."""

    def load_weights(self: Any, model: Any, model_config: Any) -> None:
        try:
            loader.load_weights(self, model, model_config)
        except Exception as exc:
            from coldstream.node.model_folder import stub_error

            if (error := stub_error(model_config.model, self.load_config.load_format)) is None:
                raise
            raise error from exc

    return type(loader.__name__, (loader,), {"__module__": loader.__module__, "load_weights": load_weights})


def _ask_for_amx() -> None:
    """Asks the kernel, for this process, for AMX's registers, where vLLM runs on a CPU that has them.

    vLLM's attention uses them without asking (0.32). Only oneDNN asks, when first it wants them: where the first
    request is too short for that, the worker would end with SIGILL.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        import torch

        torch.cpu._init_amx()  # does nothing where there is none


def _make_loader(load_config: Any) -> Any:
    from coldstream.engines.vllm.loader import ColdstreamLoader

    return ColdstreamLoader(load_config)
