"""A cache of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.cache.cache import Cache
from tests.unit.cache.cached_models import HUGE


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", bytes_max=HUGE)
