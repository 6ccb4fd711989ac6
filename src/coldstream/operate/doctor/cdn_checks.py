"""The domain in front of the bucket: does it give the bucket's bytes, and does it keep them?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3

from coldstream.model.job import Headers
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import is_weights
from coldstream.net.trust import connections
from coldstream.operate.cdn.cache_check import KEPT
from coldstream.operate.cdn.plan_limits import limit_of
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check
from coldstream.places.cdn_domain import cdn_of
from coldstream.units import plural

# Cloudflare keeps no larger file, on any plan but Enterprise (docs cache/concepts/default-cache-behavior).
CACHED_BYTES_MAX = limit_of(None)
_BODY_BYTES_MAX = 16 << 20
_SECONDS = 15.0
# A second read may meet another server of the same place.
_READS = 3


def cdn(case: Case) -> Check:
    """Reads a small file of the model twice through the domain, and compares it with the bucket's."""
    domain = cdn_of(case.given)
    if domain is None:
        return Check(name="cdn", state="ok", found="not used: R2_CDN_DOMAIN is not set")
    if reason := case.obstacle("bucket", "permissions", "model"):
        return Check(name="cdn", state="skipped", found=f"not looked at: {reason}")
    path = "config.json" if "config.json" in case.stored.listing else MANIFEST_NAME
    key = f"{case.name}/{path}"
    held, _ = case.store.get(key, bytes_max=_BODY_BYTES_MAX)
    # A store may be a prefix in the bucket; the domain is the whole bucket.
    inside = urlsplit(case.store.uri).path.strip("/")
    url = domain.link(f"{inside}/{key}" if inside else key)
    try:
        return _judged(case, url, domain.headers, held)
    except urllib3.exceptions.HTTPError as exc:
        what = re.sub(r"^.*Caused by \w+\((.*)\)\)?$", r"\1", str(exc))[:160]
        return Check(
            name="cdn",
            state="fail",
            found=f"cannot reach {domain.url}: {what}",
            hint="in Cloudflare's dashboard: R2, the bucket, Settings, Custom Domains; or unset R2_CDN_DOMAIN",
        )


def _judged(case: Case, url: str, asked: Headers, held: bytes) -> Check:
    status, headers, body = _read(url, asked)
    kind = headers.get("content-type", "").partition(";")[0]
    if status != 200:
        refused = "a rule of the domain refuses this machine" if status in {401, 403} else "is it this bucket's domain?"
        if status == 404 and headers.get("cf-cache-status", "").upper() in KEPT:
            refused = f"it keeps a 404 from before the upload: coldstream cdn purge {case.name}, or wait 3 minutes"
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
        seen.append(_read(url, asked)[1].get("cf-cache-status", "").upper())
    told = ", then ".join(status or "no cf-cache-status" for status in seen)
    if seen[-1] not in KEPT:
        return Check(
            name="cdn",
            state="warn",
            found=f"{url} gives the bucket's bytes, and keeps none: {told}",
            hint="these kinds of files need a cache rule: coldstream cdn rule",
        )
    large = [
        file
        for file in case.stored.files
        if is_weights(file.path) and max((stored.size for stored in file.objects), default=0) > CACHED_BYTES_MAX
    ]
    if large:
        return Check(
            name="cdn",
            state="warn",
            found=f"keeps small files ({told}), but {plural(len(large), 'shard')} above 512 MB are never cached",
            hint="coldstream upload … --object-bytes-max 480MiB; or a plan that keeps more: Enterprise",
        )
    return Check(name="cdn", state="ok", found=f"{urlsplit(url).netloc} gives the bucket's bytes: {told}")


def _read(url: str, asked: Headers) -> tuple[int, Mapping[str, str], bytes]:
    answer = connections(1)(url).request(
        "GET",
        url,
        timeout=urllib3.Timeout(connect=_SECONDS, read=_SECONDS),
        retries=False,
        preload_content=False,
        redirect=False,
        headers={"Accept-Encoding": "identity", **dict(asked)},
    )
    try:
        body = answer.read(_BODY_BYTES_MAX + 1)
    finally:
        answer.release_conn()
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body
