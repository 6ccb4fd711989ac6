"""Adapters from the bucket in vLLM's API server: by `--lora-modules`, by /v1/load_lora_adapter, and on demand.

vLLM passes the path of an adapter on to its workers, and hashes blocks of the prefix cache by it. So a name is replaced
by the folder of its present version here, before that. Under `coldstream serve` the load service knows the folder: this
process has no keys. Elsewhere this process reads the bucket itself, for paths that begin with `s3://`.
"""

from __future__ import annotations

import asyncio
import json
import os
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from coldstream.engines.vllm.lora_updates import VARIABLE, AdapterUpdates
from coldstream.errors import ColdstreamError, CredentialsError, NotFoundError, UnavailableError
from coldstream.model.names import is_path
from coldstream.node import module_reads
from coldstream.printable import printable

if TYPE_CHECKING:
    from coldstream.node.adapter_service import AdapterService

logger = init_logger("vllm.plugins.coldstream")

_RESOLVER = "coldstream"
_ERRORS = {"not-found": NotFoundError, "unavailable": UnavailableError, "credentials": CredentialsError}
_SECONDS_MAX = 1800.0  # the load service answers sooner


class BucketResolver(LoRAResolver):
    """Finds the adapter that a request names as its model."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """None if the adapter does not exist; vLLM sends the client the message of a ValueError."""
        try:
            folder = await _folder(lora_name, on_demand=True)
            _updates.paths[lora_name] = lora_name
        except (NotFoundError, UnavailableError, CredentialsError) as exc:
            logger.info("coldstream: %s", _text(exc))
            return None
        except ColdstreamError as exc:
            raise ValueError(printable(exc.message)) from exc  # hints are for the operator
        # vLLM chooses the number.
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=folder)


def add_hooks(module: Any) -> None:
    """Registers the resolver, and lets vLLM's model list (`module` is where it is defined) load by name. Idempotent."""
    models = module.OpenAIServingModels
    theirs = models.load_lora_adapter
    if getattr(theirs, "is_coldstream", False):
        return

    async def load_lora_adapter(self: Any, request: Any, base_model_name: str | None = None) -> Any:
        try:
            folder = await _loaded_folder(self, request)
        except ColdstreamError as exc:
            status = 404 if isinstance(exc, NotFoundError) else 503 if isinstance(exc, UnavailableError) else 400
            kind = {404: "NotFoundError", 503: "ServiceUnavailableError"}.get(status, "BadRequestError")
            return module.create_error_response(message=_text(exc), err_type=kind, status_code=HTTPStatus(status))
        answer = await theirs(self, request.model_copy(update={"lora_path": folder}), base_model_name)
        if isinstance(answer, str):
            _updates.paths.pop(request.lora_name, None)
            if folder != request.lora_path:
                _updates.paths[request.lora_name] = request.lora_path
        return answer

    load_lora_adapter.is_coldstream = True  # type: ignore[attr-defined]
    models.load_lora_adapter = load_lora_adapter
    their_initialisation = models.init_static_loras

    async def init_static_loras(self: Any) -> None:
        await their_initialisation(self)
        seconds = float(os.environ.get(VARIABLE) or 0)
        if seconds and os.environ.get(module_reads.VARIABLE):
            self.coldstream_updates = asyncio.create_task(_updates.run(self, seconds))

    models.init_static_loras = init_static_loras
    if os.environ.get(module_reads.VARIABLE):
        LoRAResolverRegistry.register_resolver(_RESOLVER, BucketResolver())


async def _loaded_folder(models: Any, request: Any) -> str:
    """The folder of an adapter that is loaded by its name or URI; other paths as they are, if vLLM may read them."""
    path = request.lora_path
    # Those of the command line may be anywhere; those of a request only where the operator allows it.
    is_own = any((module.name, module.path) == (request.lora_name, path) for module in models.static_lora_modules or ())
    is_served = bool(os.environ.get(module_reads.VARIABLE))
    if not path or (is_own and (is_path(path) or os.path.exists(path))) or not (is_served or path.startswith("s3://")):
        return str(path)
    try:
        return await _folder(path, on_demand=False)
    except NotFoundError:
        if is_own and "://" not in path:
            return str(path)
        raise


async def _folder(path: str, *, on_demand: bool, is_update: bool = False) -> str:
    address = os.environ.get(module_reads.VARIABLE)
    if not address:
        return await asyncio.to_thread(_own_service().folder, path, on_demand=on_demand)
    question = json.dumps({"adapter": path, "on_demand": on_demand, "is_update": is_update}).encode() + b"\n"
    try:
        answer = json.loads(await asyncio.wait_for(_exchange(address, question), _SECONDS_MAX))
    except (OSError, ValueError, asyncio.TimeoutError) as exc:
        raise UnavailableError(
            f"{path}: the process that reads the bucket does not answer at {address}",
            hint="check that `coldstream serve` is running",
        ) from exc
    if folder := answer.get("folder"):
        return str(folder)
    error = answer.get("error", {})
    raise _ERRORS.get(error.get("kind"), ColdstreamError)(error.get("message", "it ended"), hint=error.get("hint"))


async def _exchange(address: str, question: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(address)
    try:
        writer.write(question)
        return await reader.readline()
    finally:
        writer.close()


@cache
def _own_service() -> AdapterService:
    """For `vllm serve` without `coldstream serve`."""
    from coldstream.node.adapter_service import AdapterService
    from coldstream.node.adapter_source import AdapterSource
    from coldstream.settings import ambient_settings

    settings = ambient_settings()
    # The tensors tell whether it fits the model.
    return AdapterService(AdapterSource(settings, base=None, store=settings.store_uri()), on_demand=False)


_updates = AdapterUpdates(partial(_folder, on_demand=False, is_update=True))


def _text(exc: ColdstreamError) -> str:
    return printable(exc.message + (f" ({exc.hint})" if exc.hint else ""))
