"""What compares the guide with what its commands print can tell a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guide import Session, faults, missing, normal, steps

DOCUMENT = """
# A guide

```console
$ echo one 1.2 s; echo two   # a remark
one 7.4 s
two
$ export NAME=value
$ echo "$NAME" \\
  again
value again
```

```sh
$ never
```
"""


def test_commands_and_what_stands_below_them() -> None:
    found = steps(DOCUMENT)
    assert [step.command for step in found] == [
        "echo one 1.2 s; echo two",
        "export NAME=value",
        'echo "$NAME"   again',
    ]
    assert found[0].shown == ("one 7.4 s", "two")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ready   17.9 MB in 252 ms (70.8 MB/s)", "ready   17.9 MB in 1.2 s (1.2 GB/s)"),
        ("at http://127.0.0.1:40163", "at http://127.0.0.1:1"),
        ("ready  just now", "ready  5 minutes ago"),
        ("sha 0e9e39f2", "sha 1234567a"),
        ("  a   b ", "a b"),
        ("  /tmp/x/y ok", "/tmp/z ok"),
    ],
)
def test_figures_do_not_count(one: str, other: str) -> None:
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("shown", "printed", "fault"),
    [
        (["a", "b"], ["a", "b"], None),
        (["a", "..."], ["a", "b", "c"], None),
        (["...", "c"], ["a", "b", "c"], None),
        (["a", "...", "c"], ["a", "b", "c"], None),
        ([], ["whatever"], None),
        (["a"], ["a", "b"], "(and nothing after it): b"),
        (["a", "b"], ["a"], "b"),
        (["b"], ["a", "b"], "b"),
        (["a", "...", "d"], ["a", "b", "c"], "d"),
    ],
)
def test_lines_must_be_printed_in_order(shown: list[str], printed: list[str], fault: str | None) -> None:
    assert missing(shown, printed) == fault


def test_a_document_is_run(tmp_path: Path) -> None:
    session = Session(tmp_path, {"PATH": "/usr/bin:/bin"})
    assert [*faults(DOCUMENT, session)] == []
    (found,) = faults(DOCUMENT.replace("two\n$ export", "three\n$ export"), session)
    assert "not printed: three" in found
    (found,) = faults("```console\n$ false\n```\n", session)
    assert "exit 1" in found


def test_what_goes_on_beside_the_others_is_ended(tmp_path: Path) -> None:
    session = Session(tmp_path, {"PATH": "/usr/bin:/bin"})
    text = "```console\n$ sh -c 'echo started 5 s; exec sleep 60' &\nstarted 7 s\n$ echo next\nnext\n```\n"
    assert [*faults(text, session)] == []
    session.close()
    assert session._beside[0].poll() is not None
