"""Prepares a start: resolves the model, begins the stream, writes the model's folder and restores the caches."""

from __future__ import annotations

import os
import pwd
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace

from coldstream.errors import (
    ColdstreamError,
    ConfigError,
    CredentialsError,
    DiskError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.machine import hardware
from coldstream.machine.child_environment import CREDENTIALS
from coldstream.machine.disk import SHARED_MEMORY, make_folders, temporary_folder, temporary_root
from coldstream.model.names import Uri, checked_name
from coldstream.net.retry import Backoff, Retry
from coldstream.node.bundle.bundle_pointer import Key, checked_secret
from coldstream.node.bundle.bundle_store import BundleStore
from coldstream.node.bundle.local_bundles import LocalBundle
from coldstream.node.bundle.warm_start import WarmStart
from coldstream.node.child import Command
from coldstream.node.inference_engine import DraftModel, InferenceEngine, Say, ServeRequest
from coldstream.node.load_service import LoadService
from coldstream.node.model_folder import ModelFolder, is_configured, model_folder
from coldstream.node.readahead.prefetch import start_read_ahead
from coldstream.node.serve_adapters import serve_adapters
from coldstream.places.opening import open_model_reader, open_store
from coldstream.settings import VARIABLES, Settings
from coldstream.telemetry.metrics.meter import Meter

# A start does without a bundle when the store does not answer for this long.
_BUNDLE_GIVE_UP_SECONDS = 10.0
_BUNDLE_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedStart:
    """An engine that can be started.

    `service` is None when the engine reads the weights itself, `warm` when bundles are off. `downloaded` is when the
    download of the weights was complete, by `time.monotonic`; None without a download.
    """

    command: Command
    service: LoadService | None
    warm: WarmStart | None
    downloaded: float | None = None


@contextmanager
def prepared_start(
    request: ServeRequest,
    settings: Settings,
    engine: InferenceEngine,
    *,
    say: Say,
    dry: bool = False,
    on_service: Callable[[LoadService], None] = lambda _: None,
    meter: Meter | None = None,
) -> Iterator[PreparedStart]:
    """Prepares a start. The stream ends with the block.

    With `dry`, only the command is prepared: nothing is streamed or restored. `on_service` is called with the load
    service before its first load, and with a second one after a fallback. `meter` counts adapters. Raises what
    `model_folder`, `Share` and the engine raise.
    """
    start = _Preparation(request=request, settings=settings, engine=engine, say=say, dry=dry)
    for warning in engine.warnings(os.environ):
        say(f"warning: {warning}")
    with ExitStack() as stack:
        service = downloaded = None
        if engine.streams:
            service, folder = start.stream(stack, on_service)
            versions = {"model": folder.note.version}
            if engine.draft is not None:
                draft = start.stream_draft(engine.draft, service)
                engine.use_draft(draft.path)
                versions["draft"] = draft.note.version
            base = folder.checkpoint
            service.adapters = serve_adapters(request, settings, engine, base, say=say, meter=meter, dry=dry)
            if service.adapters is not None:
                stack.callback(service.adapters.close)
            command = engine.streaming_command(folder.path, service.address, service.folder)
        else:
            serve_adapters(request, settings, engine, None, say=say)
            command = engine.own_command(settings, say)
            downloaded = time.monotonic() if request.loader == "default" and request.is_name else None
            versions = {}
            # Unknown when the store does not answer.
            with suppress(ColdstreamError):
                if request.bundle != "off":
                    retry = Retry(Backoff(give_up_seconds=settings.retry_seconds))
                    versions["model"] = open_model_reader(request.uri, settings, retry=retry).checkpoint().version
        passed = passed_environment(request.pass_env, settings, os.environ, say)
        command = command.with_environment({**user_environment(os.environ), **request.environment, **passed})
        environ = {**os.environ, **command.environment}
        warm = start.warm_start(versions, environ) if versions and request.bundle != "off" else None
        if warm is not None:
            stack.callback(warm.close)
            if not dry:
                warm.restore()
                stack.callback(start_read_ahead(warm.reads).set)
            command = command.with_environment(warm.environment(environ))
        yield PreparedStart(command=command, service=service, warm=warm, downloaded=downloaded)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Preparation:
    """The parts of a start that is prepared; see `prepared_start`."""

    request: ServeRequest
    settings: Settings
    engine: InferenceEngine
    say: Say
    dry: bool

    def stream(self, stack: ExitStack, on_service: Callable[[LoadService], None]) -> tuple[LoadService, ModelFolder]:
        """Resolves the model, once: the stream and the folder are of the same checkpoint."""
        options = self.engine.load_options(self.settings)

        def begin(uri: Uri) -> tuple[LoadService, ModelFolder]:
            with ExitStack() as own:
                service = own.enter_context(LoadService(uri, options=options))
                on_service(service)
                share = None if self.dry else service.begin(consumers=self.engine.ranks)
                folder = model_folder(uri, self.settings, resolved=share)
                stack.enter_context(own.pop_all())
            return service, folder

        try:
            service, folder = begin(self.request.uri)
        except (UnavailableError, NotFoundError, CredentialsError) as exc:
            if self.request.fallback != "hf" or not self.request.is_name:
                raise
            self.say(f"warning: {exc.message}; streaming from Hugging Face instead")
            service, folder = begin(Uri(f"hf://{self.request.uri}"))
        if folder.offline:
            if not is_configured(folder.path):
                raise DiskError(f"{folder.path} has no config.json", hint="start once while the bucket is reachable")
            self.say("warning: the bucket does not answer; starting from the local cache")
        for path, why in folder.left_out.items():
            self.say(f"not loaded: {path} ({why})")
        return service, folder

    def stream_draft(self, draft: DraftModel, service: LoadService) -> ModelFolder:
        """Makes the folder of the draft model, and streams it after the model."""
        uri, is_name = draft.uri, "://" not in draft.uri.full
        try:
            folder = model_folder(uri, self.settings)
        except (UnavailableError, NotFoundError, CredentialsError) as exc:
            if self.request.fallback != "hf" or not is_name:
                named = copy(exc)
                named.message = f"the draft model: {exc.message}"
                if is_name and isinstance(exc, NotFoundError):
                    named.hint = f"coldstream upload {shlex.quote(str(uri))}   (or stream it from the Hub: hf://{uri})"
                raise named from exc
            self.say(f"warning: {exc.message}; streaming the draft model from Hugging Face instead")
            uri = Uri(f"hf://{uri}")
            folder = model_folder(uri, self.settings)
        options = replace(self.engine.load_options(self.settings), on_progress=None)
        loads = service.add(uri, options=options, version=folder.note.version)
        if not self.dry:
            service.begin_draft(loads, consumers=draft.ranks)
        for path, why in folder.left_out.items():
            self.say(f"not loaded from the draft model: {path} ({why})")
        return folder

    def warm_start(self, versions: Mapping[str, str], environ: Mapping[str, str]) -> WarmStart | None:
        """The caches of a start; None, with a message, if bundles cannot be used and the engine keeps its own caches.

        `versions` are those of the model, and of its draft model if there is one.
        """
        request, settings, engine = self.request, self.settings, self.engine
        try:
            secret = checked_secret(settings.get("COLDSTREAM_BUNDLE_KEY"))
            if secret is None:
                raise ConfigError("COLDSTREAM_BUNDLE_KEY is not set (coldstream setup --bundle-key creates one)")
            engine_parts = engine.cache_key_parts(environ)
            retry = Retry(Backoff(give_up_seconds=min(_BUNDLE_GIVE_UP_SECONDS, settings.retry_seconds)))
            uri = request.store_uri(settings)
            place = open_store(settings, uri, retry=retry, connections=_BUNDLE_CONNECTIONS)
            store = BundleStore(place, checked_name(request.served_name))
        except UsageError as exc:
            self.say(f"warm-start bundle: off, {exc.message}")
            return None
        # How many GPUs there are is part of the engine's parallelism.
        cards = hardware.gpus() if engine.uses_gpus else ()
        kinds = {f"{card.name}, {card.capability}, driver {card.driver.partition('.')[0]}" for card in cards}
        base = engine.caches.base(settings, environ)
        parts = {
            **versions,
            # The engine may hash its path to the model, which differs by loader.
            "loader": request.loader,
            "device": "; ".join(sorted(kinds)) or f"cpu: {hardware.processor()}",
            "processor": hardware.instruction_sets(),
            **engine_parts,
            # Compiled code names its files by their paths.
            "caches": str(base),
        }
        return WarmStart(LocalBundle(base, Key(parts=parts), engine.caches), store, secret=secret, mode=request.bundle)


def passed_environment(
    names: Sequence[str], settings: Settings, environ: Mapping[str, str], say: Say
) -> dict[str, str]:
    """The variables for `--pass-env`, except those that the engine inherits anyway. Warns if one is not set."""
    passed = {}
    for name in names:
        if value := settings.get(name) or environ.get(name):
            if name in VARIABLES or name in CREDENTIALS:
                passed[name] = value
        else:
            say(f"warning: --pass-env {name}: not set in {' or in '.join(settings.looked_in)}")
    return passed


def user_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What libraries need, and containers that run as any user on a read-only root lack: a home, a name, and TMPDIR."""
    extra = {}
    home = os.path.expanduser("~")
    with suppress(DiskError):
        if not os.path.isabs(home) or not os.access(home, os.W_OK):
            folder = temporary_root() / "home"
            make_folders(folder)
            extra["HOME"] = str(folder)
        if temporary_folder() == SHARED_MEMORY:
            extra["TMPDIR"] = str(temporary_root())
    # `getpass.getuser` reads these, and Torch names its caches after the user.
    if not any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            extra["USER"] = f"uid{os.getuid()}"
    return extra
