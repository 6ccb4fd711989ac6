"""Which files of real kinds of repositories are taken."""

from __future__ import annotations

import json

import pytest

from coldstream.errors import IntegrityError, UsageError
from coldstream.model.selection import (
    INDEX_NAME,
    index_name,
    is_adapter,
    is_complete_set,
    kept_back,
    left_out,
    select,
    small_files,
    weights,
)

LLAMA = ["config.json", "tokenizer.json", "LICENSE", "README.md", "a-1.safetensors", "a-2.safetensors", INDEX_NAME]
INDEX = json.dumps({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}).encode()


def chosen(paths: list[str], *, index: bytes | None = None, **options: object) -> set[str]:
    def read(path: str) -> bytes:
        assert index is not None, f"{path} is read"
        return index

    return set(select(paths, read=read, **options).chosen)  # type: ignore[arg-type]


def given(paths: list[str], *, stored: bool = False) -> tuple[str, ...]:
    return small_files(dict.fromkeys(paths, 1000), stored=stored)


def test_one_set_of_weights_is_taken() -> None:
    extra = ["original/consolidated.00.pth", "original/params.json", "pytorch_model.bin", "x.gguf", "onnx/model.onnx"]
    extra += ["stray.safetensors", ".gitattributes", "figure.png", "pytorch_model.bin.index.json"]
    selection = select(LLAMA + extra, read=lambda _: INDEX)
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
    with pytest.raises(UsageError, match="no safetensors weights in it, only GGUF"):
        chosen(["x.gguf"])


def test_hidden_files_are_taken_by_a_pattern_with_their_dot_alone() -> None:
    hidden = [".env", ".DS_Store", ".cache/x.json", "1_Pooling/.netrc"]
    paths = LLAMA + hidden
    assert set(select(paths, read=lambda _: INDEX).skipped) == set(hidden)
    assert chosen(paths, index=INDEX, also=["*"]) == set(LLAMA)
    assert chosen(paths, index=INDEX, include=["*"]) == set(LLAMA)
    assert chosen(paths, index=INDEX, also=[".e*", "*/.netrc"]) == {*LLAMA, ".env", "1_Pooling/.netrc"}
    assert chosen(paths, include=[".cache/"]) == {".cache/x.json"}
    assert ".env" not in given([*LLAMA, ".env"], stored=True)


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


def test_an_index_that_would_take_gigabytes_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coldstream.model.selection.json", None)
    with pytest.raises(IntegrityError, match="more values"):
        chosen(LLAMA, index=b'{"weight_map":[' + b"{}," * 4_000_001 + b"{}]}")


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
    assert given(paths) == (
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "config.json",
        INDEX_NAME,
        "tokenizer.json",
    )


def test_the_weights_of_parts_are_files_beside_those_of_the_model() -> None:
    parts = ["2_Dense/model.safetensors", "audio_tokenizer/model.safetensors", "speech-lora/adapter_model.safetensors"]
    parts += ["adapter_model.safetensors", "adapter_config.json", "audio_tokenizer/config.json"]
    paths = ["model.safetensors", "config.json", "checkpoint-500/model.safetensors", *parts]
    assert given(paths) == tuple(sorted([*parts, "config.json"]))


def test_what_was_stored_by_choice_is_given_to_the_server() -> None:
    paths = ["model.safetensors", "config.json", "spk2info.pt", "audio_tokenizer/pytorch_model.bin", "figure.png"]
    assert given(paths) == ("config.json",)
    assert given(paths, stored=True) == tuple(sorted(set(paths) - {"model.safetensors"}))
    assert given([*paths, ".hidden.json"], stored=True) == given(paths, stored=True)


def test_a_sub_folder_with_the_model_once_more_is_kept_back() -> None:
    gib = 1 << 30
    parts = {"whisper/model.safetensors": 3 * gib, "spk2info.pt": gib, "fp8/config.json": 1, "config.json": 1}
    whole = {"fp8/model-1.safetensors": 3 * gib, "fp8/model-2.safetensors": 3 * gib}
    whole |= {"big.npz": 5 * gib, "pytorch_model.bin": 5 * gib}
    sizes = {"model.safetensors": 16 * gib, **parts, **whole}
    assert kept_back(sizes, stored=True) == dict.fromkeys(whole, "larger than a part of a model: more than 4.29 GB")
    assert small_files(sizes, stored=True) == tuple(sorted(parts))


