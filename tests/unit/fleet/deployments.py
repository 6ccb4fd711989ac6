"""Deployments for the tests: made of fixed facts, so that their files never change by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coldstream.fleet.deploy_options import DeployOptions, parse_replicas
from coldstream.fleet.deployment import Bucket, Deployment, Domain, deploy
from coldstream.runtime.runtime_manifest import CHUNK_BYTES, Image, Platform, RuntimeManifest, Unpacker
from coldstream.tune.gpus import parse_gpus
from coldstream.tune.model_shape import Model
from coldstream.tune.predict import NetworkPath
from tests.unit.tune.models import EIGHT, SEVENTY

R2 = Bucket(
    uri="s3://models",
    endpoint="https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com",
    region="auto",
)
AWS = Bucket(uri="s3://models/team/a", region="eu-central-1")
ACCESS = ("CF_ACCESS_CLIENT_ID", "CF_ACCESS_CLIENT_SECRET")
OPEN = Domain(url="https://models.example.com")
CLOSED = Domain(url="https://models.example.com", secrets=("COLDSTREAM_CDN_HEADER", *ACCESS))


def runtime_manifest(size: int, **platform: Any) -> RuntimeManifest:
    facts = {"machine": "x86_64", "glibc": "2.34", "python": "3.12.7", "vllm": "", "torch": "", "coldstream": "0.1.0"}
    return RuntimeManifest(
        format=1,
        platform=Platform(**facts | platform),
        image=Image(
            size=size,
            unpacked=4 * size,
            files=1000,
            chunk_bytes=CHUNK_BYTES,
            chunks=["0" * 64] * -(-size // CHUNK_BYTES),
        ),
        unpacker=Unpacker(size=1000, sha256="0" * 64),
    )


WITH_VLLM = runtime_manifest(4_000_000_000, vllm="0.32.0", torch="2.13.0", cuda="12.9", driver="525.60.13")
PACKAGES = runtime_manifest(38_000_000)


def deployment(
    target: str,
    *,
    name: str = "org/Llama-3.1-8B",
    model: Model = EIGHT,
    gpus: str = "L4:1",
    replicas: str = "1",
    bucket: Bucket = R2,
    domain: Domain | None = None,
    **more: Any,
) -> Deployment:
    if target == "sky-job":
        more.setdefault("command", "python ask.py --out results/")
    options = DeployOptions(target=target, gpus=parse_gpus(gpus), replicas=parse_replicas(replicas), **more)
    network = NetworkPath(cloud=options.cloud)
    made = deploy(replace(model, name=name), options, bucket, domain=domain, network=network)
    runtime = None if options.package else PACKAGES if options.has_own_engine and not options.runtime else WITH_VLLM
    return replace(made, runtime=PACKAGES if options.runtime == "none" else runtime)


DIGEST = WITH_VLLM.digest

# Name of the golden file to what it is made of.
GOLDEN: dict[str, Deployment] = {
    "sky": deployment("sky", cloud="aws"),
    "sky-plain": deployment("sky", gpus="H100:2", model=SEVENTY, spot=False, no_image=True, loader="runai", bucket=AWS,
                            name="org/Llama-3.1-70B"),
    "sky-serve": deployment("sky-serve", cloud="aws", replicas="1..3"),
    "sky-serve-fixed": deployment("sky-serve", gpus="H200:2", model=SEVENTY, replicas="2", fallback="hf",
                                  name="org/Llama-3.1-70B", image="registry.example.com/v:1", runtime=DIGEST),
    "sky-package": deployment("sky", package="https://example.com/coldstream-0.1.0-py3-none-any.whl"),
    "sky-package-plain": deployment("sky", package="coldstream[tls]==0.1.0", no_image=True),
    "sky-serve-on-demand": deployment("sky-serve", replicas="1..2", spot=False, no_image=True),
    "sky-serve-adapters": deployment("sky-serve", replicas="1..3", adapters="org/sql,me/a-chat-adapter-of-llama"),
    "sky-job": deployment("sky-job", cloud="gcp/us-central1"),
    "sky-serve-cdn": deployment("sky-serve", replicas="1..3", domain=CLOSED, runtime="none"),
    "k8s": deployment("k8s", replicas="2"),
    "k8s-cdn": deployment("k8s", domain=CLOSED, runtime="none"),
    "k8s-package": deployment("k8s", package="git+https://example.com/it's.git@v0.1.0"),
    "k8s-host-path": deployment("k8s", gpus="H200:2", model=SEVENTY, cache_path="/var/lib/models", fallback="hf",
                                name="org/Llama-3.1-70B", port=9000),
    "sky-sglang": deployment("sky", gpus="H100:2", model=SEVENTY, engine="sglang", max_model_len=8192,
                             name="org/Llama-3.1-70B"),
    "dstack-sglang": deployment("dstack", engine="sglang", package="coldstream==0.1.0"),
    "k8s-sglang": deployment("k8s", engine="sglang"),
    "compose-sglang": deployment("compose", engine="sglang", package="coldstream==0.1.0"),
    "kserve": deployment("kserve", replicas="2"),
    "compose": deployment("compose"),
    "compose-package": deployment("compose", package="coldstream$x", image="registry.example.com/v:1"),
    "compose-cdn": deployment("compose", runtime="none",
                              domain=Domain(url=OPEN.url, secrets=("COLDSTREAM_CDN_HEADER",))),
    "compose-runai": deployment("compose", loader="runai", bucket=AWS, cache_path="/srv/models", fallback="hf"),
    "dstack": deployment("dstack", cloud="aws/us-east-1", replicas="1..3"),
    "dstack-package": deployment("dstack", package="coldstream[tls]==0.1.0"),
    "dstack-cdn": deployment("dstack", runtime="none", domain=Domain(url=OPEN.url, secrets=ACCESS)),
    "dstack-on-demand": deployment("dstack", gpus="A100-80GB:4", model=SEVENTY, spot=False, no_image=True,
                                   fallback="hf", name="org/Llama-3.1-70B"),
}  # fmt: skip
