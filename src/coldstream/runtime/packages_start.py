"""`bin/coldstream` of a runtime without vLLM: runs coldstream with the Python of the engine that is on the PATH.

Each package has a folder beside it. Those that this Python lacks come onto its path; of the others it has the versions
that its engine works with. The engine's processes inherit the path, and so find coldstream's plugin. This program is
not imported; it needs Python 3.8 and the standard library.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import sys


def interpreter_of_engine() -> str:
    program = shutil.which("vllm") or shutil.which("sglang")
    with open(program or os.devnull, "rb") as file:
        start = os.fsdecode(file.read(1024))
    # pip begins the scripts of environments with long paths like a shell's: '''exec' "/long/python" "$0" "$@"
    match = re.match(r"#!\s*(?:/bin/sh\n'''exec' \"?)?(/[^\s\"]*python[\d.]*)[\s\"]", start)
    return match[1] if match else shutil.which("python3") or sys.executable


def lacking_packages(root: str) -> list[str]:
    """The folders of packages that this Python does not have, coldstream's first: its version is always this one."""
    names = (distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions())
    present = {re.sub("[-_.]+", "-", name).lower() for name in names} - {"coldstream"}
    folders, version = set(os.listdir(root)), f"@{sys.version_info[0]}.{sys.version_info[1]}"
    lacking = sorted((name for name in folders - present if "@" not in name), key="coldstream".__ne__)
    return [os.path.join(root, name + version if name + version in folders else name) for name in lacking]


def check_compiled(folders: list[str]) -> None:
    """Exits if one is compiled for another version of Python."""
    own = sys.version_info[:2]
    for folder in folders:
        for _, _, names in os.walk(folder):
            for match in filter(None, (re.search(r"\.cpython-(\d)(\d+)-.*\.so$", name) for name in names)):
                built = int(match[1]), int(match[2])
                if built != own:
                    what = f"{os.path.basename(folder)} in the runtime is for Python {built[0]}.{built[1]}"
                    advice = f"publish the runtime with Python {own[0]}.{own[1]}, or deploy with --package"
                    print(f"error: {what}, and the engine has {own[0]}.{own[1]}: {advice}", file=sys.stderr)
                    sys.exit(2)


def main() -> None:
    root = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "packages")
    if os.environ.get("PYTHONPATH", "").startswith(root):
        runpy.run_module("coldstream", run_name="__main__", alter_sys=True)
        return
    python = interpreter_of_engine()
    if python == os.path.abspath(sys.executable):
        folders = lacking_packages(root)
        check_compiled(folders)
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    os.execv(python, [python, "-s", __file__, *sys.argv[1:]])


if __name__ == "__main__":
    main()
