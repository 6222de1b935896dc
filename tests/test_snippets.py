"""What the pages show runs: recipes load, commands parse, functions score, messages are the code's, keys are all there."""

import ast
import inspect
import json
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import typer
import yaml
from typer._click.exceptions import MissingParameter

from cluster.cli.main import app
from cluster.config.run_config import load
from cluster.config.settings import RunSettings
from cluster.config.stages import StageConfig
from reward.judging.user_function import Wants, adapt
from tests import reference
from tests.house import FILES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
MINIMAL = {
    "name": "minimal",
    "model": {"path": "model"},
    "data": {"questions": {"file": "questions.jsonl"}},
    "stages": [{"algorithm": "grpo", "reward": "rule"}],
}
STAGE = {"steps": 1, "questions_per_step": 1, "samples_per_question": 2, "optimizer": {"learning_rate": 1e-5}}
PLACEHOLDERS = {"N": "1", "SECONDS": "1"}
"""Of a command's words, those that stand for a number."""


def blocks(language: str) -> list:
    """(page, text) of every fenced block in a language."""
    found = [
        (page.name, number, match[3])
        for page in PAGES
        for number, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8")))
        if match[2] == language
    ]
    return [pytest.param(text, id=f"{page}:{number}") for page, number, text in found]


def merged(base: dict, new: dict) -> dict:
    """`new` over `base`, mapping by mapping; `...` stands for what a reader adds."""
    out = dict(base)
    for key, value in new.items():
        if key != "...":
            inside = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = merged(out[key], value) if inside else value
    return out


def filled(stages: list) -> list:
    """Stages with the keys that every stage needs."""
    return [{**stage, "stages": filled(stage["stages"])} if "iterations" in stage else merged(STAGE, stage) for stage in stages]


def recipe_of(fragment: dict) -> dict:
    """The fragment as a whole recipe."""
    if {"name", "model", "stages"} <= fragment.keys():
        return fragment
    recipe = merged(MINIMAL, fragment)
    if "demonstrations" in recipe["data"] and "stages" not in fragment:
        recipe["stages"] = [{"algorithm": "sft", "samples_per_question": 1}, *recipe["stages"]]
    return recipe | {"stages": filled(recipe["stages"])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder, where the files are that recipes name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    (tmp_path / "my_rewards.py").write_text("def score(question, output, gold): return 1.0\n")
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_or_a_part_of_one_is_valid(text, folder):
    parsed = yaml.safe_load(text)
    if isinstance(parsed, dict) and not {"apiVersion", "services"} & parsed.keys():
        load(Path("recipe.yaml"), text=json.dumps(recipe_of(parsed)))


def test_a_wrong_part_of_a_recipe_is_seen(folder):
    with pytest.raises(ValueError, match="unknown key"):
        load(Path("recipe.yaml"), text=json.dumps(recipe_of({"stages": [{"algorithm": "grpo", "reward": "rule", "stale": 1}]})))


def parsed(words: list[str]) -> None:
    """A command's words, without doing anything. Raises click's UsageError, or KeyError for no such command; in a sentence a
    command may be without its arguments."""
    command = typer.main.get_command(app).commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
    while hasattr(command, "commands") and len(words) > 1:
        words = words[1:]
        command = command.commands[words[0]]
    if len(words) > 1:
        with suppress(MissingParameter):
            command.make_context(words[0], [PLACEHOLDERS.get(word, word) for word in words[1:]])


def commands(text: str) -> list[list[str]]:
    """Those of the fenced blocks, and those in code marks."""
    fenced = [part for match in FENCE.finditer(text) for line in match[3].splitlines() for part in re.split("&& ?|; ?", line)]
    marked = [mark.replace("\n", " ") for mark in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    found = [re.sub(r"^\s*(\$ )?", "", one) for one in fenced + marked]
    return [shlex.split(one, comments=True)[1:] for one in found if re.match(r"cohort [a-z-]+( |$)", one)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page, folder):
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            parsed(words)
        except Exception as error:
            pytest.fail(f"cohort {' '.join(words)}: {error!r}")


def test_a_wrong_command_is_seen():
    parsed(["report", "RUN", "--json"])
    with pytest.raises(Exception, match="No such option"):
        parsed(["report", "RUN", "--jsn"])


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text, folder):
    tree, names = ast.parse(text), {}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name if isinstance(node, ast.Import) else node.module for node in imports for alias in node.names}
    if {str(name).partition(".")[0] for name in modules} <= sys.stdlib_module_names:
        exec(compile(tree, "snippet", "exec"), names)
    if "score" in names:
        judge, batched, wants = adapt(names["score"])
        columns = Wants(**wants).columns(dict.fromkeys(inspect.signature(names["score"]).parameters, "7"))
        row = {"question": "3 + 4", "output": "7 #### 7", "gold": "7", "columns": columns}
        found = judge([row]) if batched else judge(**row)
        assert (found[0] if batched else found)["correct"] == 1.0


