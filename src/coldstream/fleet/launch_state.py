"""The state of a launch, its endpoint, its log and its end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError
from coldstream.fleet.launch_record import Launch, Launches
from coldstream.fleet.sky import Sky

T = TypeVar("T")
_ANSWER_SECONDS = 5.0
_ANSWER_BYTES_MAX = 1 << 20
# Clouds take minutes to terminate a machine, and SkyServe terminates all replicas.
_DOWN_SECONDS = 900.0
_SERVICE_STATES = {
    "CONTROLLER_INIT",
    "REPLICA_INIT",
    "CONTROLLER_FAILED",
    "READY",
    "SHUTTING_DOWN",
    "FAILED",
    "FAILED_CLEANUP",
    "NO_REPLICA",
}
# States of a service's replicas: those that may still serve, and the one after a preemption.
_ALIVE = {"PENDING", "PROVISIONING", "STARTING", "READY", "NOT_READY"}
_TAKEN = "PREEMPTED"
_REPLICA_STATES = {
    *_ALIVE,
    _TAKEN,
    "SHUTTING_DOWN",
    "FAILED",
    "FAILED_INITIAL_DELAY",
    "FAILED_PROBING",
    "FAILED_PROVISION",
    "FAILED_CLEANUP",
    "UNKNOWN",
}
# Of what SkyPilot does not know, and of what it cannot tell.
GONE, UNKNOWN = "gone", "unknown"
# States in which a launch may have an endpoint.
ANSWERING = frozenset({"UP", "READY", "REPLICA_INIT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchStatus:
    """A launch at one moment, in SkyPilot's words.

    Attributes:
        machine: For a node; `GONE` if the cloud no longer has it, None if unknown.
        state: Of a node's newest job, of a managed job or of a service; None if SkyPilot does not know it.
        replicas: For a service: number to state.
    """

    machine: str | None = None
    state: str | None = None
    replicas: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_machine_lost(self) -> bool:
        return self.machine in {GONE, "STOPPED"}

    @property
    def has_failed(self) -> bool:
        # FAILED_SETUP, CONTROLLER_FAILED and more.
        return self.state is not None and ("FAILED" in self.state or self.state == "CANCELLED")

    @property
    def has_succeeded(self) -> bool:
        return self.state == "SUCCEEDED"

    def has_lost_machine_since(self, before: LaunchStatus) -> bool:
        """Whether a machine was lost that SkyPilot replaces by itself: of a service, or of a managed job."""
        if self.state == "RECOVERING":
            return before.state != "RECOVERING"
        # Once one replica is ready, others may be removed because they are no longer needed.
        if self.state == "READY":
            return False
        present = {number for number, state in self.replicas.items() if state != _TAKEN}
        preempted = self.replicas.keys() - present - before.replicas.keys()
        return bool(preempted or {number for number, state in before.replicas.items() if state in _ALIVE} - present)


class Poller(Generic[T]):
    """Calls a slow function repeatedly in its own thread, one call at a time. For one caller's thread.

    A call still running when the poller is dropped keeps no process alive.
    """

    def __init__(self, function: Callable[[], T], *, pause_seconds: float) -> None:
        """Prepares; `pause_seconds` pass between the end of a call and the next one."""
        self._function = function
        self._pause_seconds = pause_seconds
        self._due = 0.0
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._failure: BaseException | None = None

    def poll(self) -> T | None:
        """The result of a call, once, or None; starts the next call when it is due. Raises what the call raised."""
        if self._thread is None:
            if time.monotonic() >= self._due:
                self._thread = threading.Thread(target=self._run, name="coldstream-poll", daemon=True)
                self._thread.start()
            return None
        if self._thread.is_alive():
            return None
        self._thread = None
        self._due = time.monotonic() + self._pause_seconds
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        result, self._result = self._result, None
        return result

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as exc:  # noqa: BLE001  # `poll` raises it
            self._failure = exc


def take_down(record: Launch, sky: Sky, launches: Launches) -> None:
    """Ends a launch and its machines, and forgets it.

    Raises:
        ColdstreamError: SkyPilot could not; the launch is still recorded.
    """
    verbs = {
        "node": ("down", "-y", record.name),
        "service": ("serve", "down", "-y", record.name),
        "job": ("jobs", "cancel", "-y", *_job_arguments(record)),
    }
    output = sky.ask(*verbs[record.kind], seconds=_DOWN_SECONDS)
    if output.has_left_it_running:
        failed = next((line for line in output.text.splitlines() if "✗" in line), output.text)
        raise ColdstreamError(
            f"sky could not take {record.name} down: {replace(output, text=failed).last_line}",
            hint=f"check it with: sky status; then retry: coldstream launch down {record.name}",
        )
    launches.forget(record.name)


def logs_arguments(record: Launch, *, follow: bool, replica: int = 1) -> tuple[str, ...]:
    """For `sky`: the log of a launch's machine."""
    more = () if follow else ("--no-follow",)
    if record.kind == "service":
        return ("serve", "logs", record.name, str(replica), *more)
    if record.kind == "job":
        return ("jobs", "logs", *_job_arguments(record), *more)
    return ("logs", record.name, *more)


def _job_arguments(record: Launch) -> tuple[str, ...]:
    return ("-n", record.name) if record.job is None else (str(record.job),)


def fetch_state(kind: str, name: str, sky: Sky) -> LaunchStatus:
    """The state of a launch.

    Raises:
        ColdstreamError: SkyPilot does not answer.
    """
    return LaunchStatus(state=_STATES[kind](sky).get(name))


