"""Runtimes in the bucket, for `runtime`, `template` and `launch`."""

from __future__ import annotations

from coldstream.cli.live import progress_for
from coldstream.cli.session import State
from coldstream.runtime import runtime_store
from coldstream.runtime.image import PackedRuntime


def publish_runtime(state: State, runtime: PackedRuntime) -> bool:
    """Stores a runtime, with a progress line; returns whether it was not there yet."""
    store, size = state.open_store(runtime_store.CONNECTIONS), runtime.manifest.image.size
    with progress_for(state, total_bytes=size, verb="publish", files=False) as progress:
        progress.begin("image", size, stages=1)
        return runtime_store.publish(
            store,
            runtime.manifest,
            runtime.image,
            runtime.unpacker,
            on_sent=lambda count: progress.fetched("image", count),
        )
