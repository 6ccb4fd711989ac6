"""The files for the targets: byte for byte as reviewed, and valid by each target's own validator.

The reviewed files have the line PROGRAM where the node's program is, which has tests of its own.

GOLDEN=write writes the golden files anew; look at the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from coldstream.fleet.deploy_options import TARGETS
from coldstream.fleet.deployment import Deployment, render
from coldstream.settings import VARIABLES
from tests.unit.fleet.deployments import AWS, CLOSED, DIGEST, GOLDEN, OPEN, SEVENTY, deployment

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests/golden/template"
HERE = Path(__file__).parent
SKY, DSTACK = ROOT / ".venv-sky/bin/python", ROOT / ".venv-dstack/bin/python"
WRITING = os.environ.get("GOLDEN") == "write"


def variants() -> dict[str, Deployment]:
    """More than is kept as files: every target with every option that changes its shape."""
    found = {}
    for target in TARGETS:
        found[f"{target}-runai"] = deployment(target, loader="runai", bucket=AWS, port=8000)
        found[f"{target}-large"] = deployment(target, model=SEVENTY, gpus="H200:2", fallback="hf")
        found[f"{target}-domain"] = deployment(target, domain=OPEN)
        found[f"{target}-closed-domain"] = deployment(target, domain=CLOSED, fallback="hf")
        found[f"{target}-adapters"] = deployment(target, adapters="org/sql,org/chat")
        found[f"{target}-image"] = deployment(target, image="registry.example.com/v:1")
        found[f"{target}-both"] = deployment(target, image="registry.example.com/v:1", runtime=DIGEST)
        found[f"{target}-default-image"] = deployment(target, runtime="none", loader="runai")
        found[f"{target}-pip"] = deployment(target, package="coldstream[tls]==0.1.0")
        found[f"{target}-pip-image"] = deployment(target, package="./c.whl", image="registry.example.com/v:1")
        if target in {"sky", "sky-serve", "sky-job", "dstack"}:
            found[f"{target}-bare"] = deployment(target, no_image=True, cloud="gcp/us-central1", spot=False)
            found[f"{target}-bare-pip"] = deployment(target, no_image=True, package="coldstream==0.1.0")
        if target in {"sky-serve", "dstack"}:
            found[f"{target}-range"] = deployment(target, replicas="2..9")
        if target in {"k8s", "kserve", "compose"}:
            found[f"{target}-cache"] = deployment(target, cache_path="/srv/cache", image="registry.example.com/v:1")
    return found


EVERY = {**GOLDEN, **variants()}


@cache
def rendered(name: str) -> str:
    """The file of a deployment of EVERY."""
    return render(EVERY[name])


PROGRAM = (ROOT / "src/coldstream/runtime/bootstrap.py").read_text().rstrip()


def without_program(text: str) -> str:
    """A file with the line PROGRAM instead of the node's program."""
    lines: list[str] = []
    first, *_, last = PROGRAM.splitlines()
    inside = False
    for line in text.splitlines():
        inside = inside or line.strip() == first
        if not inside:
            lines.append(line)
        elif line.strip() == last.strip():
            lines.append(" " * (len(line) - len(last.lstrip()) - 8) + "PROGRAM")
            inside = False
    assert not inside
    return "\n".join(lines) + "\n"


def of(*targets: str) -> list[str]:
    return [name for name, made in EVERY.items() if made.options.target in targets]


