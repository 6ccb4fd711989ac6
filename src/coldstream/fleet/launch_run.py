"""Carries out a launch plan with SkyPilot until the model answers, and renews the keys of a launch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from coldstream.errors import (
    CancelledError,
    ColdstreamError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from coldstream.fleet.deployment import render
from coldstream.fleet.launch_plan import LaunchPlan, secret_flags
from coldstream.fleet.launches import (
    GONE,
    UNKNOWN,
    Launch,
    Launches,
    LaunchStatus,
    Poller,
    fetch_endpoint,
    fetch_known,
    fetch_states,
    fetch_status,
    is_serving,
    logs_arguments,
)
from coldstream.fleet.sky import Sky
from coldstream.telemetry.timeline.start_record import ReadyLine, parse_ready_line

_POLL_SECONDS = 2.0
# A status takes SkyPilot's server seconds, and a query to the cloud.
_STATE_SECONDS = 30.0
# A cloud may take its time for a machine with a GPU, and SkyPilot for its controller.
_PROVISION_SECONDS = {"node": 900.0, "service": 1500.0, "job": 1500.0}
_RENEWALS = {"node": ("launch", "-y", "-d", "-c"), "service": ("serve", "update", "-y")}
_JOB_RUNS = ("RUNNING", "SUCCEEDED")
# The lines with which SkyPilot 0.14 begins a step.
_BEGINNINGS = (
    (re.compile(r"\bLaunching\b.* on "), "provision"),
    (re.compile(r"\bCluster launched\b"), "files"),
    (re.compile(r"\b(?:Job submitted|Managed Job ID|Service (?:.+ )?is spinning up)\b"), "submitted"),
)
_JOB = re.compile(r"\b(?:Job submitted, ID|Managed Job ID): (\d+)")
STEP_TEXTS = {
    "ask": "SkyPilot is looking for a machine",
    "provision": "the cloud is starting the machine",
    "controller": "SkyServe's controller, then the replica's machine",
    "files": "SkyPilot is setting up the machine",
    "setup": "image, runtime or installation, on the machine",
    "submitted": "SkyPilot has accepted it: setup on the machine, then vLLM",
    "replaced": "a machine was lost; SkyPilot is replacing it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPhase:
    """A part of the time of a launch; `of_start` marks a phase of `coldstream serve`, on the node."""

    name: str
    seconds: float
    note: str = ""
    of_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A launch whose model answers, or whose job runs, and where the time went; without waiting, no phases."""

    launch: Launch
    url: str | None
    seconds: float
    phases: tuple[LaunchPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressCallbacks:
    """Called with each line that SkyPilot prints, and with each step that begins, at a number of seconds."""

    line: Callable[[str], None]
    step: Callable[[str, float], None]


@dataclass(slots=True)
class Steps:
    """The steps of a launch, recognised in SkyPilot's output, with the seconds at which each began."""

    began: dict[str, float] = field(default_factory=lambda: {"ask": 0.0})
    job: int | None = None

    def line(self, text: str, now: float) -> str | None:
        """Reads a line without colours; returns the step that begins with it, or None."""
        if match := _JOB.search(text):
            self.job = int(match[1])
        name = next((name for pattern, name in _BEGINNINGS if pattern.search(text)), None)
        if name is None or name in self.began:
            return None
        self.began[name] = now
        return name

    def phases(self, *, kind: str, ended: float, ready: float, start: ReadyLine | None) -> list[LaunchPhase]:
        """Returns where the time went, of a launch whose `sky` command ended at `ended` and whose model answered later.

        `start` is what `serve` printed on the node; None if it could not be read.
        """
        submitted = self.began.get("submitted", ended)
        served = min(start.ready_seconds, ready - submitted) if start is not None else 0.0
        # The controller's steps for a replica are not visible from here.
        began = {"controller": 0.0} if kind == "service" else self.began
        marks = [*((name, at) for name, at in began.items() if name != "submitted"), ("setup", submitted)]
        stops = [at for _, at in marks[1:]] + [ready - served]
        phases = [
            LaunchPhase(name=name, seconds=max(0.0, stop - at), note=STEP_TEXTS[name])
            for (name, at), stop in zip(marks, stops, strict=True)
        ]
        if start is None:
            note = "setup and start, on the node"
            return [*phases[:-1], LaunchPhase(name="start", seconds=phases[-1].seconds, note=note)]
        if kind == "service":
            phases[1] = LaunchPhase(name="replica", seconds=phases[1].seconds, note="machine, files and setup")
        spans = sorted((*start.phases, *start.spans), key=lambda span: (span.start, span.stop))
        inside = [LaunchPhase(name=span.name, seconds=span.seconds, note=span.note, of_start=True) for span in spans]
        return [*phases, LaunchPhase(name="start", seconds=served, note="coldstream serve, until it answered"), *inside]


def check_name_is_free(kind: str, name: str, sky: Sky, launches: Launches) -> None:
    """Raises UsageError for a name in use: SkyPilot would start a second server there, and its record would be lost.

    If it was launched from here and SkyPilot does not say whether it runs, SkyPilot's ColdstreamError is raised.
    """
    known: Launch | None = None
    with suppress(NotFoundError, IntegrityError):
        known = launches.find(name)
    for candidate in dict.fromkeys((kind, known.kind if known else kind)):
        try:
            status = LaunchStatus(state=fetch_known(candidate, sky).get(name))
        except ColdstreamError:
            if known:
                raise
            continue
        is_over = candidate == "job" and (status.has_failed or status.state == "SUCCEEDED")
        if status.state is not None and not is_over:
            raise UsageError(
                f"{name} already exists, {status.state}",
                hint=f"use another --name; or stop it: coldstream launch down {name}",
            )


def launch(
    plan: LaunchPlan, sky: Sky, launches: Launches, progress: ProgressCallbacks, *, api_key: str, wait: bool
) -> Launched:
    """Launches a plan whose keys exist and whose name is free, and waits until the model answers.

    The launch is recorded before anything costs money. `sky` has the values of the secrets.

    Raises:
        ColdstreamError: It failed; the message names what is left running, and the hint how to stop it.
        CancelledError: It was interrupted; likewise.
    """
    keys = plan.keys
    record = Launch(
        name=plan.name,
        kind=plan.kind,
        model=plan.deployment.model,
        port=None if plan.kind == "job" else plan.deployment.options.port,
        began=time.time(),
        keys=keys.how,
        ttl_seconds=round(keys.expires_at - time.time()) if keys.expires_at is not None else None,
        expires=keys.expires_at,
        runtime=plan.deployment.runtime.digest if plan.deployment.runtime else None,
        adapters=plan.deployment.options.adapter_names,
        draft=plan.draft,
    )
    path = launches.keep_file(plan.name, render(plan.deployment))
    launches.keep(record)
    run = _Run(sky=sky, record=record, progress=progress, api_key=api_key)
    limit = _PROVISION_SECONDS[plan.kind] + plan.deployment.start_seconds
    return run.finish(plan.arguments(str(path)), launches, limit=limit if wait else None)


def renew(
    record: Launch, sky: Sky, launches: Launches, progress: ProgressCallbacks, *, secrets: tuple[str, ...], api_key: str
) -> Launched:
    """Gives the nodes of a launch new keys: a service is updated in place, a node's server starts again.

    `record` has the expiry of the new keys, and `sky` the values of the new secrets. Raises what `launch` raises,
    UsageError for a job, and NotFoundError if the file of the launch is missing.
    """
    if record.kind not in _RENEWALS:
        raise UsageError(
            f"{record.name} is a job, whose keys cannot be renewed",
            hint=f"launch it again; stop it: coldstream launch down {record.name}",
        )
    path = launches.file(record.name)
    if not path.is_file():
        raise NotFoundError(f"{path}, the file of the launch, is missing", hint="launch it again under another name")
    arguments = (*_RENEWALS[record.kind], record.name, str(path), *secret_flags(secrets))
    if record.kind == "node":
        sky.ask("cancel", "-y", "-a", record.name)
    run = _Run(sky=sky, record=record, progress=progress, api_key=api_key)
    # A service keeps answering while SkyServe replaces its replicas one by one.
    return run.finish(arguments, launches, limit=_PROVISION_SECONDS["node"] if record.kind == "node" else None)


@dataclass(slots=True, kw_only=True)
class _Run:
    """One launch command of SkyPilot's, and the wait for its result."""

    sky: Sky
    record: Launch
    progress: ProgressCallbacks
    api_key: str = field(repr=False)
    steps: Steps = field(default_factory=Steps)
    began: float = field(default_factory=time.monotonic)

    def finish(self, arguments: tuple[str, ...], launches: Launches, *, limit: float | None) -> Launched:
        """Runs the command and waits at most `limit` seconds; with None, it does not wait for the model."""
        name = self.record.name
        try:
            output = self.sky.follow(*arguments, on_line=self._on_line)
            if output.code != 0:
                raise self._failure(output.last_line)
            if self.record.kind == "job":
                self.record = msgspec.structs.replace(self.record, job=self.steps.job)
            launches.keep(self.record)
            ended = self._seconds()
            if limit is None:
                return Launched(launch=self.record, url=fetch_endpoint(self.record, self.sky), seconds=ended, phases=())
            self.progress.step("submitted", ended)
            url = self._wait(limit)
            ready = self._seconds()
            start = self._read_ready_line()
            phases = self.steps.phases(kind=self.record.kind, ended=ended, ready=ready, start=start)
            return Launched(launch=self.record, url=url, seconds=ready, phases=tuple(phases))
        except KeyboardInterrupt:
            raise CancelledError(
                f"cancelled; SkyPilot may continue to start {name}, which costs money",
                hint=f"stop it: coldstream launch down {name}",
            ) from None

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _on_line(self, line: str) -> None:
        self.progress.line(line)
        step = self.steps.line(line, self._seconds())
        if step is not None and step != "submitted":
            self.progress.step(step, self._seconds())

    def _hint(self, look: str = "look at it") -> str:
        return f"{look}: coldstream launch logs {self.record.name}; stop it: coldstream launch down {self.record.name}"

    def _failure(self, why: str) -> ColdstreamError:
        state = fetch_states([self.record], self.sky)[self.record.name]
        if state == GONE:
            return ColdstreamError(f"sky failed: {why}", hint="nothing is left running")
        left = "may be running" if state == UNKNOWN else f"is left, {state}"
        return ColdstreamError(f"sky failed: {why}; {self.record.name} {left}", hint=self._hint())

    def _wait(self, limit: float) -> str | None:
        """Returns the URL once the model answers, or None once a job runs."""
        url: str | None = None
        poller = Poller(lambda: fetch_status(self.record, self.sky), pause_seconds=_STATE_SECONDS)
        before = LaunchStatus()
        while self._seconds() < limit:
            url = url or fetch_endpoint(self.record, self.sky)
            if url is not None and is_serving(url, self.api_key):
                return url
            if (status := poller.poll()) is not None:
                self._check_alive(status)
                if self.record.kind == "job" and status.state in _JOB_RUNS:
                    return None
                if status.has_lost_machine_since(before):
                    self.progress.step("replaced", self._seconds())
                before = status
            time.sleep(_POLL_SECONDS)
        where = f" at {url}" if url else ""
        raise UnavailableError(
            f"{self.record.name} does not answer yet{where}, and is still starting", hint=self._hint()
        )

    def _check_alive(self, status: LaunchStatus) -> None:
        """Raises ColdstreamError if the launch cannot succeed any more: it has failed, or its machine is gone."""
        name = self.record.name
        if status.machine in (GONE, "STOPPED"):
            raise ColdstreamError(
                f"the machine of {name} is {status.machine.lower()}, before its model answered: it was preempted, or "
                "someone terminated it",
                hint="launch it again; with --replicas 1 it is a service, which replaces a preempted machine",
            )
        # The server of a node does not end by itself.
        if status.has_failed or (self.record.kind == "node" and status.state == "SUCCEEDED"):
            text = self.sky.ask(*logs_arguments(self.record, follow=False)).text
            tail = "\n".join(f"  {line}" for line in text.splitlines()[-12:])
            raise ColdstreamError(f"{name} failed ({status.state}):\n{tail}", hint=self._hint("the whole log"))

    def _read_ready_line(self) -> ReadyLine | None:
        """The line that `serve` printed on the node; it appears a little later than the API answers."""
        for _ in range(3 if self.record.kind != "job" else 0):
            text = self.sky.ask(*logs_arguments(self.record, follow=False)).text
            if (line := parse_ready_line(text.splitlines())) is not None:
                return line
            time.sleep(_POLL_SECONDS)
        return None
