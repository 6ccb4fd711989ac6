"""The loaders that can be compared, the model that they load, and how each is run for it on this machine.

Nothing configures a loader from outside, and credentials are only in the environment of one that reads the bucket.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from coldstream.engines.vllm.program import Program
from coldstream.errors import ConfigError, UnavailableError, UsageError
from coldstream.machine import hardware
from coldstream.machine.child_environment import child_environment
from coldstream.machine.extras import install_hint
from coldstream.model.names import Uri, is_path
from coldstream.net.retry import Backoff, Retry
from coldstream.operate.bench.programs.mount import mount_environment, mount_refusal
from coldstream.operate.bench.runner import PROGRAMS, RunFailed, run
from coldstream.operate.demo_bucket import find_rclone
from coldstream.operate.probe import exports
from coldstream.package import __version__
from coldstream.places.checkpoint import Shard
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings
from coldstream.tune.gpus import Gpus, detect_gpus, find_gpu
from coldstream.tune.model_shape import Model, describe
from coldstream.tune.recommended import runai_rule
from coldstream.units import MIB, format_bytes

# Comparing loaders needs a bucket that responds.
_RETRY_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class BenchTarget:
    """The model to load."""

    uri: Uri
    label: str  # the URI for people; without secrets
    name: str
    kind: str  # "s3", "folder", or "http" for servers that only coldstream can read from
    # "s3://bucket[/prefix]" if `kind` is "s3", or the URI of the folder of models that contains it; else "".
    store: str = ""
    key: str = ""  # the model's folder in the store
    folder: str = ""  # its path on this machine if `kind` is "folder", else ""
    shards: tuple[Shard, ...] = field(repr=False)
    model: Model
    verified: bool = False  # whether a manifest has the hash of every chunk

    @property
    def files(self) -> list[tuple[str, int]]:
        return [(shard.path, shard.size) for shard in self.shards]

    @property
    def bucket(self) -> str:
        return self.store.removeprefix("s3://").partition("/")[0]

    @property
    def prefix(self) -> str:
        inner = self.store.removeprefix("s3://").partition("/")[2]
        return f"{inner}/{self.key}" if inner else self.key

    @property
    def is_tls(self) -> bool:
        return any(url.startswith("https:") for url in self._urls)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, so that no network card is involved."""
        return {urlsplit(url).hostname for url in self._urls} <= {"127.0.0.1", "::1", "localhost"}

    @property
    def has_plain_names(self) -> bool:
        """Whether the bucket stores the files under their own names, as every other loader expects."""
        return all(
            unquote(urlsplit(shard.segments[0].url or "").path).endswith(f"/{self.prefix}/{shard.path}")
            for shard in self.shards
        )

    @property
    def _urls(self) -> list[str]:
        return [segment.url or "" for shard in self.shards for segment in shard.segments]


def find_target(uri: str, settings: Settings) -> BenchTarget:
    """Looks a model up; raises what `open_model_reader` and `ModelReader.checkpoint` raise."""
    patience = min(settings.retry_seconds, _RETRY_SECONDS)
    checkpoint = open_model_reader(uri, settings, retry=Retry(Backoff(give_up_seconds=patience))).checkpoint()
    shards = checkpoint.shards
    kind, store, key, folder = "http", "", "", ""
    if all(shard.is_local for shard in shards):
        kind = "folder"
        folder = (shards[0].segments[0].local or "").removesuffix("/" + shards[0].path)
        store = "" if is_path(uri) or "://" in uri else settings.store_uri()
    elif checkpoint.uri.startswith("s3://"):
        kind = "s3"
        with suppress(ConfigError):
            store = settings.store_uri()
        if not (store.startswith("s3:") and checkpoint.uri.startswith(store + "/")):
            store = "s3://" + checkpoint.uri.removeprefix("s3://").partition("/")[0]
        key = checkpoint.uri.removeprefix(store).strip("/")
    model = describe(checkpoint.name, [shard.header for shard in shards], {})
    if not model.bytes:
        raise UnavailableError(f"{checkpoint.uri} has no tensors to load", retryable=False)
    # Child processes run in another directory.
    place = Uri(os.path.abspath(os.path.expanduser(uri)) if is_path(uri) else uri)
    return BenchTarget(uri=place, label=checkpoint.uri, name=checkpoint.name, kind=kind, store=store, key=key,
                       folder=folder, shards=shards, model=model, verified=checkpoint.verified)  # fmt: skip


