"""`tools/house.py`, on small trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import house


def tree(root: Path, **files: str) -> list[house.Module]:
    """Writes modules of the package `p`: `net__a` is `src/p/net/a.py`, and `init` is an `__init__.py`."""
    for name, text in {"init": "", **files}.items():
        path = name.replace("__", "/")
        path = path.replace("init", "__init__") if path.endswith("init") else path
        write(root, f"src/p/{path}.py", text)
    return house.read_modules(root)


def write(root: Path, name: str, text: str) -> None:
    """Writes any other file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def texts(finding: house.Finding) -> list[str]:
    """The violations, as they are printed."""
    return [str(hit) for hit in finding.hits]


def test_counts_the_lines_of_all_modules(tmp_path):
    modules = tree(tmp_path, a="x = 1\n\n", rooms__b="y = 2\n")
    assert house.check_lines(modules).value == 3


def test_names_the_longest_module_and_function(tmp_path):
    modules = tree(tmp_path, a="x = 1\n", b="@cache\ndef f():\n    x = 1\n    return x\n")
    module, function = house.check_module_length(modules), house.check_function_length(modules)
    assert (module.value, module.note, module.hits) == (4, "src/p/b.py", [])
    assert (function.value, function.note) == (3, "src/p/b.py:2: f()")


def test_lists_functions_above_the_goal(tmp_path):
    body = "    x = 1\n" * house.GOALS["function"]
    finding = house.check_function_length(tree(tmp_path, a=f"def f():\n{body}"))
    assert texts(finding) == [f"src/p/a.py:1: f(): {house.GOALS['function'] + 1} lines"]


def test_reports_class_names_that_occur_twice(tmp_path):
    finding = house.check_class_names(tree(tmp_path, a="class A: ...\nclass B: ...\n", b="\nclass A: ...\n"))
    assert finding.value == 1
    assert texts(finding) == [
        "src/p/a.py:1: class A is one of 2 of that name",
        "src/p/b.py:2: class A is one of 2 of that name",
    ]


def test_reports_module_names_that_occur_twice_but_not_packages(tmp_path):
    modules = tree(tmp_path, a__x="", b__x="", a__init="", b__init="", b__y="")
    finding = house.check_module_names(modules)
    assert finding.value == 1
    assert [hit.path for hit in finding.hits] == ["src/p/a/x.py", "src/p/b/x.py"]


def test_counts_type_checking_and_late_imports_as_circles(tmp_path):
    modules = tree(
        tmp_path,
        a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import b\n",
        b="def f():\n    from p.c import g\n",
        c="import p.a\n",
        d="from p.a import b\n",
    )
    finding = house.check_module_circles(modules)
    assert finding.value == 3
    assert texts(finding)[0] == "src/p/a.py:3: imports p.b, which imports p.a"


def test_sees_no_circle_in_a_tree_or_through_the_top_level_package(tmp_path):
    modules = tree(tmp_path, init="from p.a import x\n", a="from p import b, __version__\n", b="import os\n")
    assert house.check_module_circles(modules).value == 0


def test_reports_rooms_that_import_each_other_without_a_circle_of_modules(tmp_path):
    modules = tree(
        tmp_path,
        net__a="from p.disk import c\n",
        net__b="",
        net__init="",
        disk__init="",
        disk__c="",
        disk__d="from p.net import b\n",
    )
    assert house.check_module_circles(modules).value == 0
    finding = house.check_room_circles(modules)
    assert finding.value == 2
    assert texts(finding)[1] == "src/p/net/a.py:1: net imports disk, which imports net"


def test_takes_each_engine_as_a_room_of_its_own(tmp_path):
    imports = {"engines__x__a": "from p.engines.y import b\n", "engines__y__b": "from p.engines.x import c\n"}
    modules = tree(tmp_path, engines__x__init="", engines__y__init="", engines__x__c="", **imports)
    assert house.check_room_circles(modules).value == 2


def test_reports_public_functions_without_annotations(tmp_path):
    text = """
def f(x, *, y: int) -> None: ...
def _g(x): ...
class A:
    def h(self, x: int): ...
    @staticmethod
    def i(x) -> int: ...
    def j(self) -> int:
        def inner(x): ...
class _B:
    def k(self, x): ...
"""
    finding = house.check_annotations(tree(tmp_path, a=text))
    assert [hit.text for hit in finding.hits] == [
        "f() has no annotation for x",
        "h() has no annotation for its result",
        "i() has no annotation for x",
    ]


def test_reports_identifiers_that_do_not_say_what_they_name(tmp_path):
    text = "found = 1\ndef _said(given, not_found): ...\nclass Wish:\n    here_bytes: int\n    findings: int\n"
    finding = house.check_names(tree(tmp_path, a=text))
    assert [hit.text.partition(":")[0] for hit in finding.hits] == ["Wish", "_said", "found", "given", "here_bytes"]


@pytest.mark.parametrize(
    "text",
    [
        "A hint that mends it",
        "It need not exist",
        "Nobody reads it",
        "'models', which is no\n    # bucket's name",
        "The answer is no JSON",
        "Read org/m alone",
        "What there is",
        "the name stands twice",
        "a fault of ours: KeyError",
        "the other side took nothing for 20 s",
    ],
)
def test_reports_wordings_to_avoid(tmp_path, text):
    write(tmp_path, "docs/page.md", f"Title\n\n{text}\n")
    finding = house.check_words(tmp_path)
    assert finding.value >= 1
    assert {(hit.path, hit.line) for hit in finding.hits} == {("docs/page.md", 3)}


@pytest.mark.parametrize(
    "text",
    [
        "There is no such file",
        "there\n# is no bundle",
        "It is no longer used",
        "It is no slower than before",
        "Leaves the user's files alone",
        "It is left alone",
        "a stand-alone program",
        "amend, commend, recommended",
    ],
)
def test_leaves_ordinary_english_alone(tmp_path, text):
    write(tmp_path, "README.md", text)
    assert texts(house.check_words(tmp_path)) == []


def test_reads_templates_and_modules_but_no_data(tmp_path):
    for name in ("src/p/a.py", "src/p/t/file.j2", "src/p/prices.json", "tests/test_a.py"):
        write(tmp_path, name, "# meanwhile\n")
    assert [hit.path for hit in house.check_words(tmp_path).hits] == ["src/p/a.py", "src/p/t/file.j2"]


def test_prints_a_line_for_each_rule_and_fails_above_a_limit(tmp_path, capsys, monkeypatch):
    tree(tmp_path, a="def f() -> None: ...\nfound = 1\n")
    for rule in house.LIMITS:
        monkeypatch.setitem(house.LIMITS, rule, 10)
    assert house.main(["--root", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(house.LIMITS)
    monkeypatch.setitem(house.LIMITS, "names", 0)
    assert house.main(["--root", str(tmp_path), "--report", "--rule", "names"]) == 1
    report = capsys.readouterr().out.splitlines()
    assert report[0] == "src/p/a.py:2: found: name what the value is"
    assert "FAILED" in report[1]


def test_names_the_goal_while_the_limit_is_above_it():
    finding = house.Finding("lines", "lines in src", 40_000)
    assert "goal 36,500" in house.summary(finding, 41_000, 36_500)
    assert "goal" not in house.summary(finding, 36_500, 36_500)
    assert house.summary(finding, 36_500, 36_500).endswith("FAILED")
