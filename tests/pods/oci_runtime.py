#!/usr/bin/env python3
"""runc, without the limits of resources that podman puts into a container's configuration.

Setting them needs CAP_SYS_RESOURCE, which root lacks in many containers and sandboxes. Without them, a container has
the limits of this process. podman takes this program instead of runc (`--runtime`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    if {"create", "run"} & {*arguments}:
        bundle = next(arguments[at + 1] for at, flag in enumerate(arguments) if flag in {"--bundle", "-b"})
        path = Path(bundle, "config.json")
        config = json.loads(path.read_text())
        config["process"].pop("rlimits", None)
        path.write_text(json.dumps(config))
    runc = shutil.which("runc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    assert runc is not None
    os.execv(runc, ["runc", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
