import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config.recipe import ConfigError
from cluster.config.run_config import RunConfig, config_hash, diff, load, refusals, resolved_yaml

RECIPES = Path(__file__).parents[2] / "deploy/recipes"
SMALL = """\
name: small
model: {init: small-llama}
data:
  questions: {task: chained-arithmetic}
  demonstrations: {task: chained-arithmetic}
  prompt: {template: plain}
stages:
  - algorithm: sft
    steps: 2
    questions_per_step: 4
    optimizer: {learning_rate: 1e-3}
  - algorithm: grpo
    steps: 3
    questions_per_step: 2
    samples_per_question: 4
    optimizer: {learning_rate: 1e-4}
    reward: rule
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, list(overrides))
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def edited(recipe: Path, old: str, new: str) -> Path:
    assert SMALL.count(old) == 1
    recipe.write_text(SMALL.replace(old, new))
    return recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_project_are_valid_and_at_most_25_lines(path):
    load(path)
    assert len(path.read_text().splitlines()) <= 25


def test_defaults_are_filled_in(recipe):
    config = load(recipe)
    assert config.output == Path.cwd() / "runs/small"
    assert [stage.name for stage in config.stages] == ["sft", "grpo"]
    assert config.keep_checkpoints == 2
    assert config.stages[0].optimizer.learning_rate == 0.001, "1e-3 without a dot is a number"


def test_unnamed_stages_of_one_algorithm_are_told_apart_by_their_place(recipe):
    config = load(
        edited(recipe, "algorithm: grpo", "algorithm: sft"), ["stages.1.samples_per_question=1", "stages.1.reward=none"]
    )
    assert [stage.name for stage in config.stages] == ["sft-1", "sft-2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", "nmae: small", "small.yaml:1: nmae: unknown key; did you mean 'name'?"),
        (
            "  demonstrations: {task: chained-arithmetic}",
            "  demonstrations: {task: chained-arithmetic, response: {response}}",
            'small.yaml:5: data.demonstrations.response: found {"response": null}; expected a valid string: quote it, as',
        ),
        ("name: small", "name: 12", "small.yaml:1: name: found 12; expected a valid string: quote it, as in '12'"),
        ("steps: 2", "steps: two", 'small.yaml:9: stages.0.steps: found "two"; expected a valid integer'),
        ("steps: 2", "steps: true", "small.yaml:9: stages.0.steps: found true; expected a valid integer"),
        ("steps: 2", 'steps: "2"', 'small.yaml:9: stages.0.steps: found "2"; expected a valid integer'),
        ("steps: 2", "steps: 0", "small.yaml:9: stages.0.steps: found 0; expected greater than 0"),
        ("steps: 2", "steps: 2\n    steps: 3", "small.yaml:10: stages.0.steps: found the key twice; expected it once"),
        ("    steps: 2\n", "", "small.yaml:8: stages.0.steps: missing; expected a value"),
        ("steps: 3", "steps: 3\n    learning_rate: 1", "small.yaml:14: stages.1.learning_rate: unknown key; it belongs at"),
        ("algorithm: grpo", "algorithm: gpro", "small.yaml:12: stages.1.algorithm: unknown algorithm 'gpro'; expected one of"),
        (
            "template: plain",
            "template: plane",
            "small.yaml:6: data.prompt.template: found \"plane\"; expected 'chat' or 'plain'",
        ),
        ("  prompt:", "  max-prompt-tokens: 3\n  prompt:", "did you mean 'max_prompt_tokens'?"),
        (
            "stages:",
            "rollout: {gpu_memory_utilization: 2}\nstages:",
            "small.yaml:7: rollout.gpu_memory_utilization: found 2; expected less",
        ),
        (
            "stages:",
            "cluster: {dashboard: no}\nstages:",
            'small.yaml:7: cluster.dashboard: found "no"; expected a valid boolean',
        ),
        (
            "stages:",
            "keep_checkpoints: 1\nstages:",
            "small.yaml:7: keep_checkpoints: found 1; expected greater than or equal to 2",
        ),
        ("stages:", "stages: [", "small.yaml:8:3: not valid YAML:"),
        ("stages:", "output: &x a\nname: *x\nstages:", "small.yaml:8:7: not valid YAML: anchors are not part of recipes"),
    ],
)
def test_an_error_names_line_key_what_was_found_and_what_was_expected(recipe, old, new, message):
    assert any(line.startswith(message) or message in line for line in problems(edited(recipe, old, new)))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("credit: {normalise_std: false}", "stages.1.credit.normalise_std: unknown key; did you mean 'normalize_std'?"),
        ("credit: {ddof: 2}", "stages.1.credit.ddof: found 2; expected 0 or 1"),
        ("weighting: {clip: -1}", "stages.1.weighting.clip: found -1; expected greater than 0"),
        ("weighting: {cell: clip}", "stages.1.weighting: found"),
    ],
)
def test_a_wrong_field_of_a_cell_is_named_like_any_other_key(recipe, cell, message):
    (line,) = problems(edited(recipe, "    samples_per_question: 4", f"    samples_per_question: 4\n    {cell}"))
    assert line.startswith(f"small.yaml:16: {message}")


def test_all_problems_are_reported_in_the_order_of_the_file(recipe):
    recipe.write_text(SMALL.replace("steps: 2", "steps: -2").replace("seed", "").replace("name: small", "name: a b"))
    assert [line.split(": ")[0] for line in problems(recipe)] == ["small.yaml:1", "small.yaml:9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.yaml:1: found null; expected keys"),
        (b"- 1", "bad.yaml:1: found [1]; expected keys"),
        (b"name: \xff", "bad.yaml: byte 6 is not UTF-8"),
        (b"name: \x01", "bad.yaml: not valid YAML"),
        (b"? [1]\n: 2", "bad.yaml:1: found a sequence as a key"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert problems(path)[0].startswith(message)


def test_a_missing_file_suggests_its_neighbour(recipe):
    assert problems(recipe.with_name("smal.yaml")) == [
        "smal.yaml: No such file or directory; expected a YAML file; did you mean 'small'?"
    ]


def test_the_resolved_file_reads_back_to_the_same_configuration(recipe, tmp_path):
    suffix = "data.prompt.suffix='yes: 1e-3 \"é\" {x}\\n'"
    config = load(recipe, [suffix, "stages.1.weighting={kl: 1e-3}", "stages.0.name=on", "data.prompt.template=chat"])
    copy = tmp_path / "config.yaml"
    copy.write_text(resolved_yaml(config))
    assert load(copy) == config
    assert copy.read_text().startswith(f"# hash: {config_hash(config)}\n")


def test_text_that_looks_like_a_number_stays_text_in_the_resolved_file(recipe, tmp_path):
    config = load(recipe, ["data.prompt.suffix='1e-3'", "data.questions.rows=12"])
    (tmp_path / "config.yaml").write_text(resolved_yaml(config))
    assert load(tmp_path / "config.yaml").data.prompt.suffix == "1e-3"


def test_the_hash_changes_with_any_value_only(recipe):
    config = load(recipe)
    assert config_hash(config) == config_hash(load(recipe))
    assert config_hash(config) != config_hash(load(recipe, ["rollout.workers=2"]))


def test_a_resumed_run_may_change_workers_and_steps_but_not_its_history(recipe):
    old = load(recipe)
    changes = ["rollout.workers=2", "rollout.dtype=bfloat16", "stages.grpo.steps=9", "seed=1"]
    new = load(recipe, [*changes, "stages.grpo.samples_per_question=8"])
    assert diff(old, new) == [
        "seed: 0 -> 1",
        "rollout.workers: 1 -> 2",
        'rollout.dtype: "float32" -> "bfloat16"',
        "stages.1.steps: 3 -> 9",
        "stages.1.samples_per_question: 4 -> 8",
    ]
    assert [line.split(":")[0] for line in refusals(old, new)] == ["seed", "rollout.dtype", "stages.1.samples_per_question"]


def test_a_resumed_run_keeps_its_adapter(recipe):
    old, whole = load(recipe, ["learner.lora={rank: 8}"]), load(recipe)
    for new in (load(recipe, ["learner.lora={rank: 8, send: merged}"]), load(recipe, ["learner.lora={rank: 9}"]), whole):
        assert refusals(old, new) and refusals(new, old)
    assert refusals(old, load(recipe, ["learner.lora={rank: 8}", "learner.ranks=2"])) == []


def test_a_resumed_run_may_add_a_stage_at_its_end_but_not_lose_one(recipe):
    two = load(recipe)
    three = two.model_copy(update={"stages": (*two.stages, two.stages[1].model_copy(update={"name": "more"}))})
    assert refusals(two, three) == []
    assert any(line.startswith("stages.2.algorithm") for line in refusals(three, two))


def test_a_run_is_configured_in_python_too(recipe):
    data = load(recipe).model_dump()
    assert RunConfig(**data) == load(recipe)


def test_parsing_a_recipe_imports_nothing_heavy(recipe):
    code = f"import sys; from cluster.config.run_config import load; load({str(recipe)!r}); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not {"torch", "ray", "vllm", "transformers", "numpy", "rich", "typer"} & set(done.stdout.split())


def test_the_bound_on_outputs_without_a_score_is_found_under_its_narrower_name(recipe):
    (problem,) = problems(recipe, "reward.max_error_share=0.2")
    assert problem.endswith("reward.max_error_share: unknown key; did you mean 'max_unscored_share'?")
