"""Paths of a configuration mean the same from every directory, and a run is where its directory is."""

import typing
from pathlib import Path

import pytest

from cluster.config.explain import _sections
from cluster.config.recipe import ConfigError
from cluster.config.run_config import RunConfig, load, resolved_yaml
from cluster.run.directory import run_config
from cluster.run.resume import resume
from cluster.stopping import Stop
from rollout.strict import AbsolutePath, absolute
from tests.cluster.test_config import SMALL, problems

FILES = """\
name: small
output: {place}/out
model: {{path: {place}/model}}
data:
  questions: {{file: {place}/q.jsonl}}
  demonstrations: {{file: {place}/d.jsonl, response: r}}
  preferences: {{file: {place}/p.jsonl, chosen: c, rejected: r}}
  labelled_steps: {{file: {place}/l.jsonl, steps: s, labels: l}}
  evaluation: {{file: {place}/e.jsonl}}
reward: {{function: "{place}/rewards.py:score", model: {{path: [{place}/a, {place}/b]}}}}
stages:
  - {{algorithm: sft, steps: 1, questions_per_step: 1, optimizer: {{learning_rate: 1}}}}
  - {{algorithm: dpo, from_file: true, steps: 1, questions_per_step: 1, optimizer: {{learning_rate: 1}}}}
  - {{algorithm: process_model, from_file: true, steps: 1, questions_per_step: 1, optimizer: {{learning_rate: 1}}}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("place", ["here", "./here", "~/here", "{root}/elsewhere/../here"])
def test_every_path_is_absolute_and_stays_what_it_was_in_another_directory(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    (tmp_path / "here/rewards.py").touch()
    (tmp_path / "recipe.yaml").write_text(FILES.format(place=place.format(root=tmp_path)))
    config = load(tmp_path / "recipe.yaml")
    data, reward = config.data, config.reward
    sources = (data.questions, data.demonstrations, data.preferences, data.labelled_steps, data.evaluation)
    found = [config.output, config.model.path, *(source.file for source in sources), *reward.model.path]
    names = ["out", "model", "q.jsonl", "d.jsonl", "p.jsonl", "l.jsonl", "e.jsonl", "a", "b"]
    assert found == [tmp_path / "here" / name for name in names]
    assert reward.function == f"{tmp_path}/here/rewards.py:score"
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert load(tmp_path / "config.yaml") == config


def test_no_path_of_a_configuration_is_left_relative():
    def paths(model, prefix=""):
        for name, field in model.model_fields.items():
            yield from ((f"{prefix}{name}", kind) for kind in leaves((field.annotation, *field.metadata)))
            for section in _sections(field.annotation):
                yield from paths(section, f"{prefix}{name}.")

    def leaves(kinds):
        """Path where it is not made absolute, AbsolutePath where it is."""
        if Path in kinds:
            return [AbsolutePath if any(getattr(kind, "func", None) is absolute for kind in kinds) else Path]
        return [leaf for kind in kinds for leaf in leaves(typing.get_args(kind))]

    found = dict(paths(RunConfig))
    assert {"model.path", "output", "data.questions.file", "reward.model.path"} <= found.keys()
    assert set(found.values()) == {AbsolutePath}


def test_the_home_of_nobody_is_refused(recipe):
    (line,) = problems(recipe, "output='~nobody-of-that-name/x'")
    assert "output: ~nobody-of-that-name/x: Could not determine home directory" in line


def test_a_run_that_was_moved_goes_on_where_it_is(recipe, tmp_path, monkeypatch):
    begun = load(recipe, [f"output={tmp_path}/before"])
    after = tmp_path / "after"
    after.mkdir()
    (after / "config.yaml").write_text(resolved_yaml(begun))
    monkeypatch.chdir(tmp_path)
    assert run_config(Path("after")) == begun.model_copy(update={"output": after})
    started = []
    monkeypatch.setattr("cluster.run.launch.run", lambda config, *rest: started.append(config.output))
    resume(Path("after"), [], Stop())
    assert started == [after]
    with pytest.raises(ConfigError, match="output: .*/after.* -> .*/other.*: a resumed run cannot change it"):
        resume(Path("after"), ["output=other"], Stop())
