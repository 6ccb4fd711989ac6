"""vLLM from its start to its end: the stream first, then the child, then what its start spent where."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import BinaryIO

from coldstream.engine.load_statistics import LoadReport
from coldstream.engines.vllm.endpoint import Endpoint, endpoint_of
from coldstream.engines.vllm.failure_reason import FailureReason
from coldstream.engines.vllm.flags import value_of
from coldstream.engines.vllm.memory_budget import memory_shortage
from coldstream.engines.vllm.program import Program
from coldstream.engines.vllm.serve_preparation import Prepared, prepared
from coldstream.engines.vllm.serve_request import ServeRequest
from coldstream.engines.vllm.warm_caches import reads_of, said_after, said_before
from coldstream.errors import ColdstreamError, UsageError
from coldstream.machine import hardware
from coldstream.machine.process_session import session
from coldstream.node.child import Child, forwarded_signals
from coldstream.node.drain import drain
from coldstream.node.listener import check_free, is_listening
from coldstream.node.load_service import LoadService
from coldstream.node.spot_notice import SpotWatcher, cloud_here
from coldstream.settings import Settings
from coldstream.telemetry.metrics.meter import Meter
from coldstream.telemetry.timeline.marks import metrics
from coldstream.telemetry.timeline.phases import clean
from coldstream.telemetry.timeline.recorder import Exit, Recorder
from coldstream.telemetry.timeline.start_record import Machine, Timeline
from coldstream.telemetry.timeline.timeline_store import Timelines, timelines_of
from coldstream.telemetry.timeline.timeline_text import ended_text
from coldstream.units import format_bytes

_HEALTH_SECONDS = 0.2
# It may be writing or sending; a thread that is cut off when Python ends can take it down with it.
_WATCHER_SECONDS = 30.0
# Flags with which vLLM ends by itself, or serves without an API.
_WITHOUT_API = frozenset({"-h", "--help", "-v", "--version", "--headless"})
_UNKNOWN_FORMAT = re.compile(r"Load format `?coldstream`? is not supported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """vLLM answers.

    Attributes:
        url: Where.
        seconds: Since the command began, until it did.
        timeline: What they were spent on, as it is kept.
        path: Where that is kept; None when it could not be.
        report: Of the stream; None with another loader, or when nothing was streamed yet.
        reports: Of all loads of the start, that one first: each engine of a data-parallel group has its own.
        stream_stop: When the last byte was there, in seconds since the command began; None without a stream.
        stop: Ends vLLM, as Ctrl-C would.
    """

    url: str
    seconds: float
    timeline: Timeline
    path: str | None
    report: LoadReport | None
    reports: tuple[LoadReport, ...]
    stream_stop: float | None
    stop: Callable[[], None]


def serve(
    request: ServeRequest,
    settings: Settings,
    *,
    say: Callable[[str], None],
    on_started: Callable[[Started], None],
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    explain: Callable[[str, str | None], None],
    meter: Meter | None = None,
    began: float | None = None,
    on_recorder: Callable[[Recorder], None] = lambda _: None,
) -> int:
    """Runs vLLM until it ends.

    Args:
        request: What is to be served.
        settings: Where the bucket is.
        say: Told what the user should know.
        on_started: Told when it answers, from another thread.
        stdout: Where vLLM's standard output goes; ours when None.
        stderr: Where its errors go; ours when None.
        explain: Told why vLLM failed, and what can be done about it; last.
        meter: Told what is loaded, started, restored and published.
        began: When the command began, by `time.monotonic`; None for now.
        on_recorder: Told who records the start, which knows at any time how far it has come.

    Returns:
        Its exit code; 128 and the signal's number when one ended it before it answered; 1 when a server ended by itself
        with 0.

    Raises:
        NotFoundError: vLLM is not installed, or there is no such model.
        And what `model_folder` and `Share` raise.
    """
    now = time.monotonic()
    began = now if began is None else began
    began_at = datetime.now(timezone.utc) - timedelta(seconds=now - began)
    meter = meter or Meter()
    _check_endpoint(request, meter, say)
    recorder = Recorder(began)
    recorder.mark("commanded", now)
    on_recorder(recorder)
    unknown_format, reason = threading.Event(), FailureReason()

    def on_line(line: str) -> None:
        recorder.line(line, time.monotonic())
        reason.line(line)
        if _UNKNOWN_FORMAT.search(line):
            unknown_format.set()

    def on_service(service: LoadService) -> None:
        meter.follow(lambda: service.loads, lambda: service.failures)
        service.before_drop = meter.look

    meter.starting()
    with prepared(request, settings, say=say, on_service=on_service) as ready:
        meter.bundle_restored(ready.warm.state.state if ready.warm is not None else "off")
        for line in said_before(ready.warm):
            say(line)
        if ready.downloaded is not None:
            recorder.mark("downloaded", ready.downloaded)
        now = time.monotonic()
        recorder.mark("spawned", now)
        if ready.warm is not None and (state := ready.warm.state).seconds:
            # Restoring is the last thing before vLLM begins.
            size = f" {format_bytes(state.bytes)}" if state.bytes else ""
            recorder.span("bundle", now - state.seconds, now, note=f"caches: {state.state}{size}")
        start = _Start(
            request=request,
            ready=ready,
            recorder=recorder,
            reason=reason,
            began=began,
            began_at=began_at,
            meter=meter,
        )
        kept = timelines_of(settings)
        with forwarded_signals() as forward_to:
            child = Child(
                ready.command, on_line=on_line, stdout=stdout or sys.stdout.buffer, stderr=stderr or sys.stderr.buffer
            )
            try:
                forward_to(child)
                failure = _attend(child, start, kept, on_started, say)
            finally:
                child.finish()
                # What the loads have done is not to be asked once they are closed.
                meter.look()
    if unknown_format.is_set():
        say("hint:  this vLLM does not see coldstream: install it into vLLM's own environment")
    if failure is not None:
        explain(failure.message, failure.hint)
    return _exit_code(child, request.arguments)


def _attend(
    child: Child, start: _Start, kept: Timelines, on_started: Callable[[Started], None], say: Callable[[str], None]
) -> ColdstreamError | None:
    """Does what is to be done beside vLLM until it ends. Why it failed; None when it did not, or was told to end."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(child, start, kept, on_started, say, over), daemon=True)
    watcher.start()
    with _watching_for_notice(child, start, over, say):
        child.wait()
    ended = time.monotonic()
    over.set()
    if start.ready.warm is not None:
        start.ready.warm.cancel()
    watcher.join(_WATCHER_SECONDS)
    if not start.told.is_set():
        return _not_started(child, start, kept, ended, say)
    if child.signalled:
        return None
    return ColdstreamError(f"vLLM ended by itself: {child.ended_by or f'exit code {child.code}'}")


