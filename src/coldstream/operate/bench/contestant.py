"""The ways of loading: what each needs, how it is run, and in which environment.

Every one runs in an environment of its own making: what may steer a loader from outside is taken out, and what it needs
for this bucket put in. Keys go to those that read the bucket, by the environment alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coldstream.engines.vllm.program import Program
from coldstream.errors import UsageError
from coldstream.machine import hardware
from coldstream.machine.child_environment import child_environment
from coldstream.operate.bench.runner import PROGRAMS
from coldstream.operate.bench.target import Target
from coldstream.operate.probe import exports
from coldstream.package import __version__
from coldstream.settings import Settings
from coldstream.tune.gpus import Gpus, find_gpu
from coldstream.tune.model_facts import gpus_here
from coldstream.tune.recommended import runai_rule
from coldstream.units import MIB, format_bytes

READERS = PROGRAMS / "readers.py"
START = PROGRAMS / "start.py"
CHUNK_BYTES = 8 * MIB
RUNAI_CONNECTIONS = 8
BOTO3_CONNECTIONS = 10
# mirror.download's, which the command takes.
_DOWNLOAD_CONNECTIONS = 8
_PROBE_SECONDS = 60.0
# What may steer a loader from outside.
_FOREIGN = ("AWS_", "R2_", "HF_", "COLDSTREAM_", "RUNAI_", "CLOUDFLARE_", "VLLM_API_KEY", "PYTHON", "BENCH_")
_CHAIN = "AWS_"
# A temporary copy of one model, for some minutes, may fill the disk as far as that goes.
_CACHE_LIMIT = str(1 << 50)
# Every user of the machine can read a command line, and the model's URL may hold a token.
_SERVE = "import json, sys; from coldstream.cli import main; main(json.load(sys.stdin))"
# Of the settings, what no load needs.
_NOT_FOR_LOADS = {
    "CLOUDFLARE_API_TOKEN",
    "CLOUDFLARE_BASE_URL",
    "COLDSTREAM_BUNDLE_KEY",
    "COLDSTREAM_CACHE_DIR",
    "COLDSTREAM_CACHE_LIMIT",
    "COLDSTREAM_SERVICE",
    "VLLM_API_KEY",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A way of loading, before anything is known of a machine.

    Attributes:
        name: As `--only` takes it.
        label: For people.
        packages: That its interpreter must have.
        install: How they come there.
        places: Where models may lie: kinds of `Target`.
        starts: The loader of `coldstream serve` that does the same; None without.
        on_disk: Whether it keeps all of the model on the disk.
        optional: Whether it has to be asked for.
    """

    name: str
    label: str
    packages: tuple[str, ...]
    install: str
    places: tuple[str, ...]
    starts: str | None = None
    on_disk: bool = False
    optional: bool = False


