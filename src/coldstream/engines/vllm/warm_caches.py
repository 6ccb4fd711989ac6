"""The caches of a start of vLLM: what they depend on is found out here, and where their bundles lie."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.flags import with_config
from coldstream.engines.vllm.program import Program
from coldstream.engines.vllm.serve_request import ServeRequest
from coldstream.errors import ConfigError, IntegrityError, UsageError
from coldstream.machine import hardware
from coldstream.machine.disk import private_root
from coldstream.machine.process_session import session
from coldstream.model.names import checked_name, expanded
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.node.bundle.bundle_key import key_of
from coldstream.node.bundle.bundle_pointer import checked_secret
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.node.bundle.local_bundles import LocalBundle
from coldstream.node.bundle.warm_start import WarmStart, WarmState
from coldstream.node.load_service import LoadService
from coldstream.node.readahead.prefetch import ReadAhead
from coldstream.node.readahead.read_record import ReadRecord, decode
from coldstream.node.readahead.recording import record
from coldstream.places.store_opening import open_store
from coldstream.settings import Settings
from coldstream.units import format_bytes, format_seconds, plural

# A store that does not answer for so long is done without.
_GIVE_UP_SECONDS = 10.0
_CONNECTIONS = 8


def warm_start(
    request: ServeRequest,
    settings: Settings,
    program: Program,
    *,
    version: str,
    environ: Mapping[str, str],
    say: Callable[[str], None],
) -> WarmStart | None:
    """The caches of a start; None when vLLM's own are left alone, and then why is said.

    Args:
        request: What is to be served.
        settings: Where the bucket is, and the cache.
        program: The vLLM.
        version: Of the model.
        environ: What vLLM would get without us.
        say: Told why there are none.
    """
    try:
        secret = checked_secret(settings.get("COLDSTREAM_BUNDLE_KEY"))
        if secret is None:
            raise ConfigError("COLDSTREAM_BUNDLE_KEY is not set (coldstream setup --bundle-key makes one)")
        if not program.packages:
            raise ConfigError(f"which packages {program.path} uses cannot be told")
        shelf = open_bundle_store(request.uri, request.served_name, settings)
    except UsageError as exc:
        say(f"warm-start bundle: off, {exc.message}")
        return None
    base = caches_folder(settings, environ)
    key = key_of(
        model=version,
        loader=request.loader,
        device=_device(() if program.is_cpu_build else hardware.gpus()),
        processor=hardware.instruction_sets(),
        python=program.python,
        packages=program.packages,
        arguments=with_config(request.arguments),
        environ=environ,
        caches=str(base),
        site=program.site,
    )
    return WarmStart(LocalBundle(base, key), shelf, secret=secret, mode=request.bundle)


def caches_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The folder with the caches of all starts of this node: below vLLM's own cache root when the user chose one."""
    chosen = environ.get("VLLM_CACHE_ROOT")
    if chosen:
        return private_root(expanded(chosen).absolute()) / "coldstream/bundles"
    return cache_of(settings).root / "bundles"


def open_bundle_store(uri: Uri, name: str, settings: Settings) -> BundleStore:
    """Where the bundles of a model lie: in the configured store, else in the bucket that the model is in.

    Args:
        uri: As the user named the model.
        name: What it is called.
        settings: Where the bucket is.

    Raises:
        ConfigError: No store is configured.
        UsageError: The name could not be part of a key.
    """
    try:
        settings.store_uri()
    except ConfigError:
        if not uri.full.startswith("s3://"):
            raise
        bucket = uri.full.removeprefix("s3://").partition("/")[0]
        settings = replace(settings, values={**settings.values, "COLDSTREAM_STORE": f"s3://{bucket}"})
    retry = Retry(Backoff(give_up_seconds=min(_GIVE_UP_SECONDS, settings.retry_seconds)))
    return BundleStore(open_store(settings, retry=retry, connections=_CONNECTIONS), checked_name(name))


def _device(cards: tuple[hardware.InstalledGpu, ...]) -> str:
    """The kinds of GPU, with their driver's family; how many there are is the parallelism's part."""
    kinds = {f"{card.name}, {card.capability}, driver {card.driver.partition('.')[0]}" for card in cards}
    return "; ".join(sorted(kinds)) or f"cpu: {hardware.processor()}"


def read_ahead(data: bytes | None) -> ReadAhead:
    """Asks the kernel for the files that vLLM will need, in the background.

    Args:
        data: The record that came with the bundle; of one that is missing or makes no sense nothing is asked for.
    """
    reads = ReadRecord(prefixes=(), files=())
    if data is not None:
        with suppress(IntegrityError):
            reads = decode(data)
    ahead = ReadAhead(reads)
    ahead.start()
    return ahead


def reads_of(pid: int, service: LoadService | None) -> bytes | None:
    """A record of what the processes of a start have read; None where nobody can tell.

    Args:
        pid: Of vLLM, the leader of its session.
        service: Which its processes tell their modules.
    """
    if service is None or not sys.platform.startswith("linux"):
        return None
    return record(session(pid), service.modules()).encode()


def said_before(warm: WarmStart | None) -> list[str]:
    """What the user should know of the caches before vLLM starts: one line, if anything."""
    if warm is None:
        return []
    state = warm.state
    if state.state == "restored":
        return [f"warm-start bundle: restored {format_bytes(state.bytes)} in {format_seconds(state.seconds)}"]
    if state.state == "refused":
        return [f"warning: the warm-start bundle is refused, and vLLM starts without it: {state.detail}"]
    return [f"warm-start bundle: not used, {state.detail}"] if state.detail else []


def said_after(state: WarmState) -> list[str]:
    """The same once vLLM answers."""
    lines = []
    if state.state == "restored" and state.compiled:
        lines.append(f"warning: the warm-start bundle did not spare compiling: {plural(state.compiled, 'new file')}")
    if state.published == "published":
        size = format_bytes(state.published_bytes)
        lines.append(f"warm-start bundle: published {size}; the next node starts with it")
    elif state.published and state.published.startswith("no: ") and state.published != f"no: {state.detail}":
        lines.append(f"warm-start bundle: not published, {state.published.removeprefix('no: ')}")
    return lines
