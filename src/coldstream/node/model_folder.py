"""The model folder for the engine: configuration and tokenizer, and the headers of the weights.

Engines read small files from a local folder, look into the headers of the shards (is there an `lm_head`? which
dtypes?), and get the tensors from our load format. So the folder has every small file, a stub of each shard (only its
header, which every other loader rejects), and a note with the URI of the weights. Each version of a model has a folder,
which is completed under another name first. A start without the network uses the last one.
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
from typing import TYPE_CHECKING

from coldstream.cache.cache import cache_of
from coldstream.errors import DiskError, IntegrityError, UnavailableError
from coldstream.loading.load_plan import OFFLINE_SECONDS, uri_key
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_private, temporary_root
from coldstream.machine.parallel import in_parallel
from coldstream.model.header import POINTER_HINT, is_pointer, pointer_message
from coldstream.model.names import Uri, path_fault
from coldstream.model.selection import PART_OF_MODEL_BYTES_MAX, is_tensor_data
from coldstream.net.retry import Backoff, Retry
from coldstream.places.checkpoint import Checkpoint
from coldstream.places.model_reader import ModelReader
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings, ambient_settings

if TYPE_CHECKING:
    from coldstream.loading.sharing import Share

# Read by our load format, which loads the weights.
NOTE_NAME = ".coldstream.json"
# A model that can be served has one of them; the second one is of Mistral's own format.
CONFIGURATIONS = ("config.json", "params.json")
_NOTE_BYTES_MAX = 64 << 10
# Folders of versions that no start has used for so long are removed.
_OLD_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Where the weights of a folder are. `uri` has no secret part when it was read from a folder."""

    uri: Uri
    version: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A complete folder; if `offline`, of an earlier start, because the origin did not answer.

    `checkpoint` is None if neither the origin nor a load told of it.
    """

    path: Path
    note: Note
    offline: bool
    checkpoint: Checkpoint | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


def prepare(uri: str, *, settings: Settings | None = None) -> str:
    """Creates the folder of a model, and returns its path.

    For `LLM(model=coldstream.prepare("org/model"), load_format="coldstream")`. `settings` replaces the environment and
    `.env`. Raises what `model_folder` raises.
    """
    return str(model_folder(uri, settings or ambient_settings()).path)


def model_folder(uri: str | Uri, settings: Settings, *, resolved: Share | None = None) -> ModelFolder:
    """Creates the folder of the model's current version, or of the version that a load has resolved, unless it exists.

    Without a writable cache, the folder is among the system's temporary files. An origin that does not answer is not an
    error if an earlier start left a folder. Raises IntegrityError if a file differs from the manifest.
    """
    uri = Uri.of(uri)
    try:
        return _folder_below(cache_of(settings).root, uri, settings, resolved)
    except DiskError:
        return _folder_below(temporary_root(), uri, settings, resolved)


def _folder_below(root: Path, uri: Uri, settings: Settings, resolved: Share | None) -> ModelFolder:
    checked_root(root, create=True)
    key = uri_key(uri, settings)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", key.partition("://")[2] or key).strip("-.")[-120:]
    home = root / "folders" / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    # The folder of the last start.
    last = next(((path, note) for path in _by_age(home) if (note := read_note(path))), None)
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
        return ModelFolder(
            path=last[0], note=last[1], offline=True, checkpoint=resolved.checkpoint if resolved else None
        )
    _remove_old(home, kept=path)
    left_out = checkpoint.left_out
    return ModelFolder(path=path, note=note, offline=False, checkpoint=checkpoint, left_out=left_out)


def is_configured(folder: Path) -> bool:
    """Whether an engine can serve what is in a folder, by its configuration."""
    return any((folder / name).is_file() for name in CONFIGURATIONS)


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
        token = os.urandom(8).hex()
        staging, trash = path.parent / f".new-{token}", path.parent / f".old-{token}"
        make_folders(staging)
    try:
        names = [name for name in origin.names() if name != NOTE_NAME]
        # Weights of parts may have gigabytes each, so only one is in memory at a time.
        heavy = [name for name in names if is_tensor_data(name)]

        def copy(name: str) -> None:
            data = origin.read(name, PART_OF_MODEL_BYTES_MAX)
            if is_pointer(data, len(data)):
                raise IntegrityError(pointer_message(f"{origin.label}/{name}"), hint=POINTER_HINT)
            _write(staging, name, data)

        in_parallel(copy, [name for name in names if name not in heavy])
        for name in heavy:
            copy(name)
        for shard in checkpoint.shards:
            if shard.path not in names:
                _write(staging, shard.path, shard.head)
        document = {"uri": str(note.uri), "version": note.version, "name": note.name}
        _write(staging, NOTE_NAME, json.dumps(document).encode())
        with disk_errors(path):
            with suppress(FileNotFoundError):
                os.rename(path, trash)
            try:
                os.rename(staging, path)
            except OSError:
                # Another process may have done so first, with the same content.
                if read_note(path) is None:
                    raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(trash, ignore_errors=True)


def _write(folder: Path, name: str, data: bytes) -> None:
    if fault := path_fault(name):
        raise IntegrityError(f"{name[:80]!r} is not a valid file name in a model: {fault}")
    target = folder / name
    with disk_errors(target):
        make_folders(target.parent)
        with open(open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)


def _by_age(home: Path) -> Sequence[Path]:
    """Finished folders, the most recently used first."""
    folders = []
    for path in home.glob("[!.]*"):
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
