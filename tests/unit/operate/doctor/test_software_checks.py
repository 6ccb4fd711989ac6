"""What is installed, or half installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from coldstream import __version__
from coldstream.machine.extras import install_hint, own_requirement, pip_install
from coldstream.operate.doctor.case import Case
from coldstream.settings import load_settings
from tests.servers.fake_vllm import fake_vllm
from tests.unit.operate.doctor.cases import case_of, install, looked, write_script

PLUGIN = (("vllm.general_plugins", "coldstream = coldstream.engines.vllm:register"),)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that is on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    fake_vllm(tmp_path / "env")
    return tmp_path / "env/lib/python3.11/site-packages"


@pytest.fixture
def vllm(site: Path, tmp_path: Path) -> Path:
    return tmp_path / "env/bin/vllm"


def test_no_vllm_is_no_fault(tmp_path: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(bin_folder / "python"))
    for name in ("vllm", "plugin", "runai"):
        assert looked(case_of(tmp_path), name).state == "ok"


def test_a_vllm_that_is_named_and_not_there(tmp_path: Path) -> None:
    case = case_of(tmp_path, vllm=tmp_path / "none/vllm")
    check = looked(case, "vllm", "plugin", "runai")
    assert case.checks["vllm"].state == "fail"
    assert "was found" in case.checks["vllm"].detail
    assert check.detail == "skipped: vllm failed"


def test_versions_of_vllm(tmp_path: Path) -> None:
    check = looked(case_of(tmp_path, vllm=fake_vllm(tmp_path / "a")), "vllm")
    assert check.state == "ok"
    check = looked(case_of(tmp_path, vllm=fake_vllm(tmp_path / "b", version="0.9.1")), "vllm")
    assert check.state == "warn"
    assert "0.9.1 has not been tested" in check.detail
    assert "vllm>=0.28,<0.34" in (check.hint or "")


def test_a_vllm_without_bytecode(tmp_path: Path, vllm: Path, site: Path) -> None:
    (site / "vllm/__pycache__").rmdir()
    check = looked(case_of(tmp_path, vllm=vllm), "vllm")
    assert check.state == "warn"
    assert (check.hint or "").startswith("run: python -m compileall")


def test_a_vllm_without_our_plugin(tmp_path: Path, vllm: Path, site: Path) -> None:
    check = looked(case_of(tmp_path, vllm=vllm), "plugin")
    assert check.state == "fail"
    assert f"coldstream is not installed in {site}" in check.detail
    assert (check.hint or "").endswith(f"-m pip install {own_requirement()}")
    install(site, "coldstream", __version__)
    check = looked(case_of(tmp_path, vllm=vllm), "plugin")
    assert check.state == "fail"
    assert "is not registered" in check.detail


def test_a_vllm_with_our_plugin(tmp_path: Path, vllm: Path, site: Path) -> None:
    install(site, "coldstream", __version__, PLUGIN)
    check = looked(case_of(tmp_path, vllm=vllm), "plugin")
    assert (check.state, check.detail) == ("ok", f"vLLM finds coldstream {__version__}")
    assert looked(case_of(tmp_path, vllm=vllm, VLLM_PLUGINS="a,coldstream"), "plugin").state == "ok"
    check = looked(case_of(tmp_path, vllm=vllm, VLLM_PLUGINS="a,b"), "plugin")
    assert check.state == "fail"
    assert "VLLM_PLUGINS is 'a,b'" in check.detail


def test_a_vllm_with_an_older_plugin(tmp_path: Path, vllm: Path, site: Path) -> None:
    install(site, "coldstream", "0.0.1", PLUGIN)
    check = looked(case_of(tmp_path, vllm=vllm), "plugin")
    assert check.state == "warn"
    assert "0.0.1" in check.detail


def test_a_vllm_that_does_not_tell_where_it_lies(tmp_path: Path) -> None:
    program = write_script(tmp_path / "x/vllm", "exit 0")
    assert looked(case_of(tmp_path, vllm=program), "plugin").state == "warn"


def test_runai(tmp_path: Path, vllm: Path, site: Path) -> None:
    assert looked(case_of(tmp_path, vllm=vllm), "runai").state == "ok"
    install(site, "runai_model_streamer", "0.17.0")
    check = looked(case_of(tmp_path, vllm=vllm), "runai")
    assert check.state == "warn"
    assert "runai-model-streamer[s3]" in (check.hint or "")
    install(site, "runai_model_streamer_s3", "0.17.0")
    assert looked(case_of(tmp_path, vllm=vllm), "runai").detail == "0.17.0, with S3 support"


def test_skypilot(tmp_path: Path, bin_folder: Path) -> None:
    check = looked(case_of(tmp_path), "skypilot")
    assert (check.state, check.detail) == ("ok", "not installed: only needed for coldstream launch")
    write_script(bin_folder / "sky", "echo 'skypilot, version 0.14.1'")
    check = looked(case_of(tmp_path), "skypilot")
    assert check.state == "warn"
    assert "rsync is missing" in check.detail
    write_script(bin_folder / "rsync", "exit 0")
    assert looked(case_of(tmp_path), "skypilot").state == "ok"
    write_script(bin_folder / "sky", "echo 'skypilot, version 0.9.3'")
    check = looked(case_of(tmp_path), "skypilot")
    assert check.state == "warn"
    assert "tested with 0.14.1" in check.detail
    write_script(bin_folder / "sky", "echo 'ImportError: no module named sky'; exit 1")
    check = looked(case_of(tmp_path), "skypilot")
    assert check.state == "fail"
    assert "ImportError" in check.detail


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=None: None if n == name else found(n, p))


def test_hf_xet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = looked(case_of(tmp_path, HF_HUB_DISABLE_XET="1"), "hf-xet")
    assert (check.state, check.hint) == ("warn", "unset HF_HUB_DISABLE_XET")
    without(monkeypatch, "hf_xet")
    check = looked(case_of(tmp_path), "hf-xet")
    assert (check.state, check.hint) == ("warn", f"run: {pip_install('hf_xet')}")


def test_the_tls_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over_tls = {"R2_BUCKET": "models", "R2_ENDPOINT": "https://x.example"}
    assert looked(Case(load_settings(over_tls, environ={})), "tls library").state == "ok"
    without(monkeypatch, "cryptography")
    check = looked(Case(load_settings(over_tls, environ={})), "tls library")
    assert (check.state, check.hint) == ("warn", install_hint("tls"))
    assert looked(case_of(tmp_path), "tls library").state == "ok"


def test_the_bundle_key(tmp_path: Path) -> None:
    assert looked(case_of(tmp_path), "bundle key").state == "ok"
    check = looked(case_of(tmp_path, COLDSTREAM_BUNDLE_KEY="k" * 64), "bundle key")
    assert check.state == "ok"
    assert "kkk" not in check.detail
    check = looked(case_of(tmp_path, COLDSTREAM_BUNDLE_KEY="short"), "bundle key")
    assert check.state == "fail"
    assert check.hint == "make one: coldstream setup --bundle-key"
