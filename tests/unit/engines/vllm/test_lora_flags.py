"""vLLM's flags for adapters: the user's win, and what is missing is added."""

from __future__ import annotations

import json

import pytest

from coldstream.engines.vllm.flags import Flags
from coldstream.engines.vllm.lora_flags import adapter_paths, rank_max, with_adapters
from coldstream.engines.vllm.program import Program
from coldstream.engines.vllm.vllm_caches import VllmCaches
from coldstream.errors import UsageError

JSON = '{"name": "b", "path": "org/b", "base_model_name": "org/m"}'


@pytest.mark.parametrize(
    ("arguments", "rank", "limit"),
    [((), 1, 1), ((), 4, 8), ((), 16, 16), ((), 17, 32), ((), 257, 320), (("--max-lora-rank", "128"), 8, 128)],
)
def test_the_largest_rank_is_the_next_that_vllm_allows(arguments: tuple[str, ...], rank: int, limit: int) -> None:
    assert rank_max(Flags(arguments), rank) == limit


def test_a_rank_that_vllm_cannot_serve_is_refused() -> None:
    with pytest.raises(UsageError, match="ranks up to 512, not 513"):
        rank_max(Flags(()), 513)


def test_both_forms_of_modules_are_read() -> None:
    flags = Flags(["--lora-modules", "a=s3://models/org/a", JSON, "c=./c", "--port", "1"])
    assert adapter_paths(flags) == {"a": "s3://models/org/a", "b": "org/b", "c": "./c"}


@pytest.mark.parametrize("text", ["a", '{"name": "a"}', "[1]", "{"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is neither name=path nor a JSON object"):
        adapter_paths(Flags(["--lora-modules", text]))


def test_what_is_missing_is_added() -> None:
    flags = with_adapters(Flags(["--port", "1"]), {"org/a": "org/a"}, rank_max=8, on_demand=False)
    module = json.dumps({"name": "org/a", "path": "org/a"})
    ours = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "1", "--max-cpu-loras", "1")
    assert flags.arguments == ("--port", "1", *ours, "--lora-modules", module)
    many = with_adapters(Flags(()), {f"a{number}": "x" for number in range(40)}, rank_max=8, on_demand=False)
    assert (many.number("--max-loras"), many.number("--max-cpu-loras")) == (4, 16)


def test_the_user_s_flags_win() -> None:
    arguments = ("--enable-lora", "--max_loras=32", "--max-lora-rank", "64")
    flags = with_adapters(Flags(arguments), {}, rank_max=64, on_demand=True)
    assert flags.arguments == (*arguments, "--max-cpu-loras", "32")


def test_without_a_rank_only_the_paths_change() -> None:
    flags = with_adapters(
        Flags(["--enable-lora", "--lora-modules", "a=x"]), {"a": "org/a"}, rank_max=None, on_demand=False
    )
    assert flags.arguments == ("--enable-lora", "--lora-modules", json.dumps({"name": "a", "path": "org/a"}))


def test_modules_are_replaced_with_all_that_the_user_wrote() -> None:
    flags = Flags(["--lora-modules", "c=./c", JSON, "--port", "1"])
    paths = {"c": "./c", "b": "org/b", "org/a": "org/a"}
    modules = with_adapters(flags, paths, rank_max=8, on_demand=False).values["--lora-modules"]
    assert [json.loads(module) for module in modules] == [
        {"name": "c", "path": "./c"},
        json.loads(JSON),
        {"name": "org/a", "path": "org/a"},
    ]


@pytest.mark.parametrize(("more", "added"), [((), True), (("--headless",), False)])
def test_on_demand_needs_one_api_server(more: tuple[str, ...], added: bool) -> None:
    flags = with_adapters(Flags(("-dp", "2", *more)), {}, rank_max=8, on_demand=True)
    assert (flags.value("--api-server-count") == "1") == added
    assert "--api-server-count" not in with_adapters(Flags(("-dp", "2")), {}, rank_max=8, on_demand=False)


def test_a_flag_is_removed_with_its_values() -> None:
    arguments = ["--port", "1", "--lora_modules", "a=b", "c=d", "-tp", "2", "--lora-modules=e=f", "g=h", "--seed", "-1"]
    assert Flags(arguments).without("--lora-modules") == ["--port", "1", "-tp", "2", "--seed", "-1"]


def test_compiled_code_depends_on_the_rank_and_not_on_which_adapters_are_served() -> None:
    program = Program(path="/bin/vllm", version="0.32.0", compiled=True, packages={"vllm": "0.32.0"})

    def key(rank: int, *names: str) -> dict[str, str]:
        flags = with_adapters(Flags(()), {name: name for name in names}, rank_max=rank, on_demand=True)
        return VllmCaches().key_parts(program, flags, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})

    assert key(16, "org/a") == key(16, "org/b")
    assert key(16, "org/a") != key(32, "org/a")
    assert key(16, "org/a") != VllmCaches().key_parts(program, Flags(()), {})
