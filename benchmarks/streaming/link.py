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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "coldbench-"
# What a full-sized Ethernet frame carries of TCP's payload, with timestamps: 1448 of 1514 bytes that the bucket counts.
PAYLOAD_SHARE = 1448 / 1514
# Of the range for benchmarks (RFC 2544), in namespaces that nothing else sees.
_SERVER, _CLIENT = "198.18.0.1", "198.18.0.2"
_CLONE_NEWNET = 0x40000000
_METER_SECONDS = 0.01
_WINDOW = 5  # samples of the meter that a rate is taken over
_REQUEST_BYTES = 100  # above a connection's first packets


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


Sample = tuple[float, int, int]  # seconds, and bytes that the server's card has received and sent so far


@contextmanager
def metered(link: Link) -> Iterator[list[Sample]]:
    """What goes over the link, every few milliseconds."""
    samples: list[Sample] = []
    ended = threading.Event()

    def look() -> None:
        with link.server_side():
            while not ended.wait(_METER_SECONDS):
                text = Path("/proc/thread-self/net/dev").read_text().partition("eth0:")[2].split()
                samples.append((time.monotonic(), int(text[0]), int(text[8])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def rise_seconds(samples: Sequence[Sample]) -> float | None:
    """From the first request until nine tenths of the rate in the middle; None for a load that is too short."""
    begun = [sample for sample in samples if sample[1] > samples[0][1] + _REQUEST_BYTES]
    if not begun or begun[-1][2] == begun[0][2]:
        return None
    sent = [sample for sample in begun if sample[2] < begun[-1][2]]
    middle = sent[len(sent) * 2 // 5 : len(sent) * 4 // 5]
    if len(middle) < 2 * _WINDOW:
        return None
    usual = (middle[-1][2] - middle[0][2]) / (middle[-1][0] - middle[0][0])
    for first, last in zip(begun, begun[_WINDOW:], strict=False):
        if last[2] - first[2] >= 0.9 * usual * (last[0] - first[0]):
            return last[0] - begun[0][0]
    return None


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
