"""What vLLM is given in its environment."""

from __future__ import annotations

from coldstream.node.serve_preparation import passed_environment
from coldstream.settings import load_settings


def test_what_is_passed_on_and_what_is_not_set() -> None:
    environ = {"HF_TOKEN": "hf_x", "OTHER_API_KEY": "inherited anyway"}
    messages: list[str] = []
    settings = load_settings({"R2_SESSION_TOKEN": "of .env"}, environ=environ)
    names = ("HF_TOKEN", "R2_SESSION_TOKEN", "OTHER_API_KEY", "HF_TOKN")
    passed = passed_environment(names, settings, environ, messages.append)
    assert passed == {"HF_TOKEN": "hf_x", "R2_SESSION_TOKEN": "of .env"}, "what is shown of others is not masked"
    assert messages == ["warning: --pass-env HF_TOKN: not set in the environment or in .env"]
