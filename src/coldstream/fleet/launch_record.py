"""What was launched, remembered on this machine: `<cache root>/launches/<name>.json`.

Beside it lie the file that SkyPilot was given, and the API's key where we made it. Neither record nor file holds a
secret; the key's file is the user's alone.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from coldstream.cache.cache import cache_of
from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.fleet.sky import NAME
from coldstream.machine.atomic_file import write_atomically
from coldstream.machine.disk import checked_root, disk_errors, make_folders, read_bounded
from coldstream.settings import Settings

KINDS = ("node", "service", "job")
_RECORD_BYTES_MAX = 64 << 10
_KEY_BYTES_MAX = 4096
_KEY_RANDOM_BYTES = 32


class Launch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that was launched.

    Attributes:
        name: SkyPilot's name for the cluster, the service or the job.
        kind: One of `KINDS`.
        model: `org/model` in the bucket.
        port: Where each machine answers; None for a job.
        began: When, in seconds since 1970.
        keys: How the nodes' keys came to be: "signed", "issued" or "own".
        ttl_seconds: That minted keys live; None for the user's own.
        expires: When the nodes' keys end, in seconds since 1970; None when they do not.
        job: SkyPilot's number of a managed job; None otherwise, or when it is not known.
    """

    name: str
    kind: str
    model: str
    port: int | None
    began: float
    keys: str
    ttl_seconds: int | None = None
    expires: float | None = None
    job: int | None = None


# Made here: two threads that each make the first decoder of a type can crash.
_DECODER = msgspec.json.Decoder(Launch)


class Launches:
    """What this user launched from this machine. Safe across processes."""

    def __init__(self, root: Path) -> None:
        """Names the place; nothing is made yet.

        Args:
            root: Of the cache.
        """
        self._root = root
        self.folder = root / "launches"

    def keep(self, launch: Launch) -> None:
        """Writes one, or writes it again.

        Raises:
            DiskError: The folder is not this user's own, or the disk refuses.
        """
        self._write(self.folder / f"{launch.name}.json", msgspec.json.encode(launch))

    def keep_file(self, name: str, text: str) -> Path:
        """Writes what SkyPilot is given, and returns where.

        Raises:
            DiskError: As `keep`.
        """
        path = self.folder / f"{name}.yaml"
        self._write(path, text.encode())
        return path

    def file(self, name: str) -> Path:
        """Where that lies, or would lie."""
        return self.folder / f"{name}.yaml"

    def key_file(self, name: str) -> Path:
        """Where a key lies that we made."""
        return self.folder / f"{name}.key"

    def api_key(self, name: str) -> str | None:
        """A key that we made; None without."""
        with disk_errors(self.folder):
            data = read_bounded(self.key_file(name), _KEY_BYTES_MAX)
        return data.decode("ascii", "replace").strip() or None if data else None

    def make_api_key(self, name: str) -> str:
        """A new key for a launch, kept in a file that only this user reads.

        Raises:
            DiskError: As `keep`.
        """
        key = secrets.token_hex(_KEY_RANDOM_BYTES)
        self._write(self.key_file(name), f"{key}\n".encode())
        return key

    def find(self, name: str) -> Launch:
        """One by its name.

        Raises:
            UsageError: It is no name.
            NotFoundError: Nothing was launched under it from here.
            IntegrityError: The record is damaged.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name[:60]!r} is no name of a launch", hint="see: coldstream launch status")
        path = self.folder / f"{name}.json"
        with disk_errors(self.folder):
            data = read_bounded(path, _RECORD_BYTES_MAX)
        if data is None:
            raise NotFoundError(
                f"nothing was launched as {name} from this machine",
                hint="see what runs: coldstream launch status",
                target=str(path),
            )
        try:
            found = _DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", hint="sky knows it still: sky status") from exc
        if found.name != name or found.kind not in KINDS:
            raise IntegrityError(
                f"{path} is damaged: it is about something else", hint="sky knows it still: sky status"
            )
        return found

    def all(self) -> Iterator[Launch]:
        """All that can be read, by name."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in sorted(os.listdir(self.folder)):
                if file.endswith(".json"):
                    with suppress(IntegrityError, NotFoundError, UsageError):
                        yield self.find(file.removesuffix(".json"))

    def forget(self, name: str) -> None:
        """Removes all that is kept of one."""
        for path in (self.folder / f"{name}.json", self.file(name), self.key_file(name)):
            with disk_errors(self.folder), suppress(FileNotFoundError):
                path.unlink()

    def _write(self, path: Path, data: bytes) -> None:
        with disk_errors(self.folder):
            checked_root(self._root, create=True)
            make_folders(self.folder)
            write_atomically(path, data, staging=self.folder)


def launches_of(settings: Settings) -> Launches:
    """The place that the settings name.

    Raises:
        ConfigError: The cache's limit is no size.
    """
    return Launches(cache_of(settings).root)
