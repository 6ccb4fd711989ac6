"""What `--model-loader-extra-config` may say, and which versions are known."""

from __future__ import annotations

import pytest

from coldstream.engines.vllm.loader_config import LoaderConfig, parse_loader_config
from coldstream.engines.vllm.program import version_warning
from coldstream.loading.options import Options


def test_the_options_arrive() -> None:
    extra = parse_loader_config({"uri": "s3://b/m", "concurrency": 32, "memory_limit": 5 << 30, "verify": False})
    assert extra == LoaderConfig(uri="s3://b/m", concurrency=32, memory_limit=5 << 30, verify=False)
    options = Options(**extra.options())
    assert (options.connections, options.memory, options.verify, options.cache) == (32, 5 << 30, False, True)
    assert Options(**parse_loader_config({}).options()) == Options()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"urI": "x"}, "unknown key 'urI'; known: uri, concurrency"),
        ({"uri": 1}, "uri must be"),
        ({"uri": ""}, "uri must be"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1 on, not 0"),
        ({"concurrency": True}, "concurrency must be"),
        ({"memory_limit": "5GB"}, "memory_limit must be"),
        ({"verify": "yes"}, "verify must be true or false"),
        ([], "must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(given: object, said: str) -> None:
    with pytest.raises(ValueError, match="coldstream") as caught:
        parse_loader_config(given)
    assert said in str(caught.value)


def test_versions() -> None:
    assert version_warning("0.32.0+cpu") is None
    assert version_warning("0.28.1") is None
    assert version_warning("0.33.0") is None
    for version in ("0.27.0", "1.0", "dev"):
        assert "0.28 to 0.33" in (version_warning(version) or "")
