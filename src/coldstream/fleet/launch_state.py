"""What became of a launch: its state, where it answers, what its machines say; and its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError
from coldstream.fleet.launch_record import Launch, Launches
from coldstream.fleet.sky import Sky, last_line

_ANSWER_SECONDS = 5.0
_ANSWER_BYTES_MAX = 1 << 20
# Clouds take minutes to let a machine go, and SkyServe goes through all of its replicas.
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
# Of its replicas; those that may come to serve, and the one whose machine was taken away from outside.
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
_NONE_THERE = re.compile(r"No live services|No in-progress managed jobs|Cluster\(s\) not found|does not exist")
# SkyPilot 0.14 ends with 0 even so.
_NOT_DONE = re.compile(r"Cluster\(s\) failed|Skipping its termination|Multiple running jobs found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A launch at a moment, while its model is waited for.

    Attributes:
        machine: Of a node, in SkyPilot's words; "gone" when the cloud does not have it any more; None when that is not
            known, or the launch is no node.
        state: Of a node's job, of a managed job or of a service, in SkyPilot's words; None when it does not say.
        replicas: Of a service: number to state.
    """

    machine: str | None = None
    state: str | None = None
    replicas: Mapping[int, str] = field(default_factory=dict)

    def lost_since(self, before: Sight) -> bool:
        """Whether a machine was lost that SkyPilot replaces by itself: of a service, or of a managed job."""
        if self.state == "RECOVERING":
            return before.state != "RECOVERING"
        # Once one replica is ready, others may go because they are not needed any more.
        if self.state == "READY":
            return False
        there = {number for number, state in self.replicas.items() if state != _TAKEN}
        taken = self.replicas.keys() - there - before.replicas.keys()
        return bool(taken or {number for number, state in before.replicas.items() if state in _ALIVE} - there)


def take_down(record: Launch, sky: Sky, launches: Launches) -> None:
    """Ends a launch and its machines, and forgets it.

    Raises:
        ColdstreamError: SkyPilot could not: it is still remembered.
    """
    verbs = {
        "node": ("down", "-y", record.name),
        "service": ("serve", "down", "-y", record.name),
        "job": ("jobs", "cancel", "-y", *(("-n", record.name) if record.job is None else (str(record.job),))),
    }
    answer = sky.ask(*verbs[record.kind], seconds=_DOWN_SECONDS)
    undone = _NOT_DONE.search(answer.text)
    if undone or (answer.code != 0 and not _NONE_THERE.search(answer.text)):
        why = last_line(next((line for line in answer.text.splitlines() if "✗" in line), answer.text))
        raise ColdstreamError(
            f"sky could not take {record.name} down: {why}",
            hint=f"look at it: sky status; then again: coldstream launch down {record.name}",
        )
    launches.forget(record.name)


def logs_arguments(record: Launch, *, follow: bool, replica: int = 1) -> tuple[str, ...]:
    """For `sky`: what a launch's machine says."""
    more = () if follow else ("--no-follow",)
    if record.kind == "service":
        return ("serve", "logs", record.name, str(replica), *more)
    if record.kind == "job":
        return ("jobs", "logs", *(("-n", record.name) if record.job is None else (str(record.job),)), *more)
    return ("logs", record.name, *more)


def state_of(kind: str, name: str, sky: Sky) -> str | None:
    """The state of a launch, in SkyPilot's words; None when it does not know it.

    Raises:
        ColdstreamError: SkyPilot does not answer.
    """
    return _STATES[kind](sky).get(name)


def look(record: Launch, sky: Sky) -> Sight | None:
    """What SkyPilot knows now, of a node also what its cloud does; None when it does not answer. Takes seconds."""
    try:
        if record.kind == "service":
            text = _service_status(sky)
            return Sight(state=_services_in(text).get(record.name), replicas=_replicas_in(text, record.name))
        if record.kind == "job":
            return Sight(state=_jobs(sky).get(record.name))
    except ColdstreamError:
        return None
    machine = None
    # Without asking the cloud SkyPilot would believe for minutes in a machine that was taken back.
    with suppress(ColdstreamError):
        machine = _clusters(sky, "--refresh", record.name).get(record.name, "gone")
    if machine == "gone":
        return Sight(machine=machine)
    try:
        return Sight(machine=machine, state=_node_job(record.name, sky))
    except ColdstreamError:
        return Sight(machine=machine)


def states(records: Iterable[Launch], sky: Sky) -> dict[str, str]:
    """Name to state, in SkyPilot's words; "gone" for what it does not know, "unknown" where it does not answer."""
    records = list(records)
    found: dict[str, str] = {}
    for kind in sorted({record.kind for record in records}):
        names = {record.name for record in records if record.kind == kind}
        try:
            known = _STATES[kind](sky)
        except ColdstreamError:
            found |= dict.fromkeys(names, "unknown")
            continue
        found |= {name: known.get(name, "gone") for name in names}
    return found


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
    answer = sky.ask("serve", "status")
    if answer.code != 0 and not _NONE_THERE.search(answer.text):
        raise ColdstreamError(f"sky serve failed: {last_line(answer.text)}", hint="try it: sky serve status")
    return answer.text


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
    try:
        rows = sky.document("jobs", "queue")
    except ColdstreamError as exc:
        if _NONE_THERE.search(exc.message):
            return {}
        raise
    # The newest first; one name may have been used before.
    return {
        str(row["job_name"]): str(row["status"])
        for row in reversed(rows)
        if isinstance(row, dict) and row.get("job_name") and row.get("status")
    }


_STATES: Mapping[str, Callable[[Sky], dict[str, str]]] = {"node": _clusters, "service": _services, "job": _jobs}


def endpoint(record: Launch, sky: Sky) -> str | None:
    """Where a launch answers, as a URL; None while that is not known."""
    if record.kind == "job":
        return None
    arguments = (
        ("serve", "status", "--endpoint", record.name)
        if record.kind == "service"
        else ("status", "--endpoint", str(record.port), record.name)
    )
    answer = sky.ask(*arguments)
    lines = answer.text.split()
    if answer.code != 0 or not lines:
        return None
    url = lines[-1] if "://" in lines[-1] else f"http://{lines[-1]}"
    try:
        split = urlsplit(url)
        complete = bool(split.hostname and split.port)
    except ValueError:
        complete = False
    return f"{split.scheme}://{split.netloc}" if complete else None


def answers(url: str, api_key: str) -> bool:
    """Whether a model is served there, to whoever has the key.

    Raises:
        ColdstreamError: It answers, and does not take the key: it is somebody else's, or started with another one.
    """
    import urllib3

    pool = urllib3.PoolManager(retries=False, timeout=_ANSWER_SECONDS)
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
            status = answer.status
    except urllib3.exceptions.HTTPError:
        return False
    finally:
        pool.clear()
    if status in {401, 403}:
        raise ColdstreamError(
            f"{url} answers and refuses the API key", hint="is VLLM_API_KEY the one that it was started with?"
        )
    try:
        return bool(json.loads(body)["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
