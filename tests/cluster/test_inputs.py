"""A resumed run reads the data and the tokenizer that it began with."""

import json

import pytest

from cluster.config.recipe import ConfigError
from cluster.config.run_config import load, resolved_yaml
from cluster.run import inputs
from cluster.run.resume import resume
from cluster.stopping import Stop
from tests.cluster.test_pipeline import configuration

RECIPE = """\
name: small
output: run
model: {path: model}
data:
  questions: {file: q.jsonl}
  demonstrations: {file: d.jsonl, response: "{answer}"}
reward: {function: "rewards.py:score"}
stages:
  - {algorithm: sft, steps: 1, questions_per_step: 1, optimizer: {learning_rate: 1}}
"""


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run directory as a killed run leaves it; the runs that go on from it are listed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name in (
        "q.jsonl",
        "d.jsonl",
        "rewards.py",
        "model/tokenizer.json",
        "model/chat_template.jinja",
        "model/weights.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    config = load(tmp_path / "recipe.yaml")
    config.output.mkdir()
    (config.output / "config.yaml").write_text(resolved_yaml(config))
    inputs.record(config)
    started = []
    monkeypatch.setattr("cluster.run.launch.run", lambda config, *rest: started.append(config.output))
    return started


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("q.jsonl", "data.questions"),
        ("d.jsonl", "data.demonstrations"),
        ("model/tokenizer.json", "model.path"),
        ("model/chat_template.jinja", "model.path"),
    ],
)
def test_an_edited_file_is_named_and_the_run_does_not_go_on(begun, tmp_path, name, key):
    (tmp_path / name).write_text("edited")
    with pytest.raises(ConfigError) as caught:
        resume(tmp_path / "run", [], Stop())
    expected = "since the run began; expected what it was begun with, or a new run"
    assert str(caught.value) == f"{key}: {tmp_path / name} has changed {expected}" and begun == []
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing since the run began"):
        resume(tmp_path / "run", [], Stop())
    (tmp_path / name).write_text(name)
    resume(tmp_path / "run", [], Stop())
    assert begun == [tmp_path / "run"]


def test_a_reward_model_from_outside_is_an_input_with_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / "judge" / name).write_text(name)
    judged = RECIPE.replace('{function: "rewards.py:score"}', "{model: {path: [judge]}}")
    lines = [line for line in judged.splitlines() if "demonstrations" not in line]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines).replace("sft", "grpo, samples_per_question: 2"))
    read = inputs.digests(load(tmp_path / "recipe.yaml"), weights=False)
    assert {name for name in read if "judge" in name} == {
        f"reward.model.path: {tmp_path}/judge/{name}" for name in ("tokenizer.json", "config.json", "model.safetensors")
    }


def test_a_teacher_is_an_input_with_its_weights_and_an_added_stage_may_have_one(begun, tmp_path):
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "big").mkdir(exist_ok=True)
        (tmp_path / "big" / name).write_text(name)
    added = RECIPE + "  - {algorithm: distill, teacher: big, steps: 1, questions_per_step: 1, optimizer: {learning_rate: 1}}\n"
    (tmp_path / "recipe.yaml").write_text(added)
    config = load(tmp_path / "recipe.yaml")
    before = json.loads((tmp_path / "run/inputs.json").read_text())
    assert inputs.changed(config) == []
    inputs.record(config)
    recorded = json.loads((tmp_path / "run/inputs.json").read_text())
    names = [f"stages.1.teacher: {tmp_path}/big/{name}" for name in ("model.safetensors", "tokenizer.json")]
    assert sorted(recorded.keys() - before.keys()) == names and recorded.items() >= before.items()
    (tmp_path / "big/model.safetensors").write_text("another")
    (tmp_path / "big/more.safetensors").write_text("another")
    changed, new = inputs.changed(config)
    assert changed.startswith(f"{names[0]} has changed since") and "more.safetensors is new since" in new


def test_a_file_that_changes_the_prompts_is_not_added(begun, tmp_path):
    (tmp_path / "model/generation_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model/generation_config.json is new since the run began"):
        resume(tmp_path / "run", [], Stop())


def test_weights_and_a_mended_reward_function_do_not_stop_a_run(begun, tmp_path, caplog):
    (tmp_path / "model/weights.safetensors").write_text("checkpoints hold others")
    (tmp_path / "rewards.py").write_text("mended")
    resume(tmp_path / "run", [], Stop())
    assert begun == [tmp_path / "run"] and "rewards.py has changed since the run began" in caplog.text


def test_the_first_digests_stay(begun, tmp_path):
    before = json.loads((tmp_path / "run/inputs.json").read_text())
    (tmp_path / "q.jsonl").write_text("edited")
    inputs.record(load(tmp_path / "recipe.yaml"))
    assert json.loads((tmp_path / "run/inputs.json").read_text()) == before


def test_a_data_set_of_the_hub_is_known_by_its_rows(tmp_path, monkeypatch):
    rows = [{"question": "1", "answer": "1"}]
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("reward: {", "# {").replace("{file: q.jsonl}", "{hub: a/b}"))
    config = load(tmp_path / "recipe.yaml", [f"output={tmp_path}"])
    inputs.record(config)
    assert inputs.changed(config) == []
    rows.append({"question": "2", "answer": "2"})
    assert [line.split(" ")[:4] for line in inputs.changed(config)] == [["data.questions:", "a/b", "has", "changed"]]


def test_a_run_that_reads_no_file_has_an_empty_record(tmp_path):
    config = configuration(tmp_path / "run")
    config.output.mkdir()
    inputs.record(config)
    assert (config.output / inputs.FILE).read_text() == "{}"
