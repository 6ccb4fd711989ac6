"""What happens when the cloud interrupts the machine: requests finish, caches are published, and the engine exits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from coldstream.node.bundle.warm_start import WarmStart
from coldstream.node.inference_engine import EngineEndpoint, Say
from coldstream.node.spot_notice import SpotNotice

# For the engine to exit before the machine goes.
_LAST_SECONDS = 8.0
_POLL_SECONDS = 0.5


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
    """Uses the remaining time.

    Args:
        notice: From the cloud.
        endpoint: Where the engine answers.
        warm: Its caches: what it has built since it answered is published.
        name: Of the engine, for people.
        end: Ends the engine.
        over: Set when it has exited.
        say: Writes a line for the user.
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
        if over.wait(_POLL_SECONDS):
            return
    if warm is not None:
        publishing.join(max(0.0, until - time.monotonic()))
    end()
