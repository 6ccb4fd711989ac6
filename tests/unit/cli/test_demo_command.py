"""Where the demo's vLLM comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coldstream.cli.demo_command import _vllm
from coldstream.cli.session import State
from coldstream.errors import DiskError, NotFoundError


def test_no_vllm_is_run_out_of_a_folder_that_others_can_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_named: str | None) -> None:
        raise NotFoundError("absent")

    def ensure(*_arguments: object, **_options: object) -> Path:
        pytest.fail("another user may have made it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coldstream.engines.vllm.program.find_program", absent)
    monkeypatch.setattr("coldstream.operate.cpu_vllm.ensure", ensure)
    shared = tmp_path / "shared"
    for folder in (shared, shared / f"coldstream-{os.geteuid()}"):
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(DiskError, match="others can write to it"):
        _vllm(State(flags={"COLDSTREAM_CACHE_DIR": str(shared)}), None, "org/model")
