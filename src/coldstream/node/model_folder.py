"""The model folder for the engine: configuration and tokenizer, and the headers of the weights.

Engines read small files from a local folder, look into the headers of the shards (is there an `lm_head`? which
dtypes?), and get the tensors from our load format. So the folder has every small file, a stub of each shard (only its
header, which every other loader rejects), and a note that says where the weights are. Each version of a model has a
folder, which is completed under another name first; a start without the network uses the last one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from coldstream.cache.cache import cache_of
from coldstream.errors import DiskError, IntegrityError, UnavailableError
from coldstream.loading.load_plan import OFFLINE_SECONDS, uri_key
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_private, temporary_root
from coldstream.machine.parallel import in_parallel
from coldstream.model.header import POINTER_HINT, is_pointer, pointer_message
from coldstream.model.names import path_fault
from coldstream.model.selection import PART_OF_MODEL_BYTES_MAX, is_tensor_data
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings, ambient_settings

# Read by our load format, which loads the weights.
NOTE_NAME = ".coldstream.json"
# A model that can be served has one of them; the second one is of Mistral's own format.
CONFIGURATIONS = ("config.json", "params.json")
# Tokenizers with their vocabularies have tens of megabytes, and weights of parts more.
FILE_BYTES_MAX = PART_OF_MODEL_BYTES_MAX
_NOTE_BYTES_MAX = 64 << 10
# Folders of versions that no start has used for so long are removed.
_OLD_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Where the weights of a folder are.

    Attributes:
        uri: The user's; without its secret part when it was read from a folder.
        version: Of the model.
        name: Of the model, for people.
    """

    uri: Uri
    version: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A complete folder.

    Attributes:
        path: The folder.
        note: Its note.
        offline: Whether the origin did not answer, and this is the folder of the last start.
        left_out: Weights that are not loaded: see `Checkpoint`.
    """

    path: Path
    note: Note
    offline: bool
    left_out: Mapping[str, str] = field(default_factory=dict)


def prepare(uri: str, *, settings: Settings | None = None) -> str:
    """Makes the folder of a model, for `LLM(model=coldstream.prepare("org/model"), load_format="coldstream")`.

    Args:
        uri: See `Load`.
        settings: Instead of the environment and `.env`.

    Returns:
        The folder's path.

    Raises:
        What `model_folder` raises.
    """
    return str(model_folder(uri, settings or ambient_settings()).path)


class Resolved(Protocol):
    """A model that was resolved: a `Share` is one."""

    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def origin(self) -> ModelReader | None:
        """None when the origin did not answer."""


def model_folder(uri: str | Uri, settings: Settings, *, resolved: Resolved | None = None) -> ModelFolder:
    """Creates the folder of the model's current version, unless it exists.

    Args:
        uri: See `Load`.
        settings: Where the bucket is, and the cache that contains the folder.
        resolved: The model, if it was resolved already: the folder is then of that version.

    Raises:
        UsageError: The URI does not name a model.
        NotFoundError, CredentialsError, UnavailableError: From the origin. An origin that does not answer is not an
            error if an earlier start left a folder.
        IntegrityError: A file differs from the manifest, or its name leaves the folder.
        DiskError: The folder can be written neither in the cache nor among the system's temporary files.
    """
    uri = Uri.of(uri)
    try:
        return _folder_below(cache_of(settings).root, uri, settings, resolved)
    except DiskError:
        # Like a load, a start goes on without a cache: the folder has only a few megabytes.
        return _folder_below(temporary_root(), uri, settings, resolved)


def _folder_below(root: Path, uri: Uri, settings: Settings, resolved: Resolved | None) -> ModelFolder:
    checked_root(root, create=True)
    home = root / "folders" / _flat(uri_key(uri, settings))
    last = _last(home)
    try:
        if resolved is not None:
            checkpoint, origin = resolved.checkpoint, resolved.origin
            if origin is None:
                raise UnavailableError(f"{uri} does not answer, and no earlier start left its configuration here")
        else:
            patience = OFFLINE_SECONDS if last else settings.retry_seconds
            origin = open_model_reader(uri, settings, retry=Retry(Backoff(give_up_seconds=patience)))
            checkpoint = origin.checkpoint()
        note = Note(uri=Uri(str(uri)), version=checkpoint.version, name=checkpoint.name)
        path = home / checkpoint.version[:32]
        # A version that does not depend on the content cannot tell an old folder from a new one.
        if not checkpoint.pinned or read_note(path) != note:
            _make(path, note, origin, checkpoint)
        with suppress(OSError):
            os.utime(path)
    except UnavailableError:
        # Weights of one version do not go with the configuration of another.
        if last is None or (resolved is not None and last[1].version != resolved.checkpoint.version):
            raise
        return ModelFolder(path=last[0], note=last[1], offline=True)
    _remove_old(home, kept=path)
    return ModelFolder(path=path, note=note, offline=False, left_out=checkpoint.left_out)


def read_note(folder: str | os.PathLike[str]) -> Note | None:
    """The note of a folder; None when the folder is not one of ours."""
    try:
        with open(os.path.join(folder, NOTE_NAME), "rb") as file:
            document = json.loads(file.read(_NOTE_BYTES_MAX))
        uri, version, name = document["uri"], document["version"], document["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_note = all(isinstance(text, str) for text in (uri, version, name))
    return Note(uri=Uri(uri), version=version, name=name) if is_note else None


def _make(path: Path, note: Note, origin: ModelReader, checkpoint: Checkpoint) -> None:
    with disk_errors(path):
        staging = path.parent / f".new-{os.urandom(8).hex()}"
        make_folders(staging)
    try:
        names = [name for name in origin.names() if name != NOTE_NAME]
        # Weights of parts may have gigabytes each, so only one is in memory at a time.
        heavy = [name for name in names if is_tensor_data(name)]
        in_parallel(lambda name: _write(staging, name, _content(origin, name)), [n for n in names if n not in heavy])
        for name in heavy:
            _write(staging, name, _content(origin, name))
        for shard in checkpoint.shards:
            if shard.path not in names:
                _write(staging, shard.path, shard.head)
        _write(
            staging, NOTE_NAME, json.dumps({"uri": str(note.uri), "version": note.version, "name": note.name}).encode()
        )
        with disk_errors(path):
            _put(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _content(origin: ModelReader, name: str) -> bytes:
    data = origin.read(name, FILE_BYTES_MAX)
    if is_pointer(data, len(data)):
        raise IntegrityError(pointer_message(f"{origin.label}/{name}"), hint=POINTER_HINT)
    return data


def _put(staging: Path, path: Path) -> None:
    """Renames it into place; another process may have done so first, with the same content."""
    trash = staging.with_name(staging.name.replace(".new-", ".old-"))
    with suppress(FileNotFoundError):
        os.rename(path, trash)
    try:
        os.rename(staging, path)
    except OSError:
        if read_note(path) is None:
            raise
    shutil.rmtree(trash, ignore_errors=True)


def _write(folder: Path, name: str, data: bytes) -> None:
    if fault := path_fault(name):
        raise IntegrityError(f"{name[:80]!r} is not a valid file name in a model: {fault}")
    target = folder / name
    with disk_errors(target):
        make_folders(target.parent)
        with open(open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)


def _last(home: Path) -> tuple[Path, Note] | None:
    """The most recently used folder, with its note."""
    for path in _by_age(home):
        if note := read_note(path):
            return path, note
    return None


def _by_age(home: Path) -> Sequence[Path]:
    """Finished folders, the most recently used first."""
    try:
        names = os.listdir(home)
    except OSError:
        return ()
    folders = []
    for path in (home / name for name in names if name[0] != "."):
        # Another start may remove it at any time.
        with suppress(OSError):
            folders.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(folders, reverse=True)]


def _remove_old(home: Path, *, kept: Path) -> None:
    limit = time.time() - _OLD_SECONDS
    for path in _by_age(home):
        with suppress(OSError):
            if path != kept and path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)


def _flat(key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", key.partition("://")[2] or key).strip("-.")[-120:]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def check_complete(folder: ModelFolder) -> None:
    """Raises DiskError when the small files of an earlier start's folder were removed."""
    if not any((folder.path / name).is_file() for name in CONFIGURATIONS):
        raise DiskError(f"{folder.path} has no config.json", hint="start once while the bucket is reachable")
