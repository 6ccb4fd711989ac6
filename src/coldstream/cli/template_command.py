"""`coldstream template`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from coldstream.cli.output import attributes, coloured
from coldstream.cli.session import State, write_file
from coldstream.cli.stored_runtimes import chosen_runtime, software_document
from coldstream.cli.verbs import EXIT_CODES, FILE, DefaultGroup, deployment_options
from coldstream.errors import DiskError, NotFoundError, UsageError
from coldstream.fleet.deploy_options import read_options
from coldstream.fleet.deployment import bucket_of, deploy, domain_of, network_path
from coldstream.fleet.deployment import render as rendered
from coldstream.fleet.models_beside import checked_draft, with_adapters
from coldstream.fleet.template_check import BYTES_MAX
from coldstream.fleet.template_check import check as check_text
from coldstream.model.names import checked_name
from coldstream.printable import printable
from coldstream.tune.model_shape import read_model
from coldstream.units import plural


@click.group(cls=DefaultGroup, default="render")
def command() -> None:
    """Generate a deployment file for SkyPilot, Kubernetes and others.

    \b
    coldstream template Qwen/Qwen3-8B --target sky-serve --gpus L4:1 --replicas 1..3 -o serve.yaml
    coldstream template check serve.yaml

    `coldstream template MODEL` is short for `coldstream template render MODEL`, whose --help shows its options.
    """


@command.command()
@click.argument("model", metavar="MODEL")
@deployment_options("template")
@click.option("-o", "--output", type=FILE, help="Write to this file.  [default: standard output]")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def render(state: State, model: str, output: Path | None, force: bool, **values: Any) -> None:
    """Generate the deployment file of a model.

    \b
    coldstream template Qwen/Qwen3-8B --target sky --gpus L4:1 --cloud aws
    coldstream template Qwen/Qwen3-8B --target sky-serve --gpus L4:1 --replicas 1..3 -o serve.yaml
    coldstream template Qwen/Qwen3-8B --target sky-job --gpus L4:1 --command 'python ask.py'
    coldstream template Qwen/Qwen3-32B --target k8s --gpus H100:2 --replicas 2 -o vllm.yaml

    The flags are those that `coldstream tune` recommends; a model that does not fit is rejected. The file names secrets
    and never contains their values.
    """
    options, settings = read_options(values), state.settings()
    bucket, domain = bucket_of(settings), domain_of(settings, options.loader)
    shape = read_model(checked_name(model), settings)
    options.check()
    options = with_adapters(options, shape.name, settings, state.open_store(8), say=state.say)
    checked_draft(options.speculative_config, settings)
    deployment = deploy(shape, options, bucket, domain=domain, network=network_path(bucket, options.cloud))
    runtime = click.get_current_context().with_resource(chosen_runtime(state, options))
    deployment = replace(deployment, runtime=runtime.manifest)
    if options.adapters:
        state.say(f"adapters: {options.adapters.replace(',', ', ')}")
    if bucket.is_local:
        state.say(f"{bucket.endpoint} is this machine: no other machine reaches the bucket there")
    if domain is not None and domain.is_local:
        state.say(f"{domain.url} is this machine: no other machine reaches the CDN there")
    text = rendered(deployment)
    if output is not None and os.path.lexists(output) and not force:
        raise UsageError(f"{output} exists", hint="replace it with --force, or name another file")
    runtime.publish(state)
    if output is not None:
        write_file(output, text.encode())
    document = {
        **attributes(deployment, "model", "secrets"),
        "flags": deployment.advice.fit.flags(),
        "target": options.target,
        "gpus": str(deployment.options.gpus),
        "connections": deployment.loader.connections,
        "cdn": domain.url if domain else None,
        "adapters": options.adapter_names,
        "software": software_document(deployment),
        "file": str(output) if output else None,
        "text": text,
    }
    state.show(document, f"wrote {output}" if output else text.rstrip("\n"))


@command.command(epilog=f"{EXIT_CODES} 1 also: there are findings.")
@click.argument("file", metavar="FILE", type=FILE)
def check(state: State, file: Path) -> int:
    """Check any deployment file for vLLM.

    \b
    coldstream template check serve.yaml
    coldstream template check README.md --json

    The file may be YAML, a script or a guide in Markdown. The rules are described in docs/template.md. Values of
    secrets are never shown.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(BYTES_MAX + 1).decode()
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {file}", target=str(file)) from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is not a text file", hint="it must be UTF-8") from exc
    except OSError as exc:
        raise DiskError(f"cannot read {file}: {exc.strerror or exc}", target=str(file)) from exc
    findings = check_text(text, file.name)
    lines = []
    for item in findings:
        lines += [f"{file}:{item.line}: {coloured(item.rule, 'yellow')}: {printable(item.text)}", f"    {item.hint}"]
    lines.append(plural(len(findings), "finding") if findings else f"{file}: no findings")
    rows = [attributes(item, "rule", "line", "text", "hint") for item in findings]
    state.show({"file": str(file), "findings": rows}, "\n".join(lines))
    return int(bool(findings))
