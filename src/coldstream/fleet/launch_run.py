"""Carries out a launch plan with SkyPilot until the model answers, and renews the keys of a launch."""

from __future__ import annotations

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
from coldstream.fleet.launch_plan import LaunchPlan, renewal
from coldstream.fleet.launch_record import Launch, Launches
from coldstream.fleet.launch_state import (
    GONE,
    UNKNOWN,
    LaunchStatus,
    Poller,
    fetch_endpoint,
    fetch_state,
    fetch_states,
    fetch_status,
    is_serving,
    logs_arguments,
)
from coldstream.fleet.launch_steps import LaunchPhase, Steps
from coldstream.fleet.render import render
from coldstream.fleet.sky import Sky, SkyOutput
from coldstream.telemetry.timeline.start_record import ReadyLine, parse_ready_line

_POLL_SECONDS = 2.0
# A status takes SkyPilot's server seconds, and a query to the cloud.
_STATE_SECONDS = 30.0
# A cloud may take its time for a machine with a GPU, and SkyPilot for its controller.
_PROVISION_SECONDS = {"node": 900.0, "service": 1500.0, "job": 1500.0}
_JOB_RUNS = ("RUNNING", "SUCCEEDED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A launch whose model answers, or whose job runs.

    Attributes:
        url: None for a job, or if unknown.
        seconds: Since the launch began.
        phases: Where the time went; empty without waiting.
    """

    launch: Launch
    url: str | None
    seconds: float
    phases: tuple[LaunchPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressCallbacks:
    """Called during a launch.

    Attributes:
        line: With each line that SkyPilot prints.
        step: With the name of a step that begins, and the seconds since the launch began.
    """

    line: Callable[[str], None]
    step: Callable[[str, float], None]


def check_name_is_free(kind: str, name: str, sky: Sky, launches: Launches) -> None:
    """Refuses a name that is in use, before the record of its launch is overwritten.

    Raises:
        UsageError: It is in use: SkyPilot would start a second server on the same machine.
        ColdstreamError: It was launched from here, and SkyPilot does not say whether it runs.
    """
    known: Launch | None = None
    with suppress(NotFoundError, IntegrityError):
        known = launches.find(name)
    for candidate in dict.fromkeys((kind, known.kind if known else kind)):
        try:
            status = fetch_state(candidate, name, sky)
        except ColdstreamError:
            if known:
                raise
            continue
        is_over = candidate == "job" and (status.has_failed or status.has_succeeded)
        if status.state is not None and not is_over:
            raise UsageError(
                f"{name} already exists, {status.state}",
                hint=f"use another --name; or stop it: coldstream launch down {name}",
            )


def launch(
    plan: LaunchPlan, sky: Sky, launches: Launches, progress: ProgressCallbacks, *, api_key: str, wait: bool
) -> Launched:
    """Launches a plan, and waits until the model answers.

    Args:
        plan: Its keys exist and its name is free, see `check_name_is_free`.
        sky: With the values of the secrets.
        launches: Where the launch is recorded before anything costs money.
        api_key: Of the model's API.

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
    )
    path = launches.keep_file(plan.name, render(plan.deployment))
    launches.keep(record)
    run = _Run(sky=sky, record=record, progress=progress, api_key=api_key)
    limit = _PROVISION_SECONDS[plan.kind] + plan.deployment.start_seconds
    return run.finish(plan.arguments(str(path)), launches, limit=limit if wait else None)


