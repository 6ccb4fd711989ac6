"""SGLang's own loader of safetensors, with the tensors of a model streamed.

What SGLang does around the tensors (the choice of the draft's layers, secondary weights, quantisation, reloads) is its
own code. The note in a model's folder names the URI of its weights; weights in other folders are read as SGLang reads
them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.configs import load_config as load_configs
from sglang.srt.distributed.parallel_state import get_world_group
from sglang.srt.utils import is_cuda

from coldstream.errors import ColdstreamError
from coldstream.node.model_folder import Note
from coldstream.node.rank_loading import Gather, rank_tensors
from coldstream.printable import printable

if TYPE_CHECKING:
    from sglang.srt.model_loader.loader import DefaultModelLoader

logger = logging.getLogger("sglang.coldstream")

# Of a `LoadConfig`: all ranks load together. Earlier versions than 0.5.23 know no other group.
_EVERY_RANK = getattr(load_configs, "_DEFAULT_LOAD_GROUP", None)


def weights(
    loader: DefaultModelLoader, source: DefaultModelLoader.Source, note: Note
) -> Iterator[tuple[str, torch.Tensor]] | None:
    """The tensors of a source as SGLang names them; None for files beside the weights, which are in the folder."""
    # Earlier versions than 0.5.23 know no such patterns.
    patterns = getattr(source, "allow_patterns_overrides", None)
    if patterns is not None and not any(fnmatch("model.safetensors", pattern) for pattern in patterns):
        return None
    tensors, draft = _tensors(note, loader.load_config), loader.load_config.draft_model_idx
    if draft is not None:
        of_draft: Iterator[tuple[str, torch.Tensor]] = loader._filter_mtp_weights(tensors, source.prefix, draft)
        return of_draft
    return ((source.prefix + name, tensor) for name, tensor in tensors)


def _tensors(note: Note, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    group, name = getattr(config, "load_group", _EVERY_RANK), ""
    gather: Gather = lambda value: [value]  # noqa: E731
    if torch.distributed.is_initialized() and group is _EVERY_RANK:
        gather = get_world_group().all_gather_object
    elif torch.distributed.is_initialized() and group is not None:
        # A part of the ranks is named by the first of them.
        name, gather = f"-{group.ranks[0]}", group.all_gather_object
    # Copies to the GPU are faster from pinned memory.
    options = {"framework": "pt", "pin": is_cuda()}
    try:
        yield from rank_tensors(note, options, gather=gather, group=name, log=logger.info)
    except ColdstreamError as exc:
        logger.error("coldstream: %s", printable(exc.message + (f" ({exc.hint})" if exc.hint else "")))
        raise
