"""What is installed: vLLM and our plugin in it, and what some commands need beside it."""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib.metadata import Distribution
from pathlib import Path

from coldstream.engines.vllm.program import version_warning
from coldstream.errors import NotFoundError
from coldstream.fleet.sky import INSTALL, TESTED, find_sky
from coldstream.machine.extras import install_hint, own_requirement, pip_install
from coldstream.operate.doctor.case import Case, DoctorCheck
from coldstream.operate.probe import Check, fail, ok, warn
from coldstream.package import __version__

_GROUP = "vllm.general_plugins"


def vllm(case: Case) -> Check:
    """Whether vLLM is there, in a version that was tried, and ready to start fast."""
    program = case.program
    if program is None:
        return ok("not installed: only needed to serve")
    detail = f"{program.version or 'unknown version'} at {program.path}"
    if program.version and (warning := version_warning(program.version)):
        return warn(
            f"{detail}: {warning}", hint="docs/serve.md lists the versions; run: pip install 'vllm>=0.28,<0.34'"
        )
    if not program.compiled:
        packages = Path(program.path).parent.parent
        return warn(f"{detail}: it has no bytecode and starts slowly", hint=f"run: python -m compileall -q {packages}")
    return ok(detail)


def plugin(case: Case) -> Check:
    """Whether this vLLM knows our load format: coldstream lies in its environment, and is not left out."""
    program = case.program
    if program is None:
        return ok("not needed: vLLM is not installed")
    if not program.site:
        hint = "check whether coldstream is installed there: pip list"
        return warn(f"{program.path} does not show where its packages are", hint=hint)
    python = program.interpreter or str(Path(program.path).with_name("python"))
    distribution = _distribution(program.site)
    if distribution is None:
        return fail(
            f"coldstream is not installed in {program.site}: vLLM cannot find the load format",
            hint=f"run: {pip_install(own_requirement(), python=python)}",
        )
    if not any(point.group == _GROUP and point.name == "coldstream" for point in distribution.entry_points):
        return fail(
            f"coldstream {distribution.version} in {program.site} is not registered with vLLM",
            hint=f"run: {pip_install('--force-reinstall', own_requirement(), python=python)}",
        )
    plugins = case.environ.get("VLLM_PLUGINS")
    if plugins is not None and "coldstream" not in plugins.split(","):
        return fail(
            f"VLLM_PLUGINS is {plugins!r} and does not list coldstream: vLLM cannot find the load format",
            hint="add coldstream to VLLM_PLUGINS, or unset it",
        )
    if distribution.version != __version__:
        return warn(
            f"vLLM has coldstream {distribution.version}, this command is {__version__}",
            hint=f"run: {pip_install(own_requirement(), python=python)}",
        )
    return ok(f"vLLM finds coldstream {distribution.version}")


def _distribution(site: str) -> Distribution | None:
    return next(iter(Distribution.discover(name="coldstream", path=[site])), None)


def runai(case: Case) -> Check:
    """Whether Run:ai's streamer is in vLLM's environment, for `--loader runai`."""
    packages = case.program.packages if case.program else {}
    version = packages.get("runai_model_streamer")
    if version is None:
        return ok("not installed: only needed for --loader runai")
    if "runai_model_streamer_s3" not in packages:
        return warn(
            f"{version}, without S3 support: --loader runai cannot read the bucket",
            hint="run in vLLM's environment: pip install 'runai-model-streamer[s3]'",
        )
    return ok(f"{version}, with S3 support")


def skypilot(case: Case) -> Check:
    """Whether `coldstream launch` has what it drives."""
    try:
        sky = find_sky(case.configured)
    except NotFoundError:
        return ok("not installed: only needed for coldstream launch")
    detail = f"{sky.version} at {sky.path}"
    if shutil.which("rsync", path=sky.environment.get("PATH")) is None:
        hint = "run: apt install rsync"
        return warn(f"{detail}, but rsync is missing", hint=hint)
    if sky.version.split(".")[:2] != TESTED.split(".")[:2]:
        return warn(f"{detail}: tested with {TESTED}", hint=f"run: {INSTALL}")
    return ok(detail)


def hf_xet(case: Case) -> Check:
    """Whether files that the Hub only serves through hf-xet can be uploaded."""
    if importlib.util.find_spec("hf_xet") is None:
        detail = "not installed: some files above 50 GB can only be uploaded with it"
        return warn(detail, hint=f"run: {pip_install('hf_xet')}")
    if re.fullmatch(r"1|on|yes|true", case.environ.get("HF_HUB_DISABLE_XET", ""), re.IGNORECASE):
        detail = "disabled: some files above 50 GB can only be uploaded with it"
        return warn(detail, hint="unset HF_HUB_DISABLE_XET")
    return ok("installed")


def tls_library(case: Case) -> Check:
    """Whether https costs as little of the CPU as it can."""
    if case.uses_folder or not case.endpoint.startswith("https:"):
        return ok("not needed: the endpoint has no TLS")
    if importlib.util.find_spec("cryptography") is None:
        return warn("Python's ssl module: https takes more CPU time than with cryptography", hint=install_hint("tls"))
    return ok("cryptography's")


CHECKS = (
    DoctorCheck(name="tls library", run=tls_library, needs=("configuration",)),
    DoctorCheck(name="hf-xet", run=hf_xet),
    DoctorCheck(name="vllm", run=vllm),
    DoctorCheck(name="plugin", run=plugin, needs=("vllm",)),
    DoctorCheck(name="runai", run=runai, needs=("vllm",)),
    DoctorCheck(name="skypilot", run=skypilot, needs=("configuration",)),
)
