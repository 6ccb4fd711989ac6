from __future__ import annotations

import re
from typing import Any

import click
import pytest

from coldstream.engines.sglang.sglang_program import SglangProgram
from coldstream.engines.vllm.program import Program
from coldstream.errors import ConfigError, UsageError
from coldstream.fleet.deploy_options import (
    IMAGE,
    PYTHON_IMAGE,
    SGLANG_IMAGE,
    SGLANG_VERSION,
    TARGETS,
    VLLM_VERSION,
    Replicas,
    parse_replicas,
)
from coldstream.fleet.deployment import Bucket, Domain, bucket_of, domain_of
from coldstream.settings import load_settings
from tests.unit.fleet.deployments import AWS, DIGEST, R2, SEVENTY, deployment


@pytest.mark.parametrize(
    ("text", "fewest", "most"), [("1", 1, 1), ("3", 3, 3), ("1..4", 1, 4), (" 2..2 ", 2, 2), ("1000", 1000, 1000)]
)
def test_replicas(text: str, fewest: int, most: int) -> None:
    found = parse_replicas(text)
    assert found == Replicas(fewest=fewest, most=most)
    assert found.scales == (fewest != most)


@pytest.mark.parametrize("text", ["", "0", "0..3", "-1", "a", "1..", "..2", "4..1", "1.5", "1-3", "1..9999", "9" * 40])
def test_no_replicas(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_replicas(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("target", "wish", "says"),
    [
        ("sky", {"gpus": "L4:1", "model": SEVENTY}, "does not fit"),
        ("nomad", {}, "not a target"),
        ("sky", {"replicas": "2"}, "one replica"),
        ("compose", {"replicas": "2"}, "runs one replica, not 2"),
        ("k8s", {"replicas": "1..2"}, "not a range"),
        ("k8s", {"spot": True}, "--spot/--on-demand does not apply to"),
        ("compose", {"spot": False}, "--spot/--on-demand does not apply to"),
        ("k8s", {"no_image": True}, "--no-image does not apply to k8s"),
        ("sky", {"adapters": "org/a", "loader": "runai"}, "--adapters and --loader runai contradict each other"),
        ("sky", {"package": "coldstream", "runtime": "abcdef"}, "--package and --runtime contradict each other"),
        ("k8s", {"package": "coldstream\nx"}, "not valid for --package"),
        ("k8s", {"package": "--index-url=http://x"}, "not valid for --package"),
        ("k8s", {"runtime": "latest"}, "not valid for --runtime"),
        ("sky-job", {"command": None}, "needs a command"),
        ("sky", {"command": "x"}, "--command does not apply to sky"),
        ("sky-job", {"command": "x\x1b[2J"}, "cannot be displayed"),
        ("sky", {"cache_path": "/x"}, "--cache-path does not apply to sky"),
        ("kserve", {"port": 9000}, "8000"),
        ("k8s", {"cache_path": "x/y"}, "not valid for --cache-path"),
        ("k8s", {"image": 'x"\nevil: 1'}, "not valid for --image"),
        ("sky", {"cloud": "aws: x"}, "not valid for --cloud"),
        ("sky", {"name": "org/../x"}, "not a model's name"),
        ("sky", {"name": "s3://b/m"}, "not a model's name"),
    ],
)
def test_what_cannot_be(target: str, wish: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        deployment(target, **wish)
    assert caught.value.hint


def test_what_fits_is_said() -> None:
    with pytest.raises(UsageError) as caught:
        deployment("sky", model=SEVENTY, gpus="H100:1")
    assert caught.value.hint == "what fits: --gpus H100:2"
    with pytest.raises(UsageError) as caught:
        deployment("sky", model=SEVENTY, gpus="T4:1")
    assert "more memory" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("org/Llama-3.1-8B", "llama-3-1-8b"),
        ("org/7B_chat", "m-7b-chat"),
        ("org/___", "m"),
        ("x" * 80, "x" * 40),
        ("8" * 60, "m-" + "8" * 38),
        ("org/a" + "-" * 60 + "b", "a-b"),
    ],
)
def test_a_name_as_a_label(name: str, label: str) -> None:
    made = deployment("sky", name=name)
    assert made.label == label
    assert re.fullmatch(rf"{label[:33].rstrip('-')}-[0-9a-f]{{6}}", made.slug)
    assert len(made.slug) <= 40


