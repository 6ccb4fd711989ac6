"""Which files of real kinds of repositories are taken."""

from __future__ import annotations

import json

import pytest

from coldstream.errors import IntegrityError, UsageError
from coldstream.selection import INDEX_NAME, beside, select, weights

LLAMA = ["config.json", "tokenizer.json", "LICENSE", "README.md", "a-1.safetensors", "a-2.safetensors", INDEX_NAME]
INDEX = json.dumps({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}).encode()


def chosen(paths: list[str], **options: object) -> set[str]:
    return set(select(paths, **options).chosen)  # type: ignore[arg-type]


def test_one_set_of_weights_is_taken() -> None:
    extra = ["original/consolidated.00.pth", "original/params.json", "pytorch_model.bin", "x.gguf", "onnx/model.onnx"]
    extra += ["stray.safetensors", ".gitattributes", "figure.png", "pytorch_model.bin.index.json"]
    selection = select(LLAMA + extra, index=INDEX)
    assert set(selection.chosen) == set(LLAMA)
    assert set(selection.skipped) == set(extra)


def test_a_consolidated_twin_is_left_out() -> None:
    paths = ["consolidated.safetensors", "model-1.safetensors", "model-2.safetensors", "params.json"]
    assert chosen(paths) == set(paths) - {"consolidated.safetensors"}


def test_consolidated_alone_is_the_model() -> None:
    assert "consolidated.safetensors" in chosen(["consolidated.safetensors", "params.json", "tekken.json"])


def test_variants_of_the_single_file_are_left_out() -> None:
    paths = ["model.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"]
    assert chosen(paths) == {"model.safetensors"}


def test_modules_of_sentence_transformers_come_along() -> None:
    paths = ["model.safetensors", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"]
    paths += ["2_Dense/pytorch_model.bin", "3_Dense/model.safetensors", "3_Dense/pytorch_model.bin"]
    assert chosen(paths) == set(paths) - {"3_Dense/pytorch_model.bin"}


def test_include_also_and_exclude() -> None:
    paths = [*LLAMA, "x.gguf"]
    assert chosen(paths, index=INDEX, include=["*.gguf"]) == {"x.gguf"}
    assert chosen(paths, index=INDEX, also=["*.gguf"]) == set(paths)
    assert chosen(paths, index=INDEX, exclude=["README*"]) == set(LLAMA) - {"README.md"}
    with pytest.raises(UsageError, match="no file is left"):
        chosen(paths, include=["nothing*"])


def test_hidden_files_are_taken_by_a_pattern_with_their_dot_alone() -> None:
    hidden = [".env", ".DS_Store", ".cache/x.json", "1_Pooling/.netrc"]
    paths = LLAMA + hidden
    assert set(select(paths, index=INDEX).skipped) == set(hidden)
    assert chosen(paths, index=INDEX, also=["*"]) == set(LLAMA)
    assert chosen(paths, index=INDEX, include=["*"]) == set(LLAMA)
    assert chosen(paths, index=INDEX, also=[".e*", "*/.netrc"]) == {*LLAMA, ".env", "1_Pooling/.netrc"}
    assert chosen(paths, include=[".cache/"]) == {".cache/x.json"}
    assert ".env" not in beside([*LLAMA, ".env"])


def test_pickles_alone_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no safetensors.*pickled"):
        chosen(["pytorch_model.bin", "config.json"])


def test_an_index_that_names_a_missing_shard_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"a-2\.safetensors"):
        chosen([path for path in LLAMA if path != "a-2.safetensors"], index=INDEX)


@pytest.mark.parametrize("index", [b"", b"[]", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map":{"a":1}}'])
def test_a_malformed_index_is_refused(index: bytes) -> None:
    with pytest.raises(IntegrityError, match="malformed"):
        chosen(LLAMA, index=index)


def test_the_weights_that_a_load_reads() -> None:
    assert weights([*LLAMA, "stray.safetensors", "sub/x.safetensors"], index=INDEX) == (
        "a-1.safetensors",
        "a-2.safetensors",
    )
    assert weights(["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"]) == (
        "model.safetensors",
    )
    assert weights(["b.safetensors", "a.safetensors", "consolidated.safetensors"]) == ("a.safetensors", "b.safetensors")
    assert weights(["consolidated.safetensors", "params.json"]) == ("consolidated.safetensors",)
    assert weights(["config.json", "sub/model.safetensors", "pytorch_model.bin"]) == ()


def test_what_stands_beside_them() -> None:
    paths = [*LLAMA, "original/params.json", "pytorch_model.bin", "figure.png", "1_Pooling/config.json"]
    assert beside(paths) == (
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "config.json",
        INDEX_NAME,
        "tokenizer.json",
    )


def test_the_weights_of_small_modules_are_files_beside_those_of_the_model() -> None:
    paths = ["model.safetensors", "config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    assert beside(paths) == ("1_Pooling/config.json", "config.json")
    assert beside([*paths, "modules.json"]) == (
        *("1_Pooling/config.json", "2_Dense/model.safetensors", "config.json", "modules.json"),
    )
