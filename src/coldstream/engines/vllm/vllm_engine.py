"""vLLM as an inference engine for `coldstream.node`: see `InferenceEngine` for the contract."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm import command, log_marks
from coldstream.engines.vllm.cache_folders import VllmCaches
from coldstream.engines.vllm.cache_key import key_parts
from coldstream.engines.vllm.endpoint import VllmEndpoint, endpoint_of
from coldstream.engines.vllm.failure_reason import FailureReason
from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.loader_config import parse_loader_config
from coldstream.engines.vllm.memory_budget import memory_shortage
from coldstream.engines.vllm.program import find_program
from coldstream.errors import ConfigError, UsageError
from coldstream.loading.options import OnProgress, Options
from coldstream.machine import hardware
from coldstream.machine.disk import checked_root, private_root
from coldstream.model.names import checked_name, expanded, split_revision
from coldstream.model.uri import Uri
from coldstream.node.child import Command
from coldstream.node.inference_engine import CacheLayout, Say, ServeRequest
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.places.opening import open_model_reader
from coldstream.places.tree import snapshot_of
from coldstream.progress import Progress
from coldstream.settings import Settings
from coldstream.telemetry.timeline.recorder import LogFacts
from coldstream.tune.connection_curve import saved_curve

# With these flags vLLM exits by itself, or serves without an API.
_WITHOUT_API = frozenset({"-h", "--help", "-v", "--version", "--headless"})
_SHARDED = re.compile(r".*-tp(\d+)")
_ADAPTER = "adapter_config.json"


class VllmEngine:
    """The vLLM that runs one request."""

    name = "vLLM"

    def __init__(self, request: ServeRequest) -> None:
        """Finds the program and parses the flags.

        Raises:
            NotFoundError: vLLM is not installed.
            UsageError: vLLM's configuration file cannot be read.
        """
        self._request = request
        self._flags = Flags(request.arguments)
        self._program = find_program(request.program)
        self.version = self._program.version
        self.uses_gpus = not self._program.is_cpu_build and bool(hardware.gpus())
        self.streams = request.loader == "coldstream"
        self.ranks = self._flags.ranks
        self.is_headless = "--headless" in self._flags
        self.has_api = not _WITHOUT_API & self._flags.values.keys()
        self.api_name = self._flags.value("--served-model-name") or request.served_name
        self.caches: CacheLayout = VllmCaches(gpu=self.uses_gpus, version=self.version or "")

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        return self._program.warnings(environ)

    def memory_shortage(self, environ: Mapping[str, str]) -> str | None:
        shortage = memory_shortage(self._program, self._flags, environ)
        return None if shortage is None else "; ".join(shortage)

    def endpoint(self, environ: Mapping[str, str]) -> VllmEndpoint:
        return endpoint_of(self._flags, environ)

    def read_line(self, line: str) -> LogFacts:
        return log_marks.read_line(line)

    def failure_log(self) -> FailureReason:
        return FailureReason()

    def load_options(self, settings: Settings) -> Options:
        """`--model-loader-extra-config` for vLLM's own load format has the same effect as our flags."""
        options, text = self._request.options, self._flags.value("--model-loader-extra-config")
        if not text:
            curve = saved_curve(settings) if self._request.is_name else None
            if curve is None or options.connections != Options().connections:
                return options
            # `coldstream tune --measure` measured it.
            return replace(options, connections=curve.connections)
        try:
            document = json.loads(text)
            config = parse_loader_config(document)
        except ValueError as exc:
            raise UsageError(f"--model-loader-extra-config: {exc}") from exc
        if config.uri is not None and str(Uri(config.uri)) != str(self._request.uri):
            uris = f"the uri {Uri(config.uri)}, but the model to serve is {self._request.uri}"
            raise UsageError(f"--model-loader-extra-config has {uris}")
        return replace(options, **config.options(document))

    def streaming_command(self, folder: Path, service: str, socket_folder: str) -> Command:
        self._check_servable(folder)
        launcher, name = self._program.launcher, self._request.served_name
        made = command.streamed(launcher, str(folder), name, self._flags, service=service)
        if "VLLM_RPC_BASE_PATH" in os.environ:
            return made
        # Otherwise vLLM's own sockets are in /tmp, and stay there when it is killed.
        return made.with_environment({"VLLM_RPC_BASE_PATH": socket_folder})

    def own_command(self, settings: Settings, say: Say) -> Command:
        request, path, name = self._request, self._program.path, self._request.served_name
        if request.loader == "default":
            folder = self._downloaded(settings, say)
            self._check_servable(Path(folder))
            return command.plain(path, folder, name, self._flags)
        chosen, default = request.options.connections, Options().connections
        limits: dict[str, Any] = {
            "concurrency": None if chosen == default else chosen,
            "memory_limit": request.options.memory,
        }
        uri = self._run_ai_uri(settings)
        ranks = None
        if request.loader == "runai-sharded":
            match = _SHARDED.fullmatch(uri)
            ranks = int(match[1]) if match else self._flags.number("--tensor-parallel-size")
            uri = uri if match else f"{uri}-tp{ranks}"
        return command.runai(path, uri, name, self._flags, settings, ranks=ranks, **limits)

    def caches_base(self, settings: Settings, environ: Mapping[str, str]) -> Path:
        return caches_base(settings, environ)

    def cache_key_parts(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        if not self._program.packages:
            raise ConfigError(f"the packages that {self._program.path} uses are unknown")
        return key_parts(self._program, self._flags, environ)

    def _check_servable(self, folder: Path) -> None:
        """Finds now what vLLM would find after half a minute: a model without a configuration, such as an adapter."""
        if "--hf-config-path" in self._flags or any((folder / file).is_file() for file in CONFIGURATIONS):
            return
        name = self._request.served_name
        if not (folder / _ADAPTER).is_file():
            raise UsageError(f"{name} has no config.json: vLLM cannot serve it", hint="upload it with its config.json")
        base = ""
        with suppress(OSError, ValueError, AttributeError):
            base = str(json.loads((folder / _ADAPTER).read_bytes()).get("base_model_name_or_path"))
        base = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else "BASE_MODEL"
        flags = "--enable-lora --lora-modules NAME=FOLDER"
        raise UsageError(
            f"{name} is an adapter (it has {_ADAPTER} and no config.json): vLLM can serve it only with its base model",
            hint=f"coldstream serve {base} -- {flags}   (with the adapter in a local folder)",
        )

    def _run_ai_uri(self, settings: Settings) -> str:
        uri = self._request.uri.full.rstrip("/")
        if self._request.is_name:
            name, revision = split_revision(uri)
            if revision:
                # The bucket holds one revision: the origin refuses another one.
                open_model_reader(uri, settings).names()
            uri = f"{settings.store_uri()}/{checked_name(name)}"
        if uri.startswith("s3://"):
            return uri
        if "://" in uri and not uri.startswith("file://"):
            raise UsageError(f"Run:ai's streamer cannot read {uri.partition(':')[0]} URIs", hint="leave --loader out")
        return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))

    def _downloaded(self, settings: Settings, say: Say) -> str:
        """A folder with the weights, for vLLM's own loader."""
        from coldstream.mirror.download import download
        from coldstream.mirror.stored_files import stored_bytes
        from coldstream.places.opening import open_store

        request, name = self._request, self._request.uri.full
        if not request.is_name:
            if "://" in name:
                raise UsageError("--loader default needs a model in the configured bucket, or a folder")
            return str(snapshot_of(Path(os.path.abspath(os.path.expanduser(name)))))
        root = cache_of(settings).root
        checked_root(root, create=True)
        folder = root / "downloads" / checked_name(split_revision(name)[0])
        say(f"downloading {name} to {folder}")
        store, on_progress = open_store(settings), request.options.on_progress
        total = stored_bytes(store, name) if on_progress else 0
        download(store, name, folder, progress=_DownloadProgress(say, total, on_progress))
        return str(folder)


class _DownloadProgress(Progress):
    """Passes on a download's messages, and how far it is."""

    def __init__(self, write: Say, total: int, on_progress: OnProgress | None) -> None:
        self._write, self._total, self._on_progress = write, total, on_progress
        self._stored = 0
        self._lock = threading.Lock()

    def stored(self, path: str, count: int) -> None:
        with self._lock:
            self._stored += count
            if self._on_progress is not None:
                self._on_progress(self._stored, self._total)

    def say(self, text: str) -> None:
        self._write(text)


def caches_base(settings: Settings, environ: Mapping[str, str]) -> Path:
    """The folder with the caches of all starts on this node: below vLLM's own cache root when the user chose one."""
    chosen = environ.get("VLLM_CACHE_ROOT")
    if chosen:
        return private_root(expanded(chosen).absolute()) / "coldstream/bundles"
    return cache_of(settings).root / "bundles"
