"""What became of a launch: its state, where it answers, what its machines say; and its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from coldstream.errors import ColdstreamError
from coldstream.launch.record import Launch, Launches
from coldstream.launch.sky import Sky, last_line

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
_NONE_THERE = re.compile(r"No live services|No in-progress managed jobs|Cluster\(s\) not found|does not exist")
# SkyPilot 0.14 ends with 0 even so.
_NOT_DONE = re.compile(r"Cluster\(s\) failed|Skipping its termination|Multiple running jobs found")


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


def _clusters(sky: Sky) -> dict[str, str]:
    rows = sky.document("status")
    return {
        str(row["name"]): str(row["status"]) for row in rows if isinstance(row, dict) and {"name", "status"} <= {*row}
    }


def _services(sky: Sky) -> dict[str, str]:
    answer = sky.ask("serve", "status")
    if answer.code != 0 and not _NONE_THERE.search(answer.text):
        raise ColdstreamError(f"sky serve failed: {last_line(answer.text)}", hint="try it: sky serve status")
    # The first table: NAME, VERSION, UPTIME, STATUS, …
    rows = [line.split() for line in answer.text.partition("Service Replicas")[0].splitlines()]
    return {
        row[0]: next(word for word in row[1:] if word in _SERVICE_STATES)
        for row in rows
        if _SERVICE_STATES & {*row[1:]}
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