def index_of(*names: str) -> bytes:
    return json.dumps({"weight_map": dict(enumerate(names))}).encode()


def numbered(stem: str, count: int, variant: str = "") -> list[str]:
    return [f"{stem}-{number:05d}-of-{count:05d}{variant}.safetensors" for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["a.safetensors"], None),
        ([INDEX_NAME, "x.safetensors.index.json"], INDEX_NAME),
        (["diffusion_pytorch_model.safetensors.index.json"], "diffusion_pytorch_model.safetensors.index.json"),
        (["x.safetensors.index.json", "y.safetensors.index.json"], None),
        (["consolidated.safetensors.index.json", "adapter_model.safetensors.index.json"], None),
        (["sub/model.safetensors.index.json", "pytorch_model.bin.index.json"], None),
        (["diffusion_pytorch_model.safetensors.index.fp16.json"], None),
    ],
)
def test_the_index_may_have_any_name(paths: list[str], name: str | None) -> None:
    assert index_name(paths) == name


def test_an_index_of_another_name_selects() -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    two, three = numbered("diffusion_pytorch_model", 2), numbered("diffusion_pytorch_model", 3)
    assert chosen([name, *two, *three], index=index_of(*two)) == {name, *two}
    assert weights([name, *two, *three], index=index_of(*three)) == tuple(three)


def test_what_a_training_leaves_is_not_the_models_weights() -> None:
    paths = ["model.safetensors", "config.json", "optimizer.safetensors", "adapter_model.safetensors"]
    paths += ["checkpoint-500/model.safetensors", "checkpoint-500/trainer_state.json", "checkpoint-12/config.json"]
    assert weights(paths) == ("model.safetensors",)
    assert given(paths) == ("adapter_model.safetensors", "config.json")
    assert chosen(paths) == {"model.safetensors", "config.json"}
    assert chosen(paths, also=["checkpoint-500/"]) == {"model.safetensors", "config.json", *paths[4:6]}
    rest = ["a.safetensors", "b.safetensors", "adapter_model-00001-of-00001.safetensors"]
    assert weights(rest) == ("a.safetensors", "b.safetensors")
    assert left_out(rest) == {rest[2]: "an adapter beside the model"}
    assert weights([*rest, INDEX_NAME], index=index_of(*rest)) == tuple(sorted(rest))


def test_an_adapter_or_a_checkpoint_by_itself_is_taken() -> None:
    adapter = ["adapter_config.json", "adapter_model.safetensors"]
    assert chosen([*adapter, "optimizer.safetensors"]) == set(adapter)
    checkpoints = ["checkpoint-1/model.safetensors", "checkpoint-2/model.safetensors", "README.md"]
    assert chosen(checkpoints) == set(checkpoints)
    assert chosen(["optimizer.safetensors"]) == {"optimizer.safetensors"}
    assert weights(["optimizers.safetensors", "a.safetensors"]) == ("a.safetensors", "optimizers.safetensors")


@pytest.mark.parametrize(
    ("plain", "variants"),
    [
        (["unet.safetensors"], ["unet.fp16.safetensors", "unet.non_ema.safetensors", "unet.bf16.safetensors"]),
        (numbered("d", 2), [*numbered("d.fp16", 3), *numbered("d", 2, ".fp16")]),
        (["d.safetensors"], numbered("d.fp16", 2)),
    ],
)
def test_weights_in_another_precision_are_left_out(plain: list[str], variants: list[str]) -> None:
    assert weights([*plain, *variants]) == tuple(plain)
    assert chosen([*plain, *variants]) == set(plain)
    assert weights(variants) == tuple(sorted(variants))
    others = ["d.0.safetensors", "d.vision.safetensors", "fp16.safetensors"]
    assert set(weights([*plain, *others])) == {*plain, *others}


def test_an_index_that_is_left_over_does_not_count() -> None:
    paths = ["model.safetensors", "config.json", INDEX_NAME, "optimizer.safetensors"]
    index = index_of(*numbered("model", 2))
    selection = select(paths, read=lambda _: index)
    assert selection.chosen == ("config.json", "model.safetensors")
    assert selection.skipped[INDEX_NAME].startswith("left over: it names model-00001-of-00002.safetensors")
    assert weights(paths, index=index) == ("model.safetensors",)


