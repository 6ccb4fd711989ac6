"""The vLLM that is installed."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from coldstream.errors import NotFoundError
from coldstream.vllm.versions import version_warning


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A `vllm` command.

    Attributes:
        path: Absolute.
        version: Of the distribution `vllm` beside it; None when it cannot be told without running it.
        compiled: Whether its modules have bytecode; without, its imports take twice as long, each time.
    """

    path: str
    version: str | None
    compiled: bool

    def warnings(self, environ: dict[str, str]) -> list[str]:
        """What the user should know before it starts."""
        found = []
        if self.version and (warning := version_warning(self.version)):
            found.append(warning)
        if not self.compiled:
            packages = Path(self.path).parent.parent
            found.append(f"vLLM has no bytecode, and starts slowly; run once: python -m compileall -q {packages}")
        plugins = environ.get("VLLM_PLUGINS")
        if plugins is not None and "coldstream" not in plugins.split(","):
            found.append("VLLM_PLUGINS leaves coldstream out; add it, or vLLM does not know the load format")
        return found


def find_program(named: str | None) -> Program:
    """The `vllm` that was named, or that lies beside this Python, or on the PATH.

    Raises:
        NotFoundError: There is none.
    """
    beside = Path(sys.executable).with_name("vllm")
    found = shutil.which(named) if named else str(beside) if beside.is_file() else shutil.which("vllm")
    if not found:
        raise NotFoundError(
            f"there is no program {named!r}" if named else "vLLM is not installed beside coldstream",
            hint="install both into one environment: pip install vllm coldstream   (or name it: --vllm PATH)",
        )
    path = os.path.abspath(found)
    packages = list(Path(path).parent.parent.glob("lib/python3*/site-packages"))
    versions = [info.name.split("-")[1].removesuffix(".dist") for p in packages for info in p.glob("vllm-*.dist-info")]
    modules = [p / "vllm" for p in packages if (p / "vllm").is_dir()]
    return Program(
        path=path,
        version=versions[0] if versions else None,
        compiled=all((module / "__pycache__").is_dir() for module in modules),
    )
