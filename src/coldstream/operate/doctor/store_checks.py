"""Checks of the configuration, the endpoint, the bucket and the CDN in front of it."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import time
import uuid
from contextlib import suppress
from urllib.parse import urlsplit

from coldstream.cache.cache import cache_of
from coldstream.errors import CredentialsError, NotFoundError
from coldstream.machine.child_environment import SECRETS
from coldstream.model.names import MANIFEST_NAME
from coldstream.model.selection import is_weights
from coldstream.operate import probe
from coldstream.operate.cdn.edge_cache import KEPT, Edge, EdgeAnswer, key_prefix, limit_of
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import PROBE_FOLDER, Check, fail, judged_clock, ok, skipped, warn
from coldstream.places.cdn_domain import CdnDomain, cdn_of
from coldstream.units import format_seconds, plural

# Certificates are usually renewed weeks before they expire.
_DAYS_LEFT_MIN = 7
_NOT_USED = "not used: the store is a folder"
# Cloudflare caches no larger file, on any plan but Enterprise (docs cache/concepts/default-cache-behavior).
CACHED_BYTES_MAX = limit_of(None)
_BODY_BYTES_MAX = 16 << 20
_CDN_SECONDS = 15.0
# A second read may reach another server of the same data centre.
_CDN_READS = 3


def configuration(case: Case) -> Check:
    """Whether a store, its endpoint and keys are set and make sense."""
    settings = case.configured
    for check in probe.check_configuration(settings):
        if check.state == "fail":
            return fail(check.detail, check.hint)
    _ = settings.retry_seconds, cache_of(settings)  # either may be malformed
    store = settings.store_uri()
    if case.uses_folder:
        return ok(f"{store}, a folder")
    _ = case.store  # its client refuses what it cannot use, such as a profile that does not exist
    where = settings.endpoint() or "AWS S3 itself"
    keys = settings.origin("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID") or "the AWS chain (profile, SSO, role)"
    return ok(f"{store} at {where}   keys: {keys}")


def secrets(case: Case) -> Check:
    """Whether only the owner can read the settings file that holds secrets."""
    origins = {case.configured.origins[name] for name in case.configured.values if name in SECRETS}
    files = sorted(origins - {"flag", "environment"})
    for file in files:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(file).st_mode)
            if mode & 0o077:
                return warn(
                    f"{file} holds secrets and is readable by other users (mode {mode:04o})",
                    f"run: chmod 600 {shlex.quote(file)}",
                )
    return ok(f"{', '.join(files)} is readable only by its owner" if files else "not in a settings file")


def endpoint(case: Case) -> Check:
    """Whether the S3 API answers at all."""
    if case.uses_folder:
        return ok(_NOT_USED)
    answer = case.endpoint_probe
    by = f" through the proxy {answer.proxy}" if answer.proxy else ""
    return ok(f"{case.endpoint} answers in {format_seconds(answer.seconds)}{by}")


def tls(case: Case) -> Check:
    """Whether the endpoint's certificate is valid, and for how long."""
    if case.uses_folder:
        return ok(_NOT_USED)
    if not case.endpoint.startswith("https:"):
        if case.is_local:
            return ok("not used: the endpoint is on this machine")
        return warn(
            "not used: the traffic can be read and changed in transit",
            "set R2_ENDPOINT to an https:// URL if the server supports TLS",
        )
    answer = case.endpoint_probe
    if answer.tls_fault:
        return fail(
            f"{case.endpoint}: {answer.tls_fault}",
            "check the host name, this machine's clock and its CA certificates (AWS_CA_BUNDLE sets others)",
        )
    if answer.expires is None:
        return ok(f"{answer.protocol}, the certificate is valid")
    days = int((answer.expires - time.time()) // 86400)
    detail = f"{answer.protocol}, the certificate is valid for another {plural(days, 'day')}"
    return warn(detail, "renew the certificate of the server") if days < _DAYS_LEFT_MIN else ok(detail)


def clock(case: Case) -> Check:
    """How far this machine's clock is from the server's: signatures may be 15 minutes off."""
    if case.uses_folder:
        return ok(_NOT_USED)
    return judged_clock(case.endpoint_probe.date) or ok("the server sends no time")


def bucket(case: Case) -> Check:
    """Whether the bucket exists and these keys give access."""
    check = probe.check_bucket(case.store, create=False, location=None)
    if check.exit_code == CredentialsError.exit_code and case.name is not None:
        # Keys for one model may not ask about the bucket itself.
        next(iter(case.store.list(f"{case.name}/")), None)
        return ok(f"these keys only open {case.name}/")
    if check.exit_code == NotFoundError.exit_code and check.hint is None:
        return fail(check.detail, "create it: coldstream setup", exit_code=10)
    return check


def permissions(case: Case) -> Check:
    """What these keys may do. A serving node needs to list and to read, and is better off without more."""
    store, prefix = case.store, f"{case.name}/" if case.name else ""
    first = next((info for info in store.list(prefix) if info.size), None)
    if first is not None:
        store.read_into(first.key, 0, memoryview(bytearray(1)))
    else:
        with suppress(NotFoundError):
            store.head(f"{prefix}{uuid.uuid4().hex}")
    key = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    try:
        store.put(key, b"probe")
    except CredentialsError:
        case.writes = False
        return ok("list and get; these keys are read-only, as a serving node should have them; uploads need other keys")
    try:
        store.delete([key])
    except CredentialsError:
        return warn(
            f"list, get and put, but not delete: {key} was left behind",
            "use a token with Object Read & Write for uploads",
        )
    case.writes = True
    return ok("list, get, put, delete; a serving node only needs to read")


def round_trip(case: Case) -> Check:
    """Whether a probe object comes back, whole and by range, and appears in a listing."""
    return skipped("these keys are read-only") if case.writes is False else case.round_trip["round trip"]


def conditional_put(case: Case) -> Check:
    """Whether a write with a false condition is rejected, which keeps two uploads of a model apart."""
    check = case.round_trip["conditional put"]
    if check.state == "warn" and (case.uses_folder or case.is_local):
        # The danger is two machines that upload the same model.
        return ok(f"{check.detail}, and only this machine writes there")
    return check


def multipart(case: Case) -> Check:
    """Whether an interrupted upload can resume."""
    return case.round_trip["multipart"]


def cdn(case: Case) -> Check:
    """Reads a small file of the model twice through the domain, and compares it with the bucket's."""
    domain = cdn_of(case.configured)
    if domain is None:
        return ok("not used: R2_CDN_DOMAIN is not set")
    if reason := case.obstacle("bucket", "permissions", "model"):
        return skipped(reason)
    path = "config.json" if "config.json" in case.stored.listing else MANIFEST_NAME
    stored, _ = case.store.get(f"{case.name}/{path}", bytes_max=_BODY_BYTES_MAX)
    key = f"{key_prefix(case.store)}{case.name}/{path}"
    edge = Edge(domain, read_seconds=_CDN_SECONDS)
    answers = [edge.whole(key)]
    if (fault := _cdn_fault(case, domain, key, answers[0], stored)) is not None:
        return fault
    while len(answers) < _CDN_READS and (len(answers) < 2 or answers[-1].cache == "MISS"):
        answers.append(edge.whole(key))
    statuses = ", then ".join(answer.cache or "no cf-cache-status" for answer in answers)
    if answers[-1].cache not in KEPT:
        return warn(
            f"{domain.link(key)} serves the bucket's bytes but does not cache them: {statuses}",
            "add a cache rule, run: coldstream cdn rule",
        )
    large = sum(
        is_weights(file.path) and any(stored.size > CACHED_BYTES_MAX for stored in file.objects)
        for file in case.stored.files
    )
    if large:
        return warn(
            f"caches small files ({statuses}), but {plural(large, 'shard')} above 512 MB are never cached",
            "upload with --object-bytes-max 480MiB, or use the Enterprise plan, which caches larger objects",
        )
    return ok(f"{urlsplit(domain.url).netloc} serves the bucket's bytes: {statuses}")


def _cdn_fault(case: Case, domain: CdnDomain, key: str, answer: EdgeAnswer, stored: bytes) -> Check | None:
    url, belongs = domain.link(key), "check that R2_CDN_DOMAIN belongs to this bucket"
    if answer.status == 0:
        hint = "check Custom Domains in the bucket's settings at Cloudflare, or unset R2_CDN_DOMAIN"
        return fail(f"cannot reach {domain.url}: {answer.fault}", hint)
    if answer.status in {401, 403}:
        hint = "a rule of the domain blocks this machine: set COLDSTREAM_CDN_HEADER, or change the rule"
    elif answer.status == 404 and answer.cache in KEPT:
        hint = f"a 404 from before the upload is cached: run coldstream cdn purge {case.name}, or wait 3 minutes"
    else:
        hint = belongs
    if answer.status != 200:
        return fail(f"{url} answers {answer.status}", hint)
    if answer.sha256 != hashlib.sha256(stored).hexdigest():
        what = "an HTML page" if answer.is_page else "other bytes than the bucket"
        return fail(f"{url} serves {what}", f"purge it in Cloudflare's cache, or {belongs}")
    return None
