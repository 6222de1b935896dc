"""The rules of docs and design that a reader should be able to trust without reading every file."""

import ast
import os
import subprocess
import sys

import pytest

from tests.house import (
    FILES,
    LAYERS,
    LINES,
    ROOT,
    any_annotations,
    circles,
    functions,
    imported,
    modules,
    rooms,
    source_lines,
    upward,
)

NEEDS_VLLM = {
    "rollout.engine.engine",
    "rollout.engine.requests",
    "rollout.weights.senders",
    "rollout.weights.updates",
    "rollout.weights.receivers",
    "rollout.worker",
}
"""The engine's side of rollout; every other module of it is the data side."""
PAGES = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"}
TOP_LEVEL = {"pyproject.toml", "Makefile", *PAGES, *LAYERS, "tests", "deploy", "benchmarks", "docs"}


def importers(module: str) -> set[str]:
    files = [path for path in FILES if any(name.split(".")[0] == module for name in imported(path))]
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_a_package_imports_only_itself_and_those_to_its_left():
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        right = set(LAYERS[LAYERS.index(package) + 1 :])
        wrong = {name for name in imported(path) if name.split(".")[0] in right | {"tests", "benchmarks"}}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_only_the_engine_and_its_weights_import_vllm():
    assert {name.rpartition("/")[0] for name in importers("vllm")} <= {"rollout/engine", "rollout/weights"}


def test_only_cluster_imports_ray_and_only_the_command_line_imports_typer():
    assert {name.split("/")[0] for name in importers("ray")} <= {"cluster"}
    assert importers("typer") == {f"cluster/cli/{name}.py" for name in ("main", "judging", "planning", "pages", "jobs", "ends")}


RUNS_CODE = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
"""Modules that read what may name code to run."""