def _exit_code(child: Child, arguments: Sequence[str]) -> int:
    assert child.code is not None
    if child.cut_off_by is not None:
        return 128 + child.cut_off_by
    # When its engine dies vLLM's server stops in good order, and a supervisor would not start it again.
    return 1 if child.code == 0 and not child.signalled and _has_api(arguments) else child.code


def _has_api(arguments: Sequence[str]) -> bool:
    """Whether vLLM serves until it is told to end: not when it is asked for its help, nor beside another node's API."""
    return not any(argument.partition("=")[0] in _WITHOUT_API for argument in arguments)


def _check_endpoint(request: ServeRequest, meter: Meter, say: Callable[[str], None]) -> None:
    """Finds out now what vLLM would find out after half a minute."""
    endpoint = endpoint_of(request.arguments, {**os.environ, **request.environment})
    if value_of(request.arguments, "--headless") is not None:
        return
    # Metrics are served already.
    if meter.port is not None and meter.port == endpoint.port:
        raise UsageError(
            f"the metrics' port {meter.port} is vLLM's own", hint="choose another: --metrics-port, or vLLM's --port"
        )
    check_free(endpoint)
    if endpoint.exposure is not None:
        say(f"warning: {endpoint.exposure}")


@contextmanager
def _watching_for_notice(
    child: Child, start: _Start, over: threading.Event, say: Callable[[str], None]
) -> Iterator[None]:
    """Ends vLLM in good time when the cloud takes this machine back."""
    cloud = cloud_here() if start.request.spot_notice else None
    if cloud is None:
        yield
        return
    ready = start.ready
    endpoint = endpoint_of(start.request.arguments, {**os.environ, **ready.command.environment})
    end = partial(child.send, signal.SIGTERM)
    watcher = SpotWatcher(cloud, lambda notice: drain(notice, endpoint, ready.warm, end=end, over=over, say=say))
    watcher.start()
    try:
        yield
    finally:
        watcher.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    request: ServeRequest
    ready: Prepared
    recorder: Recorder
    reason: FailureReason
    began: float
    began_at: datetime
    meter: Meter = field(default_factory=Meter)
    told: threading.Event = field(default_factory=threading.Event)


