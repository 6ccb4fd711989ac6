"""Runs a command while rclone has a bucket mounted: `python mount.py RCLONE REMOTE FOLDER COMMAND...`.

rclone takes its options and keys from the environment (`mount_environment`). Only needs the standard library.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

_DEVICE = "/dev/fuse"


def main() -> None:
    """Mounts, runs the command, and unmounts."""
    rclone, remote, folder, *command = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    with subprocess.Popen([rclone, "mount", remote, folder], stdin=subprocess.DEVNULL) as mounting:
        while not os.path.ismount(folder):
            if mounting.poll() is not None:
                sys.exit(1)  # rclone has printed why
            time.sleep(0.01)
        try:
            status = subprocess.run(command, check=False).returncode
        finally:
            mounting.terminate()
    # A page of a mapped file that cannot be read is a SIGBUS.
    sys.exit(f"error: {signal.strsignal(-status)} while reading from the mount" if status < 0 else status)


def mount_environment(environ: Mapping[str, str], *, cache: Path, mode: str) -> dict[str, str]:
    """An environment that has the AWS SDK's variables, with rclone's for the same bucket and a `--vfs-cache-mode`."""
    remote = {
        "TYPE": "s3",
        "PROVIDER": "Other" if environ.get("AWS_ENDPOINT_URL") else "AWS",
        "ENV_AUTH": "true",
        "ENDPOINT": environ.get("AWS_ENDPOINT_URL", ""),
        "REGION": environ.get("AWS_REGION", ""),
    }
    options = {"CONFIG": os.devnull, "CACHE_DIR": str(cache), "VFS_CACHE_MODE": mode, "READ_ONLY": "true"}
    options |= {f"CONFIG_BUCKET_{name}": value for name, value in remote.items() if value}
    options |= {"CA_CERT": environ["AWS_CA_BUNDLE"]} if environ.get("AWS_CA_BUNDLE") else {}
    return {**environ, **{f"RCLONE_{name}": value for name, value in options.items()}}


def mount_refusal() -> tuple[str, str] | None:
    """Why FUSE cannot be used on this machine, and what fixes it."""
    if not _fusermount():
        return "FUSE is not installed", "run: apt-get install fuse3"
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return f"{_DEVICE} is not accessible", f"start the container with --device {_DEVICE} --cap-add SYS_ADMIN"
    return None


def unmount(folder: Path) -> None:
    """Ends a mount, if there is one; lazily, so that no process can hold it."""
    if program := _fusermount():
        subprocess.run([program, "-u", "-z", folder], stderr=subprocess.DEVNULL, check=False)


def _fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


if __name__ == "__main__":
    main()
