"""Launches from this machine: their records, states, endpoints, logs and ends.

A record is `<cache root>/launches/<name>.json`; beside it are SkyPilot's file, and the API key if it was generated.
Neither record nor file contains a secret; only the user can read the key's file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec

from coldstream.cache.cache import cache_of
from coldstream.errors import ColdstreamError, IntegrityError, NotFoundError, UsageError
from coldstream.fleet.sky import NAME, Sky
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, read_bounded
from coldstream.settings import Settings

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
KINDS = ("node", "service", "job")
_RECORD_BYTES_MAX = 64 << 10
_KEY_BYTES_MAX = 4096
_KEY_RANDOM_BYTES = 32


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A launch under SkyPilot's name for it, with times in Unix seconds.

    A job has no port; its number may be unknown. Keys are named as in `Terms.how`; those that do not expire have no
    lifetime. `runtime` is the digest of the runtime that its nodes start from, `adapters` what they serve besides,
    and `draft` their draft model in the bucket.
    """

    name: str
    kind: str
    model: str
    port: int | None
    began: float
    keys: str
    ttl_seconds: int | None = None
    expires: float | None = None
    job: int | None = None
    runtime: str | None = None
    adapters: tuple[str, ...] = ()
    draft: str | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """The models that its nodes read beside the one that they serve."""
        return (*self.adapters, *([self.draft] if self.draft else ()))


# Created once: msgspec 0.22 can crash when two threads create the first decoder of a type at the same time.
_DECODER = msgspec.json.Decoder(Launch)


class Launches:
    """This user's launches, in the cache at `root`. Safe across processes. Writing raises DiskError."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "launches"

    def keep(self, launch: Launch) -> None:
        self._write(self.folder / f"{launch.name}.json", msgspec.json.encode(launch))

    def keep_file(self, name: str, text: str) -> Path:
        self._write(self.file(name), text.encode())
        return self.file(name)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def key_file(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def api_key(self, name: str) -> str | None:
        """The generated API key; None if the user has an own one."""
        with disk_errors(self.folder):
            data = read_bounded(self.key_file(name), _KEY_BYTES_MAX)
        return data.decode("ascii", "replace").strip() or None if data else None

    def make_api_key(self, name: str) -> str:
        """Generates an API key, and keeps it in a file that only this user can read."""
        key = secrets.token_hex(_KEY_RANDOM_BYTES)
        self._write(self.key_file(name), f"{key}\n".encode())
        return key

    def find(self, name: str) -> Launch:
        """Reads a record. Raises UsageError for an invalid name, and IntegrityError for a damaged record."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{name[:60]!r} is not a name of a launch", hint="see: coldstream launch status")
        path = self.folder / f"{name}.json"
        with disk_errors(self.folder):
            data = read_bounded(path, _RECORD_BYTES_MAX)
        if data is None:
            raise NotFoundError(
                f"nothing was launched as {name} from this machine",
                hint="list the launches: coldstream launch status",
                target=str(path),
            )
        try:
            launch = _DECODER.decode(data)
            if launch.name != name or launch.kind not in KINDS:
                raise msgspec.ValidationError("it is about another launch")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", hint="SkyPilot still knows it: sky status") from exc
        return launch

    def all(self) -> Iterator[Launch]:
        """The readable records, by name."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in sorted(os.listdir(self.folder)):
                if file.endswith(".json"):
                    with suppress(IntegrityError, NotFoundError, UsageError):
                        yield self.find(file.removesuffix(".json"))

    def forget(self, name: str) -> None:
        for path in (self.folder / f"{name}.json", self.file(name), self.key_file(name)):
            with disk_errors(self.folder), suppress(FileNotFoundError):
                path.unlink()

    def _write(self, path: Path, data: bytes) -> None:
        with disk_errors(self.folder):
            checked_root(self._root, create=True)
            make_folders(self.folder)
            write_atomically(path, data, staging=self.folder)


def launches_of(settings: Settings) -> Launches:
    """The records in the configured cache directory."""
    return Launches(cache_of(settings).root)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchStatus:
    """A launch at one moment, in SkyPilot's words; None is unknown.

    Attributes:
        machine: Of a node only; `GONE` if the cloud no longer has it.
        state: Of a node's newest job, of a managed job or of a service.
        replicas: Number to state, of a service only.
    """

    machine: str | None = None
    state: str | None = None
    replicas: Mapping[int, str] = field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        # FAILED_SETUP, CONTROLLER_FAILED and more.
        return self.state is not None and ("FAILED" in self.state or self.state == "CANCELLED")

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

    Unlike an executor's thread, a call that still runs does not keep the process alive.
    """

    def __init__(self, function: Callable[[], T], *, pause_seconds: float) -> None:
        """Calls nothing yet; `pause_seconds` pass between the end of a call and the next one."""
        self._function = function
        self._pause_seconds = pause_seconds
        self._due = 0.0
        self._call: Future[T] | None = None

    def poll(self) -> T | None:
        """The result of a call, once, or None; starts the next call when it is due. Raises what the call raised."""
        call = self._call
        if call is not None and call.done():
            self._call, self._due = None, time.monotonic() + self._pause_seconds
            return call.result()
        if call is None and time.monotonic() >= self._due:
            self._call = Future()
            threading.Thread(target=self._run, args=(self._call,), name="coldstream-poll", daemon=True).start()
        return None

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