def renew(
    record: Launch,
    sky: Sky,
    launches: Launches,
    progress: ProgressCallbacks,
    *,
    secrets: tuple[str, ...],
    api_key: str,
) -> Launched:
    """Gives the nodes of a launch new keys: a service is updated in place, a node's server starts again.

    Args:
        record: With the expiry of the new keys.
        sky: With the values of the new secrets.
        secrets: Their names.

    Raises:
        What `launch` raises; NotFoundError if the file of the launch is missing.
    """
    path = launches.file(record.name)
    if not path.is_file():
        raise NotFoundError(f"{path}, the file of the launch, is missing", hint="launch it again under another name")
    arguments = renewal(record.name, record.kind, str(path), secrets)
    if record.kind == "node":
        sky.ask("cancel", "-y", "-a", record.name)
    run = _Run(sky=sky, record=record, progress=progress, api_key=api_key)
    # A service keeps answering while SkyServe replaces its replicas one by one.
    return run.finish(arguments, launches, limit=_PROVISION_SECONDS["node"] if record.kind == "node" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One launch command of SkyPilot's, and the wait for its result."""

    sky: Sky
    record: Launch
    progress: ProgressCallbacks
    api_key: str = field(repr=False)

    def finish(self, arguments: tuple[str, ...], launches: Launches, *, limit: float | None) -> Launched:
        """Runs the command and waits at most `limit` seconds; with None, it does not wait for the model."""
        began = time.monotonic()
        steps = Steps()
        try:
            output = self._run_sky(arguments, steps, began)
            if output.code != 0:
                raise self._failure(output.last_line)
            record = self.record
            if record.kind == "job":
                record = msgspec.structs.replace(record, job=steps.job)
            launches.keep(record)
            ended = time.monotonic() - began
            if limit is None:
                return Launched(launch=record, url=fetch_endpoint(record, self.sky), seconds=ended, phases=())
            self.progress.step("submitted", ended)
            url = self._wait(record, began, began + limit)
            ready = time.monotonic() - began
            phases = steps.phases(kind=record.kind, ended=ended, ready=ready, start=self._read_ready_line(record))
            return Launched(launch=record, url=url, seconds=ready, phases=tuple(phases))
        except KeyboardInterrupt:
            raise CancelledError(
                f"cancelled; SkyPilot may continue to start {self.record.name}, which costs money",
                hint=f"stop it: coldstream launch down {self.record.name}",
            ) from None

    def _run_sky(self, arguments: tuple[str, ...], steps: Steps, began: float) -> SkyOutput:
        def on_line(line: str) -> None:
            now = time.monotonic() - began
            self.progress.line(line)
            step = steps.line(line, now)
            if step is not None and step != "submitted":
                self.progress.step(step, now)

        return self.sky.follow(*arguments, on_line=on_line)

    def _failure(self, why: str) -> ColdstreamError:
        name = self.record.name
        state = fetch_states([self.record], self.sky)[name]
        if state == GONE:
            return ColdstreamError(f"sky failed: {why}", hint="nothing is left running")
        left = "may be running" if state == UNKNOWN else f"is left, {state}"
        return ColdstreamError(
            f"sky failed: {why}; {name} {left}",
            hint=f"look at it: coldstream launch logs {name}; stop it: coldstream launch down {name}",
        )

    def _wait(self, record: Launch, began: float, until: float) -> str | None:
        """Returns the URL once the model answers, or None once a job runs."""
        url: str | None = None
        poller = Poller(lambda: fetch_status(record, self.sky), pause_seconds=_STATE_SECONDS)
        before = LaunchStatus()
        while time.monotonic() < until:
            if url is None:
                url = fetch_endpoint(record, self.sky)
            if url is not None and is_serving(url, self.api_key):
                return url
            status = poller.poll()
            if status is not None:
                self._check_alive(record, status)
                if record.kind == "job" and status.state in _JOB_RUNS:
                    return None
                if status.has_lost_machine_since(before):
                    self.progress.step("replaced", time.monotonic() - began)
                before = status
            time.sleep(_POLL_SECONDS)
        name = record.name
        raise UnavailableError(
            f"{name} does not answer yet{f' at {url}' if url else ''}, and is still starting",
            hint=f"look at it: coldstream launch logs {name}; stop it: coldstream launch down {name}",
        )

    def _check_alive(self, record: Launch, status: LaunchStatus) -> None:
        """Raises ColdstreamError if the launch cannot succeed any more: it has failed, or its machine is gone."""
        name = record.name
        if status.machine is not None and status.is_machine_lost:
            raise ColdstreamError(
                f"the machine of {name} is {status.machine.lower()}, before its model answered: it was preempted, or "
                "someone terminated it",
                hint="launch it again; with --replicas 1 it is a service, which replaces a preempted machine",
            )
        # The server of a node does not end by itself.
        if status.has_failed or (record.kind == "node" and status.has_succeeded):
            text = self.sky.ask(*logs_arguments(record, follow=False)).text
            tail = "\n".join(f"  {line}" for line in text.splitlines()[-12:])
            raise ColdstreamError(
                f"{name} failed ({status.state}):\n{tail}",
                hint=f"the whole log: coldstream launch logs {name}; stop it: coldstream launch down {name}",
            )

    def _read_ready_line(self, record: Launch) -> ReadyLine | None:
        """The line that `serve` printed on the node; it appears a little later than the API answers."""
        if record.kind == "job":
            return None
        for _ in range(3):
            text = self.sky.ask(*logs_arguments(record, follow=False)).text
            if (line := parse_ready_line(text.splitlines())) is not None:
                return line
            time.sleep(_POLL_SECONDS)
        return None
