"""Creates SGLang's environment for the tests: `python -m tests.sglang.environment FOLDER VLLM_FOLDER`.

SGLang's wheel and a few packages, 150 MB, beside torch and the packages of vLLM's environment, which have the versions
that SGLang requires or newer ones. Not installed: what SGLang needs to run a model on a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PINS = ("sglang==0.5.23", "orjson==3.13.0", "ipython==9.18.1", "traitlets==5.16.1", "gguf==0.19.0", "soundfile==0.13.1")
_SECONDS = 100


def main(folder: Path, vllm: Path) -> None:
    """Creates it, or prints why this machine cannot have it."""
    theirs = next(vllm.glob("lib/python3.*/site-packages"), None)
    if theirs is None:
        print("SGLang's tests will skip: they use torch from vLLM's environment, which is not installed")
        return
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin/python"
    subprocess.run([str(vllm / "bin/python"), "-m", "venv", "--without-pip", str(folder)], check=True)
    (own,) = folder.glob("lib/python3.*/site-packages")
    (own / "vllm.pth").write_text(f"{theirs.resolve()}\n")
    # `coldstream serve` looks for itself among the packages of SGLang's own folder.
    for path in theirs.glob("coldstream*"):
        (own / path.name).symlink_to(path.resolve())
    shutil.copyfile(Path(__file__).with_name("absent.py"), own / "absent_packages.py")
    (own / "absent_packages.pth").write_text("import absent_packages\n")
    options = ["--quiet", "--no-deps", "--only-binary", ":all:"]
    if uv := shutil.which("uv"):
        pip = [uv, "pip", "install", "--python", str(python), *options]
    else:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check", *options]
    try:
        done = subprocess.run([*pip, *PINS], capture_output=True, text=True, timeout=_SECONDS, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"the package index took more than {_SECONDS} s"
    if reason:
        # The reason is the last line; a wheel is missing for this Python or this glibc, or the index does not have it.
        print(f"SGLang's tests will skip: it cannot be installed: {reason.splitlines()[-1]}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
