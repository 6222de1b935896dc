"""Figures of the packages, each with its limit: `python -m tests.house` prints them, tests/test_architecture.py checks them."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ["rollout", "reward", "learner", "cluster"]
FILES = sorted(path for package in LAYERS for path in (ROOT / package).rglob("*.py"))
LINES = 18_304
"""Below as many lines of source, without blank ones, comments and docstrings."""
Graph = dict[str, set[str]]


def imported(path: Path) -> set[str]:
    """Every module a file imports, at any depth, by statement or by call."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module if not node.level else ".".join([path.parent.name, node.module or ""]).strip("."))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            assert isinstance(node.args[0], ast.Constant), (
                f"{path}:{node.lineno}: what is imported cannot be read from the source"
            )
            found.add(node.args[0].value)
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> Graph:
    """What each module of the packages imports of them, at any depth; names of a package are its modules where they are."""
    known = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in known.items():
        found = imported(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        graph[module] = {name for name in found if name in known and known[name].name != "__init__.py"} - {module}
    return graph


def rooms(graph: Graph) -> Graph:
    """The graph of sub-packages; a module beside them is a room of its own."""

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    joined: Graph = {}
    for module, others in graph.items():
        joined.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    return joined


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes each of which reaches the others."""
    reached: Graph = {}
    for node in graph:
        found, new = set(), set(graph[node])
        while new:
            found |= new
            new = {other for one in new for other in graph.get(one, ())} - found
        reached[node] = found
    together = {node: sorted(other for other in reached[node] if node in reached[other]) for node in graph}
    return [list(group) for group in sorted({tuple(group) for group in together.values() if group})]


def upward(graph: Graph) -> list[str]:
    """Imports of a package by one to its left."""
    order = {layer: index for index, layer in enumerate(LAYERS)}
    pairs = ((a, b) for a, others in graph.items() for b in others)
    return [f"{a} imports {b}" for a, b in pairs if order[a.split(".")[0]] < order[b.split(".")[0]]]


def any_annotations(package: str) -> list[str]:
    """Where `Any` is written, but for its import."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == package
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "Any"
    ]


def functions(paths: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    """(where, lines, parameters) of every function."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                named = {arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
                where = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}: {node.name}"
                yield where, node.end_lineno - node.lineno + 1, len(named)


def source_lines(path: Path) -> int:
    """Lines that are neither blank nor only a comment or a docstring."""
    text = path.read_text(encoding="utf-8")
    prose = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in ignored:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def pyright_errors() -> int:
    """How many there are; they are printed."""
    command = [Path(sys.executable).with_name("pyright")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if errors := int(done.stdout.strip().splitlines()[-1].split()[0]):
        print(done.stdout)
    return errors


def main() -> int:
    """Prints every figure with its limit; 1 where one is past it."""
    graph = modules()
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    figures = [
        ("circles of modules", len(circles(graph)), 0),
        ("circles of sub-packages", len(circles(rooms(graph))), 0),
        ("upward imports", len(upward(graph)), 0),
        ("Any in cluster", len(any_annotations("cluster")), 9),
        ("functions over 50 lines", sum(length > 50 for _, length, _ in functions(FILES)), 0),
        ("source lines without blanks, comments, docstrings", sum(map(source_lines, FILES)), LINES - 1),
        ("pyright errors", pyright_errors(), 0),
    ]
    for name, found, most in figures:
        print(f"{name:<52}{found:>7}  at most {most:<7}{'PASS' if found <= most else 'FAIL'}")
    print(f"{'source lines in all':<52}{lines:>7}")
    return int(any(found > most for _, found, most in figures))


if __name__ == "__main__":
    sys.exit(main())
