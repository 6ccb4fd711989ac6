"""The folder that vLLM is given as its model: configuration and tokenizer, and the weights' headers without weights.

vLLM reads files beside the weights from a local folder, looks into the headers of the shards (is there an `lm_head`?
which dtypes?), and takes the tensors from a load format of ours. So the folder holds every small file, a stub of each
shard (its header alone, which every other loader refuses), and a note of where the weights are. One folder for each
version of a model, made whole under another name first; a start without the network finds the last one.
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

from coldstream.cache.cache import cache_of
from coldstream.errors import DiskError, IntegrityError, UnavailableError, UsageError
from coldstream.loading.load_plan import OFFLINE_SECONDS, uri_key
from coldstream.machine.disk import checked_root, disk_errors, make_folders, open_private, temporary_root
from coldstream.machine.parallel import in_parallel
from coldstream.model.lfs import HINT, is_pointer, pointer_message
from coldstream.model.names import path_fault
from coldstream.model.selection import PART_OF_MODEL_BYTES_MAX, is_tensor_data
from coldstream.model.uri import Uri
from coldstream.net.retry import Backoff, Retry
from coldstream.places.origin import Checkpoint, Origin
from coldstream.places.origin_opening import open_origin
from coldstream.settings import Settings, ambient_settings

# What loads the weights later, and is looked for by the load format.
NOTE_NAME = ".coldstream.json"
# A model that vLLM can serve has one of them; Mistral's own format has the second.
CONFIGURATIONS = ("config.json", "params.json")
_ADAPTER = "adapter_config.json"
# Tokenizers with their vocabularies have tens of megabytes, weights of parts more.
FILE_BYTES_MAX = PART_OF_MODEL_BYTES_MAX
_NOTE_BYTES_MAX = 64 << 10
# Folders of versions that nobody has started from for so long are removed.
_OLD_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Where the weights of a folder are.

    Attributes:
        uri: As the user named the model; without its secret part when it was read from a folder.
        version: Of the model whose files these are.
        name: The model's, for people.
    """

    uri: Uri
    version: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A folder that is ready.

    Attributes:
        path: The folder.
        note: What it says of the weights.
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


def model_folder(uri: str | Uri, settings: Settings) -> ModelFolder:
    """Makes the folder of the model's present version, or finds it made.

    Args:
        uri: See `Load`.
        settings: Where the bucket is, and the cache that the folder lies in.

    Raises:
        UsageError: It is no URI of a model.
        NotFoundError, CredentialsError, UnavailableError: As the origin says. One that does not answer is no error if
            there is a folder of an earlier start.
        IntegrityError: A file is not what the manifest says, or its name leaves the folder.
        DiskError: It cannot be written, neither in the cache nor among the system's temporary files.
    """
    uri = Uri.of(uri)
    try:
        return _folder_below(cache_of(settings).root, uri, settings)
    except DiskError:
        # A load goes on without a cache, and so does a start: it needs some megabytes, anywhere.
        return _folder_below(temporary_root(), uri, settings)


def _folder_below(root: Path, uri: Uri, settings: Settings) -> ModelFolder:
    checked_root(root, create=True)
    home = root / "folders" / _flat(uri_key(uri, settings))
    last = _last(home)
    patience = OFFLINE_SECONDS if last else settings.retry_seconds
    origin = open_origin(uri, settings, retry=Retry(Backoff(give_up_seconds=patience)))
    try:
        checkpoint = origin.checkpoint()
        note = Note(uri=Uri(str(uri)), version=checkpoint.version, name=checkpoint.name)
        path = home / checkpoint.version[:32]
        # A version that says nothing of the content cannot tell an old folder from a new one.
        if not checkpoint.pinned or read_note(path) != note:
            _make(path, note, origin, checkpoint)
        with suppress(OSError):
            os.utime(path)
    except UnavailableError:
        if last is None:
            raise
        return ModelFolder(path=last[0], note=last[1], offline=True)
    _remove_old(home, kept=path)
    return ModelFolder(path=path, note=note, offline=False, left_out=checkpoint.left_out)