def _watch(
    child: Child,
    start: _Start,
    kept: Timelines,
    on_started: Callable[[Started], None],
    say: Callable[[str], None],
    over: threading.Event,
) -> None:
    """Waits until it answers, asks for a token, and tells; then publishes what it built."""
    ready = start.ready
    endpoint = endpoint_of(start.request.arguments, {**os.environ, **ready.command.environment})
    # Asked for while there is nothing to do.
    here = _machine(ready.program)
    environ = {**os.environ, **ready.command.environment}
    if (shortage := memory_shortage(ready.program, start.request.arguments, environ)) is not None:
        say(f"warning: {'; '.join(shortage)}")
    if ready.warm is not None and (reason := ready.warm.explain_miss()) is not None:
        say(f"warm-start bundle: not used, {reason}")
    while not _is_up(endpoint, child, start.recorder):
        if over.wait(_HEALTH_SECONDS) or child.code is not None:
            return
    now = time.monotonic()
    child.is_up = True
    start.recorder.mark("ready", now)
    if start.request.first_token and not _ask_first(endpoint, start):
        # There are models that complete no text, and there are engines that die of it.
        while not endpoint.answers():
            if over.wait(_HEALTH_SECONDS):
                return
    start.told.set()
    reports, stream_stop = _streamed(start)
    report = reports[0] if reports else None
    timeline = _finished(start, report, here)
    start.meter.started(timeline)
    timeline, path = _kept(timeline, kept, say)
    on_started(
        Started(
            url=endpoint.url,
            seconds=now - start.began,
            timeline=timeline,
            path=path,
            report=report,
            reports=reports,
            stream_stop=stream_stop,
            stop=partial(child.send, signal.SIGTERM),
        )
    )
    if ready.warm is not None:
        reads = partial(reads_of, child.pid, ready.service)
        ready.warm.publish(ready_seconds=now - start.began, reads=reads, over=over)
        start.meter.bundle_published(ready.warm.state.published)
        for line in said_after(ready.warm.state):
            say(line)
        if path is not None:
            with suppress(ColdstreamError):
                kept.update(timeline.with_bundle(ready.warm.state.as_document()))


def _is_up(endpoint: Endpoint, child: Child, recorder: Recorder) -> bool:
    """Whether it is this vLLM that answers: another server may have taken the port before it did."""
    if not endpoint.answers():
        return False
    own = is_listening(endpoint, session(child.pid))
    return "initialised" in recorder.marks if own is None else own


