import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import installation
from cluster.cli import main as cli
from cluster.config.recipe import ConfigError
from cluster.config.run_config import load, resolved_yaml

QUICKSTART = Path(__file__).parents[2] / "deploy/recipes/quickstart.yaml"
COMMANDS = ["train", "resume", "check", "describe", "report", "scale", "plan", "export", "score", "evaluate", "import-gguf"]
LIGHT = {"cluster", "attr", "rich", "typer", "pygments", "markdown_it", "mdurl", "shellingham"}
"""Beside what typer imports by itself."""


def invoke(*args):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


@pytest.fixture
def ends(monkeypatch):
    """Runs `resume` with a stand-in that ends in the given way."""
    resume_module = pytest.importorskip("cluster.run.resume")

    def run(outcome):
        def resume(run, overrides, stop, mirror):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(resume_module, "resume", resume)
        return invoke("resume", "runs/x", "rollout.workers=2")

    return run


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda c: " ".join(["cohort", *c]))
def test_help_imports_nothing_but_what_the_command_line_needs(command):
    """Measured by what is imported: the time for it is the machine's."""
    code = (
        "import sys, typer._adapters, typer.rich_utils; before = {name.split('.')[0] for name in sys.modules}\n"
        "from cluster.cli.main import main; sys.argv = ['cohort', *sys.argv[1:], '--help']\n"
        "try: main()\nexcept SystemExit: print(*{name.split('.')[0] for name in sys.modules} - before, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, timeout=120)
    assert "Usage" in done.stdout
    assert {name for name in set(done.stderr.split()) - sys.stdlib_module_names if not name.startswith("_")} <= LIGHT


def test_describe_prints_every_row_of_the_table():
    from learner.algorithms.table import REWARD_MODELS, TABLE

    tables = json.loads(invoke("describe", "--json").stdout)
    rows = tables["algorithms"]
    assert list(rows) == list(TABLE) and list(tables["reward_models"]) == list(REWARD_MODELS)
    assert rows["grpo"]["data_source"] == "policy_samples"
    assert rows["grpo"]["gradient_coefficient"] == TABLE["grpo"].formula
    text = " ".join(invoke("describe").stdout.replace("│", " ").split())
    assert all(name in text for name in (*TABLE, *REWARD_MODELS))
    assert "[not clipped at 0.2] (pi/pi_old) A + 0.04 (pi_ref/pi - 1)" in text


def test_describe_fits_a_terminal_and_a_pipe_of_80_columns():
    assert max(map(len, invoke("describe").stdout.splitlines())) <= 80


def test_the_version_names_what_a_report_needs():
    from importlib.metadata import version

    done = invoke("--version")
    assert done.exit_code == 0
    assert f"cohort-rl {version('cohort-rl')}, torch {version('torch')}" in done.stdout


@pytest.mark.parametrize(
    ("torch", "vision", "broken"), [("2.13+cpu", "0.28", True), ("2.13+cpu", "0.28+cpu", False), ("2.13", "0.28", False)]
)
def test_packages_that_break_a_torch_for_the_cpu_are_named_with_what_mends_it(monkeypatch, torch, vision, broken):
    monkeypatch.setattr(installation, "_version", {"torch": torch, "torchvision": vision}.get)
    done = invoke("describe")
    assert done.exit_code == (2 if broken else 0)
    assert ("`pip uninstall --yes torchvision` mends it" in done.stderr) == broken
    assert not broken or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_make_quickstart_goes_on_where_it_was_begun(tmp_path, begun):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cohort").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin/cohort").chmod(0o755)
    (tmp_path / "Makefile").write_text((QUICKSTART.parents[2] / "Makefile").read_text())
    if begun:
        (tmp_path / "runs/quickstart").mkdir(parents=True)
        (tmp_path / "runs/quickstart/config.yaml").touch()
    command = ["make", "--silent", "--old-file=setup", "quickstart", "BIN=bin"]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}  # of `make test`
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == ("resume runs/quickstart" if begun else "train deploy/recipes/quickstart.yaml"), done.stderr


