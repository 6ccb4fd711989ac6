"""A capped link: two network namespaces, joined by a pair of virtual cards with a token bucket on the server's.

The machine's own network is not touched: server sockets are made in the one namespace, clients run in the other, and
the cards vanish with them. Needs root and iproute2. Namespaces carry our process id in their name; those whose process
is gone (killed before it could clean up) are removed at the next use.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_PREFIX = "coldbench-"
# What a full-sized Ethernet frame carries of TCP's payload, with timestamps: 1448 of 1514 bytes that the bucket counts.
PAYLOAD_SHARE = 1448 / 1514
# Of the range for benchmarks (RFC 2544), in namespaces that nothing else sees.
_SERVER, _CLIENT = "198.18.0.1", "198.18.0.2"
_CLONE_NEWNET = 0x40000000


class LinkUnavailable(Exception):  # noqa: N818  # reads as what happened
    """Namespaces or the token bucket cannot be had here; the text says why."""


@dataclass(frozen=True)
class Link:
    """A capped link.

    Attributes:
        host: The server's address.
        enter: The command that starts a client in its namespace.
        bits_per_second: The cap.
        namespace: The server's namespace.
    """

    host: str
    enter: Sequence[str]
    bits_per_second: float
    namespace: str

    @property
    def payload_bytes_per_second(self) -> float:
        """What the cap allows: the payload of full frames."""
        return self.bits_per_second / 8 * PAYLOAD_SHARE

    @contextmanager
    def server_side(self) -> Iterator[None]:
        """Lets the calling thread make sockets, and start programs, in the server's namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.namespace}") as there:
            if libc.setns(there.fileno(), _CLONE_NEWNET):
                raise LinkUnavailable(f"setns: {os.strerror(ctypes.get_errno())}")
            try:
                yield
            finally:
                libc.setns(home.fileno(), _CLONE_NEWNET)


@contextmanager
def capped_link(bits_per_second: float) -> Iterator[Link]:
    """Makes the namespaces and removes them.

    Raises:
        LinkUnavailable: No root, no iproute2, or the kernel has no veth or no tbf.
    """
    if os.geteuid():
        raise LinkUnavailable("network namespaces need root")
    _remove_stale()
    server, client = (f"{_PREFIX}{os.getpid()}-{side}" for side in ("server", "client"))
    rate = f"{bits_per_second / 1e6:.0f}mbit"
    try:
        for name in (server, client):
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
        for name, address in ((server, _SERVER), (client, _CLIENT)):
            _run("ip", "-n", name, "addr", "add", f"{address}/30", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
        # The bucket holds 2 ms and at least two of the largest segments that the cards pass on; the queue 50 ms.
        burst = f"{max(int(bits_per_second / 8 * 0.002), 128 << 10)}b"
        bucket = ["tbf", "rate", rate, "burst", burst, "latency", "50ms"]
        _run("tc", "-n", server, "qdisc", "add", "dev", "eth0", "root", *bucket)
        yield Link(_SERVER, ("ip", "netns", "exec", client), bits_per_second, server)
    finally:
        for name in (server, client):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _remove_stale() -> None:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for name, pid in re.findall(rf"^({_PREFIX}(\d+)-\w+)", done.stdout, re.MULTILINE):
        if not os.path.exists(f"/proc/{pid}"):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as exc:
        raise LinkUnavailable(f"{command[0]} is not installed (apt-get install iproute2)") from exc
    except subprocess.CalledProcessError as exc:
        raise LinkUnavailable(f"{' '.join(command)}: {exc.stderr.strip()}") from exc
