"""The cloud's word that it will take this spot machine back: AWS, GCP, Azure, by their metadata services.

Which cloud a machine is in is told by its firmware, so that nothing is asked of an address that may be anybody's. The
services are asked every few seconds, in one short request each:

- AWS: `latest/meta-data/spot/instance-action` with a session token (IMDSv2); 404 until two minutes before.
  docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- GCP: `computeMetadata/v1/instance/preempted`, TRUE thirty seconds before.
  cloud.google.com/compute/docs/instances/spot
- Azure: `metadata/scheduledevents`, an event of the type Preempt at least thirty seconds before.
  learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_VENDOR = Path("/sys/class/dmi/id/sys_vendor")
_CLOUDS = {"Amazon EC2": "aws", "Google": "gcp", "Microsoft Corporation": "azure"}
# The same address in all three.
_SERVICE = "http://169.254.169.254"
_POLL_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_ANSWER_BYTES_MAX = 1 << 20
# Where the cloud names no time, as long as it promises.
_PROMISED_SECONDS = 30.0
_TOKEN_SECONDS = 21600


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotNotice:
    """The machine will be taken.

    Attributes:
        cloud: By whom.
        action: What happens to it: "terminate", "stop", "hibernate", "preempt".
        seconds: Until then, at least 0.
    """

    cloud: str
    action: str
    seconds: float


def cloud_here(vendor: Path = _VENDOR) -> str | None:
    """The cloud that this machine is in; None when it is in none whose notices are known."""
    with suppress(OSError):
        return _CLOUDS.get(vendor.read_text(errors="replace").strip())
    return None


class SpotWatcher:
    """Asks for a notice until there is one. Its thread is a daemon; `stop` ends it."""

    def __init__(
        self,
        cloud: str,
        on_notice: Callable[[SpotNotice], None],
        *,
        service: str = _SERVICE,
        seconds: float = _POLL_SECONDS,
    ) -> None:
        """Prepares.

        Args:
            cloud: As `cloud_here` names it.
            on_notice: Told once, from the thread.
            service: Where its metadata service is.
            seconds: Between two questions.
        """
        self._ask = {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[cloud]
        self._service = service
        self._on_notice, self._seconds = on_notice, seconds
        self._token: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coldstream-notice", daemon=True)

    def start(self) -> None:
        """Begins; once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it, soon. Idempotent."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            notice = self._ask()
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
            # Tokens end.
            self._token = None if answer and answer[0] == 401 else self._token
            return None
        document = _document(answer[1])
        return SpotNotice(
            cloud="aws", action=_word(document.get("action"), "terminate"), seconds=_seconds_to(document.get("time"))
        )

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
        parts = urlsplit(self._service)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def _document(data: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        document = json.loads(data)
        if isinstance(document, dict):
            return document
    return {}


def _word(value: object, otherwise: str) -> str:
    return value if isinstance(value, str) and value.isalpha() and len(value) < 20 else otherwise


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
