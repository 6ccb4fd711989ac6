"""Which runtime nodes start from."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from coldstream.errors import IntegrityError, NotFoundError
from coldstream.fleet.deploy_options import DeployOptions
from coldstream.fleet.runtime_choice import choose_runtime, fits
from coldstream.runtime.runtime_manifest import RuntimeManifest
from coldstream.runtime.runtime_store import Runtime
from coldstream.tune.gpus import parse_gpus
from tests.unit.fleet.deployments import PACKAGES, WITH_VLLM, runtime_manifest

CPU = runtime_manifest(600_000_000, vllm="0.32.0+cpu", torch="2.13.0+cpu")


def entry(manifest: RuntimeManifest, state: str = "ready") -> Runtime:
    published = datetime(2026, 11, 1, tzinfo=timezone.utc)
    return Runtime(digest=manifest.digest, state=state, manifest=manifest, bytes=1, published=published)


def options(gpus: str = "L4", **more: Any) -> DeployOptions:
    return DeployOptions(target="sky", gpus=parse_gpus(gpus), **more)


def test_the_newest_that_fits() -> None:
    older = runtime_manifest(1_000, vllm="0.31.0", torch="2.12.0", cuda="12.8")
    entries = [entry(PACKAGES), entry(CPU), entry(WITH_VLLM), entry(older)]
    assert choose_runtime(options(), entries) == WITH_VLLM
    assert choose_runtime(options(), [entry(WITH_VLLM, "damaged"), entry(older)]) == older
    assert choose_runtime(options(), entries[:2]) is None
    assert choose_runtime(options(), []) is None


@pytest.mark.parametrize("more", [{"runtime": "none"}, {"image": "x/y"}, {"no_image": True}, {"package": "x"}])
def test_vllm_from_elsewhere(more: dict[str, Any]) -> None:
    assert choose_runtime(options(**more), [entry(WITH_VLLM)]) is None


def test_a_chosen_one() -> None:
    entries = [entry(WITH_VLLM), entry(CPU)]
    assert choose_runtime(options(runtime=CPU.digest[:8], image="x/y"), entries) == CPU
    assert choose_runtime(options(runtime=f"sha256:{CPU.digest}"), entries) == CPU
    with pytest.raises(NotFoundError, match="no runtime 00000000"):
        choose_runtime(options(runtime="00000000"), entries)
    for state, manifest in (("incomplete", None), ("damaged", CPU)):
        broken = replace(entry(CPU, state), manifest=manifest)
        with pytest.raises(IntegrityError, match=f"is {state}"):
            choose_runtime(options(runtime=CPU.digest), [broken])


@pytest.mark.parametrize(
    ("gpus", "platform", "fit"),
    [
        ("L4", {}, True),
        ("L4", {"cuda": "13.0"}, True),
        ("L4", {"vllm": ""}, False),
        ("L4", {"cuda": None}, False),
        ("L4", {"machine": "aarch64"}, False),
        ("GH200", {"machine": "aarch64"}, True),
        ("GH200", {}, False),
        ("B200", {}, True),
        ("B200", {"cuda": "12.6"}, False),
        ("V100", {}, True),
        ("V100", {"cuda": "13.0"}, False),
    ],
)
def test_what_fits(gpus: str, platform: dict[str, Any], fit: bool) -> None:
    assert fits(msgspec.structs.replace(WITH_VLLM.platform, **platform), parse_gpus(gpus).gpu) is fit
