"""The models that nodes read beside the one that they serve: adapters, and a draft model.

They are checked in the bucket before a machine is rented for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coldstream.engines.vllm.draft_flag import CONFIG, draft_flag
from coldstream.engines.vllm.flags import Flags
from coldstream.errors import ColdstreamError, UsageError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.machine.parallel import in_parallel
from coldstream.mirror.listing import list_models
from coldstream.mirror.manifest_records import read_record
from coldstream.model.adapter import Adapter
from coldstream.model.adapter_fit import misfits, modules_of
from coldstream.model.names import checked_name, is_path
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.places.opening import open_model_reader
from coldstream.places.place import Store
from coldstream.settings import Settings

ALL = "all"


def with_adapters(
    options: DeployOptions, base: str, settings: Settings, store: Store, *, say: Callable[[str], None]
) -> DeployOptions:
    """The options with the names of their adapters: for "all", of the adapters of `base` that can be served now.

    Raises UsageError for an adapter that was named and cannot be served with this base; of all, such ones are left out.
    Tensors that may not fit the base's are such a reason for all, and a warning for those that were named.
    """
    names = _chosen(options.adapters, base, settings, store, say) if options.adapters else ()
    return replace(options, adapters=",".join(names) or None)


def _chosen(text: str, base: str, settings: Settings, store: Store, say: Callable[[str], None]) -> tuple[str, ...]:
    record, _ = read_record(store, base) or (None, "")
    repo = record.source.repo if record else None
    modules = modules_of(open_model_reader(base, settings).checkpoint().whole_tensors)

    def misfit(name: str) -> str | None:
        reader = open_model_reader(name, settings)
        rank = _checked(reader.adapter(), name, base, repo).rank
        if not modules:
            return None
        tensors = reader.checkpoint().tensors
        # `serve` would refuse it on the node.
        if certain := misfits(tensors, modules, rank=rank, only_certain=True):
            raise UsageError(f"{name} does not fit {base}: {certain[0]}", hint=f"see: coldstream doctor {name}")
        faults = misfits(tensors, modules, rank=rank)
        return f"{name} does not fit {base}: {faults[0]}" if faults else None

    def obstacle(name: str) -> str | None:
        try:
            return misfit(name)
        except ColdstreamError as exc:
            return exc.message

    if text == ALL:
        every = [model.name for model in list_models(store) if model.base and model.base in {base, repo}]
        obstacles = dict(zip(every, in_parallel(obstacle, every), strict=True))
        for reason in filter(None, obstacles.values()):
            say(f"warning: an adapter is left out: {reason}")
        names = tuple(name for name, reason in obstacles.items() if reason is None)
        if not names:
            raise UsageError(f"there are no adapters of {base} to serve in {store.uri}", hint="see: coldstream list")
        return names
    names = tuple(text.split(","))
    for name in names:
        if names.count(checked_name(name)) > 1:
            raise UsageError(f"--adapters lists {name} twice", hint="name each adapter once")
    # The engine has the last word: a checkpoint may name its tensors in a way that is not known here.
    for reason in filter(None, in_parallel(misfit, names)):
        say(f"warning: {reason}")
    return names


def _checked(adapter: Adapter | None, name: str, base: str, repo: str | None) -> Adapter:
    if adapter is None:
        raise UsageError(f"{name} is a model, not an adapter", hint="see: coldstream list")
    if not adapter.is_of(base, repo):
        raise adapter.wrong_base(name, base)
    if adapter.refusal:
        raise UsageError(f"vLLM cannot serve {name}: {adapter.refusal}", hint=f"see: coldstream doctor {name}")
    return adapter


def checked_draft(config: str | None, settings: Settings) -> str | None:
    """The name of the draft model that vLLM's JSON names, if nodes read it from the bucket; None if they do not.

    Raises UsageError if the JSON or the name is not valid, or vLLM cannot load it; NotFoundError if it is not there.
    """
    flag = draft_flag(Flags((CONFIG, config))) if config else None
    if flag is None or "://" in flag.model:
        return None
    if is_path(flag.model):
        raise UsageError(f"the draft model {flag.model} is a folder of this machine", hint="name a model in the bucket")
    name = checked_name(flag.model)
    if not {*CONFIGURATIONS} & {*open_model_reader(name, settings).names()}:
        raise UsageError(f"the draft model {name} has no config.json: vLLM cannot load it")
    return name
