"""Whether the bucket is there, what these keys may do in it, and whether what is written comes back."""

from __future__ import annotations

import uuid
from contextlib import suppress

from coldstream.errors import CredentialsError, NotFoundError
from coldstream.operate.doctor.case import NETWORK, Case, DoctorCheck
from coldstream.operate.probe import Check, check_bucket, fail, ok, skipped, warn

_PROBE_FOLDER = ".coldstream-probe"


def bucket(case: Case) -> Check:
    """Whether the bucket is there and these keys get in."""
    check = check_bucket(case.store, create=False, location=None)
    if check.exit_code == CredentialsError.exit_code and case.name is not None:
        # Keys for one model may not ask about the bucket itself.
        next(iter(case.store.list(f"{case.name}/")), None)
        return ok(f"these keys only open {case.name}/")
    if check.exit_code == NotFoundError.exit_code and check.hint is None:
        return fail(check.detail, hint="create it: coldstream setup", exit_code=10)
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
    key = f"{_PROBE_FOLDER}/{uuid.uuid4().hex}"
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
            hint="use a token with Object Read & Write for uploads",
        )
    case.writes = True
    return ok("list, get, put, delete; a serving node only needs to read")


def round_trip(case: Case) -> Check:
    """Whether a probe object comes back, whole and by range, and stands in a listing."""
    if case.writes is False:
        return skipped("these keys are read-only")
    return case.round_trip["round trip"]


def conditional_put(case: Case) -> Check:
    """Whether a write on a condition that does not hold is refused: what keeps two uploads of a model apart."""
    check = case.round_trip["conditional put"]
    if check.state == "warn" and (case.uses_folder or case.is_local):
        # The danger is two machines that upload the same model.
        return ok(f"{check.detail}, and only this machine writes there")
    return check


def multipart(case: Case) -> Check:
    """Whether an upload that was broken off can go on where it stopped."""
    return case.round_trip["multipart"]


CHECKS = (
    DoctorCheck(name="bucket", run=bucket, needs=NETWORK),
    DoctorCheck(name="permissions", run=permissions, needs=(*NETWORK, "bucket")),
    DoctorCheck(name="round trip", run=round_trip, needs=(*NETWORK, "bucket", "permissions")),
    DoctorCheck(name="conditional put", run=conditional_put, needs=(*NETWORK, "bucket", "permissions", "round trip")),
    DoctorCheck(name="multipart", run=multipart, needs=(*NETWORK, "bucket", "permissions", "round trip")),
)
