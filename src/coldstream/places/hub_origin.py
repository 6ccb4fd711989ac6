"""A model on the Hugging Face Hub, at one commit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from coldstream.errors import CredentialsError, NotFoundError
from coldstream.model.names import checked_path
from coldstream.model.place_names import folder_name
from coldstream.net.retry import Retry
from coldstream.places.origin import Checkpoint, Link
from coldstream.places.shard_choice import choose, small_files
from coldstream.places.shard_headers import Found, Part, Piece, checkpoint_of
from coldstream.places.small_reads import Reader, arrived
from coldstream.settings import Settings

if TYPE_CHECKING:
    from coldstream.places.hub import HubSource
    from coldstream.places.source import SourceFile


class HubOrigin:
    """A repository on the Hub, or a folder in one. Implements `Origin`. Each `checkpoint` pins the commit anew."""

    def __init__(
        self,
        repo: str,
        *,
        folder: str = "",
        revision: str | None,
        settings: Settings,
        retry: Retry,
        connections: int = 16,
    ) -> None:
        """Prepares; nothing is asked yet.

        Args:
            repo: `org/model`.
            folder: Where the model is in it; "" for the top.
            revision: A branch, tag or commit; None for "main".
            settings: The endpoint and the token.
            retry: The policy of all requests.
            connections: How many requests may run at once.
        """
        self._repo, self._revision, self._settings, self._connections = repo, revision, settings, connections
        self._prefix = f"{folder}/" if folder else ""
        place = f"{repo}/{folder}" if folder else repo
        self._name = folder_name(place.split("/"), "model")
        self.label = f"hf://{place}" + (f"@{revision}" if revision else "")
        self._reader = Reader(retry, forbidden="check HF_TOKEN, and that its owner may read the model")
        self._pinned: tuple[HubSource, Mapping[str, SourceFile]] | None = None

    def __repr__(self) -> str:
        return f"HubOrigin({self.label})"

    def checkpoint(self) -> Checkpoint:
        with self._reader:
            source, files = self._pin()
            choice = choose(files, self.read, is_checked=False)
            if not choice.shards and (branches := source.branches_with_weights()):
                raise NotFoundError(
                    f"{self.label} has no safetensors weights, but its branches {', '.join(branches)} have some",
                    hint=f"name one of them: {shlex.quote(f'hf://{self._repo}@{branches[0]}')}",
                    target=self.label,
                )
            found = [
                Found(
                    path=path,
                    where=self._where(path),
                    parts=(Part(size=files[path].size, read=partial(self._read_range, source, files[path])),),
                )
                for path in choice.shards
            ]
            return checkpoint_of(
                found, uri=self.label, name=self._name, version=source.commit, left_out=choice.left_out
            )

    def renew(self, path: str, segment: int = 0) -> Link:
        source, files = self._pinned or self._pin()
        link = source.location(self._file(files, path), renew=True)
        return self._reader.follow(link, where=self._where(path))

    def names(self) -> Sequence[str]:
        _, files = self._pinned or self._pin()
        return small_files({path: file.size for path, file in files.items()}, stored=False)

    def read(self, path: str, bytes_max: int) -> bytes:
        source, files = self._pinned or self._pin()
        return source.read(self._file(files, path), bytes_max=bytes_max)

    def _pin(self) -> tuple[HubSource, Mapping[str, SourceFile]]:
        # Imported here: huggingface_hub takes half a second, and most loads do not come from the Hub.
        from coldstream.places.hub import HubSource

        source = HubSource(
            self._repo,
            revision=self._revision,
            settings=self._settings,
            retry=self._reader.retry,
            connections=self._connections,
        )
        files = {
            checked_path(file.path, where=self.label).removeprefix(self._prefix): file
            for file in source.files()
            if file.path.startswith(self._prefix)
        }
        if self._prefix and not files:
            raise NotFoundError(f"there are no files in {self.label}", target=self.label)
        self._pinned = source, files
        return self._pinned

    def _file(self, files: Mapping[str, SourceFile], path: str) -> SourceFile:
        if path not in files:
            raise NotFoundError(f"{self._where(path)} does not exist", target=self._where(path))
        return files[path]

    def _read_range(self, source: HubSource, file: SourceFile, start: int, stop: int, etag: str | None) -> Piece:
        where = self._where(file.path.removeprefix(self._prefix))

        def read(link: Link) -> Piece:
            found = self._reader.get(link, where=where, start=start, stop=stop, bytes_max=stop - start, etag=etag)
            url, headers = arrived(link, found)
            return Piece(
                body=found.body, size=found.size, etag=found.etag, stamp=found.etag or "", url=url, headers=headers
            )

        try:
            return read(source.location(file))
        except CredentialsError:
            # The link may have ended since it was asked for.
            return read(source.location(file, renew=True))

    def _where(self, path: str) -> str:
        return f"{self.label}/{path}"
