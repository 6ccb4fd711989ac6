"""What is installed: vLLM and our plugin in it, and what some commands need beside it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib.metadata import Distribution
from pathlib import Path

from coldstream.errors import NotFoundError
from coldstream.fleet.sky import INSTALL, TESTED, find_sky
from coldstream.machine.extras import install_hint, own_requirement, pip_install
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check
from coldstream.package import __version__

_GROUP = "vllm.general_plugins"


def vllm(case: Case) -> Check:
    """Whether vLLM is there, in a version that was tried, and ready to start fast."""
    program = case.program
    if program is None:
        return Check(name="vllm", state="ok", found="not installed: needed where it serves, and nowhere else")
    found = f"{program.version or 'unknown version'} at {program.path}"
    environ = {name: value for name, value in case.environ.items() if name != "VLLM_PLUGINS"}
    warnings = program.warnings(environ)
    if not warnings:
        return Check(name="vllm", state="ok", found=found)
    what, _, mend = warnings[0].partition("; run once: ")
    hint = f"run once: {mend}" if mend else "docs/serve.md lists the versions; pip install 'vllm>=0.28,<0.34'"
    return Check(name="vllm", state="warn", found=f"{found}: {what}", hint=hint)


def plugin(case: Case) -> Check:
    """Whether this vLLM knows our load format: coldstream lies in its environment, and is not left out."""
    program = case.program
    if program is None:
        return Check(name="plugin", state="ok", found="not needed: there is no vLLM")
    if not program.site:
        hint = "look for coldstream there: pip list"
        return Check(
            name="plugin", state="warn", found=f"{program.path} does not tell where its packages lie", hint=hint
        )
    python = program.interpreter or str(Path(program.path).with_name("python"))
    found = _distribution(program.site)
    if found is None:
        return Check(
            name="plugin",
            state="fail",
            found=f"coldstream is not installed in {program.site}: vLLM does not know the load format",
            hint=f"run: {pip_install(own_requirement(), python=python)}",
        )
    if not any(point.group == _GROUP and point.name == "coldstream" for point in found.entry_points):
        return Check(
            name="plugin",
            state="fail",
            found=f"coldstream {found.version} in {program.site} does not announce itself to vLLM",
            hint=f"run: {pip_install('--force-reinstall', own_requirement(), python=python)}",
        )
    plugins = case.environ.get("VLLM_PLUGINS")
    if plugins is not None and "coldstream" not in plugins.split(","):
        return Check(
            name="plugin",
            state="fail",
            found=f"VLLM_PLUGINS is {plugins!r} and leaves coldstream out: vLLM does not know the load format",
            hint="add coldstream to VLLM_PLUGINS, or unset it",
        )
    if found.version != __version__:
        return Check(
            name="plugin",
            state="warn",
            found=f"vLLM has coldstream {found.version}, and this is {__version__}",
            hint=f"run: {pip_install(own_requirement(), python=python)}",
        )
    return Check(name="plugin", state="ok", found=f"vLLM sees coldstream {found.version}")


def _distribution(site: str) -> Distribution | None:
    return next(iter(Distribution.discover(name="coldstream", path=[site])), None)


def runai(case: Case) -> Check:
    """Whether Run:ai's streamer is in vLLM's environment, for `--loader runai`."""
    packages = case.program.packages if case.program else {}
    version = packages.get("runai_model_streamer")
    if version is None:
        return Check(name="runai", state="ok", found="not installed: --loader runai alone needs it")
    if "runai_model_streamer_s3" not in packages:
        return Check(
            name="runai",
            state="warn",
            found=f"{version}, without its part for S3: --loader runai cannot read the bucket",
            hint="run in vLLM's environment: pip install 'runai-model-streamer[s3]'",
        )
    return Check(name="runai", state="ok", found=f"{version}, with its part for S3")


def skypilot(case: Case) -> Check:
    """Whether `coldstream launch` has what it drives."""
    try:
        sky = find_sky(case.given)
    except NotFoundError:
        return Check(name="skypilot", state="ok", found="not installed: coldstream launch alone needs it")
    found = f"{sky.version} at {sky.path}"
    if shutil.which("rsync", path=sky.environment.get("PATH")) is None:
        hint = "for example: apt install rsync"
        return Check(name="skypilot", state="warn", found=f"{found}, without rsync, which it needs", hint=hint)
    if sky.version.split(".")[:2] != TESTED.split(".")[:2]:
        return Check(
            name="skypilot", state="warn", found=f"{found}: {TESTED} is what was tried", hint=f"install that: {INSTALL}"
        )
    return Check(name="skypilot", state="ok", found=found)


def hf_xet(case: Case) -> Check:
    """Whether files that the Hub gives through hf-xet alone can be uploaded."""
    if importlib.util.find_spec("hf_xet") is None:
        found = "not installed: some files above 50 GB come through it alone, and cannot be uploaded"
        return Check(name="hf-xet", state="warn", found=found, hint=f"run: {pip_install('hf_xet')}")
    if re.fullmatch(r"1|on|yes|true", case.environ.get("HF_HUB_DISABLE_XET", ""), re.IGNORECASE):
        found = "switched off: some files above 50 GB come through it alone, and cannot be uploaded"
        return Check(name="hf-xet", state="warn", found=found, hint="unset HF_HUB_DISABLE_XET")
    return Check(name="hf-xet", state="ok", found="installed")


def tls_library(case: Case) -> Check:
    """Whether https costs as little of the CPU as it can."""
    if case.uses_folder or not case.endpoint.startswith("https:"):
        return Check(name="tls library", state="ok", found="not needed: the endpoint has no TLS")
    if importlib.util.find_spec("cryptography") is None:
        return Check(
            name="tls library",
            state="warn",
            found="Python's own: https takes more of the CPU than it has to",
            hint=install_hint("tls"),
        )
    return Check(name="tls library", state="ok", found="cryptography's")
