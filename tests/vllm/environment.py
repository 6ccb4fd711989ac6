"""Creates vLLM's environment for the tests: `python -m tests.vllm.environment FOLDER`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools import cpu_vllm

from coldstream.errors import UsageError

# Run:ai's loader, for `serve --loader runai`; it brings boto3.
EXTRA = ("runai-model-streamer[s3]==0.17.*",)
# For the recipes. What it needs is there, in the versions that vLLM needs.
ALONE = ("diffusers==0.42.1",)


def main(folder: Path) -> None:
    """Creates it, or prints why this machine cannot run vLLM."""
    try:
        python = cpu_vllm.ensure(folder, on_step=lambda step: print(f"vLLM: {step}", flush=True))
    except UsageError as exc:
        print(f"vLLM's tests will skip: {exc.message}")
        return
    uv = shutil.which("uv")
    pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    subprocess.run([*pip, "--quiet", *EXTRA], check=True)
    subprocess.run([*pip, "--quiet", "--no-deps", *ALONE], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
