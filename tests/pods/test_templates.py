"""Generated files become servers of a model: podman plays those of Kubernetes, podman-compose those of compose."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldstream.node.http_endpoint import free_port
from tests.pods.conftest import CPU, CPU_FLAGS, IMAGE, MODEL, UID, Origin
from tests.pods.containers import Podman

KEY = "key-of-the-test"


@pytest.mark.parametrize("user", [0, UID])
def test_kube_play(podman: Podman, origin: Origin, tmp_path: Path, memory: Path, user: int) -> None:
    """The file of `coldstream template --target k8s`."""
    port, fit = free_port(), ("--gpus", "L4:1", "--runtime", origin.digest)
    text = origin.coldstream("template", MODEL, "--target", "k8s", *fit, "--port", str(port))
    documents = list(yaml.safe_load_all(text))
    [pod] = (document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment")
    name, values = secret_for(pod, origin)
    podman("secret", "create", name, "-", stdin=json.dumps(values).encode())
    fit_pod(pod, user=user, disk=tmp_path, memory=memory)
    podman.tag(IMAGE, pod["containers"][0]["image"])
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    try:
        with podman.playing(path) as container:
            origin.confirm(container.answer(port, MODEL, key=KEY))
    finally:
        podman("secret", "rm", name)


def secret_for(pod: dict[str, Any], origin: Origin) -> tuple[str, dict[str, str]]:
    """The name and the content of the secret, as `kubectl create secret generic --from-env-file` makes it."""
    references = [each["valueFrom"]["secretKeyRef"] for each in pod["containers"][0]["env"] if "valueFrom" in each]
    values = origin.environ | {"VLLM_API_KEY": KEY}
    keys = [each["key"] for each in references if each["key"] in values]
    [name] = {each["name"] for each in references}
    return name, {key: base64.b64encode(values[key].encode()).decode() for key in keys}


def fit_pod(pod: dict[str, Any], *, user: int, disk: Path, memory: Path) -> None:
    """Runs a pod on this machine: without GPU, in its network, as a user, with volumes as a kubelet makes them."""
    [container] = pod["containers"]
    pod["hostNetwork"] = True
    if user:
        container["securityContext"] |= {"runAsUser": user, "runAsGroup": 0, "readOnlyRootFilesystem": True}
    container["args"] = fit_flags(container["args"])
    container["env"] += [{"name": name, "value": value} for name, value in CPU.items()]
    # podman runs probes by curl in the container, and by systemd; it maps no ports of the machine's network.
    for name in ("ports", "resources", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"):
        container.pop(name, None)
    for volume in pod["volumes"]:
        parent = memory if volume.pop("emptyDir").get("medium") == "Memory" else disk
        path = parent / volume["name"]
        path.mkdir()
        os.chown(path, 0, user)  # fsGroup, which is the user's number here
        path.chmod(0o2777 if user else 0o777)
        volume["hostPath"] = {"path": str(path), "type": "Directory"}


def fit_flags(arguments: list[str]) -> list[str]:
    """vLLM's flags for a processor, without the share of a GPU's memory."""
    own, flags = arguments[: arguments.index("--") + 1], arguments[arguments.index("--") + 1 :]
    at = flags.index("--gpu-memory-utilization") if "--gpu-memory-utilization" in flags else len(flags)
    return [*own, *flags[:at], *flags[at + 2 :], *CPU_FLAGS]


def test_compose(podman: Podman, compose: Path, origin: Origin, tmp_path: Path) -> None:
    """The file of `coldstream template --target compose`, by podman-compose."""
    port, fit = free_port(), ("--gpus", "L4:1", "--runtime", origin.digest)
    text = origin.coldstream("template", MODEL, "--target", "compose", *fit, "--port", str(port))
    document = yaml.safe_load(text)
    service = document["services"]["vllm"]
    podman.tag(IMAGE, service["image"])
    for name in ("deploy", "ports", "healthcheck"):
        service.pop(name, None)
    service["network_mode"] = "host"
    service["command"] = fit_flags(service["command"])
    service["environment"] |= CPU
    path = tmp_path / "compose.yaml"
    path.write_text(yaml.safe_dump(document))
    keys = {name: value for name, value in origin.environ.items() if name.startswith("R2_")}
    with podman.composing(compose, path, environ=keys | {"VLLM_API_KEY": KEY}) as container:
        origin.confirm(container.answer(port, MODEL, key=KEY))