READERS = PROGRAMS / "readers.py"
START = PROGRAMS / "start.py"
MOUNT = PROGRAMS / "mount.py"
CHUNK_BYTES = 8 * MIB
# The default of `coldstream download`.
_DOWNLOAD_CONNECTIONS = 8
_PROBE_SECONDS = 60.0
# Disk space that a copy needs, relative to the weights.
_SPACE_FACTOR = 1.1
# Variables that could configure a loader from outside.
_FOREIGN = ("AWS_", "R2_", "HF_", "COLDSTREAM_", "RUNAI_", "RCLONE_", "CLOUDFLARE_", "VLLM_API_KEY", "PYTHON", "BENCH_")
# The cache holds one model, for minutes: it may use the whole disk.
_CACHE_LIMIT = str(1 << 50)
# Every user of the machine can read a command line, and the model's URL may hold a token.
_SERVE = "import json, sys; from coldstream.cli import main; main(json.load(sys.stdin))"
# Settings that no load needs, or that the comparison sets itself.
_NOT_FOR_LOADS = ("HF_", "CLOUDFLARE_", "COLDSTREAM_BUNDLE_", "COLDSTREAM_CACHE_", "COLDSTREAM_SERVICE", "VLLM_")


@dataclass(frozen=True, slots=True)
class Loader:
    """A way of loading a model, on any machine."""

    name: str
    label: str
    packages: tuple[str, ...]
    places: tuple[str, ...]  # the kinds of `BenchTarget` that it can read
    detail: str = ""  # how it is configured, if it does not only follow `--connections`
    connections: int | None = None  # the number that it always uses
    serve_loader: str | None = None  # the equivalent `--loader` of `coldstream serve`
    on_disk: bool = False  # whether it keeps the whole model on disk
    optional: bool = False

    @property
    def install_command(self) -> str:
        packages = ("'runai-model-streamer[s3]'",) if "runai-model-streamer" in self.packages else self.packages
        return f"pip install {' '.join(packages or ('torch',))}"


