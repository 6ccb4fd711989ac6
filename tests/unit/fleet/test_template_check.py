"""Each rule with a file that breaks it and one that does not; files of ours; files that are hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import UsageError
from coldstream.fleet.deploy_options import TARGETS
from coldstream.fleet.deployment import render
from coldstream.fleet.template_check import BYTES_MAX, RULES, check
from tests.unit.fleet.deployments import GOLDEN

SERVICE = """\
resources: {{accelerators: L4, ports: 8000, {resources}}}
service:
  readiness_probe: /health
  replica_policy: {{min_replicas: 1, {policy}}}
secrets: {{VLLM_API_KEY: null}}
run: vllm serve m --host 0.0.0.0
"""
PORTS = """\
resources: {ports: 8000}
run: |
  vllm serve m --host 0.0.0.0
"""
LOADER = "vllm serve s3://b/m --host 0.0.0.0 --load-format {form} --model-loader-extra-config '{extra}'\n"
LOADER_AUTO = "vllm serve s3://b/m --host :: --model-loader-extra-config "
LOADER_OWN = "vllm serve org/m --host :: --model-loader-extra-config "
OURS = "coldstream serve org/m --loader runai -- --host :: --model-loader-extra-config "


def service(resources: str = "use_spot: true", policy: str = "dynamic_ondemand_fallback: true") -> str:
    return SERVICE.format(resources=resources, policy=policy)


def loader(extra: str, form: str = "runai_streamer") -> str:
    return LOADER.format(extra=extra, form=form)


# Rule, the file's ending, what breaks it and in which line, what does not.
CASES = [
    ("yaml", "yaml", "a: [1\nb: 2\n", 2, "a: [1]\n"),
    ("yaml", "yaml", "[" * 5000, 1, "[[]]"),
    ("inline-secret", "env", "A=1\nR2_SECRET_KEY=0123456789abcdef\n", 2, "R2_SECRET_KEY=$OTHER\n"),
    ("inline-secret", "env", "R2_ACCESS_KEY=abc\n", 1, "R2_ACCESS_KEY=your_access_key_id\n"),
    ("inline-secret", "env", "R2_SESSION_TOKEN=abc\n", 1, "MAX_TOKENS=5\nTOKENIZERS_PARALLELISM=false\n"),
    (
        "inline-secret",
        "sh",
        "export AWS_SECRET_ACCESS_KEY='abc'\n",
        1,
        'export AWS_SECRET_ACCESS_KEY="$R2_SECRET_KEY"\n',
    ),
    ("inline-secret", "yaml", "envs:\n  HF_TOKEN: abc\n", 2, "envs:\n  HF_TOKEN: null\n  X_TOKEN:\n  Y_TOKEN: ~\n"),
    ("inline-secret", "yaml", "env:\n  - VLLM_API_KEY=abc\n", 2, "env:\n  - VLLM_API_KEY\n"),
    ("inline-secret", "yaml", "secrets: {VLLM_API_KEY: abc}\n", 1, "secrets: {VLLM_API_KEY: null}\n"),
    ("inline-secret", "yaml", "env:\n- name: HF_TOKEN\n  value: abc\n", 3, "env:\n- name: HF_TOKEN\n  valueFrom: {}\n"),
    ("inline-secret", "env", "COLDSTREAM_CDN_HEADER='X-Key: abc'\n", 1, "R2_CDN_DOMAIN=models.example.com\n"),
    ("inline-secret", "env", "CF_ACCESS_CLIENT_ID=abc\n", 1, "CF_ACCESS_CLIENT_ID=${ID}\n"),
    ("inline-secret", "sh", "x --api-key abc\n", 1, "x --api-key $KEY\n"),
    ("inline-secret", "txt", "it is hf_" + "a1" * 17 + "\n", 1, "it is hf_token\n"),
    ("inline-secret", "py", 'HF_TOKEN = "abc"\n', 1, 'HF_TOKEN = os.environ["HF_TOKEN"]\n# HF_TOKEN = "abc"\n'),
    ("inline-secret", "md", "```bash\nHF_TOKEN=abc\n```\n", 2, "Set HF_TOKEN=abc there.\n```\nHF_TOKEN=<token>\n```\n"),
    ("hf-transfer", "sh", "export HF_HUB_ENABLE_HF_TRANSFER=1\n", 1, "# HF_HUB_ENABLE_HF_TRANSFER=1\n"),
    (
        "loader-key",
        "sh",
        loader('{"threads": 8}'),
        1,
        loader('{"concurrency": 8, "memory_limit": 5, "distributed": true}'),
    ),
    (
        "loader-key",
        "sh",
        loader('{"concurrency": 8}', "runai_streamer_sharded"),
        1,
        loader('{"pattern": "x"}', "sharded"),
    ),
    ("loader-key", "sh", loader('{"url": "x"}', "coldstream"), 1, loader('{"uri": "x", "cache": false}', "coldstream")),
    ("loader-key", "sh", LOADER_AUTO + """'{"num_threads": 8}'""", 1, LOADER_OWN + """'{"num_threads": 8}'"""),
    ("loader-key", "sh", OURS + """'{"uri": "x"}'""", 1, OURS + """'{"concurrency": 8}'"""),
    ("loader-key", "sh", loader("{concurrency: 8}"), 1, loader("$EXTRA")),
    ("loader-key", "sh", "--model_loader_extra_config='{\"size\": 1}'\n", 1, "--model_loader_extra_config='{}'\n"),
    ("loader-key", "yaml", "args: [--model-loader-extra-config, '{\"a\": 1}']\n", 1, "args: [--a, b]\n"),
    ("missing-host", "sh", "x\nvllm serve m \\\n  --port 1\n", 2, "vllm serve m \\\n  --host=127.0.0.1\n"),
    ("missing-host", "sh", "python -m vllm.entrypoints.openai.api_server --model m\n", 1, "vllm serve m --uds /s\n"),
    ("missing-host", "sh", "coldstream serve m -- --port 1\n", 1, "coldstream serve m -- --host 0.0.0.0\n"),
    ("missing-host", "sh", "coldstream serve m -- -tp 2\n", 1, "coldstream serve m -- --config vllm.yaml\n"),
    ("missing-host", "yaml", "command: [vllm, serve, m]\n", 1, "command: [vllm, serve, m, --host, '::']\n"),
    (
        "missing-host",
        "yaml",
        "services:\n  v:\n    image: vllm/vllm-openai:v1\n    command: [--model, m]\n",
        4,
        "services:\n  v:\n    image: vllm/vllm-openai:v1\n    command: [--model, m, --host, 0.0.0.0]\n",
    ),
    ("open-port", "yaml", PORTS, 1, PORTS + "secrets: {VLLM_API_KEY: null}\n"),
    (
        "open-port",
        "yaml",
        "services:\n  v:\n    image: vllm/vllm-openai:v1\n    ports:\n      - 8000:8000\n",
        5,
        "services:\n  v:\n    image: vllm/vllm-openai:v1\n    ports:\n      - 127.0.0.1:8000:8000\n",
    ),
    (
        "open-port",
        "yaml",
        "spec:\n  containers:\n  - image: vllm/vllm-openai:v1\n    ports: [{containerPort: 8000}]\n",
        4,
        "spec:\n  containers:\n  - image: nginx\n    ports: [{containerPort: 8000}]\n",
    ),
    (
        "r2-region",
        "sh",
        "A=https://a.r2.cloudflarestorage.com\n",
        1,
        "A=https://a.r2.cloudflarestorage.com\nAWS_REGION=auto\n",
    ),
    (
        "r2-region",
        "sh",
        "export AWS_ENDPOINT_URL=$R2_ENDPOINT\n",
        1,
        "R2_ENDPOINT=x\ncoldstream serve m -- --host ::\n",
    ),
    ("fallback-without-spot", "yaml", service("cpus: 4"), 4, service()),
    ("fallback-without-spot", "yaml", service("use_spot: false", "base_ondemand_fallback_replicas: 1"), 4, service()),
    ("fallback-without-spot", "yaml", service("any_of: [{infra: aws}]"), 4, service("any_of: [{use_spot: true}]")),
    (
        "mixed-any-of",
        "yaml",
        service("any_of: [{use_spot: true}, {use_spot: false}]"),
        1,
        service("use_spot: true, any_of: [{infra: aws}, {infra: gcp, use_spot: true}]"),
    ),
    (
        "mixed-any-of",
        "yaml",
        service("ordered: [{use_spot: true}, {infra: aws}]"),
        1,
        "resources: {any_of: [{use_spot: true}, {}]}\n",
    ),
    (
        "recovery-in-service",
        "yaml",
        service("use_spot: true, job_recovery: none"),
        1,
        "resources: {job_recovery: none}\n",
    ),
    (
        "service-port",
        "yaml",
        "resources: {cpus: 4}\nservice:\n  replicas: 1\n",
        3,
        "resources: {ports: 1}\nservice: {replicas: 1}\n",
    ),
    ("key-twice", "yaml", "envs: {A: 1}\nsecrets: {A: null}\n", 1, "envs: {A: 1}\nsecrets: {B: null}\n"),
]


@pytest.mark.parametrize(
    ("rule", "ending", "bad", "line", "good"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_rule(rule: str, ending: str, bad: str, line: int, good: str) -> None:
    found = [item for item in check(bad, f"f.{ending}") if item.rule == rule]
    assert [item.line for item in found] == [line], found
    assert found[0].text
    assert found[0].hint == RULES[rule]
    assert rule not in {item.rule for item in check(good, f"f.{ending}")}


def test_every_rule_is_tested() -> None:
    assert {case[0] for case in CASES} == RULES.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_nothing_is_found_in_ours(name: str) -> None:
    assert check(render(GOLDEN[name]), f"{name}.yaml") == []


def test_every_rule_and_target_is_documented() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/template.md").read_text()
    assert [name for name in (*RULES, *TARGETS) if f"| `{name}` |" not in text] == []


def test_no_value_is_shown() -> None:
    secrets = ["hf_" + "a1" * 17, "plain-secret-value", "AKIA" + "A1" * 8, "another-secret"]
    text = (
        f"envs:\n  X: {secrets[0]}\n  R2_SECRET_KEY: {secrets[1]}\n  K: {secrets[2]}\n"
        f"run: vllm serve m --api-key {secrets[3]}\n"
    )
    found = check(text, "f.yaml")
    assert len([item for item in found if item.rule == "inline-secret"]) == 4
    shown = repr(found)
    assert not [secret for secret in secrets if secret in shown]


def test_a_secret_in_a_comment_is_one() -> None:
    found = check("# once: hf_" + "a1" * 17 + "\na: 1\n", "f.yaml")
    assert [(item.rule, item.line) for item in found] == [("inline-secret", 1)]


def test_many_continued_lines_take_no_time() -> None:
    assert check("a\\\n" * 200_000, "f.sh") == []


def test_a_guide_is_read_where_it_is_code() -> None:
    text = (
        "# Serve\n\nRun `vllm serve m`; HF_TOKEN: abc is text.\n\n```bash\nsource .env\n"
        "export AWS_ENDPOINT_URL=$R2_ENDPOINT\nexport HF_HUB_ENABLE_HF_TRANSFER=1 # quick\n"
        "# vllm serve x\npython -m vllm.entrypoints.openai.api_server \\\n  --model s3://b/m\n```\n\nvllm serve it.\n"
    )
    found = {(item.rule, item.line) for item in check(text, "GUIDE.md")}
    assert found == {("r2-region", 7), ("hf-transfer", 8), ("missing-host", 10)}


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\ne: [*d, *d, *d]\n",
        "a: &a {b: *a}\n",
        "!!python/object/apply:os.system ['false']\n",
        "? [a, b]\n: c\n",
        "- 1\n- [2]\n---\nnull\n---\nx\n",
        "service: 3\nresources: []\n",
        "resources: {any_of: 1}\nservice: {replica_policy: []}\n",
        "services: [a]\n",
        "kind: Service\n",
        "",
        "\0",
        "command: [a, [b], {c: d}]\n",
    ],
)
def test_odd_files_end_well(text: str) -> None:
    for item in check(text, "f.yaml"):
        assert item.rule in RULES


def test_too_large_a_file() -> None:
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        check("a" * (BYTES_MAX + 1), "f.yaml")
