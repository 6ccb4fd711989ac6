"""All of `coldstream serve`: the stream first, then vLLM, then what its start spent where."""

from __future__ import annotations

import http.client
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO

from coldstream.env import Settings
from coldstream.errors import (
    ColdstreamError,
    CredentialsError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.folder import ModelFolder, check_complete, model_folder
from coldstream.loading import LoadReport, Options, Share
from coldstream.serve.child import Child
from coldstream.serve.command import Command, consumers_of, plain, runai, runai_sharded, streamed
from coldstream.serve.flags import number_of, value_of
from coldstream.serve.program import Program, find_program
from coldstream.serve.timeline import Timeline
from coldstream.vllm.service import LoadService

_HEALTH_SECONDS = 0.2
_SHARDED = re.compile(r".*-tp(\d+)")
_UNKNOWN_FORMAT = re.compile(r"Load format `?coldstream`? is not supported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be served, and how.

    Attributes:
        uri: See `Load`.
        arguments: For `vllm serve`.
        loader: One of `LOADERS`.
        options: Of the loads, for the loader coldstream.
        fallback: "hf" to stream from the Hub when the bucket fails at the start, or None.
        program: The `vllm` to run; None: the one beside this Python, or on the PATH.
        environment: More variables for vLLM.
    """

    uri: str
    arguments: tuple[str, ...]
    loader: str
    options: Options
    fallback: str | None = None
    program: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """vLLM answers.

    Attributes:
        url: Where.
        seconds: Since the command began.
        timeline: What they were spent on.
        report: Of the stream; None with another loader, or when nothing was streamed yet.
        stream_stop: When the last byte was there, in seconds since the command began; None without a stream.
        stop: Ends vLLM, as Ctrl-C would.
    """

    url: str
    seconds: float
    timeline: Timeline
    report: LoadReport | None
    stream_stop: float | None
    stop: Callable[[], None]


@contextmanager
def prepared(request: Request, settings: Settings, *, say: Callable[[str], None], dry: bool) -> Iterator[_Prepared]:
    """Resolves the model and starts the stream; it ends with the block.

    Args:
        request: What is to be served.
        settings: Where the bucket is.
        say: Told what the user should know.
        dry: Whether only the command is asked for, and nothing is to be streamed.
    """
    program = find_program(request.program)
    for warning in program.warnings(dict(os.environ)):
        say(f"warning: {warning}")
    with ExitStack() as stack:
        if request.loader == "coldstream":
            yield _stream(request, settings, program, stack, say, dry=dry)
        else:
            yield _Prepared(_other(request, settings, program, say), None)


@dataclass(slots=True)
class _Prepared:
    """What is to run, and who streams to it."""

    command: Command
    service: LoadService | None


def _stream(
    request: Request, settings: Settings, program: Program, stack: ExitStack, say: Callable[[str], None], *, dry: bool
) -> _Prepared:
    try:
        return _stream_from(request.uri, request, settings, program, stack, dry=dry, say=say)
    except (UnavailableError, NotFoundError, CredentialsError) as exc:
        if request.fallback != "hf":
            if isinstance(exc, UnavailableError) and "://" not in request.uri:
                exc.hint = exc.hint or "with --fallback hf the weights come from Hugging Face meanwhile"
            raise
        if "://" in request.uri or request.uri.startswith(("/", ".", "~")):
            raise
        say(f"warning: {exc.message}; streaming from Hugging Face instead")
        return _stream_from(f"hf://{request.uri}", request, settings, program, stack, dry=dry, say=say)


def _stream_from(
    uri: str,
    request: Request,
    settings: Settings,
    program: Program,
    stack: ExitStack,
    *,
    dry: bool,
    say: Callable[[str], None],
) -> _Prepared:
    with ExitStack() as mine:
        service = mine.enter_context(LoadService(uri, options=request.options))
        trouble: list[ColdstreamError] = []

        def begin() -> None:
            try:
                service.begin(consumers=consumers_of(request.arguments))
            except ColdstreamError as exc:
                trouble.append(exc)

        # Both ask the bucket, and neither needs the other.
        beginning = threading.Thread(target=begin)
        if not dry:
            beginning.start()
        try:
            folder: ModelFolder = model_folder(uri, settings)
        finally:
            if not dry:
                beginning.join()
        if trouble:
            raise trouble[0]
        if folder.offline:
            check_complete(folder)
            say("warning: the bucket does not answer; starting from this machine's copy")
        elif not dry:
            service.expect(folder.note.version)
        command = streamed(
            program.path, str(folder.path), _served_name(request), request.arguments, service=service.address
        )
        stack.enter_context(mine.pop_all())
        return _Prepared(command, service)


def _other(request: Request, settings: Settings, program: Program, say: Callable[[str], None]) -> Command:
    name, arguments, options = request.uri, request.arguments, request.options
    limits = {"concurrency": _given(options.concurrency), "memory_limit": options.memory_limit}
    if request.loader == "default":
        return plain(program.path, _downloaded(request, settings, say), _served_name(request), arguments)
    uri = _bucket_uri(name, settings)
    if request.loader == "runai":
        return runai(program.path, uri, _served_name(request), arguments, settings, **limits)
    match = _SHARDED.fullmatch(uri)
    ranks = int(match[1]) if match else number_of(arguments, "--tensor-parallel-size")
    if not match:
        uri = f"{uri}-tp{ranks}"
    return runai_sharded(program.path, uri, _served_name(request), arguments, settings, ranks=ranks, **limits)


def _given(concurrency: int) -> int | None:
    return None if concurrency == Options().concurrency else concurrency


def _bucket_uri(uri: str, settings: Settings) -> str:
    if uri.startswith("s3://"):
        return uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        raise UsageError(f"Run:ai's streamer cannot read {uri.partition(':')[0]} URIs", hint="leave --loader out")
    if uri.startswith(("/", ".", "~")):
        return os.path.abspath(os.path.expanduser(uri))
    full = uri if "://" in uri else f"{settings.store_uri()}/{uri}"
    return full.removeprefix("file://")


def _downloaded(request: Request, settings: Settings, say: Callable[[str], None]) -> str:
    """A folder with the weights, for vLLM's own loader."""
    from pathlib import Path

    from coldstream import mirror
    from coldstream.cache import configured
    from coldstream.paths import checked_name
    from coldstream.store import open_store

    if request.uri.startswith(("/", ".", "~")):
        return os.path.abspath(os.path.expanduser(request.uri))
    if "://" in request.uri:
        raise UsageError("--loader default takes a model of the configured bucket, or a folder")
    name = checked_name(request.uri)
    cache = configured(settings.get("COLDSTREAM_CACHE_DIR"), settings.get("COLDSTREAM_CACHE_LIMIT"))
    folder = Path(cache.root) / "downloads" / name
    say(f"downloading {name} to {folder}")
    mirror.download(open_store(settings), name, folder)
    return str(folder)


def _served_name(request: Request) -> str:
    uri = request.uri.partition("?")[0].rstrip("/")
    if uri.startswith(("/", ".", "~", "file:")):
        return os.path.basename(os.path.abspath(uri))
    bare = uri.partition("://")[2] or uri
    # Without the bucket or the host.
    if "://" in uri and not uri.startswith("hf://"):
        bare = "/".join(bare.split("/")[1:][-2:]) or bare
    return bare.partition("@")[0]


def serve(
    request: Request,
    settings: Settings,
    *,
    say: Callable[[str], None],
    on_started: Callable[[Started], None],
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
) -> int:
    """Runs vLLM until it ends.

    Args:
        request: What is to be served.
        settings: Where the bucket is.
        say: Told what the user should know.
        on_started: Told when it answers, from another thread.
        stdout: Where vLLM's standard output goes; ours when None.
        stderr: Where its errors go; ours when None.

    Returns:
        Its exit code.

    Raises:
        NotFoundError: vLLM is not installed, or there is no such model.
        And what `model_folder` and `Share` raise.
    """
    began = time.monotonic()
    timeline = Timeline(began)
    unknown_format = threading.Event()

    def on_line(line: str) -> None:
        timeline.line(line, time.monotonic())
        if _UNKNOWN_FORMAT.search(line):
            unknown_format.set()

    with prepared(request, settings, say=say, dry=False) as ready:
        timeline.mark("spawned", time.monotonic())
        command = replace(ready.command, environment={**ready.command.environment, **request.environment})
        child = Child(command, on_line=on_line, stdout=stdout or sys.stdout.buffer, stderr=stderr or sys.stderr.buffer)
        try:
            with child.signals():
                over = threading.Event()
                watcher = threading.Thread(
                    target=_watch, args=(child, request, ready.service, timeline, began, on_started, over), daemon=True
                )
                watcher.start()
                code = child.wait()
                over.set()
                watcher.join(2.0)
        finally:
            child.finish()
    if unknown_format.is_set():
        say("hint:  this vLLM does not see coldstream: install it into vLLM's own environment")
    assert code is not None
    return code


def _watch(
    child: Child,
    request: Request,
    service: LoadService | None,
    timeline: Timeline,
    began: float,
    on_started: Callable[[Started], None],
    over: threading.Event,
) -> None:
    """Waits until it answers, and tells."""
    host = value_of(request.arguments, "--host") or "127.0.0.1"
    port = int(value_of(request.arguments, "--port") or 8000)
    reachable = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104  # not bound here
    stream: tuple[Share, float] | None = None
    while not over.wait(_HEALTH_SECONDS) and child.code is None:
        share = service.first if service else None
        if share is not None and (stream is None or stream[0] is not share) and share.is_finished:
            stream = share, time.monotonic() - began
        if not _answers(reachable, port):
            continue
        now = time.monotonic()
        timeline.mark("ready", now)
        report = None
        if stream is not None:
            try:
                report = stream[0].wait(0)
            except ColdstreamError:
                report = None
        shown = f"[{reachable}]" if ":" in reachable else reachable
        on_started(
            Started(
                url=f"http://{shown}:{port}",
                seconds=now - began,
                timeline=timeline,
                report=report,
                stream_stop=stream[1] if stream else None,
                stop=partial(child.send, signal.SIGTERM),
            )
        )
        return


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
