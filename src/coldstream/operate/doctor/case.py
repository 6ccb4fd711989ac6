"""The subject of `coldstream doctor`, shared by its checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from urllib.parse import urlsplit

from coldstream.engines.vllm.program import Program
from coldstream.errors import ConfigError, NotFoundError
from coldstream.machine.hardware import is_loopback
from coldstream.mirror.stored_files import StoredModel, open_model
from coldstream.model.adapter import Adapter
from coldstream.model.names import checked_name
from coldstream.net.retry import Backoff, Retry
from coldstream.operate.probe import Check, EndpointProbe, check_round_trip, probe_endpoint
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.opening import open_model_reader, open_store
from coldstream.places.place import Store
from coldstream.settings import Settings

# A diagnosis should come soon: a busy bucket is reported rather than waited for.
_PATIENCE_SECONDS = 15.0
# The sample of hashes is read over as many.
CONNECTIONS = 8


class Case:
    """One run of the doctor. Expensive results are computed once, on first use."""

    def __init__(
        self,
        settings: Settings,
        name: str | None = None,
        *,
        vllm: str | None = None,
        environ: Mapping[str, str] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.configured = self.settings = settings  # `settings` has shorter retries
        with suppress(ConfigError):  # the check of the configuration reports it
            seconds = str(min(settings.retry_seconds, _PATIENCE_SECONDS))
            self.settings = replace(settings, values={**settings.values, "COLDSTREAM_RETRY_SECONDS": seconds})
        self.name = checked_name(name) if name is not None else None
        self.vllm = vllm  # the path from the command line
        self.environ = dict(os.environ if environ is None else environ)  # that vLLM would be started with
        self.tell = tell  # called with the progress of a long check
        self.checks: dict[str, Check] = {}
        self.writes: bool | None = None  # whether the keys may write; None until the permissions are checked

    def __repr__(self) -> str:
        states = {name: check.state for name, check in self.checks.items()}
        return f"Case({self.name or 'no model'}, {states})"

    def obstacle(self, *names: str) -> str | None:
        """Why checks that depend on these cannot run; None if they can. Checks that were not chosen do not count."""
        for name in names:
            check = self.checks.get(name)
            if check is not None and check.state in {"fail", "skipped"}:
                return check.blocked_by or f"{name} failed"
        return None

    def knows_model(self) -> bool:
        return self.name is not None and self.obstacle("configuration", "endpoint", "tls", "bucket", "model") is None

    @property
    def uses_folder(self) -> bool:
        return self.settings.store_uri().startswith("file:")

    @cached_property
    def store(self) -> Store:
        retry = Retry(Backoff(give_up_seconds=self.settings.retry_seconds))
        return open_store(self.settings, retry=retry, connections=CONNECTIONS)

    @property
    def endpoint(self) -> str:
        """The URL of the S3 API: AWS's own when none is configured."""
        return self.settings.endpoint() or f"https://s3.{self.settings.region or 'us-east-1'}.amazonaws.com"

    @property
    def is_local(self) -> bool:
        return is_loopback(urlsplit(self.endpoint).hostname or "")

    @cached_property
    def endpoint_probe(self) -> EndpointProbe:
        return probe_endpoint(self.endpoint, ca_bundle=self.settings.get("AWS_CA_BUNDLE"))

    @cached_property
    def round_trip(self) -> dict[str, Check]:
        return {check.name: check for check in check_round_trip(self.store, measure=False)}

    @cached_property
    def stored(self) -> StoredModel:
        assert self.name is not None
        return open_model(self.store, self.name)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        assert self.name is not None
        return open_model_reader(self.name, self.settings).checkpoint()

    @cached_property
    def adapter(self) -> Adapter | None:
        assert self.name is not None
        return open_model_reader(self.name, self.settings).adapter()

    @cached_property
    def program(self) -> Program | None:
        """The vLLM that `coldstream serve` would run, or None; NotFoundError if that of the command line is missing."""
        try:
            return Program.find(self.vllm)
        except NotFoundError:
            if self.vllm is not None:
                raise
            return None

    @property
    def usable_program(self) -> Program | None:
        return self.program if self.obstacle("vllm") is None else None
