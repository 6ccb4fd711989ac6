"""The names that a missing model may stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from coldstream.errors import NotFoundError
from coldstream.model.names import Uri
from coldstream.places.model_records import missing_model, nearest_names
from coldstream.places.opening import open_model_reader
from coldstream.settings import load_settings
from tests.conftest import quick_store

NAMES = ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B-Instruct", "me/finetune")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Qwen/Qwen3-8", ["Qwen/Qwen3-8B", "Qwen/Qwen3-32B"]),
        ("qwen/qwen3-8b", ["Qwen/Qwen3-8B", "Qwen/Qwen3-32B"]),
        ("Llama-3.1-8B-Instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("meta/Llama-3.1-8B-Instruct", ["meta-llama/Llama-3.1-8B-Instruct"]),
        ("google/gemma-2-9b-it", []),
    ],
)
def test_the_nearest_come_first(name: str, near: list[str]) -> None:
    assert nearest_names(name, NAMES) == near


def test_a_store_that_holds_one_like_it_says_so(tmp_path: Path) -> None:
    store = quick_store({"COLDSTREAM_STORE": (tmp_path / "store").as_uri()})
    store.put("org/model/config.json", b"{}")
    error = missing_model(store, "org/modle")
    assert error.hint == "did you mean org/model?   (all of them: coldstream list)"
    assert missing_model(store, "another/thing").hint == "see: coldstream list"
    assert missing_model(store, "org", ["model/config.json", "other/a", "other/b"]).hint == "below it: org/model  …"


def test_a_folder_that_is_a_store_has_names_too(tmp_path: Path) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    (tmp_path / "org/model/config.json").write_text("{}")
    settings = load_settings({"COLDSTREAM_STORE": str(tmp_path)}, environ={})
    with pytest.raises(NotFoundError, match="there is no model org/modle") as caught:
        open_model_reader(Uri("org/modle"), settings).checkpoint()
    assert (caught.value.hint or "").startswith("did you mean org/model?")
