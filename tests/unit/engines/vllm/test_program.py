"""Which vLLM is installed, told by the names of files alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coldstream.engines.vllm.program import find_program
from coldstream.errors import NotFoundError
from tests.servers.fake_vllm import fake_vllm


def test_its_packages_and_its_python(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    program = find_program(str(path))
    assert program.version == "0.32.0+cpu"
    assert program.packages["torch"] == "2.13.0+cpu"
    assert program.python == "python3.11"
    assert program.site == str(tmp_path / "env/lib/python3.11/site-packages")
    assert program.is_cpu_build
    assert program.compiled
    assert program.launcher == (str(path),)


def test_with_coldstream_beside_it_starts_by_its_launcher(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    (tmp_path / "env/lib/python3.11/site-packages/coldstream-0.1.0.dist-info").mkdir()
    program = find_program(str(path))
    assert program.interpreter is not None
    assert program.launcher == (program.interpreter, "-P", "-m", "coldstream.engines.vllm.entry")
    # Older Pythons know no -P, and would look for modules in the working directory first.
    os.rename(tmp_path / "env/lib/python3.11", tmp_path / "env/lib/python3.10")
    assert find_program(str(path)).launcher == (str(path),)


def test_debian_s_python_has_another_folder(tmp_path: Path) -> None:
    path = fake_vllm(tmp_path / "env")
    os.rename(tmp_path / "env/lib/python3.11/site-packages", tmp_path / "env/lib/python3.11/dist-packages")
    assert find_program(str(path)).version == "0.32.0+cpu"


def test_a_wrapper_tells_nothing(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\nexec /opt/vllm\n")
    program.chmod(0o755)
    found = find_program(str(program))
    assert (found.version, found.interpreter, dict(found.packages)) == (None, None, {})
    assert found.launcher == (str(program),)
    with pytest.raises(NotFoundError, match="no program"):
        find_program(str(tmp_path / "nothing"))
