"""The domain in front of the bucket: does it give the bucket's bytes, and does it keep them?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import urllib3

from coldstream.doctor.case import Case
from coldstream.errors import ConfigError
from coldstream.https import connections
from coldstream.paths import MANIFEST_NAME
from coldstream.probe import Check
from coldstream.selection import is_weights
from coldstream.units import plural

# Cloudflare keeps no larger file, on any plan but Enterprise (docs cache/concepts/default-cache-behavior).
CACHED_BYTES_MAX = 512 * 10**6
_BODY_BYTES_MAX = 16 << 20
_SECONDS = 15.0
# A second read may meet another server of the same place.
_READS = 3
_KEPT = {"HIT", "REVALIDATED", "UPDATING", "STALE"}


def cdn(case: Case) -> Check:
    """Reads a small file of the model twice through the domain, and compares it with the bucket's."""
    domain = case.given.get("R2_CDN_DOMAIN")
    if domain is None:
        return Check(name="cdn", state="ok", found="not used: R2_CDN_DOMAIN is not set")
    base = _checked(domain)
    if reason := case.obstacle("bucket", "permissions", "model"):
        return Check(name="cdn", state="skipped", found=f"not looked at: {reason}")
    path = "config.json" if "config.json" in case.stored.listing else MANIFEST_NAME
    key = f"{case.name}/{path}"
    held, _ = case.store.get(key, bytes_max=_BODY_BYTES_MAX)
    # A store may be a prefix in the bucket; the domain is the whole bucket.
    inside = urlsplit(case.store.uri).path.strip("/")
    url = f"{base}/{quote(f'{inside}/{key}' if inside else key)}"
    try:
        return _judged(case, url, held)
    except urllib3.exceptions.HTTPError as exc:
        what = re.sub(r"^.*Caused by \w+\((.*)\)\)?$", r"\1", str(exc))[:160]
        return Check(
            name="cdn",
            state="fail",
            found=f"cannot reach {base}: {what}",
            hint="in Cloudflare's dashboard: R2, the bucket, Settings, Custom Domains; or unset R2_CDN_DOMAIN",
        )


def _judged(case: Case, url: str, held: bytes) -> Check:
    status, headers, body = _read(url)
    kind = headers.get("content-type", "").partition(";")[0]
    if status != 200:
        refused = "a rule of the domain refuses this machine" if status in {401, 403} else "is it this bucket's domain?"
        return Check(name="cdn", state="fail", found=f"{url} answers {status}", hint=refused)
    if body != held:
        what = "an HTML page" if "html" in kind else "other bytes than the bucket"
        return Check(
            name="cdn",
            state="fail",
            found=f"{url} gives {what}",
            hint="purge it in Cloudflare's cache, or check that R2_CDN_DOMAIN is this bucket's domain",
        )
    seen = [headers.get("cf-cache-status", "").upper()]
    while len(seen) < _READS and (len(seen) < 2 or seen[-1] == "MISS"):
        seen.append(_read(url)[1].get("cf-cache-status", "").upper())
    told = ", then ".join(status or "no cf-cache-status" for status in seen)
    if seen[-1] not in _KEPT:
        return Check(
            name="cdn",
            state="warn",
            found=f"{url} gives the bucket's bytes, and keeps none: {told}",
            hint="add a cache rule that makes all files of this domain eligible: these kinds are not by default",
        )
    large = [file for file in case.stored.files if is_weights(file.path) and file.size > CACHED_BYTES_MAX]
    if large:
        return Check(
            name="cdn",
            state="warn",
            found=f"keeps small files ({told}), but {plural(len(large), 'shard')} above 512 MB are never cached",
            hint="Free, Pro and Business keep files up to 512 MB, Enterprise more; load these from the bucket itself",
        )
    return Check(name="cdn", state="ok", found=f"{urlsplit(url).netloc} gives the bucket's bytes: {told}")


def _read(url: str) -> tuple[int, Mapping[str, str], bytes]:
    answer = connections(1)(url).request(
        "GET",
        url,
        timeout=urllib3.Timeout(connect=_SECONDS, read=_SECONDS),
        retries=False,
        preload_content=False,
        headers={"Accept-Encoding": "identity"},
    )
    try:
        body = answer.read(_BODY_BYTES_MAX + 1)
    finally:
        answer.release_conn()
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body


def _checked(domain: str) -> str:
    """The domain as a URL without a path.

    Raises:
        ConfigError: It is no domain.
    """
    url = domain if "://" in domain else f"https://{domain}"
    split = urlsplit(url)
    if split.scheme not in {"http", "https"} or not split.hostname or split.path.strip("/") or split.query:
        raise ConfigError(f"R2_CDN_DOMAIN is {domain!r}, which is no domain", hint="for example models.example.com")
    return f"{split.scheme}://{split.netloc}"
