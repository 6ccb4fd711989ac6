"""Where a model comes from: the contract, and the local folder. The Hub is in `hub`.

A source is read by several threads at once, by ranges, into memory that the caller owns. Links in a folder are
followed. What cannot be read is listed with its fault, so that an upload that needs it can refuse it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coldstream.errors import ConflictError, CredentialsError, DiskError, IntegrityError, NotFoundError
from coldstream.model import manifest
from coldstream.places.tree import open_regular, snapshot_of, walk
from coldstream.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: Relative, with `/`; it stays inside its folder unless `fault` says otherwise.
        size: In bytes.
        sha256: In hexadecimal, when the source states it; None otherwise.
        git_blob_id: What git calls the content, when the source states that; None otherwise.
        fault: Why it cannot be read or stored ("it is a broken link"); None when it can.
    """

    path: str
    size: int
    sha256: str | None = None
    git_blob_id: str | None = None
    fault: str | None = None


class Source(Protocol):
    """A model's files, pinned: what is listed is what will be read, or an error."""

    @property
    def label(self) -> str:
        """For people: "org/model @ 0e9e39f"."""

    @property
    def record(self) -> manifest.Provenance:
        """For the manifest."""

    def files(self) -> Sequence[SourceFile]:
        """Every file, sorted by path."""

    def branches_with_weights(self) -> Sequence[str]:
        """Other revisions that have safetensors where this one has none; empty when that cannot be known."""

    def read(self, file: SourceFile, *, bytes_max: int) -> bytes:
        """A small file's content.

        Raises:
            IntegrityError: It is larger than `bytes_max`.
        """

    def read_into(
        self, file: SourceFile, start: int, buffer: memoryview, *, on_read: Callable[[int], None] | None = None
    ) -> None:
        """Fills `buffer` with `[start, start + len(buffer))` of the file. Retries what may succeed later.

        Raises:
            NotFoundError, CredentialsError, UnavailableError; ConflictError when it changed; IntegrityError when it
            is shorter.
        """


class FolderSource:
    """A local folder, or the newest snapshot of a model's folder in the Hugging Face cache."""

    def __init__(self, root: Path) -> None:
        """Looks at the folder.

        Raises:
            NotFoundError: There is no such folder.
            UsageError: It is a folder of the Hugging Face cache that means no single snapshot.
        """
        if not root.is_dir():
            raise NotFoundError(
                f"there is no folder {root}", hint="name a folder, or a model on the Hub such as Qwen/Qwen3-8B"
            )
        self.root = snapshot_of(root)
        self._versions: dict[str, tuple[int, int]] = {}

    @property
    def label(self) -> str:
        return str(self.root)

    @property
    def record(self) -> manifest.Provenance:
        return manifest.Provenance(kind="folder")

    def files(self) -> Sequence[SourceFile]:
        try:
            items = sorted(walk(self.root), key=lambda item: item.path)
        except OSError as exc:
            raise CredentialsError(f"{self.root}: {exc.strerror}", hint="check its owner and mode") from exc
        self._versions = {item.path: (item.size, item.mtime_ns) for item in items}
        return [SourceFile(path=item.path, size=item.size, fault=item.fault) for item in items]

    def branches_with_weights(self) -> Sequence[str]:
        return ()

    def read(self, file: SourceFile, *, bytes_max: int) -> bytes:
        if file.size > bytes_max:
            raise IntegrityError(f"{self.root / file.path} has {file.size} bytes; at most {bytes_max} are read")
        buffer = bytearray(file.size)
        self.read_into(file, 0, memoryview(buffer))
        return bytes(buffer)

    def read_into(
        self, file: SourceFile, start: int, buffer: memoryview, *, on_read: Callable[[int], None] | None = None
    ) -> None:
        path = self.root / file.path
        try:
            with open_regular(path) as opened:
                opened.seek(start)
                done = 0
                while done < len(buffer):
                    count = opened.readinto(buffer[done : done + MIB])
                    if not count:
                        break
                    done += count
                    if on_read:
                        on_read(count)
                stat = os.fstat(opened.fileno())
        except PermissionError as exc:
            raise CredentialsError(f"{path} may not be read", hint="check its owner and mode") from exc
        except OSError as exc:
            raise DiskError(f"{path}: {exc.strerror}") from exc
        if done < len(buffer) or (stat.st_size, stat.st_mtime_ns) != self._versions[file.path]:
            raise ConflictError(f"{path} changed while it was being read", hint="run the same command again")