def test_resources_of_two_models_have_two_names() -> None:
    """Another organisation's model, another case, and names that are cut to the same label."""
    names = ("a/Model", "b/Model", "a/model", "a/Model_", "a/" + "x" * 80, "a/" + "x" * 81, "8" * 60, "8" * 61)
    assert len({deployment("k8s", name=name).slug for name in names}) == len(names)


def test_what_follows_from_the_target() -> None:
    assert {target for target in TARGETS if deployment(target).spot} == {"sky", "sky-serve", "sky-job", "dstack"}
    assert {target for target in TARGETS if "127.0.0.1" in deployment(target).engine_arguments} == {"sky-job"}
    # vLLM in the image needs no time, in a runtime or from an index it does; and so do larger models.
    with_image, without = deployment("sky", runtime="none"), deployment("sky", no_image=True)
    assert without.start_seconds - with_image.start_seconds == 180
    assert deployment("sky").start_seconds == without.start_seconds
    assert deployment("sky", package="coldstream").start_seconds == with_image.start_seconds
    large = deployment("sky", model=SEVENTY, gpus="H200:2")
    assert large.start_seconds > with_image.start_seconds
    assert large.disk_gib > 2 * 131


@pytest.mark.parametrize(
    ("target", "wish", "image", "software"),
    [
        ("sky", {}, None, "vLLM 0.32.0 with coldstream 0.1.0 from the bucket (sha256:"),
        ("k8s", {}, PYTHON_IMAGE, "vLLM 0.32.0 with coldstream 0.1.0 from the bucket (sha256:"),
        ("dstack", {"image": "x/y", "runtime": DIGEST}, "x/y", "vLLM 0.32.0 with coldstream"),
        ("compose", {"image": "x/y"}, "x/y", "vLLM from x/y; coldstream 0.1.0 from the bucket (sha256:"),
        ("compose", {"runtime": "none"}, IMAGE, f"vLLM from {IMAGE}; coldstream 0.1.0 from the bucket"),
        ("sky", {"no_image": True}, None, "vLLM 0.32.0 from the package index; coldstream 0.1.0 from the bucket"),
        ("sky", {"no_image": True, "package": "x"}, None, "vLLM 0.32.0 from the package index; pip installs x"),
        ("k8s", {"package": "x"}, IMAGE, f"vLLM from {IMAGE}; pip installs x"),
    ],
)
def test_what_nodes_get_and_from_where(target: str, wish: dict[str, Any], image: str | None, software: str) -> None:
    made = deployment(target, **wish)
    assert made.image == image
    assert made.software.startswith(software)


def test_the_version_of_vllm_is_one_that_was_tried() -> None:
    assert Program(path="", version=VLLM_VERSION, compiled=True).version_warning() is None
    assert IMAGE.endswith(f":v{VLLM_VERSION}")


def test_the_command_line_offers_every_target() -> None:
    from coldstream.cli.template_command import render

    offered = next(option.type for option in render.params if option.name == "target")
    assert isinstance(offered, click.Choice)
    assert tuple(offered.choices) == TARGETS


def test_where_the_bucket_is() -> None:
    assert R2.environment == {"R2_ENDPOINT": R2.endpoint, "R2_BUCKET": "models", "AWS_REGION": "auto"}
    assert AWS.environment == {"COLDSTREAM_STORE": "s3://models/team/a", "AWS_REGION": "eu-central-1"}
    assert not R2.is_local
    assert Bucket(uri="s3://b", endpoint="http://127.0.0.1:9000").is_local
    # Nodes read the same bucket out of it as this machine does.
    for bucket in (R2, AWS):
        assert bucket_of(load_settings(environ=bucket.environment)) == bucket


