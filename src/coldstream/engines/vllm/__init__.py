"""Everything that depends on vLLM: `vllm_engine` implements `coldstream.node.inference_engine` for `serve`.

vLLM calls `register`, the entry point of the group `vllm.general_plugins`, in each of its processes. `loader` is the
load format `coldstream`.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from coldstream.node.module_reads import report_modules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

LOAD_FORMAT = "coldstream"
_MODULE = "vllm.model_executor.model_loader"


def register() -> None:
    """Registers the load format. Idempotent.

    The API server and the engine never import vLLM's loaders, which would take each of them more than a second, so the
    format is added when, and only if, the loaders are imported.
    """
    if _MODULE in sys.modules:
        _add(sys.modules[_MODULE])
    elif not any(isinstance(finder, _LoaderImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LoaderImportHook())
    report_modules()


class _LoaderImportHook(MetaPathFinder):
    """Adds the load format when vLLM's loaders are imported, once, without changing how they are found."""

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