_CHUNKS = f"chunks of {format_bytes(CHUNK_BYTES)}"
_RUNAI = ("runai-model-streamer", "torch")
_MAPPED = ("safetensors", "torch")
_LOCAL = ("s3", "folder")
_TRANSFER = "its default transfer, one file after the other"
LOADERS = (
    Loader("coldstream", "coldstream, cold", (), ("s3", "http", "folder"), serve_loader="coldstream"),
    Loader("coldstream-warm", "coldstream, warm", (), ("s3", "http"), serve_loader="coldstream", on_disk=True),
    Loader("runai", "Run:ai, default", _RUNAI, _LOCAL, "8 threads", 8, serve_loader="runai"),
    Loader("runai-tuned", "Run:ai, tuned", _RUNAI, _LOCAL, serve_loader="runai"),
    Loader("vllm-default", "vLLM, downloaded", _MAPPED, _LOCAL, serve_loader="default", on_disk=True),
    Loader("boto3", "boto3", ("boto3",), ("s3",), _TRANSFER, 10, optional=True),
    Loader("s3fs", "s3fs", ("s3fs",), ("s3",), f"one file after the other, {_CHUNKS}", optional=True),
    Loader("obstore", "obstore", ("obstore",), ("s3",), optional=True),
    Loader("rclone-mount", "rclone mount", _MAPPED, ("s3",), "off", 1, optional=True),
    Loader("rclone-mount-full", "rclone mount full", _MAPPED, ("s3",), "full", 1, on_disk=True, optional=True),
)
# Their `detail` is rclone's `--vfs-cache-mode`.
MOUNTS = ("rclone-mount", "rclone-mount-full")
# Path to the versions of its packages, in the order in which they are searched.
Interpreters = Mapping[str, Mapping[str, str]]
NAMES = tuple(loader.name for loader in LOADERS)
OPTIONAL = tuple(loader.name for loader in LOADERS if loader.optional)
OURS = ("coldstream", "coldstream-warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What to compare, and how; `interpreters` may have further loaders, `vllm_flags` of None compares loads only."""

    target: BenchTarget
    settings: Settings
    loaders: Sequence[Loader] = ()
    device: str = "cpu"
    connections: int = 64
    memory_limit: int | None = None
    runs: int = 3
    seed: int = 0
    interpreters: Sequence[str] = ()
    drop_caches: bool = True
    timeout_seconds: float = 900.0
    vllm_flags: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A loader, ready to run."""

    name: str
    label: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)  # its whole environment, which may hold credentials
    # That of the untimed first run, which hashes the tensors and fills the cache.
    first_environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Its maximum number of connections to the bucket; None if it does not read the bucket.
    connections: int | None = None
    detail: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    emptied: tuple[Path, ...] = ()  # folders that are unmounted and emptied before every run
    dropped: tuple[Path, ...] = ()  # folders whose files are dropped from the page cache before every run


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A loader that is not run, with the reason and what fixes it; `of` is "load" or "start"."""

    name: str
    label: str
    of: str = "load"
    reason: str
    hint: str | None = None


def select_loaders(only: Sequence[str], skip: Sequence[str], more: Sequence[str]) -> list[Loader]:
    """Selects loaders by name, by default all that are not optional; UsageError if none is left."""
    hint = f"the loaders are {', '.join(NAMES)}"
    for name in (*only, *skip, *more):
        if name not in NAMES:
            raise UsageError(f"there is no loader {name!r} to compare", hint=hint)
    names = {*(only or set(NAMES) - set(OPTIONAL)), *more} - set(skip)
    loaders = [loader for loader in LOADERS if loader.name in names]
    if not loaders:
        raise UsageError("no loader is left to run", hint=hint)
    return loaders


def probe_interpreters(paths: Iterable[str]) -> Interpreters:
    """Asks each interpreter which packages it has; UsageError if one of them does not run."""
    interpreters: dict[str, Mapping[str, str]] = {}
    for path in dict.fromkeys(map(os.path.abspath, paths)):
        environ = clean_environment(python_path=path == sys.executable)
        try:
            probe = run([path, str(READERS), "probe"], environ, timeout_seconds=_PROBE_SECONDS)
        except RunFailed as exc:
            hint = "name an interpreter: --python PATH"
            raise UsageError(f"{path} is not a working Python interpreter", hint=hint) from exc
        interpreters[path] = probe.result
    return interpreters


def clean_environment(*, python_path: bool, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """This environment without variables that configure loaders, but those that start with `keep`, and PYTHONPATH."""
    environ = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith(_FOREIGN) or name.startswith(keep)
    }
    environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    path = os.environ.get("PYTHONPATH")
    return environ | ({"PYTHONPATH": path} if path and python_path else {})


class ContestantFactory:
    """Makes the contestants of a plan, with copies in `scratch`, on the disk that is measured."""

    def __init__(self, plan: BenchPlan, interpreters: Interpreters, scratch: Path) -> None:
        self._plan, self._target, self._settings = plan, plan.target, plan.settings
        self._interpreters, self._scratch, self.cache = interpreters, scratch, scratch / "cache"

    def interpreter(self, *packages: str) -> str | None:
        return next((path for path, versions in self._interpreters.items() if {*packages} <= versions.keys()), None)

    def make_load(self, loader: Loader) -> Contestant | Skipped:
        if reason := self._refusal(loader):
            return _skip(loader, "load", reason)
        packages = [*loader.packages, *(["torch"] if self._plan.device != "cpu" else [])]
        if self._target.kind == "s3" and loader.name.startswith("runai"):
            packages.append("runai-model-streamer-s3")
        if loader.name in OURS:
            packages.append("coldstream")
        python = self.interpreter(*packages)
        if python is None:
            missing = next((name for name in packages if self.interpreter(name) is None), ", ".join(packages))
            return _skip(loader, "load", f"{missing} is not installed", hint=f"run: {loader.install_command}")
        if loader.name in OURS:
            return self._coldstream(loader, python)
        if loader.name in MOUNTS:
            return self._mounted(loader, python)
        return self._download(loader, python) if loader.name == "vllm-default" else self._foreign(loader, python)

    def make_start(self, loader: Loader, program: Program, flags: Sequence[str]) -> Contestant | Skipped:
        if reason := self._refusal(loader):
            return _skip(loader, "start", reason)
        if loader.serve_loader is None:
            return _skip(loader, "start", "vLLM has no such loader")
        if loader.serve_loader == "runai" and program.packages and "runai_model_streamer" not in program.packages:
            reason = "runai-model-streamer is not installed in vLLM's environment"
            return _skip(loader, "start", reason, hint=f"run there: {loader.install_command}")
        plan, target = self._plan, self._target
        uri, keys, detail = target.uri.full, self._bucket_environment(), f"--loader {loader.serve_loader}"
        if target.kind == "s3":
            # `--loader default` takes only model names.
            uri, keys = target.key, keys | {"COLDSTREAM_STORE": target.store}
        warm = loader.name == "coldstream-warm"
        cache = self._scratch / ("start-cache" if warm else "start-cold")
        options = ["--bundle", "off", "--no-spot-notice", "--vllm", program.path]
        connections = loader.connections or _DOWNLOAD_CONNECTIONS
        if loader.serve_loader == "coldstream":
            connections = plan.connections
            options += ["--connections", str(connections), *([] if warm else ["--no-cache"])]
            options += [] if plan.memory_limit is None else ["--memory", str(plan.memory_limit)]
        elif loader.name == "runai-tuned":
            connections, memory = self._tuned()
            options += ["--connections", str(connections), "--memory", str(memory)]
            detail += f", {connections} threads, {format_bytes(memory)}"
        arguments = ["serve", uri, "--loader", loader.serve_loader, "--json", *options, "--", *flags]
        environ = {
            **clean_environment(python_path=True, keep=("HF_",)),
            **keys,
            "COLDSTREAM_CACHE_DIR": str(cache),
            "COLDSTREAM_CACHE_LIMIT": _CACHE_LIMIT,
            "VLLM_ASSETS_CACHE": str(cache / "assets"),
        }
        start = {"command": [sys.executable, "-c", _SERVE], "arguments": arguments}
        more: dict[str, Any] = {"dropped": (cache,)} if warm else {"dropped": self._folders(), "emptied": (cache,)}
        versions = {"vllm": program.version} if program.version else {}
        used = None if warm or target.kind != "s3" else connections
        more |= {"connections": used, "detail": detail, "versions": versions}
        return _contestant(loader, [sys.executable, str(START)], environ, start, **more)

    def make_all(
        self, make: Callable[[Loader], Contestant | Skipped], *, of: str = "load"
    ) -> tuple[list[Contestant], list[Skipped]]:
        """Makes the plan's contestants; skips those whose copy of the model would not fit on the disk."""
        free = float(shutil.disk_usage(self._scratch).free)
        needed = _SPACE_FACTOR * self._target.model.bytes
        contestants, skipped = [], []
        for loader in self._plan.loaders:
            entry = make(loader)
            copies = loader.on_disk and self._target.kind != "folder"
            if isinstance(entry, Contestant) and copies and free < needed:
                folder = self._scratch.parent
                reason = f"it needs {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free"
                entry = _skip(loader, of, reason)
            if isinstance(entry, Skipped):
                skipped.append(entry)
                continue
            contestants.append(entry)
            free -= needed if copies else 0
        return contestants, skipped

    def _refusal(self, loader: Loader) -> str | None:
        target = self._target
        if target.kind not in loader.places:
            if loader.name == "coldstream-warm":
                return "a local folder is read in place, without the cache"
            places = {"s3": "buckets", "folder": "local files", "http": "plain HTTP"}
            return f"it only reads {' and '.join(places[place] for place in loader.places)}"
        if loader.name not in OURS and target.kind == "s3" and not target.has_plain_names:
            return "the bucket stores the files under other names"
        return None

    def _tuned(self) -> tuple[int, int]:
        gpus = (detect_gpus(hardware.gpus()) if self._plan.device != "cpu" else None) or Gpus(find_gpu("L4"), 1)
        threads, memory = runai_rule(self._target.model.size, gpus)
        return threads, min(memory, max(256 * MIB, hardware.available_bytes() // 2))

    def _bucket_environment(self) -> dict[str, str]:
        if self._target.kind != "s3":
            names = ["HF_ENDPOINT", *(["HF_TOKEN"] if self._target.uri.full.startswith("hf://") else [])]
            values = {name: value for name in names if (value := self._settings.get(name))}
            return values | ({"COLDSTREAM_STORE": self._target.store} if self._target.store else {})
        settings = self._settings.values.items()
        needed = {name: value for name, value in settings if not name.startswith(_NOT_FOR_LOADS)}
        return self._aws_environment() | needed

    def _sdk_environment(self) -> dict[str, str]:
        environ = clean_environment(python_path=False)
        return environ if self._target.kind != "s3" else environ | self._aws_environment() | exports(self._settings)

    def _aws_environment(self) -> dict[str, str]:
        if self._settings.keys() is not None:
            return {}
        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def _coldstream(self, loader: Loader, python: str) -> Contestant:
        plan, warm = self._plan, loader.name == "coldstream-warm"
        framework = "buffer" if plan.device == "cpu" else "pt"
        stream = {"device": plan.device, "framework": framework, "cache": warm, "connections": plan.connections}
        stream |= {} if plan.memory_limit is None else {"memory": plan.memory_limit}
        environ = clean_environment(python_path=python == sys.executable) | self._bucket_environment()
        environ |= {"COLDSTREAM_CACHE_DIR": str(self.cache), "COLDSTREAM_CACHE_LIMIT": _CACHE_LIMIT}
        options = {"uri": self._target.uri.full, "stream": stream, "mode": "warm" if warm else "drain"}
        more: dict[str, Any] = {"versions": {"coldstream": __version__}}
        if warm:
            more |= {"detail": "from its local cache", "dropped": (self.cache,), "first": {"mode": "fill"}}
        else:
            more |= {"detail": f"up to {plan.connections} connections", "connections": plan.connections}
        return self._reader(loader, python, "coldstream", environ, options, **more)

    def _foreign(self, loader: Loader, python: str) -> Contestant:
        connections = loader.connections or self._plan.connections
        detail = loader.detail or f"{connections} threads, {_CHUNKS}"
        environ = self._sdk_environment()
        if loader.serve_loader == "runai":
            environ["RUNAI_STREAMER_LOG_LEVEL"] = "ERROR"
        if loader.name == "runai-tuned":
            connections, memory = self._tuned()
            detail = f"{connections} threads, {format_bytes(memory)}"
            environ["RUNAI_STREAMER_CONCURRENCY"] = str(connections)
            environ["RUNAI_STREAMER_MEMORY_LIMIT"] = str(memory)
        reader = loader.serve_loader or loader.name
        return self._reader(loader, python, reader, environ, {}, connections=connections, detail=detail)

    def _download(self, loader: Loader, python: str) -> Contestant:
        target, environ, detail = self._target, clean_environment(python_path=False), "safetensors, memory-mapped"
        if target.kind == "folder":
            return self._reader(loader, python, "download", environ, {}, detail=detail)
        folder = self._scratch / "downloaded"
        # The download runs in this interpreter, with its module path and the bucket's keys.
        path = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
        command = ["env", path, sys.executable, "-m", "coldstream", "download", target.key, str(folder), "--quiet"]
        environ |= self._bucket_environment() | {"COLDSTREAM_STORE": target.store}
        options, detail = {"folder": str(folder), "download": command}, f"coldstream download, then {detail}"
        return self._reader(loader, python, "download", environ, options, connections=_DOWNLOAD_CONNECTIONS,
                            detail=detail, emptied=(folder,))  # fmt: skip

    def _mounted(self, loader: Loader, python: str) -> Contestant | Skipped:
        rclone, refusal = find_rclone(), mount_refusal()
        if not rclone or refusal:
            reason, hint = refusal or ("rclone is not installed", install_hint("demo"))
            return _skip(loader, "load", reason, hint=hint)
        mount, cache = self._scratch / "mount", self._scratch / "mount-cache"
        environ = mount_environment(self._sdk_environment(), cache=cache, mode=loader.detail)
        detail = f"--vfs-cache-mode {loader.detail}, then safetensors, memory-mapped"
        one = self._reader(loader, python, "download", environ, {"folder": str(mount)}, connections=loader.connections,
                           detail=detail, emptied=(mount, cache))  # fmt: skip
        remote = f"bucket:{self._target.bucket}/{self._target.prefix}/"
        return replace(one, command=(sys.executable, str(MOUNT), rclone, remote, str(mount), *one.command))

    def _reader(
        self, loader: Loader, python: str, reader: str, environ: Mapping[str, str], options: dict[str, Any], **more: Any
    ) -> Contestant:
        target, plan = self._target, self._plan
        place: dict[str, Any] = {}
        if target.kind == "folder":
            place, more["connections"] = {"folder": target.folder}, None
        elif target.kind == "s3":
            place = {"url": self._settings.endpoint(), "bucket": target.bucket, "key": target.prefix}
        common = {"files": target.files, "device": plan.device, "threads": plan.connections}
        options = {**common, "chunk_bytes": CHUNK_BYTES, "verify": False, **place, **options}
        versions = {name: self._interpreters[python][name] for name in loader.packages}
        more = {"dropped": self._folders(), "versions": versions, **more}
        return _contestant(loader, [python, str(READERS), reader], environ, options, **more)

    def _folders(self) -> tuple[Path, ...]:
        return (Path(self._target.folder),) if self._target.kind == "folder" else ()


def _skip(loader: Loader, of: str, reason: str, *, hint: str | None = None) -> Skipped:
    return Skipped(name=loader.name, label=loader.label, of=of, reason=reason, hint=hint)


def _contestant(
    loader: Loader, command: Sequence[str], environ: Mapping[str, str], options: Mapping[str, Any], **more: Any
) -> Contestant:
    """A contestant whose first run hashes the tensors, with the options of `first` besides."""
    first = {**options, "verify": True, **more.pop("first", {})}
    return Contestant(
        name=loader.name,
        label=loader.label,
        command=tuple(command),
        environ={**environ, "BENCH_OPTIONS": json.dumps(options)},
        first_environ={**environ, "BENCH_OPTIONS": json.dumps(first)},
        **more,
    )
