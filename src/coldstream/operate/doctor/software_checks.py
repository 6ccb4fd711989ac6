"""Checks of the installed software: vLLM, the plugin in it, and optional dependencies."""

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
from coldstream.operate.doctor.case import Case
from coldstream.operate.probe import Check, fail, ok, warn
from coldstream.package import __version__

_GROUP = "vllm.general_plugins"


def vllm(case: Case) -> Check:
    """Whether vLLM is installed, in a tested version, and compiled to bytecode."""
    program = case.program
    if program is None:
        return ok("not installed: only needed to serve")
    detail = f"{program.version or 'unknown version'} at {program.path}"
    if program.version and (warning := version_warning(program.version)):
        return warn(f"{detail}: {warning}", "docs/serve.md lists the versions; run: pip install 'vllm>=0.28,<0.34'")
    if not program.compiled:
        packages = Path(program.path).parent.parent
        return warn(f"{detail}: it has no bytecode and starts slowly", f"run: python -m compileall -q {packages}")
    return ok(detail)


def plugin(case: Case) -> Check:
    """Whether this vLLM knows our load format: coldstream is in its environment, and not excluded."""
    program = case.program
    if program is None:
        return ok("not needed: vLLM is not installed")
    if not program.site:
        hint = "check whether coldstream is installed there: pip list"
        return warn(f"{program.path} does not show where its packages are", hint)
    python = program.interpreter or str(Path(program.path).with_name("python"))
    install = f"run: {pip_install(own_requirement(), python=python)}"
    distribution = next(iter(Distribution.discover(name="coldstream", path=[program.site])), None)
    if distribution is None:
        return fail(
            f"coldstream is not installed in {program.site}: vLLM cannot find the load format",
            install,
        )
    if not any(point.group == _GROUP and point.name == "coldstream" for point in distribution.entry_points):
        return fail(
            f"coldstream {distribution.version} in {program.site} is not registered with vLLM",
            f"run: {pip_install('--force-reinstall', own_requirement(), python=python)}",
        )
    plugins = case.environ.get("VLLM_PLUGINS")
    if plugins is not None and "coldstream" not in plugins.split(","):
        return fail(
            f"VLLM_PLUGINS is {plugins!r} and does not list coldstream: vLLM cannot find the load format",
            "add coldstream to VLLM_PLUGINS, or unset it",
        )
    if distribution.version != __version__:
        return warn(f"vLLM has coldstream {distribution.version}, this command is {__version__}", install)
    return ok(f"vLLM finds coldstream {distribution.version}")


def runai(case: Case) -> Check:
    """Whether Run:ai's streamer is in vLLM's environment, for `--loader runai`."""
    packages = case.program.packages if case.program else {}
    version = packages.get("runai_model_streamer")
    if version is None:
        return ok("not installed: only needed for --loader runai")
    if "runai_model_streamer_s3" not in packages:
        return warn(
            f"{version}, without S3 support: --loader runai cannot read the bucket",
            "run in vLLM's environment: pip install 'runai-model-streamer[s3]'",
        )
    return ok(f"{version}, with S3 support")


def skypilot(case: Case) -> Check:
    """Whether SkyPilot and rsync, which `coldstream launch` runs, are installed."""
    try:
        sky = find_sky(case.configured)
    except NotFoundError:
        return ok("not installed: only needed for coldstream launch")
    detail = f"{sky.version} at {sky.path}"
    if shutil.which("rsync", path=sky.environment.get("PATH")) is None:
        return warn(f"{detail}, but rsync is missing", "run: apt install rsync")
    if sky.version.split(".")[:2] != TESTED.split(".")[:2]:
        return warn(f"{detail}: tested with {TESTED}", f"run: {INSTALL}")
    return ok(detail)


def hf_xet(case: Case) -> Check:
    """Whether files that the Hub only serves through hf-xet can be uploaded."""
    consequence = "some files above 50 GB can only be uploaded with it"
    if importlib.util.find_spec("hf_xet") is None:
        return warn(f"not installed: {consequence}", f"run: {pip_install('hf_xet')}")
    if re.fullmatch(r"1|on|yes|true", case.environ.get("HF_HUB_DISABLE_XET", ""), re.IGNORECASE):
        return warn(f"disabled: {consequence}", "unset HF_HUB_DISABLE_XET")
    return ok("installed")


def tls_library(case: Case) -> Check:
    """Whether https uses the library that takes the least CPU time."""
    if case.uses_folder or not case.endpoint.startswith("https:"):
        return ok("not needed: the endpoint has no TLS")
    if importlib.util.find_spec("cryptography") is None:
        return warn("Python's ssl module: https takes more CPU time than with cryptography", install_hint("tls"))
    return ok("cryptography's")
