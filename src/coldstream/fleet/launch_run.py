"""A launch from its plan to a model that answers, by SkyPilot; and what is done to it later."""

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
from coldstream.fleet.launch_plan import Plan, renewal
from coldstream.fleet.launch_record import Launch, Launches
from coldstream.fleet.launch_state import Sight, answers, endpoint, logs_arguments, look, state_of, states
from coldstream.fleet.launch_steps import LaunchPhase, Steps
from coldstream.fleet.launch_watch import Watch
from coldstream.fleet.render import render
from coldstream.fleet.sky import Answer, Sky, last_line
from coldstream.telemetry.timeline.ready_line import ReadyLine, parse_ready_line

_POLL_SECONDS = 2.0
# Asking SkyPilot costs seconds of its server's, and a question to the cloud.
_STATE_SECONDS = 30.0
# A cloud may take its time for a machine with a GPU, and SkyPilot for its controller.
_PROVISION_SECONDS = {"node": 900.0, "service": 1500.0, "job": 1500.0}
_JOB_RUNS = ("RUNNING", "SUCCEEDED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """It answers; or, of a job, it runs.

    Attributes:
        launch: As it is remembered.
        url: Where it answers; None for a job, or when nobody waited.
        seconds: Since the launch began.
        phases: Where they went; empty when nobody waited.
    """

    launch: Launch
    url: str | None
    seconds: float
    phases: tuple[LaunchPhase, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """Who is told how it goes.

    Attributes:
        line: A line of SkyPilot's.
        step: A step that begins, by `steps.words`, and seconds since the launch began.
    """

    line: Callable[[str], None]
    step: Callable[[str, float], None]


def refuse_second(kind: str, name: str, sky: Sky, launches: Launches) -> None:
    """Refuses a name that is taken, before anything that is remembered of its first launch is written over.

    Raises:
        UsageError: It is: SkyPilot would start a second server on the same machine.
        ColdstreamError: Something was launched under it from here, and SkyPilot does not tell whether it runs.
    """
    known: Launch | None = None
    with suppress(NotFoundError, IntegrityError):
        known = launches.find(name)
    for there in dict.fromkeys((kind, known.kind if known else kind)):
        try:
            state = state_of(there, name, sky)
        except ColdstreamError:
            if known:
                raise
            continue
        over = there == "job" and state is not None and (_is_broken(state) or state == "SUCCEEDED")
        if state is not None and not over:
            raise UsageError(
                f"{name} is there already, {state}",
                hint=f"--name for another one; or stop it: coldstream launch down {name}",
            )


def launch(plan: Plan, sky: Sky, launches: Launches, telling: Telling, *, api_key: str, wait: bool) -> Launched:
    """Launches a plan, and waits until the model answers.

    Args:
        plan: Whose keys are made; its name is free, see `refuse_second`.
        sky: Which is given the secrets.
        launches: Where it is remembered, before anything costs money.
        telling: Who is told.
        api_key: That the model's API asks for.
        wait: Whether to wait until it answers.

    Raises:
        ColdstreamError: It failed; the message says what is left running, and the hint how to stop it.
        CancelledError: Somebody interrupted it; likewise.
    """
    keys = plan.keys
    record = Launch(
        name=plan.name,
        kind=plan.kind,
        model=plan.deployment.model,
        port=None if plan.kind == "job" else plan.deployment.wish.port,
        began=time.time(),
        keys=keys.how,
        ttl_seconds=round(keys.expires_at - time.time()) if keys.expires_at is not None else None,
        expires=keys.expires_at,
    )
    path = launches.keep_file(plan.name, render(plan.deployment))
    launches.keep(record)
    run = _Run(sky=sky, record=record, telling=telling, api_key=api_key)
    limit = _PROVISION_SECONDS[plan.kind] + plan.deployment.start_seconds
    return run.through(plan.arguments(str(path)), launches, limit=limit if wait else None)


def renew(
    record: Launch,
    sky: Sky,
    launches: Launches,
    telling: Telling,
    *,
    secrets: tuple[str, ...],
    api_key: str,
) -> Launched:
    """Gives the nodes of a launch new keys: a service is updated in place, a node's server starts again.

    Args:
        record: Of the launch, with the end of its new keys.
        sky: Which is given the new secrets.
        launches: Where it is remembered.
        telling: Who is told.
        secrets: Their names.
        api_key: That the model's API asks for.

    Raises:
        What `launch` raises; NotFoundError when the file that it was launched with is gone.
    """
    path = launches.file(record.name)
    if not path.is_file():
        raise NotFoundError(f"{path} is gone, with which it was launched", hint="launch it again under another name")
    arguments = renewal(record.name, record.kind, str(path), secrets)
    if record.kind == "node":
        sky.ask("cancel", "-y", "-a", record.name)
    run = _Run(sky=sky, record=record, telling=telling, api_key=api_key)
    # A service goes on answering meanwhile; SkyServe replaces its replicas one by one.
    return run.through(arguments, launches, limit=_PROVISION_SECONDS["node"] if record.kind == "node" else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of SkyPilot's, and the wait for what it brings up."""

    sky: Sky
    record: Launch
    telling: Telling
    api_key: str = field(repr=False)

    def through(self, arguments: tuple[str, ...], launches: Launches, *, limit: float | None) -> Launched:
        """To the end, or to the end of SkyPilot's command when `limit`, in seconds, is None."""
        began = time.monotonic()
        steps = Steps()
        try:
            answer = self._sky(arguments, steps, began)
            if answer.code != 0:
                raise self._failed(last_line(answer.text))
            record = _with_job(self.record, steps.job)
            launches.keep(record)
            ended = time.monotonic() - began
            if limit is None:
                return Launched(launch=record, url=endpoint(record, self.sky), seconds=ended, phases=())
            self.telling.step("submitted", ended)
            url = self._wait(record, began, began + limit)
            ready = time.monotonic() - began
            phases = steps.phases(kind=record.kind, ended=ended, ready=ready, start=self._start(record))
            return Launched(launch=record, url=url, seconds=ready, phases=tuple(phases))
        except KeyboardInterrupt:
            raise CancelledError(
                f"cancelled; SkyPilot may go on bringing {self.record.name} up, which costs money",
                hint=f"stop it: coldstream launch down {self.record.name}",
            ) from None

    def _sky(self, arguments: tuple[str, ...], steps: Steps, began: float) -> Answer:
        def on_line(line: str) -> None:
            now = time.monotonic() - began
            self.telling.line(line)
            step = steps.line(line, now)
            if step is not None and step != "submitted":
                self.telling.step(step, now)

        return self.sky.follow(*arguments, on_line=on_line)

    def _failed(self, why: str) -> ColdstreamError:
        state = states([self.record], self.sky)[self.record.name]
        name = self.record.name
        if state == "gone":
            return ColdstreamError(f"sky failed: {why}", hint="nothing of it is running")
        what = "may be running" if state == "unknown" else f"is left, {state}"
        return ColdstreamError(
            f"sky failed: {why}; {name} {what}",
            hint=f"look at it: coldstream launch logs {name}; stop it: coldstream launch down {name}",
        )

    def _wait(self, record: Launch, began: float, until: float) -> str | None:
        """Until the model answers, or a job runs."""
        url: str | None = None
        watch = Watch(lambda: look(record, self.sky), pause_seconds=_STATE_SECONDS)
        before = Sight()
        while time.monotonic() < until:
            if url is None:
                url = endpoint(record, self.sky)
            if url is not None and answers(url, self.api_key):
                return url
            sight = watch.news()
            if sight is not None:
                self._refuse_end(record, sight)
                if record.kind == "job" and sight.state in _JOB_RUNS:
                    return None
                if sight.lost_since(before):
                    self.telling.step("replaced", time.monotonic() - began)
                before = sight
            time.sleep(_POLL_SECONDS)
        name = record.name
        raise UnavailableError(
            f"{name} does not answer yet{f' at {url}' if url else ''}, and goes on starting",
            hint=f"look at it: coldstream launch logs {name}; stop it: coldstream launch down {name}",
        )

    def _refuse_end(self, record: Launch, sight: Sight) -> None:
        """Raises ColdstreamError when waiting is in vain: what was launched has broken down, or its machine is gone."""
        name, state = record.name, sight.state
        if sight.machine in {"gone", "STOPPED"}:
            raise ColdstreamError(
                f"the machine of {name} is {sight.machine.lower()}, before its model answered: its cloud took it back, "
                "or somebody ended it",
                hint="launch it again; with --replicas 1 it is a service, whose machine is replaced when that happens",
            )
        if state is not None and (_is_broken(state) or (record.kind == "node" and state == "SUCCEEDED")):
            text = self.sky.ask(*logs_arguments(record, follow=False)).text
            tail = "\n".join(f"  {line}" for line in text.splitlines()[-12:])
            raise ColdstreamError(
                f"{name} broke down ({state}):\n{tail}",
                hint=f"all of it: coldstream launch logs {name}; stop it: coldstream launch down {name}",
            )

    def _start(self, record: Launch) -> ReadyLine | None:
        """What `serve` printed on the node; it comes a little later than its API answers."""
        if record.kind == "job":
            return None
        for _ in range(3):
            text = self.sky.ask(*logs_arguments(record, follow=False)).text
            if (line := parse_ready_line(text.splitlines())) is not None:
                return line
            time.sleep(_POLL_SECONDS)
        return None


def _with_job(record: Launch, job: int | None) -> Launch:
    """The record with SkyPilot's number of a managed job; those of a node's own jobs mean nothing elsewhere."""
    return msgspec.structs.replace(record, job=job) if record.kind == "job" else record


def _is_broken(state: str) -> bool:
    # FAILED_SETUP, CONTROLLER_FAILED and more.
    return "FAILED" in state or state == "CANCELLED"
