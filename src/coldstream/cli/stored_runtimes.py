"""Runtimes in the bucket, for `runtime`, `template` and `launch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from coldstream.cli.live import progress_for
from coldstream.cli.session import State
from coldstream.errors import CredentialsError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.fleet.deployment import Deployment
from coldstream.fleet.runtime_choice import choose_runtime
from coldstream.places.opening import open_store
from coldstream.runtime import runtime_store
from coldstream.runtime.image import PackedRuntime, packed
from coldstream.runtime.packages import gather, origin
from coldstream.runtime.runtime_manifest import MANIFEST_BYTES_MAX, RuntimeManifest, decode_manifest
from coldstream.settings import load_settings
from coldstream.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRuntime:
    """What the nodes of a deployment start from."""

    manifest: RuntimeManifest | None  # None if pip installs coldstream
    unpublished: PackedRuntime | None = None  # coldstream's own packages, if they are not in the bucket yet

    def publish(self, state: State) -> None:
        """Stores the packages if they are not in the bucket yet."""
        if self.unpublished is not None:
            facts = self.unpublished.manifest
            size = format_bytes(facts.image.size)
            state.say(f"publishing coldstream {facts.platform.coldstream} to the bucket for the nodes ({size})")
            publish_runtime(state, self.unpublished)


@contextmanager
def chosen_runtime(state: State, options: DeployOptions) -> Iterator[ChosenRuntime]:
    """The runtime that fits, or coldstream's packages, which exist within the block; see `choose_runtime`."""
    if options.package:
        yield ChosenRuntime(manifest=None)
        return
    entries = runtime_store.runtimes(state.open_store(runtime_store.CONNECTIONS))
    chosen = choose_runtime(options, entries)
    if chosen is None:
        ready = (entry.manifest for entry in entries if entry.state == "ready" and entry.manifest is not None)
        own = origin()
        chosen = next((manifest for manifest in ready if manifest.platform.origin == own), None)
    if chosen is not None:
        yield ChosenRuntime(manifest=chosen)
        return
    with packed(gather) as runtime:
        yield ChosenRuntime(manifest=runtime.manifest, unpublished=runtime)


def publish_runtime(state: State, runtime: PackedRuntime) -> bool:
    """Stores a runtime, with a progress line; returns whether it was not there yet."""
    store, size = state.open_store(runtime_store.CONNECTIONS), runtime.manifest.image.size
    parts = runtime.manifest, runtime.image, runtime.unpacker
    try:
        with progress_for(state, total_bytes=size, verb="publish", files=False) as progress:
            progress.begin("image", size, stages=1)
            return runtime_store.publish(store, *parts, on_sent=lambda count: progress.fetched("image", count))
    except CredentialsError as exc:
        exc.hint = "use keys that can write to the bucket; for template and launch, once for each version of coldstream"
        raise


def check_keys(state: State, environment: Mapping[str, str], digest: str) -> None:
    """Reads a runtime's manifest with the keys of a node; raises what the store raises."""
    settings = load_settings({**state.flags, **environment}, env_file=state.env_file)
    store = open_store(settings, retry=state.new_retry(settings), connections=1)
    data, _ = store.get(f"{runtime_store.ROOT}/{digest}/manifest.json", bytes_max=MANIFEST_BYTES_MAX)
    decode_manifest(data, digest)


def software_document(deployment: Deployment) -> dict[str, Any]:
    """What nodes get, and from where, for `--json`."""
    facts: dict[str, Any] | None = None
    if (runtime := deployment.runtime) is not None:
        facts = {"digest": runtime.digest, "bytes": runtime.image.size, "platform": to_builtins(runtime.platform)}
    return {"image": deployment.image, "package": deployment.options.package, "runtime": facts}
