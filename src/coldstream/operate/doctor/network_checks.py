"""What is configured, and whether the endpoint answers, by a certificate that holds, at the same time of day."""

from __future__ import annotations

import os
import shlex
import stat
import time
from contextlib import suppress

from coldstream.cache.cache import cache_of
from coldstream.machine.child_environment import SECRETS
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, check_configuration, judged_clock
from coldstream.units import format_seconds, plural

_DAY_SECONDS = 86400
# Certificates are renewed weeks before they end; this one was not.
_DAYS_LEFT_MIN = 7
_NOT_USED = "not used: the store is a folder"


def configuration(case: Case) -> Check:
    """Whether a store, its endpoint and keys are set and make sense."""
    settings = case.given
    found = check_configuration(settings)
    failed = next((check for check in found if check.state == "fail"), None)
    if failed is not None:
        return Check(name="configuration", state="fail", found=failed.found, hint=failed.hint)
    _ = settings.retry_seconds, cache_of(settings)  # either may be malformed
    store = settings.store_uri()
    if case.uses_folder:
        return Check(name="configuration", state="ok", found=f"{store}, a folder")
    _ = case.store  # its client refuses what it cannot use, such as a profile that does not exist
    where = settings.endpoint() or "AWS S3 itself"
    keys = settings.origin("R2_ACCESS_KEY", "AWS_ACCESS_KEY_ID") or "the AWS chain (profile, SSO, role)"
    return Check(name="configuration", state="ok", found=f"{store} at {where}   keys: {keys}")


def secrets(case: Case) -> Check:
    """Whether the settings file that holds secrets can be read by its owner alone."""
    named = {case.given.origins[name] for name in case.given.values if name in SECRETS}
    files = sorted(named - {"flag", "environment"})
    for file in files:
        with suppress(OSError):
            mode = stat.S_IMODE(os.stat(file).st_mode)
            if mode & 0o077:
                return Check(
                    name="secrets",
                    state="warn",
                    found=f"others can read {file}, which holds secrets (mode {mode:04o})",
                    hint=f"run: chmod 600 {shlex.quote(file)}",
                )
    found = f"{', '.join(files)} is readable by its owner alone" if files else "in no file of ours"
    return Check(name="secrets", state="ok", found=found)


def endpoint(case: Case) -> Check:
    """Whether the S3 API answers at all."""
    if case.uses_folder:
        return Check(name="endpoint", state="ok", found=_NOT_USED)
    greeting = case.greeting
    by = f" through the proxy {greeting.proxy}" if greeting.proxy else ""
    return Check(
        name="endpoint", state="ok", found=f"{case.endpoint} answers in {format_seconds(greeting.seconds)}{by}"
    )


def tls(case: Case) -> Check:
    """Whether the endpoint's certificate holds, and for how long."""
    if case.uses_folder:
        return Check(name="tls", state="ok", found=_NOT_USED)
    if not case.endpoint.startswith("https:"):
        if case.is_local:
            return Check(name="tls", state="ok", found="not used: the endpoint is on this machine")
        return Check(
            name="tls",
            state="warn",
            found="not used: whoever is on the way reads and changes what is sent",
            hint="give R2_ENDPOINT as https://…, if the server can that",
        )
    greeting = case.greeting
    if greeting.tls_fault:
        return Check(
            name="tls",
            state="fail",
            found=f"{case.endpoint}: {greeting.tls_fault}",
            hint="check the endpoint's name, this machine's clock and its certificates (AWS_CA_BUNDLE names others)",
        )
    if greeting.expires is None:
        return Check(name="tls", state="ok", found=f"{greeting.protocol}, the certificate holds")
    days = int((greeting.expires - time.time()) // _DAY_SECONDS)
    found = f"{greeting.protocol}, the certificate holds for another {plural(days, 'day')}"
    if days < _DAYS_LEFT_MIN:
        return Check(name="tls", state="warn", found=found, hint="whoever runs the server has to renew it")
    return Check(name="tls", state="ok", found=found)


def clock(case: Case) -> Check:
    """How far this machine's clock is from the server's: signatures may be 15 minutes off."""
    if case.uses_folder:
        return Check(name="clock", state="ok", found=_NOT_USED)
    found = judged_clock(case.greeting.date)
    return found or Check(name="clock", state="ok", found="the server does not say what time it is")
