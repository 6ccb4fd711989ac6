"""What is done when the cloud takes the machine back: requests end, caches are published, vLLM ends."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from coldstream.engines.vllm.endpoint import Endpoint
from coldstream.node.bundle.warm_start import WarmStart
from coldstream.node.spot_notice import SpotNotice

# For vLLM's own end, before the machine goes.
_LAST_SECONDS = 8.0
_POLL_SECONDS = 0.5
_REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


def drain(
    notice: SpotNotice,
    endpoint: Endpoint,
    warm: WarmStart | None,
    *,
    end: Callable[[], None],
    over: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Uses the time that is left.

    Args:
        notice: Of the cloud.
        endpoint: Where vLLM answers.
        warm: Its caches: what it has built since it answered is published, if it may be.
        end: Ends vLLM.
        over: Set when it has ended.
        say: Told what happens.
    """
    until = time.monotonic() + max(0.0, notice.seconds - _LAST_SECONDS)
    when = f"in {notice.seconds:.0f} s" if notice.seconds else "now"
    say(f"warning: {notice.cloud} takes this machine back {when} ({notice.action}): vLLM ends when its requests have")
    if warm is not None:
        publishing = threading.Thread(target=warm.publish_more, kwargs={"over": over}, daemon=True)
        publishing.start()
    while requests(endpoint.metrics()) and time.monotonic() < until:
        if over.wait(_POLL_SECONDS):
            return
    if warm is not None:
        publishing.join(max(0.0, until - time.monotonic()))
    end()


def requests(metrics: str) -> int:
    """How many requests vLLM has, by its metrics; 0 when they do not tell. Pure."""
    return round(sum(float(count) for count in _REQUESTS.findall(metrics)))
