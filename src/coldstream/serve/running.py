"""vLLM from its start to its end: the stream first, then the child, then what its start spent where."""

from __future__ import annotations

import http.client
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from coldstream.env import Settings
from coldstream.errors import ColdstreamError
from coldstream.loading import LoadReport, Share
from coldstream.serve.child import Child
from coldstream.serve.flags import value_of
from coldstream.serve.preparing import Prepared, prepared
from coldstream.serve.request import Request
from coldstream.serve.timeline import Timeline
from coldstream.serve.warming import said_after, said_before

_HEALTH_SECONDS = 0.2
_UNKNOWN_FORMAT = re.compile(r"Load format `?coldstream`? is not supported")


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

    with prepared(request, settings, say=say) as ready:
        for line in said_before(ready.warm):
            say(line)
        timeline.mark("spawned", time.monotonic())
        child = Child(
            ready.command, on_line=on_line, stdout=stdout or sys.stdout.buffer, stderr=stderr or sys.stderr.buffer
        )
        try:
            with child.signals():
                over = threading.Event()
                watcher = threading.Thread(
                    target=_watch, args=(child, request, ready, timeline, began, on_started, say, over), daemon=True
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
    ready: Prepared,
    timeline: Timeline,
    began: float,
    on_started: Callable[[Started], None],
    say: Callable[[str], None],
    over: threading.Event,
) -> None:
    """Waits until it answers, and tells; then publishes what it built."""
    host = value_of(request.arguments, "--host") or "127.0.0.1"
    port = int(value_of(request.arguments, "--port") or 8000)
    reachable = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host  # noqa: S104  # not bound here
    stream: tuple[Share, float] | None = None
    while not over.wait(_HEALTH_SECONDS) and child.code is None:
        share = ready.service.first if ready.service else None
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
        if ready.warm is not None:
            ready.warm.publish(ready_seconds=now - began, reads=lambda: None, over=over)
            for line in said_after(ready.warm.state):
                say(line)
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