def read_note(folder: str | os.PathLike[str]) -> Note | None:
    """What a folder says of its weights; None when it is none of ours."""
    try:
        with open(os.path.join(folder, NOTE_NAME), "rb") as file:
            found = json.loads(file.read(_NOTE_BYTES_MAX))
        uri, version, name = found["uri"], found["version"], found["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_note = all(isinstance(text, str) for text in (uri, version, name))
    return Note(uri=Uri(uri), version=version, name=name) if is_note else None


def stub_error(folder: str, load_format: str) -> UsageError | None:
    """Why another load format than ours cannot load a folder; None when it is none of ours."""
    note = read_note(folder)
    if note is None:
        return None
    return UsageError(
        f"{folder} holds the configuration of {note.name} but not its weights, and load format {load_format} cannot "
        'fetch them: pass load_format="coldstream" to LLM, or --load-format coldstream to vllm serve'
    )


def _make(path: Path, note: Note, origin: Origin, checkpoint: Checkpoint) -> None:
    with disk_errors(path):
        staging = path.parent / f".new-{os.urandom(8).hex()}"
        make_folders(staging)
    try:
        names = [name for name in origin.names() if name != NOTE_NAME]
        # Weights of parts may have gigabytes each: one at a time is in memory.
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


def _content(origin: Origin, name: str) -> bytes:
    data = origin.read(name, FILE_BYTES_MAX)
    if is_pointer(data, len(data)):
        raise IntegrityError(pointer_message(f"{origin.label}/{name}"), hint=HINT)
    return data


def _put(staging: Path, path: Path) -> None:
    """Renames it into place; another process may have been quicker, with the same content."""
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
        raise IntegrityError(f"{name[:80]!r} cannot be a file of a model: {fault}")
    target = folder / name
    with disk_errors(target):
        make_folders(target.parent)
        with open(open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)


def _last(home: Path) -> tuple[Path, Note] | None:
    """The folder that was used last, with its note."""
    for path in _by_age(home):
        if note := read_note(path):
            return path, note
    return None


def _by_age(home: Path) -> Sequence[Path]:
    """Finished folders, the one used last first."""
    try:
        names = os.listdir(home)
    except OSError:
        return ()
    found = []
    for path in (home / name for name in names if name[0] != "."):
        # Another start may have taken it away meanwhile.
        with suppress(OSError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def _remove_old(home: Path, *, kept: Path) -> None:
    limit = time.time() - _OLD_SECONDS
    for path in _by_age(home):
        with suppress(OSError):
            if path != kept and path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)


def _flat(key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", key.partition("://")[2] or key).strip("-.")[-120:]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def check_servable(folder: Path, name: str) -> None:
    """Finds out what vLLM would after half a minute.

    Args:
        folder: With the model's configuration.
        name: The model's.

    Raises:
        UsageError: It has none, as an adapter has not.
    """
    if any((folder / file).is_file() for file in CONFIGURATIONS):
        return
    if not (folder / _ADAPTER).is_file():
        raise UsageError(f"{name} has no config.json: vLLM cannot serve it", hint="upload it with its config.json")
    base = ""
    with suppress(OSError, ValueError, AttributeError):
        base = str(json.loads((folder / _ADAPTER).read_bytes()).get("base_model_name_or_path"))
    base = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else "BASE_MODEL"
    raise UsageError(
        f"{name} is an adapter (it has {_ADAPTER} and no config.json): vLLM serves it with its base model only",
        hint=f"coldstream serve {base} -- --enable-lora --lora-modules NAME=FOLDER   (the adapter in a local folder)",
    )


def check_complete(folder: ModelFolder) -> None:
    """A folder of an earlier start has its small files.

    Raises:
        DiskError: Somebody removed them.
    """
    if not any((folder.path / name).is_file() for name in CONFIGURATIONS):
        raise DiskError(f"{folder.path} has no config.json", hint="start once with the bucket in reach")
