"""The load format: vLLM's own loader for safetensors, with the tensors of the model itself streamed.

What vLLM does around the tensors (the expert-parallel filter, secondary weights, the check for missing weights,
quantisation) is its own code. The note in a model's folder names the URI of its weights; a draft model's folder has
one of its own. Weights in other folders are read as vLLM reads them.
"""

from __future__ import annotations

import dataclasses
import glob
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight
from vllm.platforms import current_platform

from coldstream.engines.vllm import save_sharded
from coldstream.engines.vllm.flags import checked_loader_config, load_options
from coldstream.errors import ColdstreamError
from coldstream.model.names import Uri
from coldstream.node.model_folder import Note, read_note
from coldstream.node.rank_loading import rank_tensors
from coldstream.printable import printable

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig

logger = init_logger("vllm.plugins.coldstream")

_loaded = False


class ColdstreamLoader(DefaultModelLoader):
    """Streams a model's weights. See docs/serve.md for its options."""

    def __init__(self, load_config: LoadConfig) -> None:
        """Checks the options. Raises ValueError if one is unknown or of the wrong type."""
        self._config = checked_loader_config(load_config.model_loader_extra_config or {})
        # vLLM's own code sees the format that this one resembles.
        theirs = {key: value for key, value in self._config.items() if key == "enable_weights_track"}
        super().__init__(dataclasses.replace(load_config, load_format="safetensors", model_loader_extra_config=theirs))
        self._is_main = True

    def download_model(self, model_config: ModelConfig) -> None:
        """Downloads nothing: the weights are streamed."""

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Fills a model. After a ColdstreamError it is partly filled, and must not be used."""
        global _loaded  # noqa: PLW0603  # one engine per process
        out = os.environ.get(save_sharded.VARIABLE)
        if out:
            save_sharded.check_shardable(model)
        super().load_weights(model, model_config)
        if out and self._is_main:
            save_sharded.write_shard(model, out)
        _loaded = True

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """All tensors, those of secondary weights included."""
        self._is_main = get_current_vllm_config().model_config is model_config
        if model_config.quantization == "torchao":
            raise ColdstreamError(
                "checkpoints quantised with torchao are put together from whole files",
                hint="download it and serve the folder: coldstream download",
            )
        # vLLM itself does this only when it loads for the first time.
        self._init_ep_weight_filter(model_config)
        yield from super().get_all_weights(model_config, model)

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        note = self._note(source)
        if note is None:
            yield from super()._get_weights_iterator(source)
            return
        unused = getattr(source, "is_unused_weight", None)
        for name, tensor in self._tensors(note):
            # The first: another rank has the expert.
            if should_skip_weight(name, self.local_expert_ids) or (unused is not None and unused(name)):
                continue
            yield source.prefix + name, tensor

    def _note(self, source: DefaultModelLoader.Source) -> Note | None:
        """Where the weights of a source are; None when vLLM reads them itself."""
        note = read_note(source.model_or_path)
        uri = Uri(self._config["uri"]) if "uri" in self._config else None
        patterns = source.allow_patterns_overrides
        if source.subfolder or (patterns and not any(fnmatch("model.safetensors", pattern) for pattern in patterns)):
            # Files beside the weights, which lie in the folder as they are.
            return None
        if note is not None:
            if uri is None or not self._is_main:
                return note
            if str(uri) != str(note.uri):
                raise ColdstreamError(f"the folder {source.model_or_path} is of {note.uri}, and uri says {uri}")
            # With the token that the folder does not hold.
            return dataclasses.replace(note, uri=uri)
        if uri is None or not self._is_main or any(map(_has_data, glob.glob(f"{source.model_or_path}/*.safetensors"))):
            return None
        return Note(uri=uri, version="", name=str(uri))

    def _tensors(self, note: Note) -> Iterator[tuple[str, torch.Tensor]]:
        self.counter_before_loading_weights: float = self.counter_before_loading_weights or time.perf_counter()
        try:
            # Copies to the GPU are faster from pinned memory.
            options = {"framework": "pt", "pin": bool(current_platform.is_cuda()), **load_options(self._config)}
            gather = partial(_all_gather, is_main=self._is_main)
            yield from rank_tensors(note, options, gather=gather, is_draft=not self._is_main, log=logger.info)
        except ColdstreamError as exc:
            logger.error("coldstream: %s", printable(exc.message + (f" ({exc.hint})" if exc.hint else "")))
            # A reload that failed half-way must not go on serving. Only a process of vLLM's own may be ended for it.
            if _loaded and multiprocessing.parent_process() is not None:
                logger.critical("coldstream: the model is partly filled; this process ends rather than serve it")
                os._exit(1)
            raise


def _all_gather(value: Any, *, is_main: bool) -> list[Any]:
    """The value of each rank that loads the model, by rank: only those of the last stage load a draft. Collective."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [value]
    from vllm.distributed import get_tp_group, get_world_group

    group = get_world_group() if is_main else get_tp_group()
    gathered: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(gathered, value, group=group.cpu_group)
    return gathered


def _has_data(path: str) -> bool:
    """Whether a file of weights is more than a stub, which consists of the header."""
    with open(path, "rb") as file:
        return os.path.getsize(path) > 8 + int.from_bytes(file.read(8), "little")
