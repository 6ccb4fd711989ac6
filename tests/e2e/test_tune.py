"""`coldstream tune` against a real bucket."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from coldstream.loading.options import Options
from tests.checkpoints import sharded_checkpoint
from tests.conftest import fresh_bucket
from tests.e2e.command import Command
from tests.servers.fake_vllm import fake_vllm
from tests.servers.stores import S3Server

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "hidden_size": 1024,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def command(rclone: S3Server, tmp_path: Path) -> Command:
    made = Command(rclone, fresh_bucket(rclone), cwd=tmp_path)
    made.environ["COLDSTREAM_CACHE_DIR"] = str(tmp_path / "cache")
    (tmp_path / "m").mkdir()
    for path, content in {**sharded_checkpoint(shards=2), "config.json": json.dumps(CONFIG).encode()}.items():
        (tmp_path / "m" / path).write_bytes(content)
    made.run("upload", str(tmp_path / "m"), "--as", "org/m")
    return made


def test_advice_for_a_model_in_the_bucket(command: Command) -> None:
    """Coldstream tune org/m --gpus L4:2 --cloud aws --cores 8 --link 10Gbit."""
    found = command.json("tune", "org/m", "--gpus", "L4:2", "--cloud", "aws", "--cores", "8", "--link", "10Gbit")
    assert found["fits"]
    assert found["tensor_parallel"] == 2
    assert found["model"]["kv_bytes"] == 2 * 2 * 8 * 64 * 2
    ours, theirs = found["loaders"]
    assert (ours["loader"], theirs["loader"]) == ("coldstream", "runai")
    assert ours["rates"]["cloud"] == 625e6
    text = command.run("tune", "org/m", "--gpus", "L4:2", "--link", "10Gbit")[0]
    assert "tensor parallel   2" in text
    assert "next:  coldstream serve org/m" in text


def steady_rate(_uri: object, options: Options, *_: object) -> float:
    return min(options.connections * 4e7, 1e8)  # other than what is assumed


def test_noise_is_neither_advised_by_nor_kept(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coldstream tune org/m --gpus L4 --measure, where no two runs agree."""
    factors = itertools.cycle((1.0, 0.3, 3.0, 0.1, 7.0))
    monkeypatch.setattr("coldstream.tune.connection_curve._rate", lambda *_: 3e7 * next(factors))
    before = command.json("tune", "org/m", "--gpus", "L4")
    found = command.json("tune", "org/m", "--gpus", "L4", "--measure")
    assert found["curve"]["noisy"] is True
    assert found["loaders"] == before["loaders"]
    out, err = command.run("tune", "org/m", "--gpus", "L4", "--measure")
    assert "too much to use or save" in err
    assert "too much to recommend a number of connections" in out
    assert not (command.cwd / "cache/measured").exists()


def test_a_measured_curve_is_drawn_and_used_by_serve(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coldstream tune org/m --gpus L4 --measure --png FILE --html FILE; coldstream serve org/m."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("coldstream.tune.connection_curve._rate", steady_rate)
    png, page = command.cwd / "c.png", command.cwd / "c.html"
    found = command.json("tune", "org/m", "--gpus", "L4", "--measure", "--png", str(png), "--html", str(page))
    curve = found["curve"]
    assert curve["samples"][0]["connections"] == 1
    assert (curve["noisy"], curve["spread"]) == (False, 0.0)
    assert curve["most"] > 0
    ours = found["loaders"][0]
    assert ours["connections"] == curve["connections"]
    # The machine was named, and what is predicted is by the measurement all the same.
    assert ours["rates"]["connections"] == curve["connections"] * 4e7
    assert ours["rates"]["link"] == 1e8
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in page.read_text()
    kept = list((command.cwd / "cache/measured").iterdir())
    assert len(kept) == 1
    record = json.loads(kept[0].read_text())
    assert record["connections"] == curve["connections"]

    from coldstream.engines.vllm.vllm_engine import VllmEngine
    from coldstream.model.names import Uri
    from coldstream.node.inference_engine import ServeRequest
    from coldstream.settings import load_settings

    fake_vllm(command.cwd / "env")
    settings = load_settings({"COLDSTREAM_CACHE_DIR": str(command.cwd / "cache")}, environ=command.environ)

    def connections(**options: int) -> int:
        request = ServeRequest(
            uri=Uri("org/m"),
            arguments=(),
            loader="coldstream",
            options=Options(**options),
            program=str(command.cwd / "env/bin/vllm"),
        )  # type: ignore[arg-type]
        return VllmEngine(request).load_options(settings).connections

    assert connections() == curve["connections"]
    assert connections(connections=5) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "MODEL is missing"),
        (("org/m", "--gpus", "L5"), 2, "not a known GPU"),
        (("org/m", "--gpus", "L4:0"), 2, "not a valid number of GPUs"),
        (("org/m", "--gpus", "L4", "--link", "fast"), 2, "is not a speed"),
        (("org/m", "--gpus", "L4", "--png", "x.png"), 2, "--measure"),
        (("org/other", "--gpus", "L4"), 10, "org/other"),
        (("org/m", "--matrix"), 2, "--matrix"),
        (("org/m", "--gpus", "L4", "--measure", "--png", "/nowhere/x.png"), 1, "cannot write"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: tuple[str, ...], code: int, says: str) -> None:
    err = command.run("tune", *arguments, code=code)[1]
    assert says in err


def test_the_matrix(command: Command) -> None:
    """Coldstream tune --matrix."""
    text = command.run("tune", "--matrix")[0]
    assert text.count("\n") >= 10
    rows = command.json("tune", "--matrix", "--cloud", "gcp")["rows"]
    assert {"gpus", "model", "remark", "loaders"} <= rows[0].keys()
