"""What the programs that are started inherit."""

from __future__ import annotations

from coldstream.machine.child_environment import CREDENTIALS, STREAMER, child_environment
from coldstream.net.tls import CA_VARIABLES
from coldstream.settings import VARIABLES

OTHERS = {"PATH": "/bin", "GITHUB_TOKEN": "gh", "https_proxy": "http://p:1", "NO_PROXY": "x", "COLDSTREAM_STORE": "/s"}


def test_credentials_are_left_out_unless_they_are_needed() -> None:
    environ = OTHERS | dict.fromkeys(CREDENTIALS, "secret")
    assert child_environment(environ=environ) == OTHERS
    assert child_environment(keep=["HF_TOKEN"], environ=environ) == OTHERS | {"HF_TOKEN": "secret"}


def test_the_streamer_gets_what_it_reads_and_nothing_else() -> None:
    read = {"PATH": "/bin", "https_proxy": "http://p:1", "NO_PROXY": "x"} | dict.fromkeys(CA_VARIABLES, "/ca")
    assert child_environment(only=STREAMER, environ=OTHERS | read | dict.fromkeys(CREDENTIALS, "secret")) == read


def test_every_setting_that_says_it_is_a_secret_is_one() -> None:
    words = ("_KEY", "_SECRET", "_TOKEN", "_HEADER", "_ID")
    assert {name for name in VARIABLES if name.endswith(words)} <= CREDENTIALS
