"""What is configured, and whether the endpoint answers, by a certificate that holds, at the same time of day."""

from __future__ import annotations

import os
import shlex
import stat
import time
from contextlib import suppress

from coldstream.cache.cache import cache_of
from coldstream.machine.child_environment import SECRETS
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, check_configuration, fail, judged_clock, ok, warn
from coldstream.units import format_seconds, plural

_DAY_SECONDS = 86400
# Certificates are renewed weeks before they end; this one was not.
_DAYS_LEFT_MIN = 7
_NOT_USED = "not used: the store is a folder"


def configuration(case: Case) -> Check:
    """Whether a store, its endpoint and keys are set and make sense."""
    settings = case.configured
    failed = next((check for check in check_configuration(settings) if check.state == "fail"), None)
    if failed is not None:
        return fail(failed.detail, hint=failed.hint)
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
    named = {case.configured.origins[name] for name in case.configured.values if name in SECRETS}
    files = sorted(named - {"flag", "environment"})
    for file in files:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(file).st_mode)
            if mode & 0o077:
                return warn(
                    f"{file} holds secrets and is readable by other users (mode {mode:04o})",
                    hint=f"run: chmod 600 {shlex.quote(file)}",
                )
    detail = f"{', '.join(files)} is readable only by its owner" if files else "not in a settings file"
    return ok(detail)


def endpoint(case: Case) -> Check:
    """Whether the S3 API answers at all."""
    if case.uses_folder:
        return ok(_NOT_USED)
    probe = case.endpoint_probe
    by = f" through the proxy {probe.proxy}" if probe.proxy else ""
    return ok(f"{case.endpoint} answers in {format_seconds(probe.seconds)}{by}")


def tls(case: Case) -> Check:
    """Whether the endpoint's certificate holds, and for how long."""
    if case.uses_folder:
        return ok(_NOT_USED)
    if not case.endpoint.startswith("https:"):
        if case.is_local:
            return ok("not used: the endpoint is on this machine")
        return warn(
            "not used: the traffic can be read and changed in transit",
            hint="set R2_ENDPOINT to an https:// URL if the server supports TLS",
        )
    probe = case.endpoint_probe
    if probe.tls_fault:
        return fail(
            f"{case.endpoint}: {probe.tls_fault}",
            hint="check the host name, this machine's clock and its CA certificates (AWS_CA_BUNDLE sets others)",
        )
    if probe.expires is None:
        return ok(f"{probe.protocol}, the certificate is valid")
    days = int((probe.expires - time.time()) // _DAY_SECONDS)
    detail = f"{probe.protocol}, the certificate is valid for another {plural(days, 'day')}"
    if days < _DAYS_LEFT_MIN:
        return warn(detail, hint="renew the certificate of the server")
    return ok(detail)


def clock(case: Case) -> Check:
    """How far this machine's clock is from the server's: signatures may be 15 minutes off."""
    if case.uses_folder:
        return ok(_NOT_USED)
    return judged_clock(case.endpoint_probe.date) or ok("the server sends no time")


CHECKS = (
    DoctorCheck(name="configuration", run=configuration),
    DoctorCheck(name="secrets", run=secrets),
    DoctorCheck(name="endpoint", run=endpoint, needs=("configuration",)),
    DoctorCheck(name="tls", run=tls, needs=("configuration", "endpoint")),
    DoctorCheck(name="clock", run=clock, needs=("configuration", "endpoint", "tls")),
)
