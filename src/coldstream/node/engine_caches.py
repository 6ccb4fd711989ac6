"""Where an engine and its compilers keep their caches, one folder each below one root, and what these depend on.

Engines look up compiled graphs by a hash of their own, so a key that says too little costs a download, and one that
says too much a compilation. It has what could make restored code run incorrectly: versions, flags, variables, paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from coldstream.cache.cache import cache_of
from coldstream.machine.disk import private_root
from coldstream.model.names import expanded
from coldstream.node.engine_flags import EngineFlags
from coldstream.node.engine_program import EngineProgram
from coldstream.settings import Settings

# Distributions that compile, or whose code is compiled, named as their folders in site-packages.
COMPILERS = (
    *("torch", "triton", "pytorch_triton", "pytorch_triton_rocm", "triton_rocm", "triton_cpu", "transformers"),
    *("compressed_tensors", "flashinfer_python", "flashinfer_cubin", "flashinfer_jit_cache", "deep_gemm", "tilelang"),
    *("nvidia_cutlass_dsl", "quack_kernels", "setuptools", "numpy"),
)
# Where compilers keep their caches: each variable, and its folder below the root.
_COMPILER_FOLDERS = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUDA_CACHE_PATH": "cuda",
}
# A new file there means that something was compiled.
_COMPILED = r"(inductor|triton|flashinfer|deep_gemm|tilelang|cuda)/.*"
# What is useful only to the process that made it.
_TEMPORARY = r"(.*/)?locks/.*|.*\.(lock|tmp|pid)|.*\.tmp\..*"
# Variables that compilers and CUDA read, and those among them that change nothing compiled, or that hold secrets.
_COMPILER_VARIABLES = r"(TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|FLASHINFER|DG|CUDA|NCCL|OMP|ROCM|HIP)_.+"
_COMPILER_VARIABLES_LEFT_OUT = (
    r"CUDA_(CACHE_.*|VISIBLE_DEVICES|HOME|PATH|VERSION)|NCCL_DEBUG.*|TORCH_(LOGS|TRACE)|TORCHINDUCTOR_CACHE_DIR"
    r"|TRITON_CACHE_DIR|DG_JIT_CACHE_DIR|FLASHINFER_WORKSPACE_BASE|.*(KEY|TOKEN|SECRET|PASSWORD).*"
)


class EngineCaches:
    """The caches that an engine builds while it starts.

    Attributes:
        folders: Its variables, each with its folder below the root, besides those of the compilers; the first is the
            engine's own root.
        left_out: Matches its files that no bundle has.
        code: Matches its files of compiled code.
        packages: The engine's own distributions, besides those of the compilers.
        front: Flags that change nothing that is compiled, measured or inspected, or that hold secrets; without `--`.
        variables: Matches the engine's own variables, and `variables_left_out` those among them that do not count.
    """

    folders: ClassVar[Mapping[str, str]]
    left_out: ClassVar[str]
    code: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    front: ClassVar[str]
    variables: ClassVar[str]
    variables_left_out: ClassVar[str]

    def environment(self, root: str, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that put the caches below `root`, in a form that the next start can load.

        Variables that the user sets in `environ` stay, except for the engine's own root, which `root` is then below.
        """
        own, folders = next(iter(self.folders)), {**self.folders, **_COMPILER_FOLDERS}
        chosen = {name: folder for name, folder in folders.items() if name == own or not environ.get(name)}
        return {name: os.path.join(root, folder) for name, folder in chosen.items()}

    def keeps(self, path: str) -> bool:
        """Whether a file, by its path below the root, belongs in a bundle."""
        return re.fullmatch(f"{self.left_out}|{_TEMPORARY}", path) is None

    def is_compiled(self, path: str) -> bool:
        """Whether it comes from a compiler."""
        return re.fullmatch(f"{self.code}|{_COMPILED}", path) is not None

    def base(self, settings: Settings, environ: Mapping[str, str]) -> Path:
        """The folder with the caches of all starts on this node: below the engine's own root, if the user chose one."""
        if chosen := environ.get(next(iter(self.folders))):
            return private_root(expanded(chosen).absolute()) / "coldstream/bundles"
        return cache_of(settings).root / "bundles"

    def key_parts(self, program: EngineProgram, flags: EngineFlags, environ: Mapping[str, str]) -> dict[str, str]:
        """The parts of the key that depend on the engine, its flags and its environment."""
        names = (*self.packages, *COMPILERS)
        versions = {name.replace("_", "-"): program.packages[name] for name in names if name in program.packages}
        left_out = {f"--{name}" for name in self.front.split()}
        relevant = {flag: " ".join(values) for flag, values in flags.values.items() if flag not in left_out}
        parallel = {name: relevant.pop(f"--{name}-size", "1") for name in ("tensor-parallel", "pipeline-parallel")}
        counted = re.compile(f"{self.variables}|{_COMPILER_VARIABLES}")
        ignored = re.compile(f"{self.variables_left_out}|{_COMPILER_VARIABLES_LEFT_OUT}")
        variables = {
            name: value for name, value in environ.items() if counted.fullmatch(name) and not ignored.fullmatch(name)
        }
        return {
            "python": program.python,
            **versions,
            **parallel,
            "arguments": " ".join(f"{flag}={value}" if value else flag for flag, value in sorted(relevant.items())),
            "environment": " ".join(f"{name}={value}" for name, value in sorted(variables.items())),
            # Compiled code names its sources by their paths.
            "site": program.site,
        }
