"""vLLM as an inference engine for `coldstream.node`: see `InferenceEngine` for the contract.

The user's own flags always win: ours are added only where they are missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from coldstream.engines.vllm import lora_flags, vllm_log
from coldstream.engines.vllm.draft_flag import draft_flag
from coldstream.engines.vllm.flags import Flags, checked_loader_config, load_options
from coldstream.engines.vllm.lora_updates import VARIABLE as UPDATES
from coldstream.engines.vllm.program import Program, VllmEndpoint, memory_shortage
from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.engines.vllm.vllm_log import FailureReason
from coldstream.errors import ConfigError, UsageError
from coldstream.loading.options import Options
from coldstream.machine import hardware
from coldstream.model.names import Uri, checked_name, split_revision
from coldstream.model.selection import ADAPTER_CONFIG_NAME
from coldstream.node.child import Command
from coldstream.node.engine_program import release
from coldstream.node.inference_engine import DraftModel, InferenceEngine, Say, ServeRequest
from coldstream.node.load_service import VARIABLE
from coldstream.node.model_download import downloaded_folder
from coldstream.node.model_folder import is_configured
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings

# Every vLLM needs the key that it demands of its clients. In a container at AWS, Run:ai's streamer may get the bucket's
# keys by the other one.
KEPT_CREDENTIALS = ("VLLM_API_KEY",)
_KEPT_BY_RUNAI = (*KEPT_CREDENTIALS, "AWS_CONTAINER_AUTHORIZATION_TOKEN")
# By default vLLM aborts its requests at once. Kubernetes kills 30 s after SIGTERM, and vLLM needs some seconds to exit.
_DRAIN_SECONDS = 15
# Run:ai's default of a second is too short for a bucket behind the internet.
_RUNAI_TIMEOUT_MS = 30_000
_RUNAI_CONCURRENCY = 16
# With these flags vLLM exits by itself, or serves without an API.
_WITHOUT_API = frozenset({"-h", "--help", "-v", "--version", "--headless"})
_SHARDED = re.compile(r".*-tp(\d+)")
# Earlier versions tell blocks of the prefix cache apart by the names of adapters only.
_VERSIONS_SINCE = (0, 31)
# Without it, vLLM has no API for loading adapters, and asks no resolver for those that it does not know.
_RUNTIME_UPDATES = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


class VllmEngine(InferenceEngine):
    """The vLLM that runs one request."""

    name = "vLLM"
    log_setting = "VLLM_LOGGING_LEVEL=INFO"
    read_line = staticmethod(vllm_log.read_line)
    failure_log = FailureReason
    endpoint_type = VllmEndpoint

    _flags: Flags
    _program: Program

    def __init__(self, request: ServeRequest) -> None:
        """Finds the program and parses the flags. Raises what `find` and `Flags` raise."""
        super().__init__(request, Flags(request.arguments), Program.find(request.program))
        self.uses_gpus = not self._program.is_cpu_build and bool(hardware.gpus())
        self.caches = VllmCaches(gpu=self.uses_gpus, version=self.version or "")
        self.is_headless = "--headless" in self._flags
        self.has_api = not _WITHOUT_API & self._flags.values.keys()
        self._draft_flag = draft_flag(self._flags)
        uri = self._draft_flag.uri(in_bucket=request.is_name) if self._draft_flag is not None else None
        # Only the ranks of the last pipeline stage have the draft model.
        ranks = self._flags.number("--tensor-parallel-size")
        self.draft = DraftModel(uri=uri, ranks=ranks) if uri is not None else None
        self._draft_folder: Path | None = None
        self._environment: dict[str, str] = {}

    @property
    def has_adapters(self) -> bool:
        return bool({"--enable-lora", "--lora-modules"} & self._flags.values.keys())

    @property
    def adapter_paths(self) -> Mapping[str, str]:
        return lora_flags.adapter_paths(self._flags)

    @property
    def accepts_adapter_paths(self) -> bool:
        environ = {**os.environ, **self._request.environment}
        return environ.get(_RUNTIME_UPDATES, "0").strip().lower() in {"1", "true"}

    def adapter_rank_max(self, rank: int) -> int:
        return lora_flags.rank_max(self._flags, rank)

    def add_adapters(
        self, paths: Mapping[str, str], *, rank_max: int | None, on_demand: bool, update_seconds: float
    ) -> None:
        self._flags = lora_flags.with_adapters(self._flags, paths, rank_max=rank_max, on_demand=on_demand)
        if on_demand:
            self._environment[_RUNTIME_UPDATES] = "1"
        # With several API servers, which vLLM then excludes, each would number the versions for itself.
        can_update = on_demand or self.accepts_adapter_paths
        if self.version is not None and release(self.version, 2) < _VERSIONS_SINCE:
            can_update = False
        self._environment[UPDATES] = f"{update_seconds if can_update else 0:g}"

    def use_draft(self, folder: Path) -> None:
        if not is_configured(folder):
            name = self._draft_flag.model if self._draft_flag is not None else folder
            raise UsageError(f"the draft model {name} has no config.json: vLLM cannot load it")
        self._draft_folder = folder

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = super().warnings(environ)
        if self.draft is not None and not self.streams:
            warnings.append(f"--loader {self._request.loader} leaves the draft model {self.draft.uri} to vLLM")
        return warnings

    def memory_shortage(self, environ: Mapping[str, str]) -> str | None:
        shortage = memory_shortage(self._program, self._flags, environ)
        return None if shortage is None else "; ".join(shortage)

    def load_options(self, settings: Settings) -> Options:
        """`--model-loader-extra-config` for vLLM's own load format has the same effect as our flags."""
        options, text = self._request.options, self._flags.value("--model-loader-extra-config")
        if not text:
            return super().load_options(settings)
        try:
            config = checked_loader_config(json.loads(text))
        except ValueError as exc:
            raise UsageError(f"--model-loader-extra-config: {exc}") from exc
        uri = Uri(config.get("uri", self._request.uri.full))
        if str(uri) != str(self._request.uri):
            uris = f"the uri {uri}, but the model to serve is {self._request.uri}"
            raise UsageError(f"--model-loader-extra-config has {uris}")
        return replace(options, **load_options(config))

    def streaming_command(self, folder: Path, service: str, socket_folder: str) -> Command:
        self._check_servable(folder)
        environment = {VARIABLE: service}
        if "VLLM_RPC_BASE_PATH" not in os.environ:
            # Otherwise vLLM's own sockets are in /tmp, and stay there when it is killed.
            environment["VLLM_RPC_BASE_PATH"] = socket_folder
        ours = {"--load-format": "coldstream"}
        return self._command(str(folder), ours, launcher=self._program.launcher, environment=environment)

    def own_command(self, settings: Settings, say: Say) -> Command:
        request = self._request
        if request.loader == "default":
            folder = downloaded_folder(request, settings, say)
            self._check_servable(Path(folder))
            return self._command(folder, {})
        # Run:ai's streamer on the same bucket.
        uri, ranks = self._run_ai_uri(settings), None
        if request.loader == "runai-sharded":
            match = _SHARDED.fullmatch(uri)
            ranks = int(match[1]) if match else self._flags.number("--tensor-parallel-size")
            uri = uri if match else f"{uri}-tp{ranks}"
        limits = {"concurrency": request.options.connections or _RUNAI_CONCURRENCY}
        if request.options.memory is not None:
            limits["memory_limit"] = request.options.memory
        environment = _bucket_environment(settings) if uri.startswith("s3://") else {}
        if ranks is None:
            ours = {"--load-format": "runai_streamer", "--model-loader-extra-config": json.dumps(limits)}
        else:
            # Each rank reads its own file of a checkpoint that `coldstream shard` made.
            parallel = self._flags.value("--tensor-parallel-size")
            if parallel not in {None, str(ranks)}:
                raise UsageError(
                    f"{request.served_name} was sharded for {ranks} ranks, but --tensor-parallel-size is {parallel}",
                    hint=f"run: coldstream shard MODEL --tp {parallel}",
                )
            ours = {"--load-format": "runai_streamer_sharded", "--tensor-parallel-size": str(ranks)}
            # This format accepts no numbers in --model-loader-extra-config.
            environment = {f"RUNAI_STREAMER_{key.upper()}": str(value) for key, value in limits.items()} | environment
        return self._command(uri, ours, environment=environment, keep=_KEPT_BY_RUNAI)

    def _command(
        self,
        model: str,
        ours: Mapping[str, str],
        *,
        launcher: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        keep: tuple[str, ...] = KEPT_CREDENTIALS,
    ) -> Command:
        flags = self._flags
        needed, chosen = ours.get("--load-format"), flags.value("--load-format")
        if needed and chosen not in {None, needed}:
            raise UsageError(
                f"this loader needs --load-format {needed}, but --load-format {chosen} was given to vLLM",
                hint="choose with --loader: coldstream, runai, runai-sharded or default",
            )
        name = self._request.served_name
        every = {**ours, "--served-model-name": name, "--shutdown-timeout": str(_DRAIN_SECONDS)}
        added = [part for flag, value in every.items() if flag not in flags for part in (flag, value)]
        own = flags.arguments
        if self._draft_flag is not None and self._draft_folder is not None:
            own = self._draft_flag.arguments(flags, self._draft_folder)
        arguments = (*(launcher or [self._program.path]), "serve", model, *added, *own)
        return Command(arguments=arguments, environment={**self._environment, **(environment or {})}, keep=keep)

    def _check_servable(self, folder: Path) -> None:
        if "--hf-config-path" in self._flags:
            return
        if is_configured(folder) or not (folder / ADAPTER_CONFIG_NAME).is_file():
            super()._check_servable(folder)
            return
        base = ""
        with suppress(OSError, ValueError, AttributeError):
            base = str(json.loads((folder / ADAPTER_CONFIG_NAME).read_bytes()).get("base_model_name_or_path"))
        base = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else "BASE_MODEL"
        # In a folder, vLLM reads it itself.
        name = self._request.served_name
        flags = f"--adapters {name}" if self._request.is_name else f"-- --enable-lora --lora-modules {name}=FOLDER"
        raise UsageError(
            f"{name} is an adapter (it has {ADAPTER_CONFIG_NAME} and no config.json): it is served with its base model",
            hint=f"coldstream serve {base} {flags}",
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


def _bucket_environment(settings: Settings) -> dict[str, str]:
    """What Run:ai's streamer needs to reach the bucket, R2 included."""
    environment = {}
    # At AWS itself, keys may come from the instance.
    if endpoint := settings.endpoint():
        environment = {
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": endpoint,
            "RUNAI_STREAMER_S3_ENDPOINT": endpoint,
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
            "RUNAI_STREAMER_S3_REQUEST_TIMEOUT_MS": str(_RUNAI_TIMEOUT_MS),
        }
    if region := settings.region:
        environment["AWS_REGION"] = region
    if bundle := settings.get("AWS_CA_BUNDLE"):
        environment["AWS_CA_BUNDLE"] = bundle
    if keys := settings.keys():
        access_key, secret_key, session_token = keys
        environment |= {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
        if session_token:
            environment["AWS_SESSION_TOKEN"] = session_token
    elif settings.is_r2:
        raise ConfigError("no keys for the bucket are configured", hint="run: coldstream setup --write-env")
    return environment
