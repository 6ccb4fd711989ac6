"""Loading a part of a model: some tensors by name, or a folder of it. Only chunks that hold them are requested."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import coldstream
from coldstream.errors import IntegrityError, NotFoundError, UsageError
from coldstream.loading.options import Options
from coldstream.loading.sharing import Share
from coldstream.places.opening import open_store
from coldstream.settings import load_settings
from tests.checkpoints import KIB, MIB, checkpoint_bytes, expected_tensors, raw_bytes, sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.models import write_model
from tests.servers.ranged import RangedServer
from tests.servers.stores import S3Server

HEADERS = 512 * KIB  # two shards' headers are read with 256 KiB each


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return sharded_checkpoint(shards=2, layers=4, rows=4096)


@pytest.fixture
def expected(files: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    return expected_tensors(tmp_path / "expected", files)


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[RangedServer]:
    with RangedServer({f"/m/{path}": content for path, content in files.items()}) as server:
        yield server


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    settings = {"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache"), "COLDSTREAM_RETRY_SECONDS": "1"}
    return {"settings": load_settings(settings, environ={}), "framework": "buffer", **more}


def loaded(uri: str, tmp_path: Path, **more: Any) -> dict[str, bytes]:
    return {name: raw_bytes(tensor) for name, tensor in coldstream.stream(uri, **options(tmp_path, **more))}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("part1.layers.2.q", {"part1.layers.2.q"}),
        (["part1.layers.0.*", "part2.layers.3.scale"], {f"part1.layers.0.{n}" for n in ("q", "k", "norm", "scale")}),
        (lambda name: name.startswith("part2.layers.1."), {f"part2.layers.1.{n}" for n in ("q", "k", "norm", "scale")}),
        (iter(["part2.nothing", "part2.layers.0.norm"]), {"part2.nothing", "part2.layers.0.norm"}),
    ],
    ids=["name", "patterns", "function", "iterator"],
)
def test_only_what_holds_the_tensors_is_requested(
    names: Any, chosen: set[str], server: RangedServer, expected: dict[str, bytes], tmp_path: Path
) -> None:
    chosen = chosen | ({"part2.layers.3.scale"} if isinstance(names, list) else set())
    with coldstream.stream(f"{server.url}/m", names=names, **options(tmp_path)) as loading:
        found = {name: raw_bytes(tensor) for name, tensor in loading}
    assert found == {name: expected[name] for name in chosen}
    assert loading.report is not None
    assert loading.report.tensors == len(chosen)
    # A chunk holds other small tensors too.
    size = sum(map(len, found.values()))
    assert size <= loading.report.received_bytes < size + 8 * MIB
    assert server.bytes_sent < size + 8 * MIB + HEADERS
    assert server.bytes_sent < sum(map(len, expected.values())) / 2


def test_the_rest_is_loaded_later_and_the_cache_serves_a_part(
    server: RangedServer, expected: dict[str, bytes], tmp_path: Path
) -> None:
    uri, part = f"{server.url}/m", "part1.layers.*.q"
    chosen = {name: value for name, value in expected.items() if name.startswith("part1") and name.endswith(".q")}
    with coldstream.stream(uri, names=part, **options(tmp_path)) as loading:
        assert {name: raw_bytes(tensor) for name, tensor in loading} == chosen
        assert loading.wait_for_cache() == "partly"
    first = server.bytes_sent
    with coldstream.stream(uri, **options(tmp_path)) as loading:
        assert {name: raw_bytes(tensor) for name, tensor in loading} == expected
        assert loading.wait_for_cache() == "written"
    assert server.bytes_sent < sum(map(len, expected.values())) + 3 * HEADERS, "nothing came twice"
    assert first > sum(map(len, chosen.values()))
    before = server.bytes_sent
    assert loaded(uri, tmp_path, names=part) == chosen
    assert server.bytes_sent - before < 2 * HEADERS, "only the headers"
    with server.refusing():
        assert loaded(uri, tmp_path, names=part) == chosen
        with pytest.raises(NotFoundError, match=r"has no tensor 'part1\.layers\.9\.q'"):
            loaded(uri, tmp_path, names="part1.layers.9.q")


def test_from_a_folder_of_this_machine(files: dict[str, bytes], expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", files)
    found = loaded(str(folder), tmp_path, names=["part1.layers.0.q", "part2.embed"])
    assert found == {name: expected[name] for name in ("part1.layers.0.q", "part2.embed")}
    kept = coldstream.load(str(folder), names="part2.layers.1.*", **options(tmp_path))
    assert {*kept} == {f"part2.layers.1.{n}" for n in ("q", "k", "norm", "scale")}


def test_unknown_names_are_one_error_before_any_byte(server: RangedServer, tmp_path: Path) -> None:
    uri = f"{server.url}/m"
    with pytest.raises(NotFoundError, match=r"has no tensor 'part1\.layers\.0\.qq'") as caught:
        loaded(uri, tmp_path, names=["part1.layers.0.q", "part1.layers.0.qq"])
    assert "did you mean part1.layers.0.q" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match=r"has no tensor 'other\.\*'") as caught:
        loaded(uri, tmp_path, names="other.*")
    assert (caught.value.hint or "").startswith("it has part1.embed, ")
    with pytest.raises(NotFoundError, match="has 36 tensors, and the function `names` accepts none of them"):
        loaded(uri, tmp_path, names=lambda name: False)
    assert server.bytes_sent < 4 * HEADERS, "only headers"
    with pytest.raises(UsageError, match="all tensors"):
        Share(uri, consumers=1, options=Options(names="part1.*"))


def test_into_a_module_a_part_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    spec = {"a.weight": ("F32", (2, 2)), "b.weight": ("F32", (2, 2)), "c.weight": ("F32", (2, 2))}
    folder = write_model(tmp_path / "m", {"model.safetensors": checkpoint_bytes(spec)})
    module = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in "abd"})
    kept = module["b"].weight.detach().clone()
    settings = load_settings({}, environ={})
    found = coldstream.load_into(module, str(folder), names=["a.*"], settings=settings)
    assert (found.missing, found.unexpected) == ((), ())
    assert torch.equal(module["b"].weight, kept)
    with pytest.raises(UsageError, match=r"unexpected c\.weight"):
        coldstream.load_into(module, str(folder), names=["a.*", "c.*"], settings=settings)
    with pytest.raises(UsageError, match=r"missing d\.weight, unexpected c\.weight"):
        coldstream.load_into(module, str(folder), settings=settings)


def test_a_component_of_a_pipeline(rclone: S3Server, tmp_path: Path) -> None:
    """coldstream upload FOLDER: one manifest verifies all components."""
    unet = checkpoint_bytes({"conv.weight": ("F32", (4, 4))}, seed=1)
    vae = checkpoint_bytes({"conv.weight": ("F32", (2, 2))}, seed=2)
    files = {
        "model_index.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": unet,
        "unet/config.json": b'{"sample_size": 8}',
        "vae/diffusion_pytorch_model.safetensors": vae,
    }
    command = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    command.run("upload", str(write_model(tmp_path / "pipeline", files)), "--as", "org/pipeline")
    values = {name: value for name, value in command.environ.items() if name.startswith(("R2_", "AWS_"))}
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(tmp_path / "cache")}, environ=values)
    for subfolder, content in (("unet", unet), ("vae", vae)):
        with coldstream.stream("org/pipeline", subfolder=subfolder, settings=settings, framework="buffer") as loading:
            ((name, tensor),) = loading
        assert (name, raw_bytes(tensor)) == ("conv.weight", content[-len(raw_bytes(tensor)) :])
        assert loading.report is not None
        assert loading.report.verified
    module = torch.nn.ModuleDict({"conv": torch.nn.Linear(2, 2, bias=False)})
    assert coldstream.load_into(module, "org/pipeline", subfolder="vae", settings=settings).report.verified
    with pytest.raises(NotFoundError):
        coldstream.load("org/pipeline", subfolder="text_encoder", settings=settings)
    for uri, path in (("org/pipeline", "unet/config.json"), ("org/pipeline/unet", "config.json")):
        assert coldstream.read_file(uri, path, settings=settings) == files["unet/config.json"]
    with pytest.raises(NotFoundError, match=r"org/pipeline/vae/config\.json does not exist"):
        coldstream.read_file("org/pipeline", "vae/config.json", settings=settings)
    store = open_store(settings)
    store.put("org/pipeline/unet/config.json", b'{"sample_size": 9}')
    with pytest.raises(IntegrityError, match="is not what the manifest says"):
        coldstream.read_file("org/pipeline", "unet/config.json", settings=settings)
    with pytest.raises(UsageError, match=r"subfolder is '\.\./other'"):
        coldstream.load("org/pipeline", subfolder="../other", settings=settings)
