"""Connections by urllib3, with the environment's proxies and certificates: to the Hub, the CDN and Cloudflare."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

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


def _tls() -> ssl.SSLContext:
    """The system's certificates or those that SSL_CERT_FILE names; certifi's where the system has none."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not ssl.get_default_verify_paths().capath:
        import certifi

        context.load_verify_locations(certifi.where())
    return context
