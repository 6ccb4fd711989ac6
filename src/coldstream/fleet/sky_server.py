"""SkyPilot's own server: each of its commands starts one when none runs, and none ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from coldstream.errors import ColdstreamError
from coldstream.fleet.sky import Sky

# SkyPilot: sky/server/common.py.
_PORT = "SKYPILOT_API_SERVER_LOCAL_PORT"
_DEFAULT_PORT = 46580
_CONNECT_SECONDS = 2.0
_SERVERS_USER = "skypilot-system"


@contextmanager
def passing_server(sky: Sky) -> Iterator[Callable[[], None]]:
    """Ends SkyPilot's server on this machine at the end, if one was started within the block and has no other user.

    Yields:
        What lets it stay after all. A server on another machine is never touched.
    """
    stays = _is_running(sky)

    def keep() -> None:
        nonlocal stays
        stays = True

    try:
        yield keep
    finally:
        if not stays and _is_running(sky):
            with suppress(ColdstreamError, OSError):
                _stop(sky)


def _stop(sky: Sky) -> None:
    # Ours have ended: requests that have not are another user's, or the server's own, which never end.
    if all(row.get("user_id") == _SERVERS_USER for row in sky.document("api", "status")):
        sky.ask("api", "stop")


def _is_running(sky: Sky) -> bool:
    try:
        port = int(sky.environment.get(_PORT) or _DEFAULT_PORT)
        with socket.create_connection(("127.0.0.1", port), timeout=_CONNECT_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False