@pytest.mark.parametrize("name", GOLDEN)
def test_it_is_as_reviewed(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    text = without_program(render(GOLDEN[name]))
    if WRITING:
        path.write_text(text)
    assert text == path.read_text(), "look at it, then: GOLDEN=write make test"


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == GOLDEN.keys()
    assert {made.options.target for made in GOLDEN.values()} == {*TARGETS}


@pytest.mark.parametrize("name", EVERY)
def test_it_reads_well(name: str) -> None:
    made = EVERY[name]
    text = rendered(name)
    assert text == render(made)
    assert text.endswith("\n")
    text = without_program(text)
    assert "\n\n\n" not in text
    assert not [line for line in text.splitlines() if line != line.rstrip() or len(line) > 130]
    for secret in (*made.needed_secrets, *made.other_secrets):
        assert secret in text
    assert ("HF_TOKEN" in text) == (made.options.fallback == "hf")
    for variable in made.environment:
        assert variable in VARIABLES
    assert ("R2_CDN_DOMAIN" in text) == (made.domain is not None)


def given(made: Deployment) -> dict[str, Any]:
    """What a file gives its server: variable to value, of a secret to what the target takes for its name."""
    read = next(yaml.safe_load_all(render(made)))
    if made.options.target.startswith("sky"):
        return read["envs"] | read["secrets"]
    if made.options.target == "dstack":
        return dict(entry.split("=", 1) if "=" in entry else (entry, None) for entry in read["env"])
    if made.options.target == "compose":
        return dict(read["services"][made.options.engine]["environment"])
    pod = read["spec"]["template"]
    variables = pod.get("spec", pod)["containers"][0]["env"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in variables}


@pytest.mark.parametrize("target", TARGETS)
def test_what_opens_the_cdn_is_handed_over_as_the_bucket_s_keys_are(target: str) -> None:
    found = given(deployment(target, domain=CLOSED))
    assert found["R2_CDN_DOMAIN"] == "https://models.example.com"
    own = json.dumps(found["R2_SECRET_KEY"])
    for name in CLOSED.secrets:
        assert json.dumps(found[name]) == own.replace("R2_SECRET_KEY", name)
    public = given(deployment(target, domain=OPEN))
    assert {*found} - {*public} == {*CLOSED.secrets}
    assert {*public} - {*given(deployment(target))} == {"R2_CDN_DOMAIN"}


def validated(python: Path, script: str, names: list[str], folder: Path, make: str) -> str:
    """What a validator in an environment of its own says of files."""
    if not python.exists():
        pytest.skip(f"its environment is not installed: make {make}")
    paths = []
    for name in names:
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(render(EVERY[name]))
    ended = subprocess.run(
        [str(python), str(HERE / script), *map(str, paths)],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return ended.stdout


def test_skypilot_takes_them(tmp_path: Path) -> None:
    names = of("sky", "sky-serve", "sky-job")
    said = validated(SKY, "sky_inside.py", names, tmp_path, ".venv-sky/tests.done")
    assert [name for name in names if f"{name}.yaml: valid" not in said] == []


def test_dstack_takes_them(tmp_path: Path) -> None:
    names = of("dstack")
    said = validated(DSTACK, "dstack_inside.py", names, tmp_path, ".venv-dstack/tests.done")
    assert [name for name in names if f"{name}.yaml: valid" not in said] == []


@pytest.mark.parametrize("name", of("k8s"))
def test_kubernetes_takes_it(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    documents = list(yaml.safe_load_all(rendered(name)))
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for document in documents:
        validator.validate(document, validator.latest_version(), strict=True)
    pod = documents[0]["spec"]["template"]
    assert documents[1]["spec"]["selector"] == pod["metadata"]["labels"]
    container = pod["spec"]["containers"][0]
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}


# Of KServe's CustomResourceDefinition (config/crd/full/llmisvc of its repository, v1alpha2) what is used here, without
# the rest: a field that is not here is refused. `template` is a pod's specification, for Kubernetes' own schema.
KSERVE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1alpha2"},
        "kind": {"const": "LLMInferenceService"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["model"],
            "properties": {
                "model": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string"}, "name": {"type": "string"}},
                },
                "storageInitializer": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"enabled": {"type": "boolean"}},
                },
                "replicas": {"type": "integer", "minimum": 0},
                "router": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {name: {"type": "object"} for name in ("gateway", "route", "scheduler")},
                },
                "template": {"type": "object"},
            },
        },
    },
}


