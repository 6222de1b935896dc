"""Overrides of a recipe, and keys that other frameworks would take."""

from pathlib import Path

import pytest

from cluster.config.explain import ELSEWHERE, _paths
from cluster.config.run_config import RunConfig, load
from learner.algorithms.table import TABLE
from tests.cluster.test_config import SMALL, problems


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_overrides_reach_sections_list_items_and_stages_by_name(recipe):
    changes = ["rollout.workers=2", "stages.0.steps=7", "stages.grpo.optimizer.learning_rate=0", "stages.grpo.credit={ddof: 1}"]
    config = load(recipe, [*changes, "data.prompt.suffix='a: b'", "output=x/y"])
    assert config.rollout.workers == 2
    assert config.stages[0].steps == 7
    assert config.stages[1].optimizer.learning_rate == 0.0
    assert config.stages[1].resolved().credit.ddof == 1
    assert config.data.prompt.suffix == "a: b"
    assert config.output == Path.cwd() / "x/y"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{question}", "{question}"),
        ("'{question}'", "{question}"),
        ("{Body} {Question}", "{Body} {Question}"),
        ("{answer:g}", "{answer:g}"),
        ("{turns[-1][content]}: {a.b}", "{turns[-1][content]}: {a.b}"),
        ("[{question}]", "[{question}]"),
        ("{", "{"),
        ("What is {question}?", "What is {question}?"),
    ],
)
def test_a_template_on_the_command_line_is_text(recipe, value, expected):
    config = load(
        recipe, [f"data.questions.question={value}", f"data.prompt.suffix={value}", f"data.demonstrations.response={value}"]
    )
    found = (config.data.questions.question, config.data.prompt.suffix, config.data.demonstrations.response)
    assert found == (expected,) * 3
    assert (
        load(recipe, ["data.demonstrations.response=null", "stages.grpo.credit={ddof: 1}"]).data.demonstrations.response is None
    )


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stages.grpo.num_generations", "did you mean 'samples_per_question'?"),
        ("stages.grpo.n", "did you mean 'samples_per_question'?"),
        ("num_generations", "did you mean 'samples_per_question'? it belongs at stages.N.samples_per_question"),
        ("stages.grpo.beta", "did you mean 'beta'? it belongs at stages.N.weighting.kl or stages.N.weighting.beta"),
        ("stages.grpo.kl_coef", "did you mean 'kl'? it belongs at stages.N.weighting.kl or stages.N.credit.kl"),
        ("stages.grpo.weighting.clip_range", "did you mean 'clip'?"),
        ("stages.grpo.lr", "did you mean 'learning_rate'? it belongs at stages.N.optimizer.learning_rate"),
        ("stages.grpo.optimizer.lr", "did you mean 'learning_rate'?"),
        ("epochs", "did you mean 'steps'? it belongs at stages.N.steps"),
        ("gradient_accumulation_steps", "did you mean 'max_tokens_per_microbatch'? it belongs at learner.max_tokens"),
        ("stages.grpo.per_device_train_batch_size", "did you mean 'questions_per_step'?"),
        ("rollout.max-completion-length", "did you mean 'max_new_tokens'?"),
    ],
)
def test_a_key_of_another_framework_is_pointed_to_ours(recipe, key, message):
    (line,) = problems(recipe, f"{key}=1")
    assert line.partition(": unknown key; ")[2].startswith(message)


def test_every_key_that_others_are_pointed_to_is_one_of_ours():
    cells = {
        f"stages.N.{cell}.{name}"
        for row in TABLE.values() for cell in ("credit", "weighting") for name in type(getattr(row, cell)).model_fields
    }  # fmt: skip
    ours = {*_paths(RunConfig), *cells, "data.evaluation", "reward.model"}
    assert {path for paths in ELSEWHERE for path in paths.split(" or ")} <= ours
    named = [theirs for names in ELSEWHERE.values() for theirs in names.split()]
    assert len(named) == len(set(named))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.workers", "override 'rollout.workers': expected key=value, as in rollout.workers=2"),
        ("rolout.workers=2", "override 'rolout.workers=2': rolout: unknown key; did you mean 'rollout'?"),
        ("rollout.workers=[", "override 'rollout.workers=[':1:2: not valid YAML"),
        ("rollout.workers=x", "override 'rollout.workers=x': rollout.workers: found \"x\"; expected a valid integer"),
        (
            "stages.gpro.steps=3",
            "override 'stages.gpro.steps=3': stages: is a list of 0 (sft), 1 (grpo); there is no 'gpro' in it",
        ),
        ("stages.2.steps=3", "override 'stages.2.steps=3': stages: is a list of 0 (sft), 1 (grpo); there is no '2' in it"),
        ("name.x=3", "override 'name.x=3': name: is \"small\"; there is no 'x' in it"),
    ],
)
def test_an_error_in_an_override_names_the_override(recipe, override, message):
    (line,) = problems(recipe, override)
    assert line.startswith(message)
