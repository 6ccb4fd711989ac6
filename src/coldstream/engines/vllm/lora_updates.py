"""New versions of adapters that vLLM has loaded, served under the names of the old ones.

vLLM asks no resolver for an adapter that it has loaded, so its API server asks for the present folder from time to
time, beside the requests. A new version gets a number and a path of its own, as another adapter would: running requests
keep the old one, later ones get the new one, and vLLM tells their blocks of the prefix cache apart.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from coldstream.errors import ColdstreamError

# In the environment of the API server: how often it looks.
VARIABLE = "COLDSTREAM_ADAPTER_SECONDS"

# After a failure in one of several workers, vLLM (0.32) reports that failure of the next adapters too.
_TRIES_MAX = 3

logger = logging.getLogger("vllm.plugins.coldstream")


class AdapterUpdates:
    """Follows adapters in the bucket.

    Attributes:
        paths: Those that were loaded from the bucket: name in the API to name or URI in the bucket.
    """

    def __init__(self, folder_of: Callable[[str], Awaitable[str]]) -> None:
        """`folder_of` returns the folder of the present version, and raises ColdstreamError."""
        self.paths: dict[str, str] = {}
        self._folder_of = folder_of
        # How often vLLM has failed to load a folder.
        self._failures: Counter[str] = Counter()

    async def run(self, models: Any, seconds: float) -> None:
        """Looks at the adapters of `models`, vLLM's list, every so many seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            for name in [*models.lora_requests]:
                await self.update(models, name)

    async def update(self, models: Any, name: str) -> None:
        """Replaces a loaded adapter if the bucket has another version of it, which vLLM can load."""
        try:
            await self._update(models, name)
        except ColdstreamError:
            return  # the load service says why
        except Exception as exc:  # noqa: BLE001  # the next adapter may be fine
            logger.warning("coldstream: adapter '%s' keeps its version, a newer one failed: %s", name, exc)

    async def _update(self, models: Any, name: str) -> None:
        loaded, path = models.lora_requests.get(name), self.paths.get(name)
        if loaded is None or path is None:
            return
        folder = await self._folder_of(path)
        if folder == loaded.lora_path or self._failures[folder] >= _TRIES_MAX:
            return
        # Calls of the API for this name wait.
        async with models.lora_resolver_lock[name]:
            if models.lora_requests.get(name) is not loaded:
                return
            number = models.lora_id_counter.inc(1)
            newer = msgspec.structs.replace(loaded, lora_int_id=number, lora_path=folder, load_inplace=False)
            try:
                await models.engine_client.add_lora(newer)
            except Exception:
                self._failures[folder] += 1
                raise
            models.lora_requests[name] = newer
        logger.info("coldstream: adapter '%s' was updated", name)
