"""Runs an inference engine from its start to its exit, and reports where start-up time went.

`serve` prepares the start and runs the engine as a child. A thread of `_Start` waits until the engine answers, reports,
and publishes its caches. When the engine exits, `_Start.attend` explains the failure.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import BinaryIO

from coldstream.engine.load_statistics import LoadReport
from coldstream.errors import ColdstreamError, UsageError
from coldstream.machine import hardware
from coldstream.machine.process_session import session
from coldstream.node.bundle.warm_start import WarmState
from coldstream.node.child import Child, running
from coldstream.node.engine_log import EngineFailure
from coldstream.node.http_endpoint import EngineEndpoint
from coldstream.node.inference_engine import InferenceEngine, Say, ServeRequest
from coldstream.node.listener import check_free, is_listening
from coldstream.node.load_service import LoadService
from coldstream.node.readahead.recording import record
from coldstream.node.serve_preparation import PreparedStart, prepared_start
from coldstream.node.spot_notice import SpotWatcher, cloud_here, drain
from coldstream.settings import Settings
from coldstream.telemetry.metrics.meter import Meter
from coldstream.telemetry.timeline.phases import clean
from coldstream.telemetry.timeline.recorder import Exit, Recorder
from coldstream.telemetry.timeline.start_record import Machine, Timeline
from coldstream.telemetry.timeline.timeline_store import Timelines, timelines_of
from coldstream.telemetry.timeline.timeline_text import ended_text
from coldstream.units import format_bytes, format_seconds, plural

_HEALTH_SECONDS = 0.2
# It may be writing or sending, and a thread that still runs when Python exits can crash it.
_WATCHER_SECONDS = 30.0
_STEP_NOTES = {"manifest": "the model's files and chunks", "connect": "until the first chunk"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """An engine that answers, `seconds` after the start of the command.

    Attributes:
        path: Where the timeline is stored; None when it could not be.
        reports: Of the loads of the start, the earliest first: each engine of a data-parallel group has its own.
        draft_reports: Likewise, of the draft model.
        stream_stop: When the first load was complete, in seconds since the command began; None without one.
        stop: Ends the engine, as Ctrl-C would.
    """

    url: str
    seconds: float
    timeline: Timeline
    path: str | None
    reports: tuple[LoadReport, ...]
    draft_reports: tuple[LoadReport, ...]
    stream_stop: float | None
    stop: Callable[[], None]

    @property
    def report(self) -> LoadReport | None:
        """Of the first load; None when nothing was streamed, or when it is still running."""
        return next(iter(self.reports), None)


def serve(
    request: ServeRequest,
    settings: Settings,
    engine: InferenceEngine,
    *,
    say: Say,
    on_started: Callable[[Started], None],
    stdout: BinaryIO | None,
    stderr: BinaryIO | None,
    explain: Callable[[str, str | None], None],
    meter: Meter | None = None,
    began: float | None = None,
    on_recorder: Callable[[Recorder], None],
) -> int:
    """Runs the engine until it exits.

    Args:
        say: Writes a line for the user.
        on_started: Called from another thread when the engine answers.
        stdout: For the engine's output; ours when None. Likewise `stderr`.
        explain: Called last, with the reason of a failure and a hint.
        meter: Counts loads, starts and bundles.
        began: When the command began, by `time.monotonic`; None for now.
        on_recorder: Called with the recorder, which knows the current phase at any time.

    Returns:
        The engine's exit code; 128 plus the signal's number when a signal ended it before it answered; 1 when a server
        exited with 0 without being told to.
    """
    now = time.monotonic()
    began = now if began is None else began
    meter = meter or Meter()
    _check_endpoint(request, engine, meter, say)
    recorder = Recorder(began, engine.read_line, engine=engine.name, log_setting=engine.log_setting)
    recorder.mark("commanded", now)
    on_recorder(recorder)
    failure_log = engine.failure_log()

    def on_line(line: str) -> None:
        recorder.line(line, time.monotonic())
        failure_log.line(line)

    def on_service(service: LoadService) -> None:
        meter.follow(lambda: service.loads, lambda: service.failures)
        service.before_drop = meter.look

    meter.starting()
    with prepared_start(request, settings, engine, say=say, on_service=on_service, meter=meter) as prepared:
        _report_restore(prepared, recorder, meter, say)
        start = _Start(
            request=request,
            engine=engine,
            prepared=prepared,
            recorder=recorder,
            failure_log=failure_log,
            timelines=timelines_of(settings),
            began=began,
            meter=meter,
            say=say,
            on_started=on_started,
        )
        output = {"stdout": stdout or sys.stdout.buffer, "stderr": stderr or sys.stderr.buffer}
        try:
            with running(partial(Child, prepared.command, on_line=on_line, **output)) as child:
                failure = start.attend(child)
        finally:
            # Once the loads are closed, they cannot be counted.
            meter.look()
    if failure_log.hint is not None:
        say(f"hint:  {failure_log.hint}")
    if failure is not None:
        explain(failure.message, failure.hint)
    return _exit_code(child, engine)


def _check_endpoint(request: ServeRequest, engine: InferenceEngine, meter: Meter, say: Say) -> None:
    """Fails now for what would fail the engine after half a minute: an address that it cannot listen on."""
    if engine.is_headless:
        return
    endpoint = engine.endpoint({**os.environ, **request.environment})
    if meter.port is not None and meter.port == endpoint.port:
        raise UsageError(
            f"--metrics-port {meter.port} is the port of {engine.name} itself",
            hint=f"choose another one: --metrics-port, or {engine.name}'s --port",
        )
    check_free(endpoint, engine.name)
    if endpoint.exposure is not None:
        say(f"warning: {endpoint.exposure}")


def _report_restore(prepared: PreparedStart, recorder: Recorder, meter: Meter, say: Say) -> None:
    state = prepared.warm.state if prepared.warm is not None else WarmState(state="off")
    meter.bundle_restored(state.state)
    if state.state == "restored":
        say(f"warm-start bundle: restored {format_bytes(state.bytes)} in {format_seconds(state.seconds)}")
    elif state.state == "refused":
        say(f"warning: the warm-start bundle was rejected, so the start goes on without it: {state.detail}")
    elif state.detail:
        say(f"warm-start bundle: not used, {state.detail}")
    if prepared.downloaded is not None:
        recorder.mark("downloaded", prepared.downloaded)
    now = time.monotonic()
    recorder.mark("spawned", now)
    if state.seconds:
        # Restoring is the last step of the preparation.
        size = f" {format_bytes(state.bytes)}" if state.bytes else ""
        recorder.span("bundle", now - state.seconds, now, note=f"caches: {state.state}{size}")


def _size_note(received_bytes: int, size: int) -> str:
    return f"{format_bytes(received_bytes)} of {format_bytes(size)} over the network"


def _exit_code(child: Child, engine: InferenceEngine) -> int:
    assert child.code is not None
    if child.cut_off_by is not None:
        return 128 + child.cut_off_by
    # A server whose engine process dies stops in good order, and a supervisor would not restart it.
    return 1 if child.code == 0 and not child.signalled and engine.has_api else child.code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """One start, and what happens beside the engine until it exits."""

    request: ServeRequest
    engine: InferenceEngine
    prepared: PreparedStart
    recorder: Recorder
    failure_log: EngineFailure
    timelines: Timelines
    began: float
    meter: Meter
    say: Say
    on_started: Callable[[Started], None]
    is_reported: threading.Event = field(default_factory=threading.Event)
    # Set once the engine has exited.
    is_over: threading.Event = field(default_factory=threading.Event)

    def attend(self, child: Child) -> ColdstreamError | None:
        """Waits until the engine exits. Returns why it failed; None when it did not, or was told to exit."""
        environ = {**os.environ, **self.prepared.command.environment}
        endpoint = self.engine.endpoint(environ)
        watcher = threading.Thread(target=self._watch, args=(child, endpoint, environ), daemon=True)
        watcher.start()
        with self._spot_watcher(child, endpoint):
            child.wait()
        ended = time.monotonic()
        self.is_over.set()
        if self.prepared.warm is not None:
            self.prepared.warm.cancel()
        watcher.join(_WATCHER_SECONDS)
        if not self.is_reported.is_set():
            return self._not_started(child, ended)
        if child.signalled:
            return None
        return ColdstreamError(f"{self.engine.name} exited unexpectedly: {child.ended_by or f'exit code {child.code}'}")

    def _spot_watcher(self, child: Child, endpoint: EngineEndpoint) -> AbstractContextManager[object]:
        """Drains the engine when the cloud is about to interrupt this spot machine."""
        cloud = cloud_here() if self.request.spot_notice else None
        if cloud is None:
            return nullcontext()
        name, warm, over, say = self.engine.name, self.prepared.warm, self.is_over, self.say
        end = partial(child.send, signal.SIGTERM)
        return SpotWatcher(cloud, lambda notice: drain(notice, endpoint, warm, name=name, end=end, over=over, say=say))

    def _watch(self, child: Child, endpoint: EngineEndpoint, environ: dict[str, str]) -> None:
        """Waits until the engine answers, requests a token, reports, and publishes what the start built."""
        warm = self.prepared.warm
        if (shortage := self.engine.memory_shortage(environ)) is not None:
            self.say(f"warning: {shortage}")
        if warm is not None and (miss := warm.explain_miss()) is not None:
            self.say(f"warm-start bundle: not used, {miss}")
        while not self._is_up(child, endpoint):
            if self.is_over.wait(_HEALTH_SECONDS) or child.code is not None:
                return
        ready = time.monotonic()
        child.is_up = True
        self.recorder.mark("ready", ready)
        if self.request.first_token and not self._time_first_token(endpoint):
            # Some models complete no text, and some engines die of the request.
            while not endpoint.answers():
                if self.is_over.wait(_HEALTH_SECONDS):
                    return
        self.is_reported.set()
        reports, stream_stop = self._load_reports()
        draft_reports = self._draft_reports()
        self._draw_adapters()
        timeline = self._timeline(reports)
        self.meter.started(timeline)
        timeline, path = self._stored(timeline)
        self.on_started(
            Started(
                url=endpoint.url,
                seconds=ready - self.began,
                timeline=timeline,
                path=path,
                reports=reports,
                draft_reports=draft_reports,
                stream_stop=stream_stop,
                stop=partial(child.send, signal.SIGTERM),
            )
        )
        if warm is not None:
            warm.publish(ready_seconds=ready - self.began, reads=partial(self._reads, child.pid), over=self.is_over)
            self._report_publication(warm.state)
            if path is not None:
                with suppress(ColdstreamError):
                    self.timelines.update(timeline.with_bundle(asdict(warm.state)))

    def _is_up(self, child: Child, endpoint: EngineEndpoint) -> bool:
        """Whether this engine answers: another server may have taken the port first."""
        if not endpoint.answers():
            return False
        own = is_listening(endpoint, session(child.pid))
        return "initialised" in self.recorder.marks if own is None else own

    def _time_first_token(self, endpoint: EngineEndpoint) -> bool:
        came = endpoint.first_token(self.engine.api_name)
        if came is not None:
            self.recorder.mark("first token", came)
            self.recorder.figures(endpoint.first_token_figures())
        return came is not None

    def _reads(self, pid: int) -> bytes | None:
        """A record of what the processes of this start read; None where that is unknown."""
        service = self.prepared.service
        if service is None or not sys.platform.startswith("linux"):
            return None
        return record(session(pid), service.modules()).encode()

    def _report_publication(self, state: WarmState) -> None:
        if state.published is not None:
            self.meter.bundle_published("no" if state.unpublished else state.published)
        if state.state == "restored" and state.compiled:
            files = plural(state.compiled, "new file")
            self.say(f"warning: code was compiled although a warm-start bundle was restored: {files}")
        if state.published == "published":
            size = format_bytes(state.published_bytes)
            self.say(f"warm-start bundle: published {size}; the next node starts with it")
        elif state.unpublished and state.unpublished != state.detail:
            self.say(f"warm-start bundle: not published, {state.unpublished}")

    def _not_started(self, child: Child, ended: float) -> ColdstreamError | None:
        """Stores the timeline of a start that did not finish: the user will want to see it. Returns why it failed."""
        # After this its last lines have been read.
        child.finish()
        cancelled, code, name = child.signalled > 0, child.code, self.engine.name
        assert code is not None
        reports, _ = self._load_reports()
        self._draft_reports()
        self._draw_adapters()
        failure = None if cancelled else self._failure()
        reason = None if failure is None else failure.message
        exited = Exit(at=ended, code=code, signal=child.ended_by, cancelled=cancelled, reason=reason)
        timeline = self._timeline(reports, exited)
        assert timeline.ended is not None
        self.meter.not_started(timeline.outcome, timeline.ended.phase)
        if code == 0 and not cancelled and not self.engine.has_api:
            return None
        timeline, path = self._stored(timeline)
        if cancelled:
            return None
        self.say(f"{name} {ended_text(timeline)}" + (f"   see: coldstream timeline {timeline.run}" if path else ""))
        return failure or ColdstreamError(f"{name} did not start; {timeline.verdict[0]}")

    def _failure(self) -> ColdstreamError | None:
        """The error of the last load or adapter that failed, or else the engine's own; None when there is neither."""
        service, reason = self.prepared.service, self.failure_log.text
        outcomes = [*service.failures, *(share.outcome for share in service.loads)] if service is not None else []
        if service is not None and service.adapters is not None:
            outcomes += service.adapters.failures_of_start
        printed = ColdstreamError(reason.removeprefix("error: ")) if reason else None
        return next((outcome for outcome in reversed(outcomes) if isinstance(outcome, ColdstreamError)), printed)

    def _timeline(self, reports: tuple[LoadReport, ...], exited: Exit | None = None) -> Timeline:
        gpus = hardware.gpus() if self.engine.uses_gpus else ()
        device = clean(gpus[0].name if gpus else hardware.processor())
        warm = self.prepared.warm
        return self.recorder.finish(
            model=self.request.served_name,
            began_at=datetime.now(timezone.utc) - timedelta(seconds=time.monotonic() - self.began),
            loader=self.request.loader,
            version=self.engine.version,
            machine=Machine(device=device, cores=hardware.cores(), gpus=len(gpus)),
            report=next(iter(reports), None),
            bundle=asdict(warm.state) if warm is not None else None,
            exited=exited,
        )

    def _stored(self, timeline: Timeline) -> tuple[Timeline, str | None]:
        """Stores a timeline. Returns it under its final name, and its path, or None if it cannot be written."""
        try:
            timeline = self.timelines.keep(timeline)
        except ColdstreamError as exc:
            self.say(f"warning: the timeline of this start was not stored: {exc.message}")
            return timeline, None
        return timeline, str(self.timelines.path(timeline.run))

    def _load_reports(self) -> tuple[tuple[LoadReport, ...], float | None]:
        """The reports of the start's loads, and when the first one was complete; none while that one runs."""
        loads = self.prepared.service.of_start if self.prepared.service else ()
        reports: list[LoadReport] = []
        with suppress(ColdstreamError):
            for number, share in enumerate(loads, 1):
                report, steps = share.wait(0), share.steps()
                if number == 1:
                    for name, (begin, end) in steps.items():
                        self.recorder.span(name, begin, end, note=_STEP_NOTES.get(name, ""))
                elif report is not None:
                    note = f"engine {number}: {_size_note(report.received_bytes, report.bytes)}"
                    self.recorder.span(f"stream {number}", *steps["stream"], note=note)
                if report is None:
                    break
                reports.append(report)
        return tuple(reports), loads[0].steps()["stream"][1] - self.began if reports else None

    def _draw_adapters(self) -> None:
        """Draws the fetches of the start's adapters beside the phases, as one span."""
        service = self.prepared.service
        fetches = service.adapters.of_start[:] if service is not None and service.adapters is not None else []
        if not fetches:
            return
        note = plural(len(fetches), "adapter") if fetches[1:] else fetches[0].name
        size = _size_note(sum(fetch.received_bytes for fetch in fetches), sum(fetch.bytes for fetch in fetches))
        began, ended = min(fetch.began for fetch in fetches), max(fetch.ended for fetch in fetches)
        self.recorder.span("adapters", began, ended, note=f"{note}: {size}")

    def _draft_reports(self) -> tuple[LoadReport, ...]:
        """The reports of the start's loads of a draft model that are complete, each also drawn beside the phases."""
        reports = []
        for share in self.prepared.service.drafts_of_start if self.prepared.service else ():
            with suppress(ColdstreamError):
                if (report := share.wait(0)) is not None:
                    note = f"{report.name}: {_size_note(report.received_bytes, report.bytes)}"
                    self.recorder.span("draft", *share.steps()["stream"], note=note)
                    reports.append(report)
        return tuple(reports)