def fetch_status(record: Launch, sky: Sky) -> LaunchStatus | None:
    """Queries SkyPilot and, for a node, the cloud, which takes seconds; None if SkyPilot does not answer."""
    try:
        if record.kind == "service":
            text = _service_status(sky)
            return LaunchStatus(state=_services_in(text).get(record.name), replicas=_replicas_in(text, record.name))
        if record.kind == "job":
            return fetch_state("job", record.name, sky)
    except ColdstreamError:
        return None
    machine = state = None
    # Without a query to the cloud, SkyPilot would report a preempted machine as up for minutes.
    with suppress(ColdstreamError):
        machine = _clusters(sky, "--refresh", record.name).get(record.name, GONE)
    if machine != GONE:
        with suppress(ColdstreamError):
            state = _node_job(record.name, sky)
    return LaunchStatus(machine=machine, state=state)


def fetch_states(records: Sequence[Launch], sky: Sky) -> dict[str, str]:
    """Name to state, in SkyPilot's words, `GONE` or `UNKNOWN`."""
    states: dict[str, str] = {}
    for kind in sorted({record.kind for record in records}):
        names = {record.name for record in records if record.kind == kind}
        try:
            known = _STATES[kind](sky)
        except ColdstreamError:
            states |= dict.fromkeys(names, UNKNOWN)
            continue
        states |= {name: known.get(name, GONE) for name in names}
    return states


def _clusters(sky: Sky, *more: str) -> dict[str, str]:
    rows = sky.document("status", *more)
    return {
        str(row["name"]): str(row["status"]) for row in rows if isinstance(row, dict) and {"name", "status"} <= {*row}
    }


def _node_job(name: str, sky: Sky) -> str | None:
    """The state of a node's newest job; None before there is one."""
    queue = sky.document("queue", name)
    rows = queue.get(name, []) if isinstance(queue, dict) else []
    newest = max((row for row in rows if isinstance(row, dict)), key=lambda row: row.get("job_id") or 0, default={})
    state = newest.get("status")
    return str(state).rpartition(".")[2] if state else None


def _services(sky: Sky) -> dict[str, str]:
    return _services_in(_service_status(sky))


def _service_status(sky: Sky) -> str:
    output = sky.ask("serve", "status")
    if output.code != 0 and not output.is_empty_list:
        raise ColdstreamError(f"sky serve failed: {output.last_line}", hint="try it: sky serve status")
    return output.text


def _services_in(text: str) -> dict[str, str]:
    # The first table: NAME, VERSION, UPTIME, STATUS, …
    rows = [line.split() for line in text.partition("Service Replicas")[0].splitlines()]
    return {
        row[0]: next(word for word in row[1:] if word in _SERVICE_STATES)
        for row in rows
        if _SERVICE_STATES & {*row[1:]}
    }


def _replicas_in(text: str, name: str) -> dict[int, str]:
    # The second table: SERVICE_NAME, ID, …, STATUS
    rows = [line.split() for line in text.partition("Service Replicas")[2].splitlines()]
    return {
        int(row[1]): next(word for word in row[2:] if word in _REPLICA_STATES)
        for row in rows
        if row[:1] == [name] and row[1:2] and row[1].isdecimal() and _REPLICA_STATES & {*row[2:]}
    }


def _jobs(sky: Sky) -> dict[str, str]:
    rows = sky.document("jobs", "queue")
    # The newest comes first; an earlier job may have had the same name.
    return {
        str(row["job_name"]): str(row["status"])
        for row in reversed(rows)
        if isinstance(row, dict) and row.get("job_name") and row.get("status")
    }


_STATES: Mapping[str, Callable[[Sky], dict[str, str]]] = {"node": _clusters, "service": _services, "job": _jobs}


def fetch_endpoint(record: Launch, sky: Sky) -> str | None:
    """The URL of a launch's API; None while it is not known."""
    if record.kind == "job":
        return None
    arguments = (
        ("serve", "status", "--endpoint", record.name)
        if record.kind == "service"
        else ("status", "--endpoint", str(record.port), record.name)
    )
    output = sky.ask(*arguments)
    lines = output.text.split()
    if output.code != 0 or not lines:
        return None
    url = lines[-1] if "://" in lines[-1] else f"http://{lines[-1]}"
    try:
        split = urlsplit(url)
        complete = bool(split.hostname and split.port)
    except ValueError:
        complete = False
    return f"{split.scheme}://{split.netloc}" if complete else None


def is_serving(url: str, api_key: str) -> bool:
    """Whether a server there serves a model for this key.

    Raises:
        ColdstreamError: It rejects the key: it is another user's server, or was started with another key.
    """
    import urllib3

    with urllib3.PoolManager(retries=False, timeout=_ANSWER_SECONDS) as pool:
        try:
            answer = pool.request(
                "GET",
                f"{url}/v1/models",
                headers={"Authorization": f"Bearer {api_key}"},
                preload_content=False,
                redirect=False,
            )
            with answer:
                body = answer.read(_ANSWER_BYTES_MAX) if answer.status == 200 else b""
        except urllib3.exceptions.HTTPError:
            return False
    if answer.status in {401, 403}:
        raise ColdstreamError(
            f"{url} rejected the API key (HTTP {answer.status})",
            hint="set VLLM_API_KEY to the key that it was started with",
        )
    try:
        return bool(json.loads(body)["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
