"""Reads one of the small files of a model, such as a configuration."""

from __future__ import annotations

from coldstream.model.names import Uri
from coldstream.places.opening import open_model_reader
from coldstream.settings import Settings, ambient_settings
from coldstream.units import MIB

FILE_BYTES_MAX = 64 * MIB


def read_file(uri: str | Uri, path: str, *, settings: Settings | None = None) -> bytes:
    """The content of a file of at most 64 MiB, by its path in the model; verified if the model has a manifest.

    `Load` describes the URI; `settings` replaces the environment and `.env`. Raises NotFoundError without the file, and
    IntegrityError if it is larger or not as the manifest says.
    """
    return open_model_reader(uri, settings or ambient_settings()).read(path, FILE_BYTES_MAX)
