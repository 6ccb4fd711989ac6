"""nginx as a caching proxy in front of a bucket, with Cloudflare's rules as far as they are known.

Nothing is kept without a rule (`DYNAMIC`), nothing above the plan's limit (`BYPASS`); a 404 is kept for three minutes;
an object that was overwritten stays as it was until it is purged. A ranged miss fetches ranges of a MiB where
`origin_range_requests` is on, and the whole object where it is not. What Cloudflare does beside that (tiers, eviction,
a cache for each place) is not modelled.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.nginx import Nginx, nginx
from tests.servers.stores import S3Server

_HTTP = """
    proxy_cache_path FOLDER/cache keys_zone=cdn:8m levels=1 inactive=1h max_size=4g use_temp_path=off;
    log_format cdn '$status\\t$uri\\t$sent_http_cf_cache_status\\t$body_bytes_sent\\t$http_range';
    map "$upstream_http_content_length" $whole_too_large {{ default 0; "~^{above}$" 1; }}
    map "$upstream_http_content_range" $too_large {{ default $whole_too_large; "~/{above}$" 1; }}
    map "$too_large" $cf_cache_status {{ default $upstream_cache_status; 1 BYPASS; }}
"""
_KEPT = """
        access_log FOLDER/cdn.log cdn;
        open_file_cache off;
        location / {{
            {secret}
            {ranges}
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "{signature}";
            proxy_ignore_headers Set-Cookie Cache-Control Expires Vary X-Accel-Expires;
            proxy_hide_header Set-Cookie;
            proxy_cache cdn;
            proxy_no_cache $too_large;
            proxy_cache_valid 200 206 1h;
            proxy_cache_valid 404 3m;
            proxy_cache_lock on;
            proxy_force_ranges on;
            proxy_max_temp_file_size 0;
            add_header cf-cache-status $cf_cache_status always;
            proxy_pass {origin}$request_uri;
        }}
"""
_PASSED = """
        access_log FOLDER/cdn.log cdn;
        open_file_cache off;
        location / {{
            {secret}
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "{signature}";
            proxy_max_temp_file_size 0;
            add_header cf-cache-status DYNAMIC always;
            proxy_pass {origin}$request_uri;
        }}
"""
_RANGES = "slice 1m; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range;"
# moto wants one, and checks none.
_SIGNATURE = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_WHOLE = "proxy_cache_key $uri;"


@dataclass(frozen=True)
class Row:
    """A request that was answered."""

    status: int
    path: str
    cache: str
    bytes: int
    range: str


@dataclass(frozen=True)
class Cdn:
    """The proxy.

    Attributes:
        url: For R2_CDN_DOMAIN.
        server: nginx.
    """

    url: str
    server: Nginx

    def log(self) -> list[Row]:
        """What was answered, in order."""
        try:
            lines = (self.server.folder / "cdn.log").read_text().splitlines()
        except FileNotFoundError:
            return []
        rows = (line.split("\t") for line in lines)
        return [Row(int(status), path, cache, int(sent), asked) for status, path, cache, sent, asked in rows]

    def purge(self, paths: Sequence[str]) -> None:
        """Forgets these paths, which begin with a slash."""
        for file in (self.server.folder / "cache").rglob("*"):
            key = _key_of(file) if file.is_file() else ""
            if any(key == path or key.startswith(f"{path}bytes=") for path in paths):
                file.unlink()

    def stop(self) -> None:
        """Ends it at once, and cuts what is under way."""
        os.kill(self.server.pid, signal.SIGTERM)

    def stop_after(self, count: int) -> threading.Thread:
        """Ends it, from a thread, once it has answered so many requests more."""
        already = len(self.log())

        def wait() -> None:
            pause = threading.Event()
            for _ in range(6000):
                if len(self.log()) >= already + count:
                    self.stop()
                    return
                pause.wait(0.005)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@contextmanager
def cdn_proxy(
    upstream: S3Server,
    bucket: str,
    *,
    limit_bytes: int = 512_000_000,
    rule: bool = True,
    ranges: bool = True,
    secret: tuple[str, str] | None = None,
) -> Iterator[Cdn]:
    """A custom domain in front of a bucket, until the context ends. Skips the test where nginx is missing.

    Args:
        upstream: A server that checks no signature: moto's.
        bucket: The domain's root.
        limit_bytes: The largest object that is kept.
        rule: Whether a cache rule makes its objects eligible.
        ranges: Whether a ranged miss fetches ranges.
        secret: A header's name and value, without which a page says 403.
    """
    page = "return 403 '<html><body>Sorry, you have been blocked</body></html>';"
    name = secret[0].lower().replace("-", "_") if secret else ""
    guard = f'default_type text/html; if ($http_{name} != "{secret[1]}") {{ {page} }}' if secret else ""
    server = (_KEPT if rule else _PASSED).format(
        origin=f"{upstream.endpoint}/{bucket}",
        secret=guard,
        ranges=_RANGES if ranges else _WHOLE,
        signature=_SIGNATURE,
    )
    with nginx(Path("/nonexistent"), extra=server, http=_HTTP.format(above=_above(limit_bytes))) as running:
        yield Cdn(running.url, running)


def _above(limit: int) -> str:
    """A regular expression for the decimal numbers that are larger: nginx only compares strings."""
    digits = str(limit)
    larger = [rf"\d{{{len(digits) + 1},}}"]
    for at, digit in enumerate(digits):
        if digit < "9":
            rest = len(digits) - at - 1
            larger.append(rf"{digits[:at]}[{int(digit) + 1}-9]" + (rf"\d{{{rest}}}" if rest else ""))
    return f"(?:{'|'.join(larger)})"


def _key_of(path: Path) -> str:
    """What a file of nginx's cache is kept under."""
    with path.open("rb") as file:
        head = file.read(4096)
    _, mark, rest = head.partition(b"\nKEY: ")
    return rest.partition(b"\n")[0].decode("utf-8", "replace") if mark else ""
