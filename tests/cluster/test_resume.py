"""What a resumed run refuses, and what it leaves as it was, without starting anything."""

import fcntl
import json
import os

import pytest
from typer.testing import CliRunner

import cluster.run.launch
from cluster.cli import main as cli
from cluster.config.recipe import ConfigError
from cluster.config.run_config import load, resolved_yaml
from cluster.records.ledger import Ledger
from cluster.run.checkpoints import Checkpoints
from cluster.run.directory import RunDirectory, stage_facts
from cluster.run.mirror import Mirror
from cluster.run.resume import resume, resume_as
from cluster.run.store import Store
from cluster.stopping import Stop
from tests.cluster.test_checkpoints import Learner, break_file
from tests.cluster.test_config import SMALL


@pytest.fixture
def run_dir(tmp_path):
    """A run of two stages that stands after two steps of the second, as its driver leaves it."""
    (tmp_path / "small.yaml").write_text(SMALL)
    config = load(tmp_path / "small.yaml", [f"output={tmp_path / 'run'}"])
    first = config.stages[0].model_copy(update={"name": "first", "steps": 4})
    second = config.stages[0].model_copy(update={"name": "second", "steps": 6})
    config = config.model_copy(update={"stages": (first, second), "checkpoint_every": 2})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(resolved_yaml(config))
    return tmp_path / "run"


def at(run_dir, stage, done):
    step = done + (0, 4)[stage]
    Checkpoints(run_dir, keep=2).save(step, Learner(), {"stage": stage, "done": done, "step": step})
    return run_dir / f"checkpoints/step_{step}"


@pytest.fixture
def runs(monkeypatch):
    """The configurations that were started, and from which step."""
    started = []

    def run(config, held, stop, found=None):
        started.append((config, found and found[1]["step"]))
        return {"stages": stage_facts(config)}

    monkeypatch.setattr(cluster.run.launch, "run", run)
    return started


def test_a_live_runs_configuration_is_left_alone(run_dir, runs):
    at(run_dir, 1, 2)
    before = (run_dir / "config.yaml").read_text()
    with RunDirectory(run_dir), pytest.raises(ConfigError, match="in use by another cohort process"):
        resume(run_dir, ["rollout.workers=2"], Stop())
    assert (run_dir / "config.yaml").read_text() == before and runs == []
    resume(run_dir, ["rollout.workers=2"], Stop())
    assert load(run_dir / "config.yaml").rollout.workers == 2


def test_changes_that_do_not_fit_the_cluster_are_not_kept(run_dir, monkeypatch):
    at(run_dir, 1, 2)
    before = (run_dir / "config.yaml").read_text()

    def refuse(*_):
        raise ConfigError(["rollout.workers: 40 do not fit"])

    monkeypatch.setattr("cluster.run.launch.run", refuse)
    with pytest.raises(ConfigError, match="40 do not fit"):
        resume(run_dir, ["rollout.workers=40"], Stop())
    assert (run_dir / "config.yaml").read_text() == before


def test_the_configuration_is_replaced_whole_or_not_at_all(run_dir, runs, monkeypatch):
    at(run_dir, 1, 2)
    before = (run_dir / "config.yaml").read_text()

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        resume(run_dir, ["rollout.workers=2"], Stop())
    assert (run_dir / "config.yaml").read_text() == before


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again(run_dir, runs):
    for folder in (at(run_dir, 0, 4), at(run_dir, 1, 2)):
        break_file(folder)
    with pytest.raises(ConfigError) as refused:
        resume(run_dir, [], Stop())
    assert all(f"step_{n}: learner/__1_0.distcp does not have the content" in str(refused.value) for n in (4, 6))
    assert runs == []


def trained(run_dir, steps):
    ledger = Ledger(run_dir / "ledger.jsonl")
    for step in range(1, steps + 1):
        for event in ("leased", "generated", "scored"):
            ledger.record(event, {f"first/{step}": [0]})
        ledger.record("trained", {f"first/{step}": [0]}, step=step)
    ledger.close()


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(run_dir, runs, caplog):
    trained(run_dir, 3)
    with pytest.raises(ConfigError, match="found no checkpoint, and the ledger shows 3 steps, the first checkpoint after 2"):
        resume(run_dir, [], Stop())
    assert runs == []


def test_a_run_that_died_before_its_first_checkpoint_begins_again_and_says_so(run_dir, runs, caplog):
    trained(run_dir, 2)
    resume(run_dir, [], Stop())
    assert [found for _, found in runs] == [None]
    assert "the run begins again, its 2 steps are lost" in caplog.text


