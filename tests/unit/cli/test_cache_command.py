"""`coldstream cache list`, `path` and `prune`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from coldstream.cache.cache import Cache, configured
from coldstream.cli.cache_command import command
from coldstream.cli.session import State
from coldstream.errors import ColdstreamError, NotFoundError, UsageError
from tests.unit.cache.cached_models import URI, Model, begun


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cache:
    """The cache that the command finds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return configured(None, "20GB")


def run(*arguments: str, code: int = 0) -> str:
    """Runs `coldstream cache …` and returns its stdout."""
    # Without standalone mode a verb's exit code is its return value, as `coldstream.cli.main` has it.
    result = CliRunner().invoke(command, arguments, obj=State(), standalone_mode=False)
    if isinstance(result.exception, ColdstreamError):
        assert result.exception.exit_code == code
        raise result.exception
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code
    return result.stdout


def document(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


def test_cache_list(home: Cache) -> None:
    """coldstream cache list"""
    assert "no models in" in run("list")
    assert not home.root.exists()
    model = Model({"w": [100_000] * 4})
    folder = model.fill(home, name="org/old", version="sha256:" + "0e9e39f" * 9)
    os.utime(folder / ".coldstream/used", (1000, 1000))
    with model.open(home, name="org/new", version="v2") as copy, begun(copy) as writer:
        model.write(writer, 0, 0)
        lines = run("list").splitlines()
        assert lines[0].split() == ["MODEL", "VERSION", "SIZE", "STATE", "LAST", "USED"]
        assert lines[1].split()[:2] == ["org/new", "v2"]
        assert "writing 2" in lines[1]
        assert lines[1].endswith("just now")
        assert lines[2].split()[:2] == ["org/old", "0e9e39f0e9e3"]
        assert "complete" in lines[2]
        assert "of at most" in lines[3]
        found = document("list")
        assert [entry["name"] for entry in found["copies"]] == ["org/new", "org/old"]
        assert found["copies"][0] | {"bytes": 0, "used": ""} == {
            "name": "org/new",
            "version": "v2",
            "uri": URI,
            "folder": str(copy.folder),
            "bytes": 0,
            "bytes_total": 400_000,
            "complete": False,
            "in_use": True,
            "writing": True,
            "used": "",
        }
        assert found["bytes"] == sum(entry["bytes"] for entry in found["copies"])
        assert found["folder"] == str(home.root)
    assert "partial 2" in run("list")


def test_cache_path(home: Cache) -> None:
    """coldstream cache path NAME"""
    assert run("path") == f"{home.root}\n"
    model = Model()
    for version in ("1", "2"):
        folder = model.fill(home, version=version)
    os.utime(home.root / "models/org--model/1/.coldstream/used", (1000, 1000))
    assert run("path", "org/model") == f"{folder}\n"
    assert document("path", "org/model") == {"path": str(folder), "name": "org/model", "version": "2"}
    with pytest.raises(NotFoundError, match="is not in the cache"):
        run("path", "org/other", code=10)
    model.open(home, name="org/other").close()
    with pytest.raises(NotFoundError, match="is not complete in"):
        run("path", "org/other", code=10)


def test_cache_prune(home: Cache) -> None:
    """coldstream cache prune NAME | --keep SIZE | --older-than AGE | --all"""
    model = Model({"w": [100_000]})
    for number in range(4):
        folder = model.fill(home, name=f"m/{number}")
        os.utime(folder / ".coldstream/used", (1000 + number, 1000 + number))
    for wrong in ([], ["m/1", "--all"]):
        with pytest.raises(UsageError):
            run("prune", *wrong, code=2)
    with pytest.raises(NotFoundError):
        run("prune", "m/9", code=10)
    assert "would remove   4 models" in run("prune", "--all", "--dry-run")
    assert "removed   1 model," in run("prune", "m/1")
    with model.open(home, name="m/2"):
        assert document("prune", "m/2", code=3)["in_use"][0]["name"] == "m/2"
        assert [entry["name"] for entry in document("prune", "--older-than", "7d")["removed"]] == ["m/0", "m/3"]
    assert document("prune", "--keep", "1GB")["removed"] == []
    with pytest.raises(UsageError, match="refusing to delete 1 model"):
        run("prune", "--all", code=2)
    assert len(home.entries()) == 1
    assert "m/2" in run("prune", "--all", "--yes")
    assert home.entries() == []
