"""What the README and the docs name is there: files, functions, links, commands."""

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
MAP = ROOT / "docs/architecture.md"
FOLDERS = "rollout|reward|learner|cluster|tests|deploy|benchmarks|docs"
NAMED = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)(?:::([\w.]+))?`")
"""A path of the repository in code marks, with `::` and what is defined in it."""
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}).*?^\1$", re.DOTALL | re.MULTILINE)


def defined(tree: ast.AST, qualified: str) -> bool:
    """Whether a module, or a class in it, defines this name: a function, a class, a variable or a field."""
    first, _, rest = qualified.partition(".")
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)}
        if first in names:
            return not rest or (isinstance(node, ast.ClassDef) and defined(node, rest))
    return False


def missing(text: str) -> list[str]:
    """The paths and the names in them that are not there."""
    out = []
    for path, name in NAMED.findall(text):
        if not (ROOT / path).exists():
            out.append(path)
        elif name and not defined(ast.parse((ROOT / path).read_text(encoding="utf-8")), name):
            out.append(f"{path}::{name}")
    return out


def anchors(page: Path) -> set[str]:
    """Those that a page's headings have."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_that_is_named_exists(page):
    assert missing(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def in_navigation(entries: list) -> list[str]:
    """The pages of a navigation, sections opened."""
    values = [value for entry in entries for value in entry.values()]
    return [page for value in values for page in (in_navigation(value) if isinstance(value, list) else [value])]


def test_the_navigation_has_every_page_once():
    site = yaml.safe_load((ROOT / "deploy/mkdocs.yml").read_text(encoding="utf-8"))
    beside = ["index.md", "changelog.md", "contributing.md"]  # made by deploy/site_pages.py
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(in_navigation(site["nav"])) == sorted([*pages, *beside])


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("material", reason="the documentation's builder is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--config-file", "deploy/mkdocs.yml"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, "--site-dir", tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetched = re.compile(r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?https?:|<link rel=\"?(?!canonical)[^>]*\bhref=\"?https?:")
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")]
    assert len(pages) > 20 and [found for page in pages for found in fetched.findall(page)] == []
    assert (tmp_path / "benchmarks/quickstart.png").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    files = ("main", "judging", "planning", "pages", "jobs")
    sources = "".join((ROOT / f"cluster/cli/{name}.py").read_text(encoding="utf-8") for name in files)
    commands = {name.replace("_", "-") for name in re.findall(r"^def (\w+)\(", sources, re.MULTILINE)}
    assert set(re.findall(r"(?:^|`)cohort ([a-z-]+)", text, re.MULTILINE)) <= commands


def test_the_picture_is_the_loops_and_every_arrow_of_it_has_a_row_that_names_functions():
    text, loop = MAP.read_text(encoding="utf-8"), (ROOT / "cluster/run/loop.py").read_text(encoding="utf-8")
    picture = FENCE.search(text)[0].removeprefix("```\n").removesuffix("```")
    assert textwrap.indent(picture, "    ") in loop
    table = text.partition("## A newcomer's map")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows and [row for row in rows if not any(name for _, name in NAMED.findall(row))] == []
    arrows = " ".join(row.split("|")[1] for row in rows)
    words = re.findall(r"[A-Za-z]+", re.sub(r"\(.*?\)|v\+1|--a step's groups--", " ", picture))
    assert [word for word in words if word not in arrows] == []


def test_a_name_that_is_not_there_is_seen():
    assert missing("`cluster/run/loop.py` has `cluster/run/loop.py::Loop.run`") == []
    assert missing("`cluster/run/gone.py` and `cluster/run/loop.py::Loop.gone`") == [
        "cluster/run/gone.py",
        "cluster/run/loop.py::Loop.gone",
    ]