@pytest.mark.parametrize(
    ("place", "override", "refused"),
    [
        ((1, 2), "stages.0.steps=5", "stages.0.steps: 4 -> 5: a resumed run cannot change it, 4 steps are done"),
        ((0, 4), "stages.0.steps=5", "stages.0.steps: 4 -> 5: a resumed run cannot change it, 4 steps are done"),
        ((1, 2), "stages.1.steps=1", "stages.1.steps: 6 -> 1: a resumed run cannot change it, 2 steps are done"),
        ((1, 2), "stages.1.steps=9", None),
        ((1, 2), "stages.1.steps=2", None),
        ((0, 2), "stages.1.steps=1", None),
    ],
)
def test_the_steps_of_what_is_done_stay(run_dir, runs, place, override, refused):
    at(run_dir, *place)
    if refused is None:
        resume(run_dir, [override], Stop())
        assert len(runs) == 1
        return
    with pytest.raises(ConfigError) as error:
        resume(run_dir, [override], Stop())
    assert str(error.value) == refused and runs == []


def test_a_finished_run_says_so_and_starts_nothing(run_dir, runs, caplog):
    at(run_dir, 1, 6)
    summary = {"stages": stage_facts(load(run_dir / "config.yaml")), "accuracy_after": 0.5}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    caplog.set_level("INFO", "cohort")
    assert resume(run_dir, [], Stop()) == summary
    assert resume(run_dir, ["rollout.workers=2"], Stop()) == summary
    assert "is finished" in caplog.text and runs == []
    assert load(run_dir / "config.yaml").rollout.workers == 1
    longer = load(run_dir / "config.yaml")
    third = longer.stages[0].model_copy(update={"name": "third"})
    (run_dir / "config.yaml").write_text(resolved_yaml(longer.model_copy(update={"stages": (*longer.stages, third)})))
    resume(run_dir, [], Stop())
    assert [found for _, found in runs] == [10]


def test_train_or_resume_goes_on_as_the_recipe_says_now(run_dir, runs, monkeypatch, tmp_path):
    """One command line begins a run and goes on with it: what a job that is tried again is given."""
    monkeypatch.setattr(cli, "_checked", lambda recipe, overrides: load(recipe, overrides))
    at(run_dir, 1, 2)
    recipe = tmp_path / "again.yaml"
    recipe.write_text((run_dir / "config.yaml").read_text())

    def train(*overrides):
        return CliRunner().invoke(cli.app, ["train", str(recipe), "--or-resume", *overrides])

    assert train("rollout.workers=3").exit_code == 0
    assert [(config.rollout.workers, step) for config, step in runs] == [(3, 6)]
    assert train().exit_code == 0 and load(run_dir / "config.yaml").rollout.workers == 1
    other = train("seed=7")
    assert other.exit_code == 2 and "seed: 0 -> 7: a resumed run cannot change it" in other.stderr and len(runs) == 2
    assert train(f"output={tmp_path / 'new'}").exit_code == 0
    assert [(config.output, step) for config, step in runs[2:]] == [(tmp_path / "new", None)]


def test_what_is_taken_up_is_the_directorys_run_or_else_the_mirrors(run_dir, runs, tmp_path):
    at(run_dir, 1, 2)
    url = f"file://{tmp_path}/far"
    config = load(run_dir / "config.yaml", [f"mirror={url}"])
    (run_dir / "config.yaml").write_text(resolved_yaml(config))
    elsewhere = config.model_copy(update={"output": tmp_path / "elsewhere"})
    assert resume_as(elsewhere, Stop()) is None
    assert Mirror(Store(url), run_dir, 2).finish()["copied"] == 1
    at(run_dir, 1, 4)
    resume_as(config, Stop())
    resume_as(elsewhere, Stop())
    assert [(found.output, step) for found, step in runs] == [(run_dir, 8), (tmp_path / "elsewhere", 6)]


def test_a_new_directory_that_never_began_leaves_nothing_and_one_that_did_stays(tmp_path):
    with pytest.raises(ValueError), RunDirectory(tmp_path / "a/b/run") as held:
        (held.path / "model").mkdir()
        (held.path / "model/config.json").touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "kept").mkdir()
    with RunDirectory(tmp_path / "a/run") as held, RunDirectory(tmp_path / "kept"):
        held.begun()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["a", "a/run", "a/run/lock", "kept"]
    with RunDirectory(tmp_path / "a/run"):
        pass
    assert (tmp_path / "a/run/lock").exists()


def test_the_lock_is_the_systems(tmp_path):
    with RunDirectory(tmp_path / "run") as held:
        held.begun()
        with (tmp_path / "run/lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
