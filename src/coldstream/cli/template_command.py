"""`coldstream template`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coldstream.cli.deployment_options import chosen_image, deployment_options
from coldstream.cli.groups import EXIT_CODES, DefaultGroup
from coldstream.cli.output import coloured
from coldstream.cli.session import State
from coldstream.cli.shared_options import common_options

if TYPE_CHECKING:
    from coldstream.fleet.deployment import Deployment
    from coldstream.fleet.template_check import Finding

_FILE = click.Path(dir_okay=False, path_type=Path)
_TARGETS = ("sky", "sky-serve", "sky-job", "k8s", "kserve", "dstack", "compose")


@click.group(cls=DefaultGroup, default="render", epilog=EXIT_CODES)
def command() -> None:
    """Generate a deployment file for SkyPilot, Kubernetes and others.

    \b
    coldstream template Qwen/Qwen3-8B --target sky-serve --gpus L4:1 --replicas 1..3 -o serve.yaml
    coldstream template check serve.yaml

    `coldstream template MODEL` is short for `coldstream template render MODEL`, whose --help shows its options.
    """


@command.command(epilog=EXIT_CODES)
@click.argument("name", metavar="MODEL")
@deployment_options
@click.option("--target", type=click.Choice(_TARGETS), required=True, help="What brings it up.")
@click.option(
    "--replicas", metavar="N|N..M", default="1", show_default=True, help="How many; a range follows the load."
)
@click.option("--command", "job", metavar="COMMAND", help="Of sky-job: what runs against the model.")
@click.option("--cache-path", metavar="DIR", help="A folder of the node for local copies, which outlive the container.")
@click.option("-o", "--output", type=_FILE, help="The file to write.  [default: standard output]")
@click.option("--force", is_flag=True, help="Replace that file when it exists.")
@common_options
def render(
    state: State,
    name: str,
    target: str,
    gpus: str,
    spot: bool | None,
    cloud: str | None,
    replicas: str,
    loader: str,
    image: str | None,
    no_image: bool,
    port: int,
    max_model_len: int | None,
    fallback: str | None,
    job: str | None,
    cache_path: str | None,
    output: Path | None,
    force: bool,
) -> None:
    """Write the file that brings a model up.

    \b
    coldstream template Qwen/Qwen3-8B --target sky --gpus L4:1 --cloud aws
    coldstream template Qwen/Qwen3-8B --target sky-serve --gpus L4:1 --replicas 1..3 -o serve.yaml
    coldstream template Qwen/Qwen3-8B --target sky-job --gpus L4:1 --command 'python ask.py'
    coldstream template Qwen/Qwen3-32B --target k8s --gpus H100:2 --replicas 2 -o vllm.yaml

    The model's size decides the flags, as `coldstream tune` says; one that does not fit is refused. Secrets are named,
    and their values are never written.
    """
    from coldstream.fleet.deployment import Wish, bucket_of, deploy, domain_of, parse_replicas
    from coldstream.fleet.render import render as rendered
    from coldstream.model.names import checked_name
    from coldstream.package import __version__
    from coldstream.tune.clouds import parse_cloud
    from coldstream.tune.gpus import parse_gpus
    from coldstream.tune.model_facts import read_model
    from coldstream.tune.predict import NetworkPath
    from coldstream.tune.recommended import advise

    wish = Wish(
        target=target,
        loader=loader,
        replicas=parse_replicas(replicas),
        spot=spot,
        cloud=parse_cloud(cloud) if cloud else None,
        image=chosen_image(image, no_image=no_image),
        port=port,
        fallback=fallback,
        command=job,
        cache_path=cache_path,
    )
    chosen = parse_gpus(gpus)
    settings = state.settings()
    bucket, domain = bucket_of(settings), domain_of(settings, loader)
    way = NetworkPath(cloud=wish.cloud.partition("/")[0] if wish.cloud else None)
    advice = advise(read_model(checked_name(name), settings), chosen, way, context=max_model_len)
    deployment = deploy(name, wish, advice, bucket, domain=domain, version=__version__)
    if bucket.is_here:
        state.say(f"{bucket.endpoint} is this machine: no other one reaches the bucket there")
    if domain is not None and domain.is_here:
        state.say(f"{domain.url} is this machine: no other one reaches the CDN there")
    text = rendered(deployment)
    if output is None:
        state.show(_document(deployment, text, None), text.rstrip("\n"))
        return
    _write(output, text, force=force)
    state.show(_document(deployment, text, output), f"wrote {output}")


@command.command(epilog=f"{EXIT_CODES} 1 also: something was found.")
@click.argument("file", metavar="FILE", type=_FILE)
@common_options
def check(state: State, file: Path) -> None:
    """Check any deployment file for vLLM.

    \b
    coldstream template check serve.yaml
    coldstream template check README.md --json

    The file may be YAML, a script or a guide in Markdown. The rules are described in docs/template.md. No secret's
    value is shown.
    """
    from coldstream.errors import DiskError, NotFoundError, UsageError
    from coldstream.fleet.template_check import BYTES_MAX
    from coldstream.fleet.template_check import check as findings_of

    try:
        with open(file, "rb") as opened:
            text = opened.read(BYTES_MAX + 1).decode()
    except FileNotFoundError as exc:
        raise NotFoundError(f"there is no file {file}", target=str(file)) from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is no text", hint="it must be UTF-8") from exc
    except OSError as exc:
        raise DiskError(f"cannot read {file}: {exc.strerror or exc}", target=str(file)) from exc
    found = findings_of(text, file.name)
    rows = [{"rule": item.rule, "line": item.line, "text": item.text, "hint": item.hint} for item in found]
    state.show({"file": str(file), "findings": rows}, _findings_text(file, found))
    if found:
        raise SystemExit(1)


def _findings_text(file: Path, found: list[Finding]) -> str:
    from coldstream.units import plural

    lines = []
    for item in found:
        shown = "".join(character if character.isprintable() else "?" for character in item.text)
        lines += [f"{file}:{item.line}: {coloured(item.rule, 'yellow')}: {shown}", f"    {item.hint}"]
    return "\n".join([*lines, plural(len(found), "finding") if found else f"{file}: nothing found"])


def _document(deployment: Deployment, text: str, output: Path | None) -> dict[str, Any]:
    return {
        "model": deployment.model,
        "target": deployment.wish.target,
        "gpus": str(deployment.gpus),
        "flags": list(deployment.flags),
        "connections": deployment.connections,
        "cdn": deployment.domain.url if deployment.domain else None,
        "secrets": [*deployment.needed_secrets, *deployment.other_secrets],
        "file": str(output) if output else None,
        "text": text,
    }


def _write(path: Path, text: str, *, force: bool) -> None:
    from coldstream.errors import DiskError, UsageError
    from coldstream.machine.atomic_file import write_output

    try:
        if force:
            write_output(path, text.encode())
        else:
            with open(path, "x", encoding="utf-8") as opened:
                opened.write(text)
    except FileExistsError as exc:
        raise UsageError(f"{path} exists", hint="replace it with --force, or name another file") from exc
    except OSError as exc:
        raise DiskError(f"cannot write {path}: {exc.strerror or exc}", target=str(path)) from exc
