"""The state of a launch, its endpoint, its log and its end."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError
from coldstream.fleet.launch_record import Launch, Launches
from coldstream.fleet.sky import Sky

T = TypeVar("T")
_ANSWER_SECONDS = 5.0
_ANSWER_BYTES_MAX = 1 << 20
# Clouds take minutes to terminate a machine, and SkyServe terminates all replicas.
_DOWN_SECONDS = 900.0
# States of services and of their replicas.
_SERVE_STATES = re.compile(
    r"(?:CONTROLLER|REPLICA)_INIT|NO_REPLICA|PENDING|PROVISIONING|STARTING|(?:NOT_)?READY|PREEMPTED|SHUTTING_DOWN|UNKNOWN"
    r"|(?:CONTROLLER_)?FAILED(?:_[A-Z_]+)?"
)
# States of replicas that may still serve.
_ALIVE = {"PENDING", "PROVISIONING", "STARTING", "READY", "NOT_READY"}
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
        present = {number for number, state in self.replicas.items() if state != "PREEMPTED"}
        preempted = self.replicas.keys() - present - before.replicas.keys()
        return bool(preempted or {number for number, state in before.replicas.items() if state in _ALIVE} - present)


class Poller(Generic[T]):
    """Calls a slow function repeatedly in its own thread, one call at a time. For one caller's thread.

    A call still running when the poller is dropped keeps no process alive, as it would in an executor's thread.
    """

    def __init__(self, function: Callable[[], T], *, pause_seconds: float) -> None:
        """Prepares; `pause_seconds` pass between the end of a call and the next one."""
        self._function = function
        self._pause_seconds = pause_seconds
        self._due = 0.0
        self._call: Future[T] | None = None

    def poll(self) -> T | None:
        """The result of a call, once, or None; starts the next call when it is due. Raises what the call raised."""
        call = self._call
        if call is None:
            if time.monotonic() >= self._due:
                self._call = Future()
                threading.Thread(target=self._run, args=(self._call,), name="coldstream-poll", daemon=True).start()
            return None
        if not call.done():
            return None
        self._call = None
        self._due = time.monotonic() + self._pause_seconds
        return call.result()

    def _run(self, call: Future[T]) -> None:
        try:
            call.set_result(self._function())
        except BaseException as exc:  # noqa: BLE001  # `poll` raises it
            call.set_exception(exc)


def take_down(record: Launch, sky: Sky, launches: Launches) -> None:
    """Ends a launch and its machines, and forgets it; the record stays when SkyPilot fails, with ColdstreamError."""
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
    """The arguments of `sky` that print the log of a launch's machine."""
    verbs = {
        "node": ("logs", record.name),
        "service": ("serve", "logs", record.name, str(replica)),
        "job": ("jobs", "logs", *_job_arguments(record)),
    }
    return verbs[record.kind] if follow else (*verbs[record.kind], "--no-follow")


def _job_arguments(record: Launch) -> tuple[str, ...]:
    return ("-n", record.name) if record.job is None else (str(record.job),)


def fetch_state(kind: str, name: str, sky: Sky) -> LaunchStatus:
    """The state of a launch. Raises ColdstreamError if SkyPilot does not answer."""
    return LaunchStatus(state=_STATES[kind](sky).get(name))


def fetch_status(record: Launch, sky: Sky) -> LaunchStatus | None:
    """Queries SkyPilot and, for a node, the cloud, which takes seconds; None if SkyPilot does not answer."""
    try:
        if record.kind == "service":
            services, _, replicas = _service_status(sky).partition("Service Replicas")
            rows = _rows_of(replicas)
            numbers = {int(row[1]): state for row, state in rows if row[0] == record.name and row[1].isdecimal()}
            return LaunchStatus(state=_services_in(services).get(record.name), replicas=numbers)
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
        names = [record.name for record in records if record.kind == kind]
        try:
            known = _STATES[kind](sky)
            states |= {name: known.get(name, GONE) for name in names}
        except ColdstreamError:
            states |= dict.fromkeys(names, UNKNOWN)
    return states


def _states_by(name: str, rows: Any) -> dict[str, str]:
    """Maps the field `name` of SkyPilot's rows to their status; of several rows, the first one counts."""
    complete = [row for row in rows if isinstance(row, dict) and row.get(name) and row.get("status")]
    return {str(row[name]): str(row["status"]) for row in reversed(complete)}


def _clusters(sky: Sky, *more: str) -> dict[str, str]:
    return _states_by("name", sky.document("status", *more))


def _jobs(sky: Sky) -> dict[str, str]:
    # The newest comes first; an earlier job may have had the same name.
    return _states_by("job_name", sky.document("jobs", "queue"))


def _services(sky: Sky) -> dict[str, str]:
    return _services_in(_service_status(sky).partition("Service Replicas")[0])


def _services_in(table: str) -> dict[str, str]:
    return {row[0]: state for row, state in _rows_of(table)}


def _service_status(sky: Sky) -> str:
    """Two tables: NAME, VERSION, UPTIME, STATUS, …, and "Service Replicas": SERVICE_NAME, ID, …, STATUS."""
    output = sky.ask("serve", "status")
    if output.code != 0 and not output.is_empty_list:
        raise ColdstreamError(f"sky serve failed: {output.last_line}", hint="try it: sky serve status")
    return output.text


def _rows_of(table: str) -> Iterator[tuple[list[str], str]]:
    """The words of each row that has a state, and that state; the first word is a name, which may look like one."""
    for words in map(str.split, table.splitlines()):
        if state := next(filter(_SERVE_STATES.fullmatch, words[1:]), None):
            yield words, state


def _node_job(name: str, sky: Sky) -> str | None:
    """The state of a node's newest job; None before there is one."""
    queue = sky.document("queue", name)
    rows = queue.get(name, []) if isinstance(queue, dict) else []
    newest = max((row for row in rows if isinstance(row, dict)), key=lambda row: row.get("job_id") or 0, default={})
    state = newest.get("status")
    return str(state).rpartition(".")[2] if state else None


_STATES: Mapping[str, Callable[[Sky], dict[str, str]]] = {"node": _clusters, "service": _services, "job": _jobs}


def fetch_endpoint(record: Launch, sky: Sky) -> str | None:
    """The URL of a launch's API; None while it is not known."""
    if record.kind == "job":
        return None
    verbs = {"node": ("status", "--endpoint", str(record.port)), "service": ("serve", "status", "--endpoint")}
    output = sky.ask(*verbs[record.kind], record.name)
    words = output.text.split()
    if output.code != 0 or not words:
        return None
    with suppress(ValueError):
        url = urlsplit(words[-1] if "://" in words[-1] else f"http://{words[-1]}")
        if url.hostname and url.port:
            return f"{url.scheme}://{url.netloc}"
    return None


def is_serving(url: str, api_key: str) -> bool:
    """Whether a server there serves a model for this key.

    Raises:
        ColdstreamError: It rejects the key: it is another user's server, or was started with another key.
    """
    import urllib3

    headers = {"Authorization": f"Bearer {api_key}"}
    with urllib3.PoolManager(retries=False, timeout=_ANSWER_SECONDS) as pool:
        try:
            answer = pool.request("GET", f"{url}/v1/models", headers=headers, preload_content=False, redirect=False)
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