def test_the_walk_through_asks_what_the_small_model_knows(folder):
    script = next(block.values[0] for block in blocks("python") if "questions.jsonl" in block.values[0])
    exec(compile(script, "snippet", "exec"), {})
    rows = [yaml.safe_load(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 600 and all(eval(row["sum"]) == row["result"] for row in rows)
    partial = [eval(" ".join(row["sum"].split()[:n])) for row in rows for n in (1, 3, 5, 7)]
    assert all(10 <= value <= 29 for value in partial)


def test_every_key_is_on_its_page_with_what_it_means():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run: python -m tests.reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page):
    known = {key for key, _ in reference.keys(RunSettings)} | {f"stages.{key}" for key, _ in reference.keys(StageConfig)}
    known |= {".".join(key.split(".")[:n]) for key in known for n in range(1, 4)}
    sections = "|".join(sorted(RunSettings.model_fields.keys() - {"name", "output", "seed", "stages"}))
    for key in re.findall(rf"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)", page.read_text(encoding="utf-8")):
        assert key in known or key.endswith((".py", ".json", ".yaml", ".png")), key


GAP = "\0"
MESSAGE = re.compile(r"^\| `((?:[^`]|\\\|)+)` \|", re.MULTILINE)
"""The message that begins a row of a table."""


def skeleton(node: ast.expr) -> str | None:
    """The fixed words of a text, GAP where it is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


def messages() -> list[str]:
    """Those of the page of errors, `…` where they are filled in."""
    return [found.replace("\\|", "|") for found in MESSAGE.findall((ROOT / "docs/errors.md").read_text(encoding="utf-8"))]


def says(text: str, message: str) -> bool:
    """Whether the fixed words of a message stand in a text, in their order."""
    parts = message.split("…")
    return all(part in text for part in parts) and re.search(".*".join(map(re.escape, parts)), text, re.DOTALL) is not None


def texts() -> list[str]:
    """Every text in the packages."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in FILES)
    return [text for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr) and (text := skeleton(node))]


def failures() -> list[str]:
    """What a run, or a command that is stopped, says of itself as it is raised: exit codes 3 and 4."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES if "cluster" in path.parts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {"RunFailed", "Stopped", "CanaryFailed"}
    names |= {n.name for n in nodes if isinstance(n, ast.ClassDef) and any(ast.unparse(base) in names for base in n.bases)}
    raised = [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    found = [skeleton(call.args[0]) for call in raised if ast.unparse(call.func) in names and call.args]
    return [text for text in found if text and len(max(text.split(GAP), key=len)) > 12]


def test_messages_are_the_codes():
    written = texts()
    assert len(messages()) > 60
    assert [message for message in messages() if not any(says(text, message) for text in written)] == []


def test_every_way_in_which_a_run_fails_is_on_the_page():
    assert len(failures()) > 12
    assert [text for text in failures() if not any(says(text, message) for message in messages())] == []


def test_a_message_that_nothing_says_is_seen():
    assert says("found 3 rows; expected one", "found … rows; expected one")
    assert not says("found 3 rows; expected one", "found … rows; expected two")
