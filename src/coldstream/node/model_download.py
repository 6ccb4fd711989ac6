"""Downloads the model for an engine that reads the weights itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from coldstream.cache.cache import cache_of
from coldstream.errors import UsageError
from coldstream.loading.options import OnProgress
from coldstream.machine.disk import checked_root
from coldstream.model.names import checked_name, split_revision
from coldstream.node.inference_engine import Say, ServeRequest
from coldstream.places.tree import snapshot_of
from coldstream.progress import Progress
from coldstream.settings import Settings


def downloaded_folder(request: ServeRequest, settings: Settings, say: Say) -> str:
    """The folder with the model's files: the request's own folder, or one that the bucket's files are copied to."""
    from coldstream.mirror.download import download
    from coldstream.mirror.stored_files import stored_bytes
    from coldstream.places.opening import open_store

    name = request.uri.full
    if not request.is_name:
        if "://" in name:
            raise UsageError("--loader default needs a model in the configured bucket, or a folder")
        return str(snapshot_of(Path(os.path.abspath(os.path.expanduser(name)))))
    root = cache_of(settings).root
    checked_root(root, create=True)
    folder = root / "downloads" / checked_name(split_revision(name)[0])
    say(f"downloading {name} to {folder}")
    store, on_progress = open_store(settings), request.options.on_progress
    total = stored_bytes(store, name) if on_progress else 0
    download(store, name, folder, progress=_DownloadProgress(say, total, on_progress))
    return str(folder)


class _DownloadProgress(Progress):
    """Passes on a download's messages, and how far it is."""

    def __init__(self, write: Say, total: int, on_progress: OnProgress | None) -> None:
        self._write, self._total, self._on_progress = write, total, on_progress
        self._stored = 0
        self._lock = threading.Lock()

    def stored(self, path: str, count: int) -> None:
        with self._lock:
            self._stored += count
            if self._on_progress is not None:
                self._on_progress(self._stored, self._total)

    def say(self, text: str) -> None:
        self._write(text)
