"""What a recipe may not combine, and what it may not say in vain."""

import pytest

from cluster.config.run_config import load
from tests.cluster.test_config import SMALL, problems


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


MODEL = ["stages.grpo.reward=outcome_model", "reward.model.path=[a]"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.grpo.samples_per_question=1", "stages.1.samples_per_question: found 1; expected 2 or more: credit relative"),
        (
            "stages.sft.samples_per_question=2",
            "stages.0.samples_per_question: found 2; expected 1: 'sft' trains on demonstrations",
        ),
        (
            "data.demonstrations=null",
            "stages.0.algorithm: 'sft' trains on demonstrations; expected data.demonstrations, found none",
        ),
        ("stages.1.name=sft", "stages.1.name: 'sft' is stage 0 too; expected different names"),
        ("data.demonstrations={file: a.jsonl}", "data.demonstrations.response: missing; expected a template"),
        ("data.questions={file: a.jsonl}", "data.questions: model.init small-llama reads built-in tasks only"),
        ("data.questions={file: a, operations: 3}", "data.questions.operations: given, but only a task reads it; it belongs"),
        (
            "data.demonstrations={file: a, response: b, imperfect: 0.1}",
            "data.demonstrations.imperfect: given, but only a task reads it",
        ),
        ("data.demonstrations.answer='{x}'", "data.demonstrations.answer: unknown key; it belongs at data.questions.answer"),
        ("data.questions.imperfect=0.1", "data.questions.imperfect: unknown key; it belongs at data.demonstrations.imperfect"),
        ("data.questions.response='{x}'", "data.questions.response: unknown key; it belongs at data.demonstrations.response"),
        ("data.questions.chosen='{x}'", "data.questions.chosen: unknown key; it belongs at data.preferences.chosen"),
        ("data.questions.rejected='{x}'", "data.questions.rejected: unknown key; it belongs at data.preferences.rejected"),
        ("data.questions.steps=x", "data.questions.steps: unknown key; it belongs at data.labelled_steps.steps"),
        ("data.questions.labels=x", "data.questions.labels: unknown key; it belongs at data.labelled_steps.labels"),
        ("data.preferences={task: calculator}", "data.preferences.task: unknown key"),
        ("data.preferences={file: a, rejected: b}", "data.preferences.chosen: missing; expected a value"),
        ("data.labelled_steps={file: a, steps: b}", "data.labelled_steps.labels: missing; expected a value"),
        ("data.prompt.system=hello", "data.prompt.system: given, but template: plain has no system message"),
        ("model.path=models/x", "model: give exactly one of model.path and model.init"),
        ("stages.grpo.reward=outcome_model", "stages.1.algorithm: the reward is 'outcome_model'; expected reward.model.path"),
        ("stages.grpo.algorithm=ppo", "stages.1.critic_optimizer: missing; expected the critic's optimizer"),
        ("stages.grpo.critic_optimizer={learning_rate: 1}", "stages.1.critic_optimizer: given, but 'grpo' has no critic"),
        (
            "stages.1={algorithm: distill, steps: 1, questions_per_step: 2, optimizer: {learning_rate: 1.0e-3}}",
            "stages.1.teacher: missing; expected the directory of a model with the policy's tokenizer",
        ),
        ("project=mine", "project: given, but there are no trackers"),
        ("stages.grpo.teacher=models/x", "stages.1.teacher: given, but 'grpo' has no teacher"),
        ("stages.sft.max_refills=1", "stages.0.max_refills: given, but 'sft' does not read it"),
        ("stages.sft.max_staleness=1", "stages.0.max_staleness: given, but 'sft' does not read it"),
        ("stages.grpo.in_flight=true", "stages.1.in_flight: given, but 'grpo' does not read it"),
        ("learner.lora={rank: 8, dropout: 0.1}", "learner.lora.dropout: unknown key"),
        ("rollout.keep_kv=true", "rollout.keep_kv: given, but no stage is in_flight: weights change between outputs only"),
        (
            "stages.1={algorithm: online_rft, steps: 1, questions_per_step: 2, samples_per_question: 2, max_staleness: 2, "
            "optimizer: {learning_rate: 1.0e-3}}",
            "max_staleness: found 2; expected 0, or a weighting with the ratio",
        ),
        ("stages.grpo.offline_questions=4", "stages.1.offline_questions: given, but 'grpo' does not read it"),
        ("stages.grpo.from_file=true", "stages.1.from_file: given, but 'grpo' does not read it"),
        ("reward.model={}", "reward.model: given, but no stage trains a reward model or is rewarded by one"),
        ("stages.grpo.credit={cell: leave_one_outt}", "stages.1.credit"),
        ("stages.grpo.credit={cell: accepted, over: some}", "stages.1.credit.over: found"),
    ],
)
def test_settings_that_exclude_each_other_are_refused_with_the_reason(recipe, override, message):
    assert any(message in line for line in problems(recipe, override))


@pytest.mark.parametrize(
    ("setting", "how"),
    [("rollout.transport=nccl", "rollout.transport is nccl"), ("rollout.sleep=true", "rollout.sleep asks for ipc")],
)
def test_an_adapter_goes_through_shared_memory_and_merged_weights_any_way(recipe, setting, how):
    (line,) = problems(recipe, "learner.lora={rank: 8}", setting)
    expected = "expected merged, or transport: shm"
    assert f"learner.lora.send: found adapter, which goes through shared memory, and {how}; {expected}" in line
    load(recipe, ["learner.lora={rank: 8, send: merged}", setting])