_COLDSTREAM = "pip install torch"
_RUNAI = "pip install 'runai-model-streamer[s3]'"
KINDS = (
    Kind("coldstream", "coldstream, cold", (), _COLDSTREAM, ("s3", "http", "folder"), "coldstream"),
    Kind("coldstream-warm", "coldstream, warm", (), _COLDSTREAM, ("s3", "http"), "coldstream", on_disk=True),
    Kind("runai", "Run:ai, default", ("runai-model-streamer", "torch"), _RUNAI, ("s3", "folder"), "runai"),
    Kind("runai-tuned", "Run:ai, tuned", ("runai-model-streamer", "torch"), _RUNAI, ("s3", "folder"), "runai"),
    Kind(
        "vllm-default",
        "vLLM, downloaded",
        ("safetensors", "torch"),
        "pip install safetensors torch",
        ("s3", "folder"),
        "default",
        on_disk=True,
    ),
    Kind("boto3", "boto3", ("boto3",), "pip install boto3", ("s3",), optional=True),
    Kind("s3fs", "s3fs", ("s3fs",), "pip install s3fs", ("s3",), optional=True),
    Kind("obstore", "obstore", ("obstore",), "pip install obstore", ("s3",), optional=True),
)
NAMES = tuple(kind.name for kind in KINDS)
OPTIONAL = tuple(kind.name for kind in KINDS if kind.optional)
OURS = ("coldstream", "coldstream-warm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A way of loading, ready to be run.

    Attributes:
        name: As `--only` takes it.
        label: For people.
        command: What is started.
        environ: Its whole environment. Holds keys.
        first_environ: That of the untimed first run, which proves the bytes, and fills what is to be warm.
        connections: At most, to the bucket; None when it reads none of it.
        detail: How it is set, for people.
        versions: Of what it is made of.
        emptied: Folders that are emptied before every run.
        dropped: Folders whose files leave the page cache before every run.
    """

    name: str
    label: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    first_environ: Mapping[str, str] = field(repr=False)
    connections: int | None
    detail: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    emptied: tuple[Path, ...] = ()
    dropped: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A way of loading that is not run.

    Attributes:
        name: As `--only` takes it.
        label: For people.
        reason: Why.
        hint: What helps, or None.
    """

    name: str
    label: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter.

    Attributes:
        path: Absolute.
        packages: Those that matter, to their versions.
    """

    path: str
    packages: Mapping[str, str]

    @property
    def is_ours(self) -> bool:
        """Whether it runs this very program."""
        return self.path == sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How contestants are set.

    Attributes:
        device: "cpu", "cuda" or "cuda:1".
        connections: At most, of those that can be told.
        memory_limit: Of our loader, or None.
    """

    device: str = "cpu"
    connections: int = 64
    memory_limit: int | None = None


def chosen(only: Sequence[str], skip: Sequence[str], more: Sequence[str]) -> list[Kind]:
    """The kinds that are asked for.

    Args:
        only: Names; none means all that are not optional.
        skip: Names.
        more: Optional ones.

    Raises:
        UsageError: There is no such name, or none is left.
    """
    for name in (*only, *skip, *more):
        if name not in NAMES:
            raise UsageError(f"there is no loader {name!r} to compare", hint=f"there are {', '.join(NAMES)}")
    wanted = set(only) | set(more) if only else {kind.name for kind in KINDS if not kind.optional} | set(more)
    found = [kind for kind in KINDS if kind.name in wanted - set(skip)]
    if not found:
        raise UsageError("no loader is left to be run", hint=f"there are {', '.join(NAMES)}")
    return found


def pythons(paths: Sequence[str]) -> list[Python]:
    """What these interpreters have, without those that do not run; each once.

    Raises:
        UsageError: One of them is no Python.
    """
    found: list[Python] = []
    for path in dict.fromkeys(os.path.abspath(path) for path in paths):
        command = [path, str(READERS), "probe"]
        try:
            done = subprocess.run(
                command,
                env=_plain(ours=path == sys.executable),
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                check=True,
            )
            found.append(Python(path, json.loads(done.stdout)))
        except (OSError, subprocess.SubprocessError, ValueError) as exc:
            raise UsageError(f"{path} is no Python that runs", hint="name an interpreter: --python PATH") from exc
    return found


class Maker:
    """Makes contestants for a target on this machine."""

    def __init__(
        self, target: Target, settings: Settings, interpreters: Sequence[Python], wishes: Wishes, scratch: Path
    ) -> None:
        """Prepares.

        Args:
            target: What is loaded.
            settings: Where the bucket is.
            interpreters: That may have a loader, in the order in which they are asked.
            wishes: How contestants are set.
            scratch: A folder for copies, on the disk that is measured.
        """
        self._target, self._settings, self._wishes = target, settings, wishes
        self._interpreters, self._scratch = interpreters, scratch

    @property
    def cache(self) -> Path:
        """The local cache of what is warm."""
        return self._scratch / "cache"

    def python(self, *packages: str) -> Python | None:
        """The first interpreter that has them."""
        return next((python for python in self._interpreters if set(packages) <= python.packages.keys()), None)

    def make(self, kind: Kind) -> Contestant | Skipped:
        """The contestant for a load, or why there is none."""
        if refused := self.refused(kind):
            return refused
        target, wishes = self._target, self._wishes
        packages = kind.packages
        if target.kind == "s3" and kind.name.startswith("runai"):
            packages += ("runai-model-streamer-s3",)
        if wishes.device != "cpu":
            packages += ("torch",)
        if kind.name in OURS:
            packages += ("coldstream",)
        python = self.python(*packages)
        if python is None:
            lacking = next((p for p in packages if self.python(p) is None), ", ".join(packages))
            return Skipped(
                name=kind.name, label=kind.label, reason=f"{lacking} is not installed", hint=f"run: {kind.install}"
            )
        if kind.name in OURS:
            return self._coldstream(kind, python)
        if kind.name == "vllm-default":
            return self._download(kind, python)
        return self._foreign(kind, python)

    def refused(self, kind: Kind) -> Skipped | None:
        """Why a kind of contestant cannot load this target."""
        target = self._target
        if target.kind not in kind.places:
            places = {"s3": "buckets", "folder": "local files", "http": "plain HTTP"}
            reads = " and ".join(places[place] for place in kind.places)
            reason = f"it reads {reads} alone"
            if kind.name == "coldstream-warm":
                reason = "a folder of this machine is read where it lies"
            return Skipped(name=kind.name, label=kind.label, reason=reason)
        if kind.name not in OURS and target.kind == "s3" and not target.is_plain:
            return Skipped(name=kind.name, label=kind.label, reason="the bucket stores the files under other names")
        return None

    def tuned(self) -> tuple[int, int]:
        """Run:ai's threads and bytes of buffer by the rule, with no more memory than there is."""
        gpus = (gpus_here(hardware.gpus()) if self._wishes.device != "cpu" else None) or Gpus(find_gpu("L4"), 1)
        threads, memory = runai_rule(self._target.model.size, gpus)
        return threads, min(memory, max(256 * MIB, hardware.available_bytes() // 2))

    def keys(self) -> dict[str, str]:
        """The environment with which our own commands find the bucket."""
        if self._target.kind != "s3":
            token = self._settings.get("HF_TOKEN") if self._target.uri.full.startswith("hf://") else None
            mirror = self._settings.get("HF_ENDPOINT")
            return {name: value for name, value in (("HF_TOKEN", token), ("HF_ENDPOINT", mirror)) if value}
        values = {
            name: value
            for name, value in self._settings.values.items()
            if name not in _NOT_FOR_LOADS and not name.startswith("HF_")
        }
        return self._chain() | values

    def _chain(self) -> dict[str, str]:
        """What AWS's own chain of credentials reads, where it is to be used."""
        if self._settings.keys() is not None:
            return {}
        return {name: value for name, value in os.environ.items() if name.startswith(_CHAIN)}

    def _coldstream(self, kind: Kind, python: Python) -> Contestant:
        wishes = self._wishes
        warm = kind.name == "coldstream-warm"
        stream: dict[str, Any] = {
            "device": wishes.device,
            "framework": "buffer" if wishes.device == "cpu" else "pt",
            "cache": warm,
            "connections": wishes.connections,
        }
        if wishes.memory_limit is not None:
            stream["memory"] = wishes.memory_limit
        cache = {"COLDSTREAM_CACHE_DIR": str(self.cache), "COLDSTREAM_CACHE_LIMIT": _CACHE_LIMIT}
        environ = _plain(ours=python.is_ours) | self.keys() | cache
        options = self._options() | {
            "uri": self._target.uri.full,
            "stream": stream,
            "mode": "warm" if warm else "drain",
        }
        first = {**options, "verify": True, "mode": "fill" if warm else "drain"}
        return Contestant(
            name=kind.name,
            label=kind.label,
            command=(python.path, str(READERS), "coldstream"),
            environ=_with(environ, options),
            first_environ=_with(environ, first),
            connections=None if warm or self._target.kind == "folder" else wishes.connections,
            detail="from its local cache" if warm else f"up to {wishes.connections} connections",
            versions={"coldstream": __version__},
            dropped=(self.cache,) if warm else self._folders(),
        )

    def _foreign(self, kind: Kind, python: Python) -> Contestant:
        target, wishes = self._target, self._wishes
        environ = _plain(ours=False)
        if target.kind == "s3":
            environ |= self._chain() | exports(self._settings)
        options = self._options()
        connections: int | None = wishes.connections
        detail = f"{connections} threads, chunks of {format_bytes(CHUNK_BYTES)}"
        if kind.name.startswith("runai"):
            connections, detail = RUNAI_CONNECTIONS, f"{RUNAI_CONNECTIONS} threads"
            environ["RUNAI_STREAMER_LOG_LEVEL"] = "ERROR"
            if kind.name == "runai-tuned":
                connections, memory = self.tuned()
                detail = f"{connections} threads, {format_bytes(memory)}"
                environ |= {
                    "RUNAI_STREAMER_CONCURRENCY": str(connections),
                    "RUNAI_STREAMER_MEMORY_LIMIT": str(memory),
                }
            reader = "runai"
        else:
            reader = kind.name
            if reader == "boto3":
                connections, detail = BOTO3_CONNECTIONS, "its default transfer, one file after the other"
            elif reader == "s3fs":
                detail = f"one file after the other, chunks of {format_bytes(CHUNK_BYTES)}"
        return Contestant(
            name=kind.name,
            label=kind.label,
            command=(python.path, str(READERS), reader),
            environ=_with(environ, options),
            first_environ=_with(environ, options | {"verify": True}),
            connections=connections if target.kind == "s3" else None,
            detail=detail,
            versions={name: python.packages[name] for name in kind.packages},
            dropped=self._folders(),
        )

    def _download(self, kind: Kind, python: Python) -> Contestant:
        target = self._target
        options = self._options()
        emptied: tuple[Path, ...] = ()
        environ = _plain(ours=False)
        detail = "safetensors, memory-mapped"
        if target.kind == "s3":
            into = self._scratch / "downloaded"
            emptied = (into,)
            # Our own interpreter does this part, with its own path and the bucket's keys.
            command = ["env", *_our_path(), sys.executable, "-m", "coldstream", "download", target.key, str(into)]
            options |= {"folder": str(into), "download": [*command, "--quiet"]}
            environ |= self.keys() | {"COLDSTREAM_STORE": target.store}
            detail = f"coldstream download, then {detail}"
        return Contestant(
            name=kind.name,
            label=kind.label,
            command=(python.path, str(READERS), "download"),
            environ=_with(environ, options),
            first_environ=_with(environ, options | {"verify": True}),
            connections=_DOWNLOAD_CONNECTIONS if target.kind == "s3" else None,
            detail=detail,
            versions={name: python.packages[name] for name in kind.packages},
            emptied=emptied,
            dropped=self._folders(),
        )

    def start(self, kind: Kind, program: Program, flags: Sequence[str]) -> Contestant | Skipped:
        """The contestant for a whole start of vLLM, or why there is none.

        Args:
            kind: Of loader.
            program: The `vllm` to run.
            flags: For `vllm serve`, with host and port.
        """
        if refused := self.refused(kind):
            return refused
        if kind.starts is None:
            return Skipped(name=kind.name, label=kind.label, reason="vLLM has no such loader")
        if kind.starts == "runai" and program.packages and "runai_model_streamer" not in program.packages:
            return Skipped(
                name=kind.name,
                label=kind.label,
                reason="runai-model-streamer is not installed beside vLLM",
                hint=f"run there: {kind.install}",
            )
        target, wishes = self._target, self._wishes
        uri, keys = target.uri.full, self.keys()
        detail = f"--loader {kind.starts}"
        if target.kind == "s3":
            # `--loader default` takes names alone.
            uri, keys = target.key, keys | {"COLDSTREAM_STORE": target.store}
        more = ["--bundle", "off", "--no-spot-notice", "--vllm", program.path]
        warm = kind.name == "coldstream-warm"
        cache = self._scratch / ("start-cache" if warm else "start-cold")
        connections: int | None = {"coldstream": wishes.connections, "runai": RUNAI_CONNECTIONS}.get(
            kind.starts, _DOWNLOAD_CONNECTIONS
        )
        if kind.starts == "coldstream":
            more += ["--connections", str(wishes.connections)]
            if wishes.memory_limit is not None:
                more += ["--memory", str(wishes.memory_limit)]
            if not warm:
                more.append("--no-cache")
        elif kind.name == "runai-tuned":
            connections, memory = self.tuned()
            more += ["--connections", str(connections), "--memory", str(memory)]
            detail += f", {connections} threads, {format_bytes(memory)}"
        arguments = ["serve", uri, "--loader", kind.starts, "--json", *more, "--", *flags]
        environ = {
            **_plain(ours=True, keep=("HF_",)),
            **keys,
            "COLDSTREAM_CACHE_DIR": str(cache),
            "COLDSTREAM_CACHE_LIMIT": _CACHE_LIMIT,
            "VLLM_ASSETS_CACHE": str(cache / "assets"),
        }
        options = {"command": [sys.executable, "-c", _SERVE], "arguments": arguments}
        return Contestant(
            name=kind.name,
            label=kind.label,
            command=(sys.executable, str(START)),
            environ=_with(environ, options),
            first_environ=_with(environ, options | {"verify": True}),
            connections=None if warm or target.kind != "s3" else connections,
            detail=detail,
            versions={"vllm": program.version} if program.version else {},
            emptied=() if warm else (cache,),
            dropped=(cache,) if warm else self._folders(),
        )

    def _options(self) -> dict[str, Any]:
        target, wishes = self._target, self._wishes
        options: dict[str, Any] = {
            "files": target.files,
            "device": wishes.device,
            "threads": wishes.connections,
            "chunk_bytes": CHUNK_BYTES,
            "verify": False,
        }
        if target.kind == "s3":
            options |= {"url": self._settings.endpoint(), "bucket": target.bucket, "key": target.prefix}
        elif target.kind == "folder":
            options["folder"] = target.folder
        return options

    def _folders(self) -> tuple[Path, ...]:
        return (Path(self._target.folder),) if self._target.kind == "folder" else ()


def _with(environ: Mapping[str, str], options: Mapping[str, Any]) -> dict[str, str]:
    return {**environ, "BENCH_OPTIONS": json.dumps(options)}


def _plain(*, ours: bool, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """This process's environment without what steers loaders; `ours` keeps the path of our own modules."""
    found = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith(_FOREIGN) or name.startswith(keep)
    }
    if ours and (path := os.environ.get("PYTHONPATH")):
        found["PYTHONPATH"] = path
    found |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    return found


def _our_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")
    return [f"PYTHONPATH={path}"] if path else []