@pytest.mark.parametrize(
    ("paths", "listed"),
    [
        (numbered("model", 4), numbered("model", 2)),
        (["model.safetensors", "model.fp16.safetensors"], numbered("model", 2)),
        (numbered("model", 2)[:1], numbered("model", 2)),
        (numbered("model", 3)[:1], numbered("model", 2)),
        (["a.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["a.safetensors", "sub/b.safetensors"], ["a.safetensors", "sub/b.safetensors"]),
    ],
)
def test_an_index_of_files_that_are_not_there_is_refused_unless_it_is_excluded(
    paths: list[str], listed: list[str]
) -> None:
    with pytest.raises(IntegrityError, match=r"not there|no safetensors file at the top"):
        chosen([*paths, INDEX_NAME], index=index_of(*listed))
    with pytest.raises(IntegrityError, match=r"not there|no safetensors file at the top"):
        weights([*paths, INDEX_NAME], index=index_of(*listed))
    # Asked to leave it out, nobody reads it; --include takes what it is told to.
    assert chosen([*paths, INDEX_NAME], include=["*"]) == {*paths, INDEX_NAME}
    if len(paths) > 1:
        assert INDEX_NAME not in chosen([*paths, INDEX_NAME], exclude=["*.index.json"])


def test_what_is_excluded_is_not_there() -> None:
    two, three = numbered("model", 2), numbered("model", 3)
    with pytest.raises(IntegrityError, match=r"model-00002-of-00002\.safetensors.*not there"):
        chosen([*two, INDEX_NAME], index=index_of(*two), exclude=[two[1]])
    assert chosen([*two, *three], exclude=["*-of-00003*"]) == set(two)
    other = ["x.safetensors.index.json", INDEX_NAME, *two]
    assert chosen(other, index=index_of(*two), exclude=[INDEX_NAME]) == {*two, other[0]}


def test_shards_whose_numbers_have_a_gap_are_refused() -> None:
    paths = numbered("m", 3)
    with pytest.raises(IntegrityError, match=r"m-00002-of-00003\.safetensors is not there"):
        chosen([paths[0], paths[2]])
    from_zero = [f"m-{number:05d}-of-00003.safetensors" for number in range(3)]
    assert chosen(from_zero) == set(from_zero)
    assert chosen([paths[0]], include=["*"]) == {paths[0]}


def test_which_shards_nothing_says_belong_together() -> None:
    two, three = numbered("model", 2), numbered("model", 3)
    assert select(two).unproven == ()
    assert select(["a.safetensors"]).unproven == ()
    assert select([*two, *three]).unproven == (*two[:1], *three[:1], *two[1:], *three[1:])
    assert select(["a.safetensors", "b.safetensors"]).unproven == ("a.safetensors", "b.safetensors")
    assert select(LLAMA, read=lambda _: INDEX).unproven == ()


@pytest.mark.parametrize(
    ("shards", "complete"),
    [
        (numbered("m", 2), True),
        (numbered("m", 2)[:1], False),
        (["m-00001-of-00002.safetensors", "n-00002-of-00002.safetensors"], False),
        (["m-00001-of-00001.safetensors", "x.safetensors"], False),
        (["model.safetensors"], False),
        ([], False),
    ],
)
def test_a_complete_set_needs_no_index(shards: list[str], complete: bool) -> None:
    assert is_complete_set(shards) == complete


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("adapter_config.json adapter_model.safetensors tokenizer.json", True),
        # Some trainers save the base's configuration, and their own state.
        ("adapter_config.json adapter_model.safetensors config.json optimizer.safetensors", True),
        ("adapter_config.json adapter_model.bin", True),
        ("adapter_config.json", True),
        ("adapter_config.json adapter_model.safetensors model.safetensors config.json", False),
        ("adapter_model.safetensors", False),
        ("config.json model.safetensors", False),
        ("config.json model.safetensors vision-lora/adapter_config.json vision-lora/adapter_model.safetensors", False),
    ],
)
def test_an_adapter_is_recognised_by_its_files(paths: str, *, expected: bool) -> None:
    assert is_adapter(paths.split()) == expected
