"""Bare containers become servers of a model: Python, a bucket, and vLLM's answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from coldstream.engines.vllm.endpoint import free_port
from tests.pods.conftest import CPU_FLAGS, IMAGE, MODEL, UID, Origin
from tests.pods.containers import Podman

# vLLM's processes share 160 MiB; a container of podman and docker has 64 MiB.
MEMORY = ("--shm-size", "1g")
# vLLM's image, as far as the Dockerfile uses it; Debian's Python refuses pip without the last variable.
BASE = """
FROM {image}
RUN set -- /wheels/pip-*.whl && python3 "$1/pip" install --quiet --no-index --break-system-packages "$1"
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PIP_BREAK_SYSTEM_PACKAGES=1
"""
# Debian 12's Python.
FOR_THE_IMAGE = ("--python-version", "3.11", "--only-binary", ":all:")
ROOT = Path(__file__).resolve().parents[2]


def start(origin: Origin, port: int) -> tuple[str, ...]:
    """The line of docs/runtime.md."""
    serve = ("serve", MODEL, "--", *CPU_FLAGS, "--host", "127.0.0.1", "--port", str(port))
    return ("python3", "/start.py", f"sha256:{origin.digest}", *serve)


def test_podman_run_as_root(podman: Podman, origin: Origin) -> None:
    port = free_port()
    options = (*MEMORY, "--env-file", str(origin.env_file), "--volume", f"{origin.start}:/start.py:ro")
    with podman.running(*options, IMAGE, *start(origin, port)) as container:
        assert container.answer(port, MODEL)


def test_podman_run_as_any_user_on_a_read_only_root(podman: Podman, origin: Origin, tmp_path: Path) -> None:
    """As OpenShift does: no name, no home, no writable folder but a volume that the kubelet made for a group."""
    volume, port = tmp_path / "volume", free_port()
    volume.mkdir()
    os.chown(volume, 0, UID)
    volume.chmod(0o2777)
    options = (
        *MEMORY,
        *("--user", f"{UID}:0", "--group-add", str(UID), "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--read-only", "--read-only-tmpfs=false", "--volume", f"{volume}:/cache"),
        *("--env-file", str(origin.env_file), "--env", "COLDSTREAM_CACHE_DIR=/cache"),
        *("--volume", f"{origin.start}:/start.py:ro"),
    )
    command = ("env", "-u", "HOME", *start(origin, port))
    with podman.running(*options, IMAGE, *command) as container:
        assert container.answer(port, MODEL)


def test_build_of_the_dockerfile(podman: Podman, tmp_path: Path) -> None:
    """On a base image that has pip, a folder of wheels instead of a package index, and no vLLM."""
    text = (ROOT / "Dockerfile").read_text()
    [base] = re.findall(r"^FROM (.+):\$\{VLLM\}$", text, re.MULTILINE)
    [version] = re.findall(r"^ARG VLLM=(.+)$", text, re.MULTILINE)
    wheels = tmp_path / "wheels"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--dest", str(wheels))
    subprocess.run([*pip, "pip", "hatchling", f"{ROOT}[tls]", *FOR_THE_IMAGE], check=True)
    (tmp_path / "Dockerfile").write_text(BASE.format(image=IMAGE))
    mounted = ("--pull=never", "--network=none", "--volume", f"{wheels}:/wheels:ro")
    podman("build", *mounted, "--tag", f"docker.io/{base}:{version}", str(tmp_path))
    podman("build", *mounted, "--tag", "localhost/coldstream", str(ROOT))
    run = ("run", "--rm", "--network=host", "localhost/coldstream", MODEL)
    assert "error: vLLM is not installed" in podman(*run, code=10)
