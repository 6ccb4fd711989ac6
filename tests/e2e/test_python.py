"""The library as docs/python.md describes it: its examples run, and a load can be iterated over once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import coldstream
from coldstream.settings import load_settings
from tests.checkpoints import sharded_checkpoint
from tests.models import write_model

PAGE = (Path(__file__).resolve().parents[2] / "docs/python.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MODELS = ("Qwen/Qwen3-8B", "https://cdn.example.com/Qwen/Qwen3-8B", "s3://models/Qwen/Qwen3-8B")
# What the examples take from their surroundings.
BEFORE = """
import torch
from coldstream.settings import load_settings

module = torch.nn.Linear(2, 2)
settings = load_settings({"COLDSTREAM_STORE": "FOLDER"}, environ={})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), sharded_checkpoint(shards=2, layers=2))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_page_run(number: int, folder: Path, tmp_path: Path) -> None:
    code = EXAMPLES[number]
    for name in sorted(MODELS, key=len, reverse=True):
        code = code.replace(f'"{name}"', repr(str(folder)))
    script = tmp_path / "example.py"
    script.write_text(BEFORE.replace("FOLDER", (tmp_path / "store").as_uri()) + code)
    (tmp_path / "store").mkdir()
    command = [sys.executable, "-W", "error::DeprecationWarning", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert not result.stderr


def test_the_page_names_everything_that_is_public() -> None:
    for name in coldstream.__all__:
        assert name in {"Attached", "LoadIntoReport", "Options"} or f"`{name}" in PAGE or f".{name}`" in PAGE, name


def test_a_load_can_be_iterated_over_once(folder: Path) -> None:
    loading = coldstream.stream(str(folder), framework="buffer", settings=load_settings({}, environ={}))
    first, _ = next(loading)
    rest = [name for name, _ in loading]
    assert first not in rest
    assert next(loading, None) is None
    with pytest.raises(coldstream.UsageError, match="this load has ended"):
        list(loading)
    with coldstream.stream(str(folder), framework="buffer") as left:
        next(left)
    with pytest.raises(coldstream.UsageError, match="this load has ended"):
        dict(left)


def test_an_attached_load_can_be_iterated_over_once(folder: Path) -> None:
    with coldstream.share(str(folder), consumers=1, settings=load_settings({}, environ={})) as shared:
        attached = coldstream.attach(shared.address, framework="buffer")
        assert dict(attached)
        with pytest.raises(coldstream.UsageError, match="this load has ended"):
            dict(attached)
