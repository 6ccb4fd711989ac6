"""The draft model of a deployment: which one nodes read from the bucket, checked before a machine is rented for it."""

from __future__ import annotations

from coldstream.engines.vllm.draft_flag import CONFIG, draft_flag
from coldstream.engines.vllm.flags import Flags
from coldstream.errors import UsageError
from coldstream.model.names import checked_name, is_path
from coldstream.node.model_folder import CONFIGURATIONS
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings


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