def _not_started(
    child: Child, start: _Start, kept: Timelines, ended: float, say: Callable[[str], None]
) -> ColdstreamError | None:
    """Keeps what is known of a start that was not over: it is the one that the user will ask about. Why it failed."""
    # Its last lines are read by then.
    child.finish()
    cancelled, code = child.signalled > 0, child.code
    assert code is not None
    reports, _ = _streamed(start)
    failure = None if cancelled else _failure(start)
    reason = None if failure is None else failure.message
    exited = Exit(at=ended, code=code, signal=child.ended_by, cancelled=cancelled, reason=reason)
    timeline = _finished(start, reports[0] if reports else None, _machine(start.ready.program), exited)
    assert timeline.ended is not None
    start.meter.not_started(timeline.outcome, timeline.ended.phase)
    if code == 0 and not cancelled and not _has_api(start.request.arguments):
        return None
    timeline, path = _kept(timeline, kept, say)
    if cancelled:
        return None
    say(f"vLLM {ended_text(timeline)}" + (f"   see: coldstream timeline {timeline.run}" if path else ""))
    return failure or ColdstreamError(f"vLLM did not start; {timeline.verdict[0]}")


def _failure(start: _Start) -> ColdstreamError | None:
    """Why the newest of the loads that failed did, else what vLLM said itself; None when nothing is known."""
    service, reason = start.ready.service, start.reason.text
    outcomes = [*service.failures, *(share.outcome for share in service.loads)] if service is not None else []
    printed = ColdstreamError(reason.removeprefix("error: ")) if reason else None
    return next((outcome for outcome in reversed(outcomes) if isinstance(outcome, ColdstreamError)), printed)


def _finished(start: _Start, report: LoadReport | None, here: Machine, exited: Exit | None = None) -> Timeline:
    ready = start.ready
    return start.recorder.finish(
        model=start.request.served_name,
        began_at=start.began_at,
        loader=start.request.loader,
        vllm=ready.program.version,
        machine=here,
        report=report,
        bundle=ready.warm.state.as_document() if ready.warm is not None else None,
        exited=exited,
    )


def _kept(timeline: Timeline, kept: Timelines, say: Callable[[str], None]) -> tuple[Timeline, str | None]:
    """The same under the name that it got, and where it lies; None when it could not be written."""
    try:
        timeline = kept.keep(timeline)
    except ColdstreamError as exc:
        say(f"warning: the start's timeline is not kept: {exc.message}")
        return timeline, None
    return timeline, str(kept.path(timeline.run))


def _ask_first(endpoint: Endpoint, start: _Start) -> bool:
    """Asks for the first token, and for what vLLM itself measured of it; whether it came."""
    name = value_of(start.request.arguments, "--served-model-name") or start.request.served_name
    came = endpoint.first_token(name)
    if came is not None:
        start.recorder.mark("first token", came)
        start.recorder.figures(metrics(endpoint.metrics()))
    return came is not None


def _streamed(start: _Start) -> tuple[tuple[LoadReport, ...], float | None]:
    """The reports of the start's loads, and when the first one's last byte was there; none while that one runs."""
    loads = start.ready.service.of_start if start.ready.service else ()
    reports: list[LoadReport] = []
    with suppress(ColdstreamError):
        for number, share in enumerate(loads, 1):
            report = share.wait(0)
            _add_spans(start.recorder, number, share.steps(), report)
            if report is None:
                break
            reports.append(report)
    return tuple(reports), loads[0].steps()["stream"][1] - start.began if reports else None


def _add_spans(
    recorder: Recorder, number: int, steps: Mapping[str, tuple[float, float]], report: LoadReport | None
) -> None:
    notes = {"manifest": "the model's files and chunks", "connect": "until the first chunk"}
    if number == 1:
        for name, (begin, end) in steps.items():
            recorder.span(name, begin, end, note=notes.get(name, ""))
    elif report is not None:
        source = f"{format_bytes(report.received_bytes)} of {format_bytes(report.bytes)} over the network"
        recorder.span(f"stream {number}", *steps["stream"], note=f"engine {number}: {source}")


def _machine(program: Program) -> Machine:
    gpus = () if program.is_cpu_build else hardware.gpus()
    device = gpus[0].name if gpus else hardware.processor()
    return Machine(device=clean(device), cores=hardware.cores(), gpus=len(gpus))
