"""The records of launches on this machine: `<cache root>/launches/<name>.json`.

Beside a record are SkyPilot's file and the API key if it was generated. Neither record nor file contains a secret; only
the user can read the key's file.
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
    """A launch.

    Attributes:
        name: SkyPilot's name for the cluster, the service or the job.
        kind: One of `KINDS`.
        port: The port of each machine; None for a job.
        began: Unix seconds.
        keys: See `Terms.how`; the user's own have no lifetime.
        expires: When the keys expire, in Unix seconds; None for never.
        job: SkyPilot's number of a managed job; None otherwise, or if unknown.
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


# Created once: msgspec 0.22 can crash when two threads create the first decoder of a type at the same time.
_DECODER = msgspec.json.Decoder(Launch)


class Launches:
    """This user's launches, in the cache at `root`. Safe across processes. Writing raises DiskError."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "launches"

    def keep(self, launch: Launch) -> None:
        self._write(self.folder / f"{launch.name}.json", msgspec.json.encode(launch))

    def keep_file(self, name: str, text: str) -> Path:
        """Writes the file for SkyPilot, and returns its path."""
        self._write(self.file(name), text.encode())
        return self.file(name)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def key_file(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def api_key(self, name: str) -> str | None:
        """The generated API key; None if the user has an own one."""
        with disk_errors(self.folder):
            data = read_bounded(self.key_file(name), _KEY_BYTES_MAX)
        return data.decode("ascii", "replace").strip() or None if data else None

    def make_api_key(self, name: str) -> str:
        """Generates an API key, and keeps it in a file that only this user can read."""
        key = secrets.token_hex(_KEY_RANDOM_BYTES)
        self._write(self.key_file(name), f"{key}\n".encode())
        return key

    def find(self, name: str) -> Launch:
        """Reads a record.

        Raises:
            UsageError: The name is not valid.
            NotFoundError: There is no such launch from this machine.
            IntegrityError: The record is damaged.
        """
        if not NAME.fullmatch(name):
            raise UsageError(f"{name[:60]!r} is not a name of a launch", hint="see: coldstream launch status")
        path = self.folder / f"{name}.json"
        with disk_errors(self.folder):
            data = read_bounded(path, _RECORD_BYTES_MAX)
        if data is None:
            raise NotFoundError(
                f"nothing was launched as {name} from this machine",
                hint="list the launches: coldstream launch status",
                target=str(path),
            )
        try:
            launch = _DECODER.decode(data)
            if launch.name != name or launch.kind not in KINDS:
                raise msgspec.ValidationError("it is about another launch")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise IntegrityError(f"{path} is damaged: {exc}", hint="SkyPilot still knows it: sky status") from exc
        return launch

    def all(self) -> Iterator[Launch]:
        """The readable records, by name."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in sorted(os.listdir(self.folder)):
                if file.endswith(".json"):
                    with suppress(IntegrityError, NotFoundError, UsageError):
                        yield self.find(file.removesuffix(".json"))

    def forget(self, name: str) -> None:
        """Removes the record, the file and the key of a launch."""
        for path in (self.folder / f"{name}.json", self.file(name), self.key_file(name)):
            with disk_errors(self.folder), suppress(FileNotFoundError):
                path.unlink()

    def _write(self, path: Path, data: bytes) -> None:
        with disk_errors(self.folder):
            checked_root(self._root, create=True)
            make_folders(self.folder)
            write_atomically(path, data, staging=self.folder)


def launches_of(settings: Settings) -> Launches:
    """The records in the configured cache directory."""
    return Launches(cache_of(settings).root)
