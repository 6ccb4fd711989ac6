"""Which adapters a deployment serves: checked in the bucket before a machine is rented for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coldstream.errors import ColdstreamError, UsageError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.machine.parallel import in_parallel
from coldstream.mirror.listing import list_models
from coldstream.mirror.manifest_records import read_record
from coldstream.model.names import checked_name
from coldstream.places.opening import open_model_reader
from coldstream.places.place import Store
from coldstream.settings import Settings

ALL = "all"


def with_adapters(
    options: DeployOptions, base: str, settings: Settings, store: Store, *, say: Callable[[str], None]
) -> DeployOptions:
    """The options with the names of their adapters: for "all", of the adapters of `base` that can be served now.

    Raises UsageError for an adapter that was named and cannot be served with this base; of all, such ones are left out.
    """
    names = _chosen(options.adapters, base, settings, store, say) if options.adapters else ()
    return replace(options, adapters=",".join(names) or None)


def _chosen(text: str, base: str, settings: Settings, store: Store, say: Callable[[str], None]) -> tuple[str, ...]:
    record, _ = read_record(store, base) or (None, "")
    repo = record.source.repo if record else None

    def fault(name: str) -> ColdstreamError | None:
        try:
            _check(name, base, repo, settings)
        except ColdstreamError as exc:
            return exc
        return None

    if text == ALL:
        every = [model.name for model in list_models(store) if model.base and model.base in {base, repo}]
        faults = dict(zip(every, in_parallel(fault, every), strict=True))
        for name, exc in faults.items():
            if exc is not None:
                say(f"leaving out the adapter {name}: {exc.message}")
        names = tuple(name for name, exc in faults.items() if exc is None)
        if not names:
            raise UsageError(f"there are no adapters of {base} in {store.uri}", hint="see: coldstream list")
        return names
    names = tuple(text.split(","))
    for name in names:
        if names.count(checked_name(name)) > 1:
            raise UsageError(f"--adapters lists {name} twice", hint="name each adapter once")
    for exc in in_parallel(fault, names):
        if exc is not None:
            raise exc
    return names


def _check(name: str, base: str, repo: str | None, settings: Settings) -> None:
    adapter = open_model_reader(name, settings).adapter()
    if adapter is None:
        raise UsageError(f"{name} is a model, not an adapter", hint="see: coldstream list")
    if not adapter.is_of(base, repo):
        raise UsageError(
            f"{name} is an adapter of {adapter.base}, not of {base}",
            hint=f"if it fits {base} nevertheless: coldstream upload … --as {name} --base {base}",
        )
    if adapter.refusal:
        raise UsageError(
            f"vLLM cannot serve the adapter {name}: {adapter.refusal}", hint=f"see: coldstream doctor {name}"
        )
