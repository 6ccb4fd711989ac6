"""Spot interruptions: watches for the cloud's notice, then lets requests finish and the engine exit.

The firmware tells which cloud a machine is in, so that no request goes to an address that may belong to anyone. The
cloud's metadata service is polled every few seconds, in one short request each:

- AWS: `latest/meta-data/spot/instance-action` with a session token (IMDSv2); 404 until two minutes before.
  docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- GCP: `computeMetadata/v1/instance/preempted`, TRUE thirty seconds before.
  cloud.google.com/compute/docs/instances/spot
- Azure: `metadata/scheduledevents`, an event of the type Preempt at least thirty seconds before.
  learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldstream.node.bundle.warm_start import WarmStart
from coldstream.node.http_endpoint import EngineEndpoint
from coldstream.node.inference_engine import Say

if TYPE_CHECKING:
    from typing_extensions import Self

_VENDOR = Path("/sys/class/dmi/id/sys_vendor")
_CLOUDS = {"Amazon EC2": "aws", "Google": "gcp", "Microsoft Corporation": "azure"}
# The same address in all three.
_SERVICE = "http://169.254.169.254"
_POLL_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_ANSWER_BYTES_MAX = 1 << 20
# What the clouds promise, for a notice without a time.
_PROMISED_SECONDS = 30.0
_TOKEN_SECONDS = 21600
# Time for the engine to exit before the machine goes.
_LAST_SECONDS = 8.0
_DRAIN_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotNotice:
    """In `seconds` (0 or more), the cloud will "terminate", "stop", "hibernate" or "preempt" this machine."""

    cloud: str
    action: str
    seconds: float


def cloud_here(vendor: Path = _VENDOR) -> str | None:
    """The cloud that this machine is in; None when it is another one, or none."""
    with suppress(OSError):
        return _CLOUDS.get(vendor.read_text(errors="replace").strip())
    return None


class SpotWatcher:
    """Polls for a notice in a daemon thread, and calls `on_notice` with the first one. Context manager."""

    def __init__(
        self,
        cloud: str,
        on_notice: Callable[[SpotNotice], None],
        *,
        service: str = _SERVICE,
        seconds: float = _POLL_SECONDS,
    ) -> None:
        self._fetch_notice = {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[cloud]
        self._service = service
        self._on_notice, self._seconds = on_notice, seconds
        self._token: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coldstream-notice", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            notice = self._fetch_notice()
            if notice is not None:
                self._on_notice(notice)
                return

    def _aws(self) -> SpotNotice | None:
        if self._token is None:
            age = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            answer = self._request("PUT", "/latest/api/token", age)
            self._token = answer[1].decode("latin-1").strip() if answer and answer[0] == 200 else None
        token = {"X-aws-ec2-metadata-token": self._token} if self._token else {}
        answer = self._request("GET", "/latest/meta-data/spot/instance-action", token)
        if answer is None or answer[0] != 200:
            # Tokens expire.
            self._token = None if answer and answer[0] == 401 else self._token
            return None
        document = _document(answer[1])
        action = document.get("action")
        if not isinstance(action, str) or not action.isalpha() or len(action) > 20:
            action = "terminate"
        return SpotNotice(cloud="aws", action=action, seconds=_seconds_to(document.get("time")))

    def _gcp(self) -> SpotNotice | None:
        path = "/computeMetadata/v1/instance/preempted"
        answer = self._request("GET", path, {"Metadata-Flavor": "Google"})
        if answer is None or answer[0] != 200 or answer[1].strip().upper() != b"TRUE":
            return None
        return SpotNotice(cloud="gcp", action="preempt", seconds=_PROMISED_SECONDS)

    def _azure(self) -> SpotNotice | None:
        answer = self._request("GET", "/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        events = _document(answer[1]).get("Events") if answer and answer[0] == 200 else None
        for event in events if isinstance(events, list) else ():
            if isinstance(event, dict) and event.get("EventType") == "Preempt":
                return SpotNotice(cloud="azure", action="preempt", seconds=_seconds_to(event.get("NotBefore")))
        return None

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes] | None:
        # Imported here: the first question is some seconds away. Direct, as no proxy reaches a link-local address.
        import urllib3

        try:
            with urllib3.PoolManager(timeout=_ANSWER_SECONDS).request(
                method, self._service + path, headers=headers, retries=False, redirect=False, preload_content=False
            ) as answer:
                return answer.status, answer.read(_ANSWER_BYTES_MAX)
        except urllib3.exceptions.HTTPError:
            return None


def _document(data: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        document = json.loads(data)
        if isinstance(document, dict):
            return document
    return {}


def _seconds_to(value: object) -> float:
    """Until a time as AWS ("2026-11-24T10:20:01Z") or Azure ("Tue, 24 Nov 2026 10:20:01 GMT") writes it."""
    when: datetime | None = None
    if isinstance(value, str) and value:
        with suppress(ValueError):
            when = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if when is None:
            with suppress(ValueError, TypeError):
                when = parsedate_to_datetime(value)
    if when is None:
        return _PROMISED_SECONDS
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max(0.0, when.timestamp() - time.time())


def drain(
    notice: SpotNotice,
    endpoint: EngineEndpoint,
    warm: WarmStart | None,
    *,
    name: str,
    end: Callable[[], None],
    over: threading.Event,
    say: Say,
) -> None:
    """Uses the remaining time: the engine called `name` finishes its requests, and caches built since are published.

    Calls `end` to end the engine, unless `over` is set: it has exited.
    """
    until = time.monotonic() + max(0.0, notice.seconds - _LAST_SECONDS)
    when = f"in {notice.seconds:.0f} s" if notice.seconds else "now"
    say(
        f"warning: spot interruption by {notice.cloud} {when} ({notice.action}): {name} finishes its requests and exits"
    )
    if warm is not None:
        publishing = threading.Thread(target=warm.publish_more, kwargs={"over": over}, daemon=True)
        publishing.start()
    while endpoint.requests() and time.monotonic() < until:
        if over.wait(_DRAIN_POLL_SECONDS):
            return
    if warm is not None:
        publishing.join(max(0.0, until - time.monotonic()))
    end()
