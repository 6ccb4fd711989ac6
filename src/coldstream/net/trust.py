"""urllib3 as the modules that speak to other people's APIs use it: the Hub's and Cloudflare's."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

CONNECT_SECONDS = 15
# Between two reads, not for the whole answer.
READ_SECONDS = 60
# The windows of the Hub and of Cloudflare's API are five minutes.
_RATE_LIMIT_SECONDS_MAX = 300.0


def connections(count: int) -> Callable[[str], urllib3.PoolManager]:
    """From a URL to the connections for it: direct, or through the proxy that the environment names.

    Args:
        count: How many to one host are kept.
    """
    options: dict[str, Any] = {
        "maxsize": count,
        "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        "ssl_context": _tls(),
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


def rate_limit_seconds(headers: Mapping[str, str]) -> float | None:
    """How long to wait: `RateLimit: "api";r=0;t=55`, or `Retry-After: 55`; None when neither says."""
    match = re.search(r";\s*t=(\d+)", headers.get("RateLimit", "")) or re.fullmatch(
        r"\s*(\d+)\s*", headers.get("Retry-After", "")
    )
    return min(float(match[1]), _RATE_LIMIT_SECONDS_MAX) if match else None


def _tls() -> ssl.SSLContext:
    """The system's certificates or those that SSL_CERT_FILE names; certifi's where the system has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
