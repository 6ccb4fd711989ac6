"""One request to an endpoint without credentials: whether it answers, its certificate and its clock."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from coldstream.errors import UnavailableError
from coldstream.net.tls import ssl_context

_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointProbe:
    """The answer of an endpoint.

    Attributes:
        seconds: Until the answer, including the connection.
        date: The header `Date`; None if there was none.
        protocol: "TLSv1.3"; None without TLS.
        expires: When the certificate expires, in Unix time; None without TLS.
        tls_fault: Why TLS failed, such as an untrusted certificate; None if it did not.
        proxy: Host and port of the proxy that was used, or None.
    """

    seconds: float
    date: str | None = None
    protocol: str | None = None
    expires: float | None = None
    tls_fault: str | None = None
    proxy: str | None = None


def probe_endpoint(url: str, *, ca_bundle: str | None = None) -> EndpointProbe:
    """Requests `/`; any status counts as an answer.

    Args:
        url: The URL of the endpoint, validated.
        ca_bundle: File of trusted certificates, in place of the environment's AWS_CA_BUNDLE.

    Raises:
        UnavailableError: The endpoint does not answer.
        ConfigError: A variable names a file of certificates that does not exist.
    """
    split = urlsplit(url)
    proxy = _proxy(split)
    connection = _connection(split, proxy, ca_bundle)
    through = f"{proxy.hostname}:{proxy.port}" if proxy else None
    began = time.monotonic()
    with closing(connection):
        try:
            connection.connect()
            sock = connection.sock
            protocol, expires = None, None
            if isinstance(sock, ssl.SSLSocket):
                protocol = sock.version()
                ends = (sock.getpeercert() or {}).get("notAfter")
                expires = ssl.cert_time_to_seconds(ends) if isinstance(ends, str) else None
            target = f"{split.scheme}://{split.netloc}/" if proxy and split.scheme == "http" else "/"
            connection.request("GET", target, headers={"Host": split.netloc, **_authorization(proxy)})
            answer = connection.getresponse()
        except ssl.SSLError as exc:
            fault = getattr(exc, "verify_message", "") or exc.reason or str(exc)
            return EndpointProbe(seconds=time.monotonic() - began, tls_fault=fault, proxy=through)
        except (OSError, http.client.HTTPException) as exc:
            what = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            by = f" through the proxy {through}" if through else ""
            raise UnavailableError(
                f"cannot reach {url}{by}: {what}", hint="check R2_ENDPOINT and the network", retryable=False
            ) from exc
        return EndpointProbe(
            seconds=time.monotonic() - began,
            date=answer.headers.get("Date"),
            protocol=protocol,
            expires=expires,
            proxy=through,
        )


def _connection(split: SplitResult, proxy: SplitResult | None, ca_bundle: str | None) -> http.client.HTTPConnection:
    host, port = split.hostname or "", split.port or (443 if split.scheme == "https" else 80)
    near, near_port = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
    if split.scheme == "http":
        return http.client.HTTPConnection(near, near_port, timeout=_SECONDS)
    connection = http.client.HTTPSConnection(
        near, near_port, timeout=_SECONDS, context=ssl_context(ca_bundle=ca_bundle)
    )
    if proxy:
        connection.set_tunnel(host, port, headers=_authorization(proxy))
    return connection


def _proxy(split: SplitResult) -> SplitResult | None:
    address = None if proxy_bypass(split.netloc) else getproxies().get(split.scheme)
    if not address:
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def _authorization(proxy: SplitResult | None) -> dict[str, str]:
    if proxy is None or proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
