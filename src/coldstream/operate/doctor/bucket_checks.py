"""Whether the bucket is there, what these keys may do in it, and whether what is written comes back."""

from __future__ import annotations

import uuid
from contextlib import suppress

from coldstream.errors import CredentialsError, NotFoundError
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, check_bucket

_PROBE_FOLDER = ".coldstream-probe"


def bucket(case: Case) -> Check:
    """Whether the bucket is there and these keys get in."""
    found = check_bucket(case.store, create=False, location=None)
    if found.exit_code == CredentialsError.exit_code and case.name is not None:
        # Keys for one model alone are refused everything about the bucket.
        next(iter(case.store.list(f"{case.name}/")), None)
        return Check(name="bucket", state="ok", found=f"these keys open {case.name}/ alone")
    if found.exit_code == NotFoundError.exit_code and found.hint is None:
        return Check(name="bucket", state="fail", found=found.found, hint="create it: coldstream setup", exit_code=10)
    return found


def permissions(case: Case) -> Check:
    """What these keys may do. A serving node needs to list and to read, and is better off without more."""
    store, prefix = case.store, f"{case.name}/" if case.name else ""
    first = next((info for info in store.list(prefix) if info.size), None)
    if first is not None:
        store.read_into(first.key, 0, memoryview(bytearray(1)))
    else:
        with suppress(NotFoundError):
            store.head(f"{prefix}{uuid.uuid4().hex}")
    key = f"{_PROBE_FOLDER}/{uuid.uuid4().hex}"
    try:
        store.put(key, b"probe")
    except CredentialsError:
        case.writes = False
        return Check(
            name="permissions",
            state="ok",
            found="list and get: these keys can only read: right for a serving node; an upload needs others",
        )
    try:
        store.delete([key])
    except CredentialsError:
        return Check(
            name="permissions",
            state="warn",
            found=f"list, get and put, but not delete: {key} stays behind",
            hint="a token with Object Read & Write can do all that an upload needs",
        )
    case.writes = True
    return Check(name="permissions", state="ok", found="list, get, put, delete; a serving node needs to read alone")


def round_trip(case: Case) -> Check:
    """Whether a probe object comes back, whole and by range, and stands in a listing."""
    if case.writes is False:
        return Check(name="round trip", state="skipped", found="not looked at: these keys can only read")
    return case.round_trip["round trip"]


def conditional_put(case: Case) -> Check:
    """Whether a write on a condition that does not hold is refused: what keeps two uploads of a model apart."""
    found = case.round_trip["conditional put"]
    if found.state == "warn" and (case.uses_folder or case.is_local):
        # The danger is two machines that upload the same model.
        return Check(name=found.name, state="ok", found=f"{found.found}, which this machine has for itself")
    return found


def multipart(case: Case) -> Check:
    """Whether an upload that was broken off can go on where it stopped."""
    return case.round_trip["multipart"]
