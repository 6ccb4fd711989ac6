"""All checks of `coldstream doctor`: each module lists its own, and the checks that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.operate.doctor import (
    bucket_checks,
    cdn_checks,
    model_checks,
    network_checks,
    node_checks,
    software_checks,
    speed_checks,
)
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, fail, skipped

# In the order in which they run, the slow ones last.
CHECKLIST = tuple(
    sorted(
        (
            *network_checks.CHECKS,
            *bucket_checks.CHECKS,
            *model_checks.CHECKS,
            *cdn_checks.CHECKS,
            *software_checks.CHECKS,
            *node_checks.CHECKS,
            *speed_checks.CHECKS,
        ),
        key=lambda check: check.slow,
    )
)


def select(*, only: Sequence[str] = (), skip: Sequence[str] = (), quick: bool = False) -> tuple[DoctorCheck, ...]:
    """Chooses the checks to run.

    Args:
        only: Their names; none: all.
        skip: Names of checks to leave out.
        quick: Whether to leave out the slow checks.

    Raises:
        UsageError: There is no check of a name, or none is left.
    """
    included, excluded = {_named(name) for name in only}, {_named(name) for name in skip}
    chosen = tuple(
        item
        for item in CHECKLIST
        if (not included or item.name in included) and item.name not in excluded and not (quick and item.slow)
    )
    if not chosen:
        raise UsageError("no check is left to run", hint="see: coldstream doctor --help")
    return chosen


def examine(
    case: Case, items: Sequence[DoctorCheck] = CHECKLIST, *, begin: Callable[[str], None] | None = None
) -> Iterator[Check]:
    """Runs one check after the other; yields each result as it comes.

    Args:
        case: What is examined.
        items: The checks to run.
        begin: Called with the name of each check before it runs.
    """
    for item in items:
        if begin:
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
        return fail(exc.message, hint=exc.hint, exit_code=exc.exit_code)
    except OSError as exc:
        return fail(f"cannot run this check: {exc}")


def _named(text: str) -> str:
    """The check of this name; "open-files" is easier to type than "open files"."""
    plain = text.lower().replace("-", " ").replace("_", " ")
    for item in CHECKLIST:
        if plain == item.name.replace("-", " "):
            return item.name
    names = ", ".join(item.name.replace(" ", "-") for item in CHECKLIST)
    raise UsageError(f"there is no check {text!r}", hint=f"checks: {names}")
