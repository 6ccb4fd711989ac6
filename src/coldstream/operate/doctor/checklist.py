"""All checks, in the order in which they are looked at, and which of them depend on which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A check that may be asked for.

    Attributes:
        name: Stable: what `--only`, `--skip` and the JSON call it.
        look: What looks.
        needs: The checks without whose success there is nothing to look at.
        slow: Whether it takes seconds, and many bytes.
    """

    name: str
    look: Callable[[Case], Check]
    needs: tuple[str, ...] = ()
    slow: bool = False


_NET = ("configuration", "endpoint", "tls", "clock")

CHECKLIST = (
    Item(name="configuration", look=network_checks.configuration),
    Item(name="secrets", look=network_checks.secrets),
    Item(name="endpoint", look=network_checks.endpoint, needs=("configuration",)),
    Item(name="tls", look=network_checks.tls, needs=("configuration", "endpoint")),
    Item(name="clock", look=network_checks.clock, needs=("configuration", "endpoint", "tls")),
    Item(name="bucket", look=bucket_checks.bucket, needs=_NET),
    Item(name="permissions", look=bucket_checks.permissions, needs=(*_NET, "bucket")),
    Item(name="round trip", look=bucket_checks.round_trip, needs=(*_NET, "bucket", "permissions")),
    Item(
        name="conditional put", look=bucket_checks.conditional_put, needs=(*_NET, "bucket", "permissions", "round trip")
    ),
    Item(name="multipart", look=bucket_checks.multipart, needs=(*_NET, "bucket", "permissions", "round trip")),
    Item(name="model", look=model_checks.model, needs=(*_NET, "bucket", "permissions")),
    Item(name="bundle key", look=model_checks.bundle_key),
    Item(name="bundles", look=model_checks.bundles, needs=("bundle key", "model")),
    Item(name="cdn", look=cdn_checks.cdn),
    Item(name="tls library", look=software_checks.tls_library, needs=("configuration",)),
    Item(name="hf-xet", look=software_checks.hf_xet),
    Item(name="vllm", look=software_checks.vllm),
    Item(name="plugin", look=software_checks.plugin, needs=("vllm",)),
    Item(name="runai", look=software_checks.runai, needs=("vllm",)),
    Item(name="cache folder", look=node_checks.cache_folder, needs=("configuration",)),
    Item(name="disk", look=node_checks.disk, needs=("configuration", "cache folder")),
    Item(name="memory", look=node_checks.memory),
    Item(name="locked memory", look=node_checks.locked_memory),
    Item(name="open files", look=node_checks.open_files),
    Item(name="gpu", look=node_checks.gpu),
    Item(name="skypilot", look=software_checks.skypilot, needs=("configuration",)),
    Item(name="chunk hashes", look=model_checks.chunk_hashes, needs=("model",), slow=True),
    Item(name="speed", look=speed_checks.speed, needs=("model", "chunk hashes"), slow=True),
)


def select(*, only: Sequence[str] = (), skip: Sequence[str] = (), quick: bool = False) -> tuple[Item, ...]:
    """The checks to look at.

    Args:
        only: Names; none: all.
        skip: Names.
        quick: Whether to leave out what takes seconds.

    Raises:
        UsageError: A name is none, or nothing is left.
    """
    wanted, unwanted = {_named(name) for name in only}, {_named(name) for name in skip}
    chosen = tuple(
        item
        for item in CHECKLIST
        if (not wanted or item.name in wanted) and item.name not in unwanted and not (quick and item.slow)
    )
    if not chosen:
        raise UsageError("no check is left to look at", hint="see: coldstream doctor --help")
    return chosen


def examine(
    case: Case, items: Sequence[Item] = CHECKLIST, *, begin: Callable[[str], None] | None = None
) -> Iterator[Check]:
    """Looks at one after the other; each comes as it ends.

    Args:
        case: What is examined.
        items: Which checks.
        begin: Told the name of each before it is looked at.
    """
    for item in items:
        if begin:
            begin(item.name)
        check = _looked(case, item)
        case.checks[item.name] = check
        yield check


def _looked(case: Case, item: Item) -> Check:
    if case.name is None and "model" in {item.name, *item.needs}:
        return Check(name=item.name, state="skipped", found="not looked at: no model is named")
    if reason := case.obstacle(*item.needs):
        return Check(name=item.name, state="skipped", found=f"not looked at: {reason}")
    try:
        return item.look(case)
    except ColdstreamError as exc:
        return Check(name=item.name, state="fail", found=exc.message, hint=exc.hint, exit_code=exc.exit_code)
    except OSError as exc:
        return Check(name=item.name, state="fail", found=f"cannot look: {exc}")


def _named(text: str) -> str:
    """The check that is meant: "open-files" is easier to type than "open files"."""
    plain = text.lower().replace("-", " ").replace("_", " ")
    for item in CHECKLIST:
        if plain == item.name.replace("-", " "):
            return item.name
    names = ", ".join(item.name.replace(" ", "-") for item in CHECKLIST)
    raise UsageError(f"there is no check {text!r}", hint=f"there are: {names}")
