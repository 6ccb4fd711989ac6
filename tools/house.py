"""Checks the shape and the wording of the source: sizes, unique names, import circles, annotations, plain English.

    python tools/house.py             one line per rule: its value, its limit, and ok or FAILED
    python tools/house.py --report    also every violation, as FILE:LINE: text

Exits with 1 when a rule is over its limit. `make check` runs it.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What each rule may reach. A limit is lowered when the source has become better, and not raised.
LIMITS = {
    "lines": 41_470,
    "module": 600,
    "function": 75,
    "classes": 0,
    "modules": 0,
    "circles": 0,
    "rooms": 0,
    "annotations": 0,
    "names": 0,
    "words": 0,
}
# Where the limits are going. The plain run names a goal while its limit is still above it.
GOALS = {
    "lines": 36_500,
    "module": 600,
    "function": 100,
    "classes": 0,
    "modules": 0,
    "circles": 0,
    "rooms": 0,
    "annotations": 0,
    "names": 0,
    "words": 0,
}
# Packages whose subpackages are rooms of their own.
NESTED_ROOMS = ("engines",)
# Kinds of files whose wording counts, below `src` and `docs`.
SUFFIXES = (".py", ".md", ".j2", ".html", ".txt", ".toml")

# Names that say how a value was come by, not what it is.
VAGUE_NAMES = ("found", "said", "given", "wanted", "asked", "arrived", "having", "here", "told", "greet")
_VAGUE_NAME = re.compile(
    rf"_*(?:{'|'.join(VAGUE_NAMES)})|(?:\w+_)?(?:said|says|everybody|nobody|whoever)(?:_\w+)?|here_\w+"
)


@dataclass(frozen=True)
class Wording:
    """A phrase to avoid.

    Attributes:
        pattern: A regular expression that ignores case. A space matches any white space, so that a phrase is found
            across the end of a line.
        instead: What to write.
        fine: The same words in ordinary use, which are left out.
    """

    pattern: str
    instead: str
    fine: str = r"(?!)"

    @property
    def regex(self) -> re.Pattern[str]:
        """Matches ordinary uses as group `fine`, and the others without it."""
        text = rf"(?P<fine>\b(?:{self.fine})\b)|\b(?:{self.pattern})\b"
        return re.compile(text.replace(" ", r"[\s#]+"), re.IGNORECASE)


WORDINGS = (
    Wording(r"(?<![\"`])mends?|mended|mending", "fix"),
    Wording(r"need not|needs not", "does not have to"),
    Wording(r"nobody", "no one, or rephrase"),
    Wording(r"somebody", "someone, or say who"),
    Wording(r"everybody", "everyone, or say who"),
    Wording(r"whoever|whosoever", "say who"),
    Wording(r"whatever (?:\w+ )*?(?:is|was|are) wanted", "say what"),
    Wording(
        r"(?:is|was) no [a-z'/\"`]\S*",
        "is not a ...",
        fine=r"there (?:is|was) no [a-z]\w*|(?:is|was) no (?:longer|such|more|less|fewer|better|worse|\w+er than)",
    ),
    Wording(r"(?:are|were) no (?!longer|such|more|less)[a-z]\w*", "are not ...", fine=r"there (?:are|were) no \w+"),
    Wording(r"meanwhile", "while it runs"),
    Wording(
        r"alone",
        "only",
        fine=r"(?:leave|leaves|leaving|left|let)(?: [\w`'./-]+){0,4} alone|stand-?alone",
    ),
    Wording(r"what there is", "available memory, what is installed, ..."),
    Wording(r"by hand", "manually, or equivalent commands"),
    Wording(r"(?:is|are|was|were) found out", "adapts to ..., is measured"),
    Wording(r"at once; how many", "maximum parallel ..."),
    Wording(r"neither read nor fill", "skip the local cache"),
    Wording(r"on (?:its|their) way", "in flight"),
    Wording(r"any that is free", "a free port"),
    Wording(r"says? what (?:a month|it|is|was|there)", "estimate, show, diagnose"),
    Wording(r"spent (?:its|their) time on", "where the time went"),
    Wording(r"limited by nothing", "ready before it was needed"),
    Wording(r"(?:is|are|was|were|be|been) taken back", "preempted"),
    Wording(r"stands? twice|stood twice", "is listed twice, duplicate"),
    Wording(r"faults? of ours|our own faults?", "internal error"),
    Wording(r"(?:took|takes) nothing", "send timed out"),
    Wording(r"is refused: others", "is writable by other users"),
    Wording(r"the other side", "the server, the peer"),
    Wording(r"(?:is|are) of no use", "is not needed"),
    Wording(r"comes? to the same", "is equivalent"),
    Wording(r"(?:make|makes|making|made) do with", "use"),
    Wording(r"as (?:good|far|long|soon) as may be", "as ... as possible"),
    Wording(r"thereof|whereof|whereupon|thereupon|wherein|therein|hitherto|lest", "rephrase"),
)
# Class names that named a picture instead of a thing.
_PICTURES = re.compile(r"_*(?:Wish|Wishes|Sight|Shelf|Kept|Telling|Trouble)")


@dataclass(frozen=True, order=True)
class Hit:
    """A violation.

    Attributes:
        path: The file, relative to the root.
        line: From 1.
        text: What is wrong, and what to do.
    """

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Finding:
    """The outcome of a rule.

    Attributes:
        rule: A key of `LIMITS`.
        label: The rule for people.
        value: What is compared with the limit.
        hits: What `--report` lists.
        note: Where the value was measured.
    """

    rule: str
    label: str
    value: int
    hits: Sequence[Hit] = ()
    note: str = ""


@dataclass(frozen=True)
class Module:
    """A parsed module.

    Attributes:
        name: Dotted, with the package; a package's `__init__` has the package's name.
        path: Relative to the root.
        is_package: Whether it is an `__init__`.
        lines: How many it has.
        nodes: All nodes of its syntax tree, the root first.
    """

    name: str
    path: str
    is_package: bool
    lines: int
    nodes: Sequence[ast.AST]

    @property
    def room(self) -> str:
        """The package below the top-level one to which it belongs."""
        parts = self.name.split(".")[1:]
        return ".".join(parts[: 2 if parts[0] in NESTED_ROOMS else 1])


def read_modules(root: Path) -> list[Module]:
    """Parses every module below `root/src`."""
    modules = []
    for path in sorted((root / "src").rglob("*.py")):
        text = path.read_text()
        parts = path.relative_to(root / "src").with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        nodes = list(ast.walk(ast.parse(text, filename=str(path))))
        modules.append(Module(name, path.relative_to(root).as_posix(), is_package, len(text.splitlines()), nodes))
    return modules


def check_lines(modules: Sequence[Module]) -> Finding:
    """Counts the lines of all modules."""
    return Finding("lines", "lines in src", sum(module.lines for module in modules))


def check_module_length(modules: Sequence[Module]) -> Finding:
    """Finds the longest module, and lists those above the goal."""
    longest = max(modules, key=lambda module: module.lines)
    hits = [Hit(one.path, 1, f"{one.lines} lines") for one in modules if one.lines > GOALS["module"]]
    return Finding("module", "longest module", longest.lines, hits, longest.path)


def check_function_length(modules: Sequence[Module]) -> Finding:
    """Finds the longest function, and lists those above the goal."""
    lengths = {
        Hit(module.path, node.lineno, f"{node.name}()"): (node.end_lineno or node.lineno) - node.lineno + 1
        for module in modules
        for node in module.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    longest = max(lengths, key=lambda hit: lengths[hit])
    hits = [
        Hit(hit.path, hit.line, f"{hit.text}: {length} lines")
        for hit, length in lengths.items()
        if length > GOALS["function"]
    ]
    return Finding("function", "longest function", lengths[longest], hits, str(longest))


def check_class_names(modules: Sequence[Module]) -> Finding:
    """Finds class names that are used more than once."""
    places = defaultdict(list)
    for module in modules:
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                places[node.name].append((module.path, node.lineno))
    return _duplicates("classes", "duplicate class names", "class", places)


def check_module_names(modules: Sequence[Module]) -> Finding:
    """Finds module names that are used more than once; packages do not count."""
    places = defaultdict(list)
    for module in modules:
        if not module.is_package and not module.name.endswith("__main__"):
            places[module.name.rpartition(".")[2]].append((module.path, 1))
    return _duplicates("modules", "duplicate module names", "module", places)


def _duplicates(rule: str, label: str, kind: str, places: Mapping[str, Sequence[tuple[str, int]]]) -> Finding:
    repeated = {name: found for name, found in places.items() if len(found) > 1}
    hits = [
        Hit(path, line, f"{kind} {name} is one of {len(found)} of that name")
        for name, found in sorted(repeated.items())
        for path, line in found
    ]
    return Finding(rule, label, len(repeated), hits)


def read_imports(modules: Sequence[Module]) -> dict[str, dict[str, int]]:
    """Which modules each module imports, with the line. Imports in functions and for type checking count.

    The top-level package is left out: it is the public face of the modules below it.
    """
    names = {module.name for module in modules}
    imports: dict[str, dict[str, int]] = {}
    for module in modules:
        if "." not in module.name or module.name.endswith("__main__"):
            continue
        targets = imports.setdefault(module.name, {})
        for node in module.nodes:
            for name in _imported(node, names):
                if "." in name and name != module.name:
                    targets.setdefault(name, getattr(node, "lineno", 1))
    return imports


def _imported(node: ast.AST, names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in names)
    elif isinstance(node, ast.ImportFrom) and node.module in names:
        # `from package import module` imports the module, and not only the package.
        for alias in node.names:
            nested = f"{node.module}.{alias.name}"
            yield nested if nested in names else node.module


def check_module_circles(modules: Sequence[Module]) -> Finding:
    """Counts the modules that import themselves through others."""
    paths = {module.name: module.path for module in modules}
    imports = read_imports(modules)
    hits = [
        Hit(paths[name], imports[name][target], f"imports {target}, which imports {name}")
        for circle in find_circles(imports)
        for name in sorted(circle)
        for target in imports[name]
        if target in circle
    ]
    return Finding("circles", "modules in import circles", len({hit.path for hit in hits}), hits)


def check_room_circles(modules: Sequence[Module]) -> Finding:
    """Counts the rooms, the packages below the top-level one, that import themselves through others."""
    paths = {module.name: module.path for module in modules}
    rooms = {module.name: module.room for module in modules if "." in module.name}
    imports = read_imports(modules)
    graph: dict[str, set[str]] = defaultdict(set)
    for name, targets in imports.items():
        graph[rooms[name]] |= {rooms[target] for target in targets} - {rooms[name]}
    circles = find_circles(graph)
    hits = [
        Hit(paths[name], line, f"{rooms[name]} imports {rooms[target]}, which imports {rooms[name]}")
        for circle in circles
        for name, targets in imports.items()
        for target, line in targets.items()
        if rooms[name] != rooms[target] and {rooms[name], rooms[target]} <= circle
    ]
    return Finding("rooms", "rooms in import circles", sum(map(len, circles)), hits)


def find_circles(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The groups of nodes that reach each other, by Tarjan's algorithm; single nodes are no groups."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            index = stack.index(node)
            if len(stack) - index > 1:
                circles.append(set(stack[index:]))
            del stack[index:]

    for node in graph:
        if node not in order:
            visit(node)
    return circles


def check_annotations(modules: Sequence[Module]) -> Finding:
    """Finds public functions and methods with a parameter or a result that has no annotation."""
    hits = [
        Hit(module.path, node.lineno, f"{node.name}() has no annotation for {', '.join(missing)}")
        for module in modules
        for node, is_method in _public_functions(module.nodes[0], is_class=False)
        if (missing := _unannotated(node, is_method=is_method))
    ]
    return Finding("annotations", "public functions without annotations", len(hits), hits)


def _public_functions(
    parent: ast.AST, *, is_class: bool
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public_functions(node, is_class=True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(node.name):
            yield node, is_class


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name.startswith("__")


def _unannotated(node: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    is_static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    if is_method and not is_static:
        arguments = arguments[1:]
    arguments += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
    missing = [one.arg for one in arguments if one.annotation is None]
    return missing if node.returns is not None else [*missing, "its result"]


def check_names(modules: Sequence[Module]) -> Finding:
    """Finds identifiers that do not say what they name."""
    hits = [
        Hit(module.path, line, f"{name}: name what the value is")
        for module in modules
        for name, line in sorted(set(_defined(module.nodes)))
        if _VAGUE_NAME.fullmatch(name) or _PICTURES.fullmatch(name)
    ]
    return Finding("names", "vague identifiers", len(hits), hits)


def _defined(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, int]]:
    for node in nodes:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def check_words(root: Path) -> Finding:
    """Finds wordings to avoid in the source, the documentation and the README."""
    hits = []
    for path in _texts(root):
        text = path.read_text()
        for wording in WORDINGS:
            for match in wording.regex.finditer(text):
                if match["fine"] is None:
                    line = text.count("\n", 0, match.start()) + 1
                    words = re.sub(r"[\s#]+", " ", match[0])
                    hits.append(Hit(path.relative_to(root).as_posix(), line, f"{words} -> {wording.instead}"))
    return Finding("words", "wordings to avoid", len(hits), sorted(hits))


def _texts(root: Path) -> Iterator[Path]:
    for folder in ("src", "docs"):
        yield from (path for path in sorted((root / folder).rglob("*")) if path.suffix in SUFFIXES)
    yield from (path for path in (root / "README.md",) if path.exists())


RULES: tuple[Callable[[Sequence[Module]], Finding], ...] = (
    check_lines,
    check_module_length,
    check_function_length,
    check_class_names,
    check_module_names,
    check_module_circles,
    check_room_circles,
    check_annotations,
    check_names,
)


def check(root: Path) -> list[Finding]:
    """Applies every rule to the tree at `root`."""
    modules = read_modules(root)
    return [*(rule(modules) for rule in RULES), check_words(root)]


def summary(finding: Finding, limit: int, goal: int) -> str:
    """The line of a rule."""
    state = "ok" if finding.value <= limit else "FAILED"
    aim = f"goal {goal:,}" if goal < limit else ""
    line = f"{finding.label:<36} {finding.value:>7,}   limit {limit:>7,}   {aim:<12} {state:<6}  {finding.note}"
    return line.rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings and gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="list every violation")
    parser.add_argument("--rule", action="append", choices=LIMITS, help="apply only this rule; may be repeated")
    parser.add_argument("--under", default="", help="with --report: only files whose path starts with this")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    options = parser.parse_args(arguments)
    findings = [one for one in check(options.root) if not options.rule or one.rule in options.rule]
    for finding in findings:
        if options.report:
            print(*(hit for hit in finding.hits if hit.path.startswith(options.under)), sep="\n")
        print(summary(finding, LIMITS[finding.rule], GOALS[finding.rule]))
    return int(any(finding.value > LIMITS[finding.rule] for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