@pytest.mark.parametrize("name", of("kserve"))
def test_kserve_takes_it(name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    document = yaml.safe_load(rendered(name))
    pytest.importorskip("jsonschema").validate(document, KSERVE)
    assert document["spec"]["storageInitializer"] == {"enabled": False}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": document["spec"]["template"]}
    validator.validate(pod, validator.latest_version(), strict=True)
    assert [container["name"] for container in pod["spec"]["containers"]] == ["main"]


@pytest.mark.parametrize("name", of("compose"))
def test_compose_takes_it(name: str) -> None:
    compose = pytest.importorskip("compose_spec").PyCompose
    read = compose.from_yaml(rendered(name))
    assert read.service_names() == [EVERY[name].options.engine]


BROKEN = {
    "sky": ("use_spot: true", "use_spots: true"),
    "sky-serve": ("  ports: 8000\n\nservice:", "\nservice:\n  portz: 8000"),
    "sky-serve-fixed": ("use_spot: true", "use_spot: false"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_skypilot_refuses_what_is_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its word would be worth nothing."""
    broken = rendered(name).replace(*BROKEN[name])
    assert broken != rendered(name)
    monkeypatch.setattr(f"{__name__}.render", lambda _: broken)
    with pytest.raises(AssertionError, match=r"ValueError|Invalid"):
        validated(SKY, "sky_inside.py", [name], tmp_path, ".venv-sky/tests.done")


@pytest.mark.parametrize("name", ["dstack"])
def test_dstack_refuses_what_is_wrong(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = rendered(name).replace("spot_policy:", "spot_politics:")
    monkeypatch.setattr(f"{__name__}.render", lambda _: broken)
    with pytest.raises(AssertionError, match="spot_politics"):
        validated(DSTACK, "dstack_inside.py", [name], tmp_path, ".venv-dstack/tests.done")


def test_the_other_validators_refuse_what_is_wrong() -> None:
    compose = pytest.importorskip("compose_spec").PyCompose
    with pytest.raises(ValueError, match="restarts"):
        compose.from_yaml(render(EVERY["compose"]).replace("restart:", "restarts:"))
    validator = pytest.importorskip("kubernetes_validate")
    document = next(yaml.safe_load_all(render(EVERY["k8s"]).replace("periodSeconds", "periodSecond")))
    with pytest.raises(validator.ValidationError):
        validator.validate(document, validator.latest_version(), strict=True)


def shell_of(name: str) -> str:
    """The script that a file runs."""
    read: dict[str, Any] = next(yaml.safe_load_all(rendered(name)))
    if "commands" in read:
        return str(read["commands"][0])
    return str(read.get("setup", "")) + "\n" + str(read["run"])


@pytest.mark.parametrize("name", of("sky", "sky-serve", "sky-job", "dstack"))
def test_its_script_is_one_for_bash(name: str) -> None:
    ended = subprocess.run([bash(), "-n"], input=shell_of(name), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def bash() -> str:
    found = shutil.which("bash")
    if found is None:
        pytest.skip("there is no bash")
    return found


def run(script: str, folder: Path, *arguments: str, **more: str) -> list[str]:
    """Runs a script with a `coldstream` and a Python that print their arguments; Python's program goes into a file."""
    show = 'for word in "$@"; do echo "$word"; done\n'
    # Without -I, modules in the current folder would be executed.
    keep = '[ "$1" = -I ] || exit 9; shift\n'
    keep += 'if [ "$1" = - ]; then cat; else printf "%s" "$2"; shift; fi >"$FOLDER/program"; shift\n'
    for name, text in (("coldstream", show), ("python3", keep + show), ("uv", "")):
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "VLLM_API_KEY": "k", "FOLDER": str(folder), **more}
    ended = subprocess.run([bash(), "-c", script, *arguments], env=environ, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def expected(made: Deployment) -> list[str]:
    start = [f"sha256:{made.runtime.digest}"] if made.runtime else []
    return [*start, "serve", *made.own_arguments, "--", *made.engine_arguments]


@pytest.mark.parametrize(
    "name",
    [
        *("sky", "sky-bare", "sky-package", "sky-bare-pip", "sky-serve-fixed", "sky-sglang"),
        *("dstack", "dstack-bare", "dstack-pip", "dstack-sglang"),
    ],
)
def test_what_it_runs(name: str, tmp_path: Path) -> None:
    assert run(shell_of(name), tmp_path, HOME=str(tmp_path)) == expected(EVERY[name])
    if EVERY[name].runtime:
        assert (tmp_path / "program").read_text().rstrip() == PROGRAM


@pytest.mark.parametrize(
    "name",
    [
        *("k8s-host-path", "k8s-package", "k8s-sglang", "kserve", "kserve-both"),
        *("compose-runai", "compose-package", "compose-sglang"),
    ],
)
def test_what_a_container_runs(name: str, tmp_path: Path) -> None:
    read: dict[str, Any] = next(yaml.safe_load_all(rendered(name)))
    if "services" in read:
        service = read["services"][EVERY[name].options.engine]
        words = [word.replace("$$", "$") for word in service["entrypoint"] + service["command"]]
    else:
        template = read["spec"]["template"]
        container = template.get("spec", template)["containers"][0]
        words = container["command"] + container["args"]
    tls = words[words.index("--enable-ssl-refresh") :] if "kserve" in name else []
    assert run('exec "$@"', tmp_path, "bash", *words) == [*expected(EVERY[name]), *tls]
    if EVERY[name].runtime:
        assert (tmp_path / "program").read_text().rstrip() == PROGRAM
    if "services" not in read:
        with pytest.raises(AssertionError, match=r"coldstream: .*VLLM_API_KEY"):
            run('exec "$@"', tmp_path, "bash", *words, VLLM_API_KEY="")


@pytest.mark.parametrize("target", ["sky", "sky-serve", "dstack"])
def test_no_open_port_without_a_key(target: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="VLLM_API_KEY"):
        run(shell_of(target), tmp_path, VLLM_API_KEY="")


@pytest.mark.parametrize("name", EVERY)
def test_host_and_port_are_explicit(name: str) -> None:
    words = without_program(rendered(name)).replace('"', " ").replace("- ", " ").split()
    assert words[words.index("--host") + 1] in {"0.0.0.0", "127.0.0.1"}
    assert words[words.index("--port") + 1] == str(EVERY[name].options.port)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_installs_coldstream_from_an_index_unless_a_package_was_chosen(name: str) -> None:
    """Anybody could register the name there, and run code on nodes that hold keys."""
    made = EVERY[name]
    lines = [line for line in rendered(name).splitlines() if not line.lstrip().startswith("#")]
    installs = [line for line in lines if re.search(r"\b(pip3?|pipx|uv|conda|easy_install)\b.* install\b", line)]
    named = [line for line in installs if re.search(r"\bcoldstream\b(?!/)", line.replace("command -v coldstream", ""))]
    if made.options.package is None:
        assert named == []
        assert all(re.search(r" '?vllm(\[runai\])?==[\d.]+'?$", line) for line in installs)
    else:
        assert made.runtime is None
        assert len(installs) == 1
    assert "sha256:" in rendered(name) or made.options.package


def test_no_target_changes_the_program() -> None:
    """Kubernetes replaces $(NAME) and $$ in arguments, dstack ${{ }}, and SkyPilot sends it on a command line."""
    assert not re.search(r"\$[({$]|\t", PROGRAM)
    assert PROGRAM.isascii()
    assert len(PROGRAM) < 32 << 10
    assert "BOOTSTRAP" not in PROGRAM.splitlines()
    for target in ("k8s", "kserve", "compose"):
        assert PROGRAM in yaml_strings(next(yaml.safe_load_all(render(deployment(target)).replace("$$", "$"))))


def yaml_strings(node: Any) -> set[str]:
    if isinstance(node, dict):
        return set().union(*map(yaml_strings, node.values())) if node else set()
    if isinstance(node, list):
        return set().union(*map(yaml_strings, node)) if node else set()
    return {node.rstrip()} if isinstance(node, str) else set()


def test_a_job_asks_and_ends_its_server(tmp_path: Path) -> None:
    made = deployment("sky-job", command='echo "asked $MODEL at $OPENAI_BASE_URL"\nexit 3')
    read = yaml.safe_load(render(made))
    (tmp_path / "python3").write_text("#!/bin/sh\ntrap 'echo ended; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
    (tmp_path / "curl").write_text("#!/bin/sh\nexit 0\n")
    for program in tmp_path.iterdir():
        program.chmod(0o755)
    ended = subprocess.run(
        [bash(), "-c", read["run"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "VLLM_API_KEY": "k"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stdout.splitlines()[0] == "asked org/Llama-3.1-8B at http://127.0.0.1:8000/v1"


@pytest.mark.parametrize("target", TARGETS)
def test_values_stay_values(target: str) -> None:
    """What may hold anything, the endpoint, does not become a key, a variable or a comment."""
    from coldstream.fleet.deployment import Bucket

    evil = 'https://h"\n  evil: true #${HOME}'
    made = deployment(target, bucket=Bucket(uri="s3://models", endpoint=evil, region="auto"))
    for document in yaml.safe_load_all(render(made)):
        text = json.dumps(document)
        assert '"evil"' not in text