def test_nothing_that_is_read_from_disk_or_wire_may_run_code():
    found = {name for module in RUNS_CODE for name in importers(module)}
    # The first refuses all but tensors; the others are two ends of a socket in a private folder.
    assert found == {"learner/training/description.py", "rollout/weights/receivers.py", "rollout/weights/updates.py"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                where = f"{path.relative_to(ROOT)}:{node.lineno}: {called}"
                assert called != "torch.load" or keywords.get("weights_only") == "True", where
                assert {keywords.get(name, "False") for name in ("allow_pickle", "trust_remote_code")} == {"False"}, where
                assert called not in ("yaml.unsafe_load", "yaml.full_load"), where


def test_what_reads_a_models_text_is_imported_by_the_pools_processes_only():
    """The pool loads its judges by name, so nothing else need import what compares answers: not even by way of another."""
    readers, new = set(), {"reward.judging.rule", "reward.labels.step_rules"}
    while new:
        readers |= new
        paths = [ROOT / f"{name.replace('.', '/')}.py" for name in new]
        assert all(path.is_file() for path in paths)
        new = {name for path in paths for name in imported(path) if name.startswith("reward.")} - readers
        new -= {"reward.config", "reward.types"}
    assert {"reward.answers.extract", "reward.answers.equality", "reward.answers.values", "reward.answers.formulas"} <= readers
    inside = {f"{name.replace('.', '/')}.py" for name in readers}
    others = {path.relative_to(ROOT).as_posix(): imported(path) & readers for path in FILES}
    assert {path: found for path, found in others.items() if found and path not in inside} == {}


def test_only_learner_calls_backward():
    calls = {
        path.relative_to(ROOT).parts[0]
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "backward"
    }
    assert calls == {"learner"}


def test_the_walk_sees_deferred_imports_and_import_calls(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text("def f():\n    import a.b\n    from c import d\n    importlib.import_module('e')\n    __import__('f')\n")
    assert imported(path) == {"a.b", "c", "e", "f"}


def test_the_top_level_holds_what_the_architecture_lists():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so what belongs to the project cannot be told")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= TOP_LEVEL and set(LAYERS) <= top


def test_the_four_packages_are_installed_and_the_tests_are_not(tmp_path):
    names = ("rollout", "reward", "learner", "cluster", "tests")
    code = f"from importlib.util import find_spec; print(*(find_spec(name) is not None for name in {names}))"
    command, installed = [sys.executable, "-P", "-c", code], {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"] * 4 + ["False"], done.stderr


def test_files_and_functions_are_of_a_size_to_read():
    paths = sorted(path for part in (*LAYERS, "benchmarks", "tests") for path in (ROOT / part).rglob("*.py"))
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {name: n for name, n in lines.items() if n > 250} == {}
    found = list(functions(paths))
    assert [where for where, length, _ in found if length > 50] == []
    # A command's parameters are its options.
    assert [where for where, _, named in found if named > 6 and not where.startswith(("tests/", "cluster/cli"))] == []


def test_modules_and_rooms_make_no_circles_and_nothing_imports_upward():
    graph = modules()
    assert graph["rollout.worker"] >= {"rollout.engine.engine", "rollout.types"}
    assert (circles(graph), circles(rooms(graph)), upward(graph)) == ([], [], [])
    graph["rollout.types"] = {"cluster.run.loop"}
    assert upward(graph) == ["rollout.types imports cluster.run.loop"] and "rollout.worker" in circles(graph)[0]


def test_cluster_says_what_its_values_are_and_the_sources_stay_short():
    assert len(any_annotations("cluster")) < 10
    assert sum(map(source_lines, FILES)) < LINES


def test_lines_of_source_are_those_with_code(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        '"""Of\ntwo lines."""\n\n# a comment\nx = """text\n\nthat counts"""  # beside\n\n\ndef f():\n    """No."""\n'
    )
    assert source_lines(path) == 4


def test_recipes_are_sparse():
    recipes = sorted((ROOT / "deploy/recipes").glob("*.yaml"))
    assert recipes
    assert {path.name: n for path in recipes if (n := len(path.read_text().splitlines())) > 25} == {}


STEP = """
import sys
sys.modules["vllm"] = sys.modules["ray"] = None
import importlib
for name in sys.argv[3:]:
    importlib.import_module(name)

from pathlib import Path
from learner.algorithms.table import resolve
from learner.config import LearnerConfig, OptimizerConfig
from learner.stage import StageSpec
from learner.worker import LearnerWorker
from reward.config import RewardConfig
from reward.worker import RewardWorker
from rollout.types import FinishReason, Group, Question, Sample

question = Question(ordinal=0, id="q:1", text="3 + 4?", gold="7", prompt_ids=(1, 7, 8))
samples = [
    Sample(
        ordinal=0, group_id="grpo/0", index=i, attempt=0, prompt_ids=(1, 7, 8), output_ids=(9, 10 + i, 2),
        sampled_mask=(True,) * 3, logprobs=(-4.0,) * 3, text=text, versions=((0, 0),), finish_reason=FinishReason.STOP,
    )
    for i, text in enumerate(["#### 7", "#### 8"])
]
group = Group(question=question, samples=tuple(samples))
worker = LearnerWorker(LearnerConfig(), Path(sys.argv[1]), rendezvous=sys.argv[2])
before = worker.logprobs([(1, 7, 8, 9, 10, 2), (1, 7, 8, 9, 11, 2)])
rate = OptimizerConfig(learning_rate=1e-3)
worker.begin_stage(StageSpec(row=resolve("grpo", reward="rule"), optimizer=rate, total_updates=1))
scorer = RewardWorker(RewardConfig())
report = worker.step(scorer.score([group]), updates=1, temperature=1.0)
scorer.close()
after = worker.logprobs([(1, 7, 8, 9, 10, 2), (1, 7, 8, 9, 11, 2)])
worker.close()
print(report.advantages, after[0][3] - before[0][3], before[1][3] - after[1][3])
"""


@pytest.mark.slow
def test_the_data_side_reward_and_learner_import_and_take_a_step_without_vllm_and_ray(tiny_model_dir, tmp_path):
    packages = [path for path in FILES if path.relative_to(ROOT).parts[0] != "cluster"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in packages}
    names = sorted(modules - NEEDS_VLLM)
    command = [sys.executable, "-c", STEP, str(tiny_model_dir), f"file://{tmp_path}/rendezvous", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    advantages, up, down = done.stdout.rsplit(" ", 2)
    assert advantages == "[1.0, -1.0]"
    assert float(up) > 0 and float(down) > 0, "the right output became likelier, the wrong one less likely"
