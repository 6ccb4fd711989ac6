"""The contract between this room and an inference engine: its command, log, API, caches and errors.

`coldstream.engines.vllm` and `coldstream.engines.sglang` implement it; another engine is another package beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from coldstream.errors import ConfigError, UsageError
from coldstream.loading.options import Options
from coldstream.model.names import Uri, is_path, model_name
from coldstream.node.child import Command
from coldstream.node.engine_caches import EngineCaches
from coldstream.node.engine_flags import EngineFlags
from coldstream.node.engine_log import EngineFailure
from coldstream.node.engine_program import EngineProgram
from coldstream.node.http_endpoint import EngineEndpoint
from coldstream.node.model_folder import is_configured
from coldstream.settings import Settings
from coldstream.telemetry.timeline.recorder import LogFacts
from coldstream.tune.connection_curve import saved_curve

# What `--adapters` accepts beside names: those of the model in the bucket, and others when a request names them.
ALL, ON_DEMAND = "all", "on-demand"
# Writes a line of progress or advice for the user.
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What to serve, and how.

    Attributes:
        loader: How the engine gets the weights; "coldstream" streams them, with `options`.
        fallback: "hf" to stream from the Hub when the bucket fails at the start, or None.
        program: The engine's program; None for the one beside this Python, or on the PATH.
        bundle: "auto" to restore and publish a warm-start bundle, "read" or "write" for one of both, or "off".
        pass_env: Names of credentials to pass to the engine, which gets none by default.
        adapters: Names of adapters in the bucket, "all" for those of the model, and "on-demand" to load others when a
            request names them.
    """

    uri: Uri
    arguments: tuple[str, ...]
    loader: str
    options: Options
    fallback: str | None = None
    program: str | None = None
    bundle: str = "auto"
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    first_token: bool = True
    spot_notice: bool = True

    @property
    def is_name(self) -> bool:
        """Whether the model is in the configured bucket."""
        return "://" not in self.uri.full and not is_path(self.uri.full)

    @property
    def served_name(self) -> str:
        """The model's name in the API: `org/model`, or the folder's name."""
        return model_name(self.uri)

    def store_uri(self, settings: Settings) -> str:
        """The configured store, or else the bucket that the model is in. Raises ConfigError if there is neither."""
        try:
            return settings.store_uri()
        except ConfigError:
            if not self.uri.full.startswith("s3://"):
                raise
            return "/".join(self.uri.full.split("/")[:3])


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A draft model for speculative decoding, which is streamed too; `ranks` processes of this node read it."""

    uri: Uri
    ranks: int


class InferenceEngine(ABC):
    """An engine for one request.

    Attributes:
        log_setting: What makes it log the phases of its start, for a hint.
        failure_log: Makes a reader of its output.
        endpoint_type: Its API.
        version: None when it is unknown without running it.
        streams: Whether it reads the weights from our load service. Otherwise it reads them itself.
        ranks: How many of its processes will read the weights on this node.
        draft: The draft model that its flags name, unless the engine reads it itself in any case.
        has_api: Whether it serves until it is told to stop: not with `--help`, nor beside another node's API.
        is_headless: Whether it serves without an API of its own.
        needs_adapter_folders: Whether its flags must name the folders of complete copies of adapters.
        api_name: The model's name in its API.
    """

    name: ClassVar[str]
    log_setting: ClassVar[str]
    failure_log: ClassVar[type[EngineFailure]]
    endpoint_type: ClassVar[type[EngineEndpoint]]
    caches: EngineCaches
    uses_gpus: bool
    has_api: bool
    is_headless: bool
    draft: DraftModel | None = None
    needs_adapter_folders = False

    def __init__(self, request: ServeRequest, flags: EngineFlags, program: EngineProgram) -> None:
        self._request, self._flags, self._program = request, flags, program
        self.version = program.version
        self.streams = request.loader == "coldstream"
        self.ranks = flags.ranks
        self.api_name = flags.value("--served-model-name") or request.served_name

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """What the user should know before the engine starts."""
        return self._program.warnings(environ)

    def memory_shortage(self, environ: Mapping[str, str]) -> str | None:
        """Why the engine will fail for lack of memory; None when it will not, or when that is unknown."""
        return None

    def endpoint(self, environ: Mapping[str, str]) -> EngineEndpoint:
        """Where the engine will answer."""
        return self.endpoint_type.of(self._flags, environ)

    @property
    def has_adapters(self) -> bool:
        """Whether its flags let it serve adapters."""
        return False

    @property
    def adapter_paths(self) -> Mapping[str, str]:
        """The adapters that its flags name: name in the API to path, which may be a name in the bucket."""
        return {}

    @property
    def accepts_adapter_paths(self) -> bool:
        """Whether the user lets the API load adapters from any path."""
        return False

    @abstractmethod
    def adapter_rank_max(self, rank: int) -> int:
        """The largest rank of adapters that the engine will accept, if it should accept `rank`."""

    @abstractmethod
    def add_adapters(
        self, paths: Mapping[str, str], *, rank_max: int | None, on_demand: bool, update_seconds: float
    ) -> None:
        """Lets later commands serve the adapters `paths` (name in the API to path), and others on demand.

        Without `rank_max`, the engine's own flags decide how many, and of which rank. It requests those that are not on
        this machine from the load service, which it asks for new versions every `update_seconds`; 0: never.
        """

    def load_options(self, settings: Settings) -> Options:
        """The options of the loads, with those among the engine's own flags.

        The connections are those that `coldstream tune --measure` measured, unless they are chosen.
        """
        options = self._request.options
        curve = saved_curve(settings) if self._request.is_name and options.connections is None else None
        return options if curve is None else replace(options, connections=curve.connections)

    def use_draft(self, folder: Path) -> None:
        """Names the draft model's folder in the command. Raises UsageError if the engine cannot load it."""
        raise NotImplementedError

    @abstractmethod
    def streaming_command(self, folder: Path, service: str, socket_folder: str) -> Command:
        """The command for a model folder whose weights come from the load service at the address `service`.

        `socket_folder` is a private folder for the engine's own sockets, removed with the service.
        """

    @abstractmethod
    def own_command(self, settings: Settings, say: Say) -> Command:
        """The command for an engine that reads the weights itself; downloads them if it has to."""

    @staticmethod
    @abstractmethod
    def read_line(line: str) -> LogFacts:
        """What a line of its log says about the start."""

    def cache_key_parts(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """What its caches depend on, beyond model, device, processor and paths; each part in words, without secrets.

        Raises ConfigError if the engine's packages are unknown.
        """
        if not self._program.packages:
            raise ConfigError(f"the packages that {self._program.path} uses are unknown")
        return self.caches.key_parts(self._program, self._flags, environ)

    def _check_servable(self, folder: Path) -> None:
        """Rejects what would fail the engine after half a minute: a model without a configuration."""
        if not is_configured(folder):
            name = self._request.served_name
            hint = "upload it with its config.json"
            raise UsageError(f"{name} has no config.json: {self.name} cannot serve it", hint=hint)
