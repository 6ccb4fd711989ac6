"""A model on the Hugging Face Hub, at one commit. Light to import; `hub` is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from coldstream.errors import NotFoundError, UsageError
from coldstream.model.names import checked_path, folder_name, path_fault
from coldstream.model.uri import Uri
from coldstream.net.retry import Retry
from coldstream.places.checkpoint import Checkpoint, ShardLocation, read_checkpoint
from coldstream.places.model_reader import Contents, ModelReader
from coldstream.places.model_records import ModelRecord
from coldstream.places.place import ObjectInfo
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.places.hub import HubSnapshot

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?")


class HubModelReader(ModelReader):
    """A repository on the Hub, or a folder in one. Each `checkpoint` pins the commit anew."""

    _place: HubSnapshot

    def __init__(self, rest: str, settings: Settings, *, retry: Retry, connections: int) -> None:
        """Prepares to read `org/model[/folder][@revision]`, which is `rest`; touches no network.

        Raises:
            UsageError: It does not name a repository.
        """
        name, _, revision = rest.partition("@")
        owner, _, inner = name.partition("/")
        model, _, folder = inner.partition("/")
        self._repo = f"{owner}/{model}" if model else owner
        if not _REPO.fullmatch(self._repo) or path_fault(name) or (revision and path_fault(revision)):
            raise UsageError(
                f"{str(Uri(f'hf://{rest}'))!r} is not a repository on the Hub",
                hint="write hf://org/model, hf://org/model@revision or hf://org/model/folder@revision",
            )
        super().__init__(None, folder, label=f"hf://{rest}", name=folder_name(name.split("/"), "model"))
        self._pinned_revision = revision or None
        self._settings, self._retry, self._connections = settings, retry, connections

    def _look(self) -> Contents:
        # Imported here: huggingface_hub takes half a second, and most loads do not come from the Hub.
        from coldstream.places.hub import HubSnapshot

        self._place = HubSnapshot(
            self._repo,
            revision=self._pinned_revision,
            settings=self._settings,
            retry=self._retry,
            connections=self._connections,
        )
        prefix = self._key("")
        listing = {
            checked_path(info.key, where=self.label).removeprefix(prefix): info for info in self._place.list(prefix)
        }
        if self._folder and not listing:
            raise NotFoundError(f"there are no files in {self.label}", target=self.label)
        return None, listing

    def _refuse_without_weights(self, listing: Mapping[str, ObjectInfo]) -> None:
        if branches := self._place.branches_with_weights():
            raise NotFoundError(
                f"{self.label} has no safetensors weights, but its branches {', '.join(branches)} have some",
                hint=f"name one of them: {shlex.quote(f'hf://{self._repo}@{branches[0]}')}",
                target=self.label,
            )

    def _read_headers(
        self, locations: Sequence[ShardLocation], record: ModelRecord | None, left_out: Mapping[str, str]
    ) -> Checkpoint:
        commit = self._place.commit
        return read_checkpoint(
            self._place, locations, uri=self.label, name=self._name, version=commit, left_out=left_out
        )