def fetch_known(kind: str, sky: Sky, *more: str) -> dict[str, str]:
    """Name to state of all nodes, services or jobs that SkyPilot knows. Raises ColdstreamError without an answer."""
    if kind == "service":
        return {words[0]: state for words, state in _rows_of(_serve_status(sky)[0])}
    verbs, name = (("jobs", "queue"), "job_name") if kind == "job" else (("status", *more), "name")
    rows = [row for row in sky.document(*verbs) if isinstance(row, dict) and row.get(name) and row.get("status")]
    # The newest job comes first; an earlier one may have had the same name.
    return {str(row[name]): str(row["status"]) for row in reversed(rows)}


def _serve_status(sky: Sky) -> tuple[str, str]:
    """Two tables: NAME, VERSION, UPTIME, STATUS, … of services; SERVICE_NAME, ID, …, STATUS of replicas."""
    output = sky.ask("serve", "status")
    if output.code != 0 and not output.is_empty_list:
        raise ColdstreamError(f"sky serve failed: {output.last_line}", hint="try it: sky serve status")
    services, _, replicas = output.text.partition("Service Replicas")
    return services, replicas


def _rows_of(table: str) -> Iterator[tuple[list[str], str]]:
    """The words of each row that has a state, and that state; the first word is a name, which may look like one."""
    for words in map(str.split, table.splitlines()):
        if state := next(filter(_SERVE_STATES.fullmatch, words[1:]), None):
            yield words, state


def fetch_status(record: Launch, sky: Sky) -> LaunchStatus | None:
    """Queries SkyPilot and, for a node, the cloud, which takes seconds; None if SkyPilot does not answer."""
    name = record.name
    try:
        if record.kind == "service":
            services, replicas = map(_rows_of, _serve_status(sky))
            numbers = {int(row[1]): state for row, state in replicas if row[0] == name and row[1].isdecimal()}
            return LaunchStatus(state={row[0]: state for row, state in services}.get(name), replicas=numbers)
        if record.kind == "job":
            return LaunchStatus(state=fetch_known("job", sky).get(name))
    except ColdstreamError:
        return None
    machine = state = None
    # Without a query to the cloud, SkyPilot would report a preempted machine as up for minutes.
    with suppress(ColdstreamError):
        machine = fetch_known("node", sky, "--refresh", name).get(name, GONE)
    if machine != GONE:
        with suppress(ColdstreamError):
            queue = sky.document("queue", name)
            rows = [row for row in queue.get(name, []) if isinstance(row, dict)] if isinstance(queue, dict) else []
            newest = max(rows, key=lambda row: row.get("job_id") or 0, default={})
            # Before the first job there is none; SkyPilot may print "JobStatus.RUNNING".
            state = str(newest.get("status") or "").rpartition(".")[2] or None
    return LaunchStatus(machine=machine, state=state)


def fetch_states(records: Sequence[Launch], sky: Sky) -> dict[str, str]:
    """Name to state, in SkyPilot's words, `GONE` or `UNKNOWN`."""
    states: dict[str, str] = {}
    for kind in sorted({record.kind for record in records}):
        names = [record.name for record in records if record.kind == kind]
        try:
            known = fetch_known(kind, sky)
            states |= {name: known.get(name, GONE) for name in names}
        except ColdstreamError:
            states |= dict.fromkeys(names, UNKNOWN)
    return states


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
    """Whether a server there serves a model for this key. Raises ColdstreamError if it rejects the key."""
    import urllib3

    headers = {"Authorization": f"Bearer {api_key}"}
    more: dict[str, Any] = {"retries": False, "redirect": False, "preload_content": False, "timeout": _ANSWER_SECONDS}
    try:
        with urllib3.request("GET", f"{url}/v1/models", headers=headers, **more) as answer:
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
