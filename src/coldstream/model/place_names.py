"""Names for models that are known by a place alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

# `paths.checked_name` allows 512 characters in all.
_SEGMENT_CHARACTERS_MAX = 100


def folder_name(segments: Sequence[str], otherwise: str) -> str:
    """Segments as a model's name: what `paths.checked_name` does not allow becomes a dash."""
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", segment).lstrip(".-")[:_SEGMENT_CHARACTERS_MAX] for segment in segments]
    return "/".join(segment for segment in clean if segment) or folder_name([otherwise], "model")
