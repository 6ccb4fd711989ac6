"""What is to run, made ready: the model found, its stream begun, its folder written."""

from __future__ import annotations

import json
import os
import pwd
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from coldstream.cache.cache import cache_of
from coldstream.engines.vllm.command import Command, consumers_of, plain, runai, runai_sharded, streamed
from coldstream.engines.vllm.flags import number_of, value_of
from coldstream.engines.vllm.loader_config import parse_loader_config
from coldstream.engines.vllm.program import Program, find_program
from coldstream.engines.vllm.serve_request import ServeRequest
from coldstream.engines.vllm.warm_caches import read_ahead, warm_start
from coldstream.errors import (
    BucketNotFoundError,
    ColdstreamError,
    CredentialsError,
    DiskError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.loading.options import OnProgress, Options
from coldstream.machine import hardware
from coldstream.machine.child_environment import CREDENTIALS
from coldstream.machine.disk import checked_root, make_folders, temporary_root
from coldstream.model.names import checked_name, split_revision
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.node.bundle.warm_start import WarmStart
from coldstream.node.load_service import LoadService
from coldstream.node.model_folder import ModelFolder, check_complete, check_servable, model_folder
from coldstream.places.origin_opening import open_origin
from coldstream.places.tree import snapshot_of
from coldstream.progress import Progress
from coldstream.settings import VARIABLES, Settings
from coldstream.tune.connection_curve import saved_curve

_SHARDED = re.compile(r".*-tp(\d+)")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to run, and who streams to it.

    Attributes:
        program: vLLM.
        command: How it is run.
        service: Where its ranks ask for the weights; None with another loader.
        warm: Its caches; None when they are off.
        downloaded: When the weights were on the disk, by `time.monotonic`; None when nothing puts them there.
    """

    program: Program
    command: Command
    service: LoadService | None
    warm: WarmStart | None
    downloaded: float | None = None


@contextmanager
def prepared(
    request: ServeRequest,
    settings: Settings,
    *,
    say: Callable[[str], None],
    dry: bool = False,
    on_service: Callable[[LoadService], None] = lambda _: None,
) -> Iterator[Prepared]:
    """Resolves the model, begins the stream and restores the caches; the stream ends with the block.

    Args:
        request: What is to be served.
        settings: Where the bucket is.
        say: Told what the user should know.
        dry: Whether only the command is asked for, and nothing is to be streamed.
        on_service: Told of whoever gives the loads, before the first begins; of a second one after a fallback.

    Raises:
        NotFoundError: vLLM is not installed, or there is no such model.
        And what `model_folder` and `Share` raise.
    """
    program = find_program(request.program)
    for warning in program.warnings(dict(os.environ)):
        say(f"warning: {warning}")
    with ExitStack() as stack:
        version: str | None
        downloaded = None
        if request.loader == "coldstream":
            begin = partial(_begun, request=request, settings=settings, stack=stack, dry=dry, on_service=on_service)
            command, service, version = _streamed(request, program, begin, say)
        else:
            command, service = _other(request, settings, program, say), None
            downloaded = time.monotonic() if request.loader == "default" and request.is_name else None
            version = _version(request, settings) if request.bundle != "off" else None
        passed = passed_environment(request.pass_env, settings, os.environ, say)
        command = command.having({**user_environment(os.environ), **request.environment, **passed})
        environ = {**os.environ, **command.environment}
        warm = None
        if version is not None and request.bundle != "off":
            warm = warm_start(request, settings, program, version=version, environ=environ, say=say)
        if warm is not None:
            stack.callback(warm.close)
            if not dry:
                warm.restore()
                stack.callback(read_ahead(warm.reads).stop)
            gpu = not program.is_cpu_build and bool(hardware.gpus())
            command = command.having(warm.environment(environ, gpu=gpu, vllm=program.version or ""))
        yield Prepared(program, command, service, warm, downloaded)


def passed_environment(
    names: Sequence[str], settings: Settings, environ: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """The variables that vLLM is given by `--pass-env`; those that it inherits anyway are left out.

    Args:
        names: Of the variables.
        settings: Where a value may come from too, such as `.env`.
        environ: Of this process.
        say: Told of a variable that is not set, which may be misspelt.
    """
    passed = {}
    for name in names:
        if value := settings.get(name) or environ.get(name):
            if name in VARIABLES or name in CREDENTIALS:
                passed[name] = value
        else:
            say(f"warning: --pass-env {name}: it is set neither in {' nor in '.join(settings.looked_in)}")
    return passed


def user_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """A home and a name for a user without: containers often run as an arbitrary one, and vLLM's libraries need both.

    Args:
        environ: Of this process.
    """
    extra = {}
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or (home == "/" and not os.access(home, os.W_OK)):
        with suppress(DiskError):
            folder = temporary_root() / "home"
            make_folders(folder)
            extra["HOME"] = str(folder)
    # What `getpass.getuser` looks at, which names Torch's caches.
    if not any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            extra["USER"] = f"uid{os.getuid()}"
    return extra


def _streamed(
    request: ServeRequest,
    program: Program,
    begin: Callable[[Uri], tuple[LoadService, ModelFolder]],
    say: Callable[[str], None],
) -> tuple[Command, LoadService, str]:
    try:
        service, folder = begin(request.uri)
    except (UnavailableError, NotFoundError, BucketNotFoundError, CredentialsError) as exc:
        if request.fallback != "hf" or not request.is_name:
            raise
        say(f"warning: {exc.message}; streaming from Hugging Face instead")
        service, folder = begin(Uri(f"hf://{request.uri}"))
    if folder.offline:
        check_complete(folder)
        say("warning: the bucket does not answer; starting from this machine's copy")
    for path, why in folder.left_out.items():
        say(f"not loaded: {path} ({why})")
    command = streamed(
        program.launcher, str(folder.path), request.served_name, request.arguments, service=service.address
    )
    _check_servable(folder.path, request)
    if "VLLM_RPC_BASE_PATH" not in os.environ:
        # vLLM's own sockets lie in /tmp otherwise, and stay there when it is killed.
        command = command.having({"VLLM_RPC_BASE_PATH": service.folder})
    return command, service, folder.note.version


def _begun(
    uri: Uri,
    *,
    request: ServeRequest,
    settings: Settings,
    stack: ExitStack,
    dry: bool,
    on_service: Callable[[LoadService], None],
) -> tuple[LoadService, ModelFolder]:
    """The stream and the folder, both begun at once: both ask the bucket, and neither needs the other."""
    with ExitStack() as mine:
        service = mine.enter_context(LoadService(uri, options=_options(request, settings)))
        on_service(service)
        trouble: list[ColdstreamError] = []

        def begin() -> None:
            try:
                service.begin(consumers=consumers_of(request.arguments))
            except ColdstreamError as exc:
                trouble.append(exc)

        beginning = threading.Thread(target=(lambda: None) if dry else begin)
        beginning.start()
        try:
            folder = model_folder(uri, settings)
        finally:
            beginning.join()
        if trouble:
            raise trouble[0]
        if not folder.offline:
            service.expect(folder.note.version)
        stack.enter_context(mine.pop_all())
    return service, folder


def _options(request: ServeRequest, settings: Settings) -> Options:
    """The loads' options: what the user wrote for vLLM's load format counts as if it were written for us."""
    text = value_of(request.arguments, "--model-loader-extra-config")
    if not text:
        curve = saved_curve(settings) if request.is_name else None
        if curve is None or request.options.connections != Options().connections:
            return request.options
        # As `coldstream tune --measure` found.
        return replace(request.options, connections=curve.connections)
    try:
        given = json.loads(text)
        extra = parse_loader_config(given)
    except ValueError as exc:
        raise UsageError(f"--model-loader-extra-config: {exc}") from exc
    if extra.uri is not None and str(Uri(extra.uri)) != str(request.uri):
        raise UsageError(f"--model-loader-extra-config has the uri {Uri(extra.uri)}, and {request.uri} is to be served")
    return replace(request.options, **extra.options(given))


def _other(request: ServeRequest, settings: Settings, program: Program, say: Callable[[str], None]) -> Command:
    if request.loader == "default":
        folder = _downloaded(request, settings, say)
        _check_servable(Path(folder), request)
        return plain(program.path, folder, request.served_name, request.arguments)
    chosen, default = request.options.connections, Options().connections
    limits: dict[str, Any] = {
        "concurrency": None if chosen == default else chosen,
        "memory_limit": request.options.memory,
    }
    uri = _run_ai_uri(request, settings)
    if request.loader == "runai":
        return runai(program.path, uri, request.served_name, request.arguments, settings, **limits)
    if match := _SHARDED.fullmatch(uri):
        ranks = int(match[1])
    else:
        ranks = number_of(request.arguments, "--tensor-parallel-size")
        uri = f"{uri}-tp{ranks}"
    return runai_sharded(program.path, uri, request.served_name, request.arguments, settings, ranks=ranks, **limits)


def _check_servable(folder: Path, request: ServeRequest) -> None:
    if value_of(request.arguments, "--hf-config-path") is None:
        check_servable(folder, request.served_name)


def _run_ai_uri(request: ServeRequest, settings: Settings) -> str:
    uri = request.uri.full.rstrip("/")
    if request.is_name:
        uri = f"{settings.store_uri()}/{_checked_revision(uri, settings)}"
    if uri.startswith("s3://"):
        return uri
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(f"Run:ai's streamer cannot read {uri.partition(':')[0]} URIs", hint="leave --loader out")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def _checked_revision(name: str, settings: Settings) -> str:
    """A model's name without its revision, which is what the bucket holds."""
    bare, revision = split_revision(name)
    if revision:
        open_origin(name, settings).names()
    return checked_name(bare)


def _version(request: ServeRequest, settings: Settings) -> str | None:
    """Of a model that is read by others than us; None when it cannot be told."""
    try:
        origin = open_origin(request.uri, settings, retry=Retry(Backoff(give_up_seconds=settings.retry_seconds)))
        return origin.checkpoint().version
    except ColdstreamError:
        return None


def _downloaded(request: ServeRequest, settings: Settings, say: Callable[[str], None]) -> str:
    """A folder with the weights, for vLLM's own loader."""
    from coldstream.mirror.download import download
    from coldstream.mirror.stored_files import stored_bytes
    from coldstream.places.store_opening import open_store

    if not request.is_name:
        if "://" in request.uri.full:
            raise UsageError("--loader default takes a model of the configured bucket, or a folder")
        return str(snapshot_of(Path(os.path.abspath(os.path.expanduser(request.uri.full)))))
    name = request.uri.full
    root = cache_of(settings).root
    checked_root(root, create=True)
    folder = root / "downloads" / checked_name(split_revision(name)[0])
    say(f"downloading {name} to {folder}")
    store, on_progress = open_store(settings), request.options.on_progress
    total = stored_bytes(store, name) if on_progress else 0
    download(store, name, folder, progress=_Download(say, total, on_progress))
    return str(folder)


class _Download(Progress):
    """Passes on what a download says, and how far it is."""

    def __init__(self, write: Callable[[str], None], total: int, on_progress: OnProgress | None) -> None:
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
