"""Everything that depends on SGLang: `sglang_engine` implements `coldstream.node.inference_engine` for `serve`.

SGLang calls `register`, the entry point of the group `sglang.srt.plugins`, in each of its processes. Its load formats
are a closed enumeration, so ours has no name: a folder with our note is streamed, in the formats auto and safetensors.
"""

from __future__ import annotations

import functools
from typing import Any

from coldstream.node.import_hook import after_import
from coldstream.node.module_reads import report_modules


def register() -> None:
    """Makes SGLang's loader of safetensors stream. Idempotent.

    The detokenizer never imports SGLang's loaders, which would take it seconds, so the loader is changed when, and only
    if, it is imported.
    """
    after_import("sglang.srt.model_loader.loader", _stream)
    report_modules()


def _stream(module: Any) -> None:
    """Changes the one method from which SGLang's loaders of safetensors get the tensors, reloads included."""
    loader = module.DefaultModelLoader
    theirs = loader._get_weights_iterator
    if hasattr(theirs, "__wrapped__"):
        return

    @functools.wraps(theirs)
    def weights_iterator(self: Any, source: Any, **startup: Any) -> Any:
        # Processes that load no weights do not import it.
        from coldstream.node.model_folder import read_note

        if (note := read_note(source.model_or_path)) is None:
            return theirs(self, source, **startup)
        from coldstream.engines.sglang import sglang_loader

        streamed = sglang_loader.weights(self, source, note)
        return theirs(self, source, **startup) if streamed is None else streamed

    loader._get_weights_iterator = weights_iterator
