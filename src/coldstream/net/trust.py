"""Connections by urllib3, with the environment's proxies and certificates: to the Hub, the CDN and Cloudflare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from coldstream.net.tls import ssl_context

CONNECT_SECONDS = 15
# Between two reads, not for the whole answer.
READ_SECONDS = 60


def connections(count: int) -> Callable[[str], urllib3.PoolManager]:
    """From a URL to the connections for it: direct, or through the proxy that the environment names.

    Args:
        count: How many to one host are kept.
    """
    options: dict[str, Any] = {
        "maxsize": count,
        "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        "ssl_context": ssl_context(),
    }
    direct = urllib3.PoolManager(**options)
    proxied = {
        scheme: urllib3.ProxyManager(address if "://" in address else f"http://{address}", **options)
        for scheme, address in getproxies().items()
        if scheme in {"http", "https"}
    }

    def choose(url: str) -> urllib3.PoolManager:
        split = urlsplit(url)
        return direct if proxy_bypass(split.netloc) else proxied.get(split.scheme, direct)

    return choose
