"""Cases to examine, without a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coldstream.operate.doctor.case import Case
from coldstream.operate.doctor.checklist import examine, select
from coldstream.operate.probe import Check
from coldstream.settings import load_settings


def case_of(tmp_path: Path, name: str | None = None, *, vllm: Path | None = None, **values: str) -> Case:
    """A case with these settings, and no others; other variables are what vLLM is started with."""
    flags = {"COLDSTREAM_STORE": str(tmp_path / "store"), "COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}
    environ = {key: value for key, value in values.items() if key.startswith(("VLLM_PLUGINS", "HF_HUB"))}
    settings = load_settings({**flags, **{k: v for k, v in values.items() if k not in environ}}, environ={})
    return Case(settings, name, vllm=str(vllm) if vllm else None, environ=environ)


def looked(case: Case, *names: str) -> Check:
    """What the last of these checks says."""
    return list(examine(case, select(only=names)))[-1]


def write_script(path: Path, lines: str) -> Path:
    """A program of the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def install(site: Path, name: str, version: str, entry_points: Sequence[tuple[str, str]] = ()) -> None:
    """What pip leaves of a distribution."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    text = "".join(f"[{group}]\n{point}\n" for group, point in entry_points)
    (folder / "entry_points.txt").write_text(text)
