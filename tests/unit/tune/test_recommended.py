from __future__ import annotations

import json
from typing import Any

import pytest

from coldstream.model.header import Header, Tensor
from coldstream.tune.gpus import parse_gpus
from coldstream.tune.model_shape import describe
from coldstream.tune.predict import NetworkPath, predict
from coldstream.tune.recommended import advise, fit, settings_table, smallest
from coldstream.units import GIB
from tests.unit.tune.models import EIGHT, SEVENTY


def header(dtype: str = "BF16", shape: tuple[int, ...] = (1024, 1024), count: int = 4, bits: int = 16) -> Header:
    size = bits // 8
    for side in shape:
        size *= side
    tensors = tuple(Tensor(f"t{i}", dtype, shape, i * size, (i + 1) * size) for i in range(count))
    return Header(data_start=0, tensors=tensors, metadata={})


LLAMA: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
}


def test_what_a_model_is() -> None:
    model = describe("m", [header(), header("F32", (10,), 1, 32)], LLAMA)
    assert model.bytes == 8 * 1024 * 1024 + 40
    assert model.parameters == 4 * 1024 * 1024 + 10
    assert model.dtype == "BF16"
    # 2 x 32 layers x 8 heads x 128 x 2 bytes, as vLLM says for Llama 3 8B.
    assert model.kv_bytes == 131_072
    assert (model.layers, model.heads, model.kv_heads, model.context) == (32, 32, 8, 8192)


def test_models_of_other_shapes() -> None:
    multimodal = describe("m", [header()], {"text_config": LLAMA, "hidden_size": 99})
    assert multimodal.kv_bytes == 131_072
    latent = describe("m", [header()], {**LLAMA, "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert latent.kv_bytes == 61 * 576 * 2
    packed = describe("m", [header("I32", (128,), 2, 32)], {})
    assert packed.parameters is None
    assert packed.size == packed.bytes / 2


@pytest.mark.parametrize(
    "config",
    [{}, {"num_hidden_layers": "32"}, {"num_hidden_layers": -1}, {"num_hidden_layers": True}, {"text_config": []}],
)
def test_a_config_that_says_nothing_is_not_guessed_at(config: dict[str, Any]) -> None:
    model = describe("m", [header()], config)
    assert model.kv_bytes is None
    found = fit(model, parse_gpus("L4"), utilization=0.9)
    assert found.fault is None
    assert found.tokens is None


def test_it_fits_and_how_many_tokens_have_room() -> None:
    found = fit(EIGHT, parse_gpus("L4"), utilization=0.95)
    assert found.fault is None
    room = int(24 * GIB * 0.95) - 2 * GIB - EIGHT.bytes
    assert found.room_bytes == room
    assert found.tokens == room // 131_072
    assert found.context is None, "all of its context has room"
    assert found.flags() == ("--gpu-memory-utilization", "0.95")


def test_what_does_not_fit_says_what_would() -> None:
    found = fit(SEVENTY, parse_gpus("A100-80GB"), utilization=0.95)
    assert found.fault is not None
    assert "do not fit on 1 x A100-80GB" in found.fault
    assert str(smallest(SEVENTY, parse_gpus("A100-80GB"), utilization=0.95)) == "A100-80GB:2"
    assert smallest(SEVENTY, parse_gpus("T4"), utilization=0.95) is None


def test_a_context_without_room_is_shortened_and_one_that_is_asked_for_is_a_fault() -> None:
    found = fit(SEVENTY, parse_gpus("A100-80GB:2"), utilization=0.95)
    assert found.fault is None
    assert found.tokens is not None
    assert found.context == found.tokens // 256 * 256 < 131_072
    assert "--max-model-len" in found.flags()
    asked = fit(SEVENTY, parse_gpus("A100-80GB:2"), utilization=0.95, context=131_072)
    assert asked.fault is not None
    assert "131072 are needed" in asked.fault


def test_heads_that_cannot_be_divided_leave_gpus_idle() -> None:
    odd = describe("m", [header()], {**LLAMA, "num_attention_heads": 28, "num_key_value_heads": 4})
    assert fit(odd, parse_gpus("L4:8"), utilization=0.9).tensor_parallel == 7
    assert fit(odd, parse_gpus("L4:4"), utilization=0.9).tensor_parallel == 4


def test_the_slowest_stage_sets_the_time() -> None:
    way = NetworkPath(link_bytes_per_second=1.25e9, cores=64, connection_bytes_per_second=30e6, setup_seconds=0.0)
    few = predict(10**10, way, connections=10)
    assert (few.limit, few.seconds) == ("connections", pytest.approx(10**10 / 300e6))
    assert predict(10**10, way, connections=64).limit == "link"
    slow = predict(10**10, NetworkPath(link_bytes_per_second=1e11, cores=1, setup_seconds=0.0), connections=10_000)
    assert slow.limit == "cpu"
    assert predict(10**10, way, connections=64, copies_bytes_per_second=1e8).limit == "pcie"
    assert predict(10**10, way, connections=64, crossings=4).seconds == pytest.approx(4 * 8.0)
    assert all(predict(10**10, way, connections=n).limited_by for n in (1, 64))


def test_aws_caps_what_goes_to_other_networks() -> None:
    small = NetworkPath(link_bytes_per_second=3e9, cores=8, cloud="aws", connection_bytes_per_second=1e9)
    found = predict(16 * 10**9, small, connections=64)
    assert found.limit == "cloud"
    assert found.seconds == pytest.approx(16e9 / 625e6, abs=1)
    large = NetworkPath(link_bytes_per_second=3e9, cores=96, cloud="aws", connection_bytes_per_second=1e9)
    assert dict(predict(1, large, connections=64).rates)["cloud"] == 1.5e9
    assert "cloud" not in dict(predict(1, NetworkPath(cores=8, cloud="gcp"), connections=1).rates)


def test_connections_are_as_many_as_the_way_can_use() -> None:
    way = NetworkPath(link_bytes_per_second=1.25e9, cores=64, connection_bytes_per_second=30e6)
    ours = advise(EIGHT, parse_gpus("L4"), way).loaders[0]
    assert ours.connections == 48
    assert ours.prediction.limit == "link"
    assert advise(EIGHT, parse_gpus("L4"), NetworkPath()).loaders[0].connections == 64
    assert advise(EIGHT, parse_gpus("L4"), way, connections=7).loaders[0].connections == 7


def test_the_five_rows_that_are_often_quoted() -> None:
    rows = {(row.gpus, row.model): row for row in settings_table()}
    given = {
        ("A10G:1", "7B"): (16, 2),
        ("A100:1", "7B"): (32, 5),
        ("A100:1", "13B"): (32, 5),
        ("A100:1", "70B"): (48, 10),
        ("A100:4", "70B"): (64, 15),
    }
    for key, (threads, gib) in given.items():
        theirs = rows[key].advice.loaders[1]
        assert (theirs.connections, theirs.memory_bytes) == (threads, gib * GIB), key
        assert rows[key].remark, "what is promised for it is explained"
    assert rows["A100:1", "70B"].advice.fit.fault is not None


def test_everything_can_be_shown_as_json() -> None:
    from coldstream.cli.tune_command import _document

    for row in settings_table("gcp"):
        document = _document(row.advice, row.way)
        assert json.loads(json.dumps(document))["gpus"] == row.gpus
