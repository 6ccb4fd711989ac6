"""All checks of `coldstream doctor`, and the checks that each depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.operate.doctor import node_checks, store_checks
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, fail, failed, skipped


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """A check, by its stable name in `--only`, `--skip` and the JSON, and the checks that must not fail before it."""

    name: str
    run: Callable[[Case], Check]
    needs: tuple[str, ...] = ()
    slow: bool = False


_NETWORK = ("configuration", "endpoint", "tls", "clock")
_WRITTEN = (*_NETWORK, "bucket", "permissions", "round trip")

# In the order in which they run, the slow ones last.
CHECKLIST = (
    DoctorCheck("configuration", store_checks.configuration),
    DoctorCheck("secrets", store_checks.secrets),
    DoctorCheck("endpoint", store_checks.endpoint, ("configuration",)),
    DoctorCheck("tls", store_checks.tls, ("configuration", "endpoint")),
    DoctorCheck("clock", store_checks.clock, ("configuration", "endpoint", "tls")),
    DoctorCheck("bucket", store_checks.bucket, _NETWORK),
    DoctorCheck("permissions", store_checks.permissions, (*_NETWORK, "bucket")),
    DoctorCheck("round trip", store_checks.round_trip, (*_NETWORK, "bucket", "permissions")),
    DoctorCheck("conditional put", store_checks.conditional_put, _WRITTEN),
    DoctorCheck("multipart", store_checks.multipart, _WRITTEN),
    DoctorCheck("model", store_checks.model, (*_NETWORK, "bucket", "permissions")),
    DoctorCheck("adapter", store_checks.adapter, ("model",)),
    DoctorCheck("bundle key", store_checks.bundle_key),
    DoctorCheck("bundles", store_checks.bundles, ("bundle key", "model")),
    DoctorCheck("cdn", store_checks.cdn),
    DoctorCheck("tls library", node_checks.tls_library, ("configuration",)),
    DoctorCheck("hf-xet", node_checks.hf_xet),
    DoctorCheck("vllm", node_checks.vllm),
    DoctorCheck("plugin", node_checks.plugin, ("vllm",)),
    DoctorCheck("runai", node_checks.runai, ("vllm",)),
    DoctorCheck("skypilot", node_checks.skypilot, ("configuration",)),
    DoctorCheck("cache folder", node_checks.cache_folder, ("configuration",)),
    DoctorCheck("disk", node_checks.disk, ("configuration", "cache folder")),
    DoctorCheck("memory", node_checks.memory),
    DoctorCheck("locked memory", node_checks.locked_memory),
    DoctorCheck("open files", node_checks.open_files),
    DoctorCheck("gpu", node_checks.gpu),
    DoctorCheck("chunk hashes", store_checks.chunk_hashes, ("model",), slow=True),
    DoctorCheck("speed", store_checks.speed, ("model", "chunk hashes"), slow=True),
)


def select(*, only: Sequence[str] = (), skip: Sequence[str] = (), quick: bool = False) -> list[DoctorCheck]:
    """Chooses the checks to run, by name; `quick` leaves out the slow ones. UsageError if none is left."""
    included, excluded = {_full_name(name) for name in only}, {_full_name(name) for name in skip}
    chosen = [item for item in CHECKLIST if item.name not in excluded and not (quick and item.slow)]
    chosen = [item for item in chosen if item.name in included or not included]
    if not chosen:
        raise UsageError("no check is left to run", hint="see: coldstream doctor --help")
    return chosen


def examine(
    case: Case, items: Sequence[DoctorCheck] = CHECKLIST, *, begin: Callable[[str], None] = lambda _: None
) -> Iterator[Check]:
    """Runs the checks one after the other, after calling `begin` with each one's name; yields the results."""
    for item in items:
        begin(item.name)
        check = case.checks[item.name] = replace(_run(case, item), name=item.name)
        yield check


def _run(case: Case, item: DoctorCheck) -> Check:
    if case.name is None and "model" in {item.name, *item.needs}:
        return skipped("no model was named")
    if reason := case.obstacle(*item.needs):
        return skipped(reason)
    try:
        return item.run(case)
    except ColdstreamError as exc:
        return failed(exc)
    except OSError as exc:
        return fail(f"cannot run this check: {exc}")


def _full_name(text: str) -> str:
    """The name of a check as typed; "open-files" is easier to type than "open files"."""
    plain = text.lower().replace("-", " ").replace("_", " ")
    for item in CHECKLIST:
        if plain == item.name.replace("-", " "):
            return item.name
    names = ", ".join(item.name.replace(" ", "-") for item in CHECKLIST)
    raise UsageError(f"there is no check {text!r}", hint=f"checks: {names}")