def test_an_adapter_that_no_stage_trains_is_refused(recipe):
    model = "stages=[{algorithm: outcome_model, steps: 1, questions_per_step: 2, optimizer: {learning_rate: 0.1}}]"
    (line,) = problems(recipe, model, "data.demonstrations=null", "learner.lora={rank: 8}", "stages.0.samples_per_question=2")
    assert "learner.lora: given, but no stage trains the policy" in line


def test_settings_that_the_kind_of_reward_never_reads_are_refused(recipe):
    assert load(recipe, MODEL).reward.model.process_reward == "probability"
    (line,) = problems(recipe, *MODEL, "reward.model.process_reward=logit")
    assert "reward.model.process_reward: given, but the reward model is for outcome supervision" in line


PROCESS = ["stages.1.reward=null", "stages.1.algorithm=process_model"]
OUTCOME = ["stages.1.reward=null", "stages.1.algorithm=outcome_model"]
SINGLE = [*OUTCOME, "stages.1.objective={cell: cross_entropy}"]


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        (MODEL, "reward.flip_share=0.1", "reward.flip_share: given, but no stage is rewarded by the rule"),
        (PROCESS, "reward.flip_share=0.1", "reward.flip_share: given, but no stage is rewarded by the rule"),
        (SINGLE, "reward.flip_share=0.1", None),
        (SINGLE, "reward.correct=2", "reward.correct: given, but no stage is rewarded by the rule"),
        (OUTCOME, "reward.format=0.1", None),
        (MODEL, "reward.format=0.1", "reward.format: given, but no stage is rewarded by the rule"),
        (PROCESS, "reward.model.replay_share=0.2", "reward.model.replay_share: given, but no reward model is trained on after"),
        ([*PROCESS, "reward.model.path=[a]"], "reward.model.replay_groups=9", None),
        (MODEL, "reward.model.replay_share=0.2", "reward.model.replay_share: given, but no reward model is trained on after"),
        (OUTCOME, "reward.model.step_boundary=blank_line", "step_boundary: given, but the reward model does not judge steps"),
        (PROCESS, "reward.model.step_boundary=blank_line", None),
        (
            ["stages.sft.algorithm=rft"],
            "stages.sft.samples_per_question=4",
            "data.demonstrations: given, but no stage trains on",
        ),
        (
            [],
            "data.preferences={file: a, question: b, chosen: c, rejected: d}",
            "data.preferences: given, but no stage trains on",
        ),
    ],
)
def test_settings_that_no_stage_reads_are_refused(recipe, stage, override, message):
    if message is None:
        load(recipe, [*stage, override])
    else:
        assert any(message in line for line in problems(recipe, *stage, override))


def test_questions_are_held_out_by_a_number_or_by_a_source(recipe):
    source = "data.evaluation={task: chained-arithmetic}"
    assert load(recipe, [source]).data.hold_out is None
    (line,) = problems(recipe, source, "data.hold_out=200")
    assert line.endswith("data.hold_out: given, but data.evaluation has the held-out questions; expected one of the two")


PLAIN = ["stages.1.algorithm=rloo", "stages.1.updates_per_batch=2"]


def test_a_second_update_on_the_same_outputs_needs_a_weighting_with_the_ratio(recipe):
    (line,) = problems(recipe, *PLAIN)
    assert (
        "stages.1.updates_per_batch: found 2; expected 1, or a weighting with the ratio pi/pi_old such as {cell: clipped}"
        in line
    )
    assert load(recipe, [*PLAIN, "stages.1.weighting={cell: clipped, kl: 0}"]).stages[1].updates_per_batch == 2
    assert load(recipe, ["stages.1.updates_per_batch=2", "stages.0.updates_per_batch=2"]).stages[0].updates_per_batch == 2
    offline = load(recipe, ["stages.1.algorithm=rft", "stages.1.updates_per_batch=2"])
    assert offline.stages[1].updates_per_batch == 2, "what is only fitted is never off-policy"


def test_how_an_ensemble_is_combined_is_refused_for_a_single_model(recipe, tmp_path):
    (tmp_path / "one").mkdir()
    for k in range(2):
        (tmp_path / "two" / f"member-{k}").mkdir(parents=True)
    combine = ["stages.grpo.reward=outcome_model", "reward.model.combine=minimum"]
    assert "found minimum for a single model" in problems(recipe, *combine, f"reward.model.path=[{tmp_path / 'one'}]")[0]
    assert load(recipe, [*combine, f"reward.model.path=[{tmp_path / 'two'}]"]).reward.model.count == 2


def test_noise_robust_credit_needs_rewards_of_0_and_1(recipe):
    denoised = "stages.grpo.credit={cell: denoised_group_relative, flip_to_right: 0.1, flip_to_wrong: 0.1}"
    assert load(recipe, [denoised]).stages[1].resolved().credit.flip_to_right == 0.1
    assert "estimates flips of 0/1 rewards" in problems(recipe, denoised, "reward.format=0.5")[0]