def test_a_wrong_recipe_exits_with_2_and_a_message_without_a_traceback():
    done = invoke("check", QUICKSTART, "stages.grpo.stepps=3")
    assert done.exit_code == 2
    assert "override 'stages.grpo.stepps=3': stages.1.stepps: unknown key; did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.output


def test_a_problem_found_by_the_check_exits_with_2_before_a_run_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("train", QUICKSTART, "model={path: absent}")
    assert done.exit_code == 2
    assert f"error: model.path: {tmp_path}/absent: found no config.json" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_right_exits_with_0(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("check", QUICKSTART, "data.questions.rows=64", "data.demonstrations.rows=256")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "ok")


def test_a_run_that_ends_well_prints_its_summary_and_exits_with_0(ends):
    done = ends({"accuracy_before": 0.25, "accuracy_after": 0.75})
    assert done.exit_code == 0 and "+0.500" in done.stdout


def test_every_other_end_has_its_exit_code(ends):
    from cluster.fleet.sampler import RunFailed
    from cluster.run.loop import Stopped

    endings = [
        (ConfigError(["seed: 0 -> 1"]), 2, "error: seed: 0 -> 1", False),
        (RunFailed("learner-0 died"), 3, "the run failed: learner-0 died", False),
        (ZeroDivisionError("a bug"), 3, "ZeroDivisionError: a bug", True),
        (ValueError("a bug"), 3, "ValueError: a bug", True),
        (KeyboardInterrupt(), 3, "KeyboardInterrupt", True),
        (Stopped("stopped by a signal after step 3"), 4, "stopped by a signal after step 3", False),
    ]
    for error, code, message, shows_traceback in endings:
        done = ends(error)
        assert done.exit_code == code
        assert message in done.stderr
        assert ("Traceback" in done.stderr) == shows_traceback


@pytest.mark.slow
def test_report_draws_an_unfinished_run_and_adds_the_summary_of_a_finished_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "sft", "reward": 0.5}\n')
    assert invoke("report", tmp_path).stdout.split() == [str(tmp_path / "run.html"), str(tmp_path / "run.png")]
    assert invoke("report", tmp_path, "--json").exit_code == 2
    (tmp_path / "summary.json").write_text('{"accuracy_before": 0.25, "accuracy_after": 0.75}')
    assert "+0.500" in invoke("report", tmp_path).stdout
    assert json.loads(invoke("report", tmp_path, "--json").stdout)["accuracy_after"] == 0.75


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["report", "absent"], "absent/metrics.jsonl: no such file; expected a run directory"),
        (["import-gguf", "absent.gguf", "out"], "absent.gguf: no such file; expected a GGUF file"),
        (["export", "absent", "out"], "absent"),
        (["resume", "absent"], "absent"),
    ],
)
def test_a_path_that_is_not_there_exits_with_2(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    done = invoke(*args)
    assert done.exit_code == 2
    assert f"error: {message}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_an_adapter_that_the_run_has_not_exits_with_2(tmp_path):
    config = load(QUICKSTART, [f"output={tmp_path}/run"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(resolved_yaml(config))
    done = invoke("export", tmp_path / "run", tmp_path / "out", "--adapter")
    assert done.exit_code == 2
    assert "found no adapter, as the run has no learner.lora; expected no --adapter" in done.stderr


@pytest.mark.slow
def test_a_check_answers_in_json_with_the_same_exit_code(tmp_path):
    small = ["data.questions.rows=64", "data.demonstrations.rows=256", f"output={tmp_path}/run", "--json"]
    done = invoke("check", QUICKSTART, *small)
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["problems"] == [] and any(fact.startswith("model: ") for fact in found["facts"])
    done = invoke("check", QUICKSTART, "rollout.max_new_tokens=9999", *small)
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and len(found["problems"]) == 1 and "9999" in found["problems"][0]
    done = invoke("check", QUICKSTART, "stages.grpo.stepps=3", *small)
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and found["facts"] == [] and "did you mean 'steps'?" in found["problems"][0]
    assert invoke("check", tmp_path / "absent.yaml", "--json").exit_code == 2
