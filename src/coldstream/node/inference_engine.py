"""The contract between this room and an inference engine: its command, log, API, caches and errors.

`coldstream.engines.vllm` and `coldstream.engines.sglang` implement it; another engine is another package beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from coldstream.errors import ConfigError
from coldstream.loading.options import Options
from coldstream.model.names import Uri, is_path, model_name
from coldstream.node.child import Command
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

    def measured_options(self, settings: Settings) -> Options:
        """The options; the connections are those that `coldstream tune --measure` measured, unless they are chosen."""
        curve = saved_curve(settings) if self.is_name and self.options.connections is None else None
        return self.options if curve is None else replace(self.options, connections=curve.connections)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEndpoint(ABC):
    """The engine's API, which it binds at `bind_host` (empty for every interface) and `port`, or at a Unix socket.

    This machine reaches it at `host`, with the API key `key`.
    """

    host: str = "127.0.0.1"
    bind_host: str = ""
    port: int = 8000
    socket_path: str | None = None
    tls: bool = False
    key: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """For people."""
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    @abstractmethod
    def exposure(self) -> str | None:
        """A warning when other machines can reach the API without a key, or None."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the health check succeeds."""

    @abstractmethod
    def first_token(self, name: str) -> float | None:
        """Requests one token from the model called `name`; returns when it came, by `time.monotonic`.

        None when none came: some models complete no text, and other failures show in the user's own requests.
        """

    @abstractmethod
    def first_token_figures(self) -> Mapping[str, float]:
        """What the engine measured of its first token: name to number."""

    @abstractmethod
    def requests(self) -> int:
        """How many requests the engine is working on; 0 when it does not answer."""


class FailureLog(Protocol):
    """Looks for the reason of a failure, in one line, and a hint, in the lines of the engine's output."""

    hint: str | None

    @property
    def text(self) -> str | None: ...

    def line(self, text: str) -> None: ...


class CacheLayout(Protocol):
    """The caches that an engine builds while it starts."""

    def environment(self, root: str, environ: Mapping[str, str]) -> Mapping[str, str]:
        """The variables that put the caches below `root`, in a form that the next start can load.

        Variables that the user sets in `environ` take precedence.
        """

    def keeps(self, path: str) -> bool:
        """Whether a file, by its path below the root, belongs in a bundle."""

    def is_compiled(self, path: str) -> bool:
        """Whether it comes from a compiler."""


class InferenceEngine(Protocol):
    """An engine for one request.

    Attributes:
        log_setting: What makes it log the phases of its start, for a hint.
        streams: Whether it reads the weights from our load service. Otherwise it reads them itself.
        ranks: How many of its processes will read the weights on this node.
        draft: The draft model that its flags name, unless the engine reads it itself in any case.
        has_api: Whether it serves until it is told to stop: not with `--help`, nor beside another node's API.
        is_headless: Whether it serves without an API of its own.
        has_adapters: Whether its flags let it serve adapters.
        adapter_paths: The adapters that its flags name: name in the API to path, which may be a name in the bucket.
        accepts_adapter_paths: Whether the user lets the API load adapters from any path.
        needs_adapter_folders: Whether its flags must name the folders of complete copies.
    """

    name: str
    log_setting: str
    version: str | None
    uses_gpus: bool
    streams: bool
    ranks: int
    draft: DraftModel | None
    has_api: bool
    is_headless: bool
    needs_adapter_folders: bool
    api_name: str
    caches: CacheLayout

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        """What the user should know before the engine starts."""

    def memory_shortage(self, environ: Mapping[str, str]) -> str | None:
        """Why the engine will fail for lack of memory; None when it will not, or when that is unknown."""

    def endpoint(self, environ: Mapping[str, str]) -> EngineEndpoint:
        """Where the engine will answer."""

    @property
    def has_adapters(self) -> bool: ...

    @property
    def adapter_paths(self) -> Mapping[str, str]: ...

    @property
    def accepts_adapter_paths(self) -> bool: ...

    def adapter_rank_max(self, rank: int) -> int:
        """The largest rank of adapters that the engine will accept, if it should accept `rank`."""

    def add_adapters(
        self, paths: Mapping[str, str], *, rank_max: int | None, on_demand: bool, update_seconds: float
    ) -> None:
        """Lets later commands serve the adapters `paths` (name in the API to path), and others on demand.

        Without `rank_max`, the engine's own flags decide how many, and of which rank. It requests those that are not on
        this machine from the load service, which it asks for new versions every `update_seconds`; 0: never.
        """

    def load_options(self, settings: Settings) -> Options:
        """The options of the loads, with those among the engine's own flags."""

    def use_draft(self, folder: Path) -> None:
        """Names the draft model's folder in the command. Raises UsageError if the engine cannot load it."""

    def streaming_command(self, folder: Path, service: str, socket_folder: str) -> Command:
        """The command for a model folder whose weights come from the load service at the address `service`.

        `socket_folder` is a private folder for the engine's own sockets, removed with the service.
        """

    def own_command(self, settings: Settings, say: Say) -> Command:
        """The command for an engine that reads the weights itself; downloads them if it has to."""

    def read_line(self, line: str) -> LogFacts:
        """What a line of its log says about the start."""

    def failure_log(self) -> FailureLog:
        """A reader of its output."""

    def caches_base(self, settings: Settings, environ: Mapping[str, str]) -> Path:
        """The folder with the caches of all starts on this node."""

    def cache_key_parts(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """What its caches depend on, beyond model, device, processor and paths; each part in words, without secrets.

        Raises ConfigError if the engine's packages are unknown.
        """
