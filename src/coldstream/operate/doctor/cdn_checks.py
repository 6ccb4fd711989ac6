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
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, fail, ok, skipped, warn
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
    domain = cdn_of(case.configured)
    if domain is None:
        return ok("not used: R2_CDN_DOMAIN is not set")
    if reason := case.obstacle("bucket", "permissions", "model"):
        return skipped(reason)
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
        return fail(
            f"cannot reach {domain.url}: {what}",
            hint="check Custom Domains in the bucket's settings at Cloudflare, or unset R2_CDN_DOMAIN",
        )


def _judged(case: Case, url: str, cdn_headers: Headers, held: bytes) -> Check:
    status, headers, body = _read(url, cdn_headers)
    kind = headers.get("content-type", "").partition(";")[0]
    if status != 200:
        hint = "check that R2_CDN_DOMAIN belongs to this bucket"
        if status in {401, 403}:
            hint = "a rule of the domain blocks this machine: set COLDSTREAM_CDN_HEADER, or change the rule"
        if status == 404 and headers.get("cf-cache-status", "").upper() in KEPT:
            hint = f"a 404 from before the upload is cached: run coldstream cdn purge {case.name}, or wait 3 minutes"
        return fail(f"{url} answers {status}", hint=hint)
    if body != held:
        what = "an HTML page" if "html" in kind else "other bytes than the bucket"
        return fail(
            f"{url} serves {what}",
            hint="purge it in Cloudflare's cache, or check that R2_CDN_DOMAIN belongs to this bucket",
        )
    seen = [headers.get("cf-cache-status", "").upper()]
    while len(seen) < _READS and (len(seen) < 2 or seen[-1] == "MISS"):
        seen.append(_read(url, cdn_headers)[1].get("cf-cache-status", "").upper())
    statuses = ", then ".join(status or "no cf-cache-status" for status in seen)
    if seen[-1] not in KEPT:
        return warn(
            f"{url} serves the bucket's bytes but does not cache them: {statuses}",
            hint="add a cache rule, run: coldstream cdn rule",
        )
    large = [
        file
        for file in case.stored.files
        if is_weights(file.path) and max((stored.size for stored in file.objects), default=0) > CACHED_BYTES_MAX
    ]
    if large:
        return warn(
            f"caches small files ({statuses}), but {plural(len(large), 'shard')} above 512 MB are never cached",
            hint="upload with --object-bytes-max 480MiB, or use the Enterprise plan, which caches larger objects",
        )
    return ok(f"{urlsplit(url).netloc} serves the bucket's bytes: {statuses}")


def _read(url: str, cdn_headers: Headers) -> tuple[int, Mapping[str, str], bytes]:
    answer = connections(1)(url).request(
        "GET",
        url,
        timeout=urllib3.Timeout(connect=_SECONDS, read=_SECONDS),
        retries=False,
        preload_content=False,
        redirect=False,
        headers={"Accept-Encoding": "identity", **dict(cdn_headers)},
    )
    try:
        body = answer.read(_BODY_BYTES_MAX + 1)
    finally:
        answer.release_conn()
    return answer.status, {name.lower(): value for name, value in answer.headers.items()}, body


CHECKS = (DoctorCheck(name="cdn", run=cdn),)