def test_a_folder_is_no_bucket() -> None:
    with pytest.raises(UsageError, match="directory of this machine"):
        bucket_of(load_settings(environ={"COLDSTREAM_STORE": "file:///tmp/x"}))
    with pytest.raises(ConfigError, match="no bucket"):
        bucket_of(load_settings(environ={}))


def test_no_value_of_a_secret_is_kept() -> None:
    environ = {
        **R2.environment,
        "R2_ACCESS_KEY": "the-access-key",
        "R2_SECRET_KEY": "the-secret-key",
        "COLDSTREAM_BUNDLE_KEY": "b" * 40,
    }
    made = deployment("sky", bucket=bucket_of(load_settings(environ=environ)))
    assert not [value for name, value in environ.items() if "KEY" in name and value in repr(made)]


CDN = {
    "R2_CDN_DOMAIN": "Models.Example.com",
    "COLDSTREAM_CDN_HEADER": "X-Key: the-header-s-value",
    "CF_ACCESS_CLIENT_ID": "the-client",
    "CF_ACCESS_CLIENT_SECRET": "the-client-s-secret",
}


@pytest.mark.parametrize(
    "names", [(), ("COLDSTREAM_CDN_HEADER",), ("CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET"), tuple(CDN)[1:]]
)
def test_the_cdn_and_the_names_of_what_opens_it(names: tuple[str, ...]) -> None:
    environ = {name: CDN[name] for name in ("R2_CDN_DOMAIN", *names)}
    found = domain_of(load_settings(environ=environ), "coldstream")
    assert found == Domain(url="https://models.example.com", secrets=names)
    assert domain_of(load_settings(environ=environ), "runai") is None
    made = deployment("sky", domain=found)
    assert made.needed_secrets == ("R2_ACCESS_KEY", "R2_SECRET_KEY", "VLLM_API_KEY", *names)
    assert not [value for name, value in environ.items() if name in names and value in repr(made)]


def test_no_cdn() -> None:
    without = {name: value for name, value in CDN.items() if name != "R2_CDN_DOMAIN"}
    assert domain_of(load_settings(environ=without), "coldstream") is None
    half = {name: value for name, value in CDN.items() if name != "CF_ACCESS_CLIENT_ID"}
    with pytest.raises(ConfigError, match="CF_ACCESS_CLIENT_ID is not"):
        domain_of(load_settings(environ=half), "coldstream")
    # What the loader cannot use is nobody's fault.
    assert domain_of(load_settings(environ=half), "runai") is None
    assert Domain(url="http://127.0.0.1:9000").is_local
    assert not Domain(url="https://models.example.com").is_local


def test_sglang_comes_from_its_image() -> None:
    made = deployment("sky", engine="sglang", gpus="H100:2", model=SEVENTY, max_model_len=8192)
    assert made.image == SGLANG_IMAGE
    assert SGLANG_IMAGE.endswith(f":v{SGLANG_VERSION}")
    assert SglangProgram(path="", version=SGLANG_VERSION, compiled=True).version_warning() is None
    assert made.own_arguments[-2:] == ("--engine", "sglang")
    assert made.engine_arguments[-4:] == ("--tp-size", "2", "--context-length", "8192")
    assert not made.installs_vllm
    assert deployment("k8s", engine="sglang", image="registry.example.com/s:1").image == "registry.example.com/s:1"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"runtime": "0123456789ab"}, "--runtime and --engine sglang contradict"),
        ({"no_image": True}, "--no-image and --engine sglang contradict"),
        ({"loader": "runai"}, "--loader runai and --engine sglang contradict"),
        ({"target": "kserve"}, "--engine does not apply to kserve"),
    ],
)
def test_what_only_vllm_has(more: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        deployment(more.pop("target", "sky"), engine="sglang", **more)
    assert refused.value.hint
