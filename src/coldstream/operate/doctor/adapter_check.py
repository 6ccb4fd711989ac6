"""The check of an adapter against its base in the bucket."""

from __future__ import annotations

import shlex

from coldstream.errors import NotFoundError
from coldstream.mirror.listing import bases_of, list_models
from coldstream.model.adapter_fit import misfits, modules_of
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, fail, ok
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.opening import open_model_reader
from coldstream.units import plural


def adapter(case: Case) -> Check:
    """Whether vLLM can serve the adapter, its base is in the bucket, and its tensors fit that."""
    record = case.adapter
    if record is None:
        return ok("not used: it is a model")
    if record.refusal:
        return fail(
            f"vLLM cannot serve it: {record.refusal}",
            "merge it into its base with PEFT's merge_and_unload, and upload the result",
        )
    base = _base(case, record.base)
    if base is None:
        return fail(
            f"its base {record.base} is not in the bucket",
            f"run: coldstream upload {shlex.quote(record.base)}; or name another one with: coldstream upload … --base",
        )
    if faults := misfits(case.checkpoint.tensors, modules_of(base.tensors), rank=record.rank):
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        return fail(
            f"it does not fit {base.name}: {faults[0]}{more}",
            "was the base replaced? upload it again under its own name, and name that with: coldstream upload … --base",
        )
    return ok(f"{record.label}; its {plural(len(case.checkpoint.tensors), 'tensor')} fit {base.name}")


def _base(case: Case, name: str) -> Checkpoint | None:
    """The base of this name in the bucket, or else the one that was copied from this repository."""
    try:
        return open_model_reader(name, case.settings).checkpoint()
    except NotFoundError:
        stored_as = bases_of(list_models(case.store)).get(case.name or "")
        return open_model_reader(stored_as, case.settings).checkpoint() if stored_as else None
