"""PPO's critic, and what a batch is given before its updates."""

import numpy as np
import pytest
import torch

from learner.algorithms.gae import explained_variance
from learner.algorithms.table import resolve, resolve_reward_model
from learner.models.weights import ModelWeights
from rollout.types import FinishReason
from tests.learner.builders import VOCABULARY, adamw, examples, groups, grpo, random_batch, scored
from tests.learner.slow import batch_of
from tests.learner.stages import assert_equal, stage, weights

FIXED = adamw(learning_rate=0.0)


def ppo(credit=None, weighting=None, optimizer=FIXED, critic=FIXED, **more):
    return stage(resolve("ppo", credit or {}, weighting or {}), optimizer, 100, critic_optimizer=critic, **more)


def toy(seed: int, count: int = 24):
    """The reward is known from the prompt's first token alone, so a critic can know it at every token."""
    draw = torch.Generator().manual_seed(seed)
    batch = []
    for i in range(count):
        first, *output = torch.randint(3, VOCABULARY, (1 + 2 + i % 3,), generator=draw).tolist()
        reward = 1.0 if first % 2 else -1.0
        batch.append(scored(f"t/{i}", 0, [first, 9], output, reward=reward, logprobs=[-4.0] * len(output)))
    return batch


def test_explained_variance_is_numpys():
    draw = np.random.default_rng(0)
    values, returns = draw.normal(size=(2, 300))
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert explained_variance(values.tolist(), returns.tolist()) == pytest.approx(expected, rel=1e-12)
    assert explained_variance(returns.tolist(), returns.tolist()) == 1
    assert explained_variance([0.5, 0.7], [0.1, 0.1]) is None and explained_variance([], []) is None


def test_a_critic_starts_at_zero_on_the_current_policys_backbone(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 3))
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    worker.begin_stage(ppo())
    policy = weights(worker)
    for name, tensor in ModelWeights(worker._stage.models["critic"], torch.float32):
        expected = torch.zeros_like(tensor) if ".score." in name else policy[name.removeprefix("members.0.")]
        assert torch.equal(tensor, expected)
    metrics = worker.step(groups(batch_of("token")), updates=1, temperature=1.0).metrics
    assert metrics["critic_explained_variance"] == 0
    assert metrics["critic_value_clip_fraction"] == 0
    assert metrics["critic_grad_norm"] > 0


@pytest.mark.slow
def test_a_critic_learns_to_predict_returns_while_a_policy_without_rate_stays(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(credit={"kl": 0.0}, critic=adamw(learning_rate=5e-3), value_clip=10.0))
    before = weights(worker)
    first = worker.step(groups(toy(0)), updates=1, temperature=1.0).metrics
    for _ in range(25):
        worker.step(groups(toy(0)), updates=1, temperature=1.0)
    last = worker.step(groups(toy(0)), updates=1, temperature=1.0).metrics
    assert first["critic_explained_variance"] == 0
    assert last["critic_explained_variance"] > 0.9
    assert last["critic_value_loss"] < 0.1 * first["critic_value_loss"]
    assert_equal(weights(worker), before)


def test_values_that_run_ahead_of_the_old_ones_are_clipped(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(critic=adamw(learning_rate=3e-2), value_clip=1e-3))
    assert worker.step(groups(toy(0)), updates=4, temperature=1.0).metrics["critic_value_clip_fraction"] > 0


@pytest.mark.parametrize(("row", "compared"), [("online_rft", True), ("rft", False)])
def test_the_engine_is_compared_with_the_learner_only_where_both_have_the_same_weights(start, model_dir, row, compared):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve(row), adamw(), 4))
    for _ in range(2):
        metrics = worker.step(groups(toy(0)), updates=1, temperature=1.0).metrics
        assert (
            {"mismatch_mean", "mismatch_max"} <= metrics.keys() if compared else not any("mismatch" in name for name in metrics)
        )


def test_returns_and_advantages_are_those_of_the_reward_at_the_end_while_values_are_zero(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(credit={"kl": 0.0, "whiten": False, "lam": 1.0}))
    batch = toy(1)
    report = worker.step(groups(batch), updates=1, temperature=1.0)
    assert report.advantages == [item.verdict.reward for item in batch]
    assert report.metrics["critic_value_loss"] == pytest.approx(0.5)


def test_kl_in_the_reward_is_logged_and_starts_at_zero_when_the_learner_recomputes(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(weighting={"old": "learner"}, optimizer=adamw()))
    first, second = (worker.step(groups(batch_of("token")), updates=1, temperature=0.7).metrics for _ in range(2))
    assert first["ratio_mean"] == 1 and first["reward_kl"] == 0
    assert second["ratio_mean"] == 1 and second["reward_kl"] != 0


def test_outputs_masked_as_truncated_leave_policy_and_critic(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(credit={"truncated": "mask"}))
    batch = toy(2)
    cut = [scored("x", 0, [5], [6, 7], reward=9.0, logprobs=[-4.0, -4.0], finish=FinishReason.LENGTH)]
    without = worker.step(groups(batch), updates=1, temperature=1.0)
    worker.begin_stage(ppo(credit={"truncated": "mask"}))
    found = worker.step(groups([*batch, *cut]), updates=1, temperature=1.0)
    assert found.advantages == [*without.advantages, None]
    assert found.metrics == pytest.approx(without.metrics, rel=1e-5, abs=1e-6)


def test_a_batch_that_no_one_could_judge_trains_nothing(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(ppo(weighting={"old": "learner"}))
    report = worker.step(groups([scored("g", i, [5], [6], logprobs=[-1.0]) for i in range(3)]), updates=1, temperature=1.0)
    assert (report.metrics["no_signal"], report.metrics["critic_no_signal"], report.tokens) == (1, 1, 0)
    assert report.advantages == [None] * 3


@pytest.mark.parametrize("budget", [1, 4096])
def test_pairs_are_never_split(start, model_dir, budget):
    worker = start(model_dir, max_tokens_per_microbatch=budget)
    worker.begin_stage(stage(resolve("dpo"), adamw(), 1))
    batch = batch_of("pair")
    packed = worker._stage.credit(groups(batch), 1.0).packed
    found = [sorted(set(micro.sample_N.tolist())) for micro in packed.micro_batches]
    assert sorted(i for samples in found for i in samples) == list(range(10))
    assert all(i ^ 1 in samples for samples in found for i in samples)
    assert len(found) == (5 if budget == 1 else 1)
    metrics = worker.step(groups(batch), updates=1, temperature=1.0).metrics
    assert metrics["objective"] == pytest.approx(np.log(0.5)) and metrics["margin"] == pytest.approx(0, abs=1e-6)


def test_dpo_prefers_the_better_output(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve("dpo"), adamw(learning_rate=1e-3), 8))
    reports = [worker.step(groups(batch_of("pair")), updates=1, temperature=1.0) for _ in range(8)]
    assert reports[-1].metrics["objective"] > reports[0].metrics["objective"] + 0.1
    assert reports[-1].metrics["ranked"] == pytest.approx(1)


def test_bfloat16_compute_reads_values_and_scores_in_float32(start, model_dir):
    worker = start(model_dir, compute_dtype="bfloat16")
    worker.begin_stage(stage(resolve_reward_model("outcome_model"), adamw(), 3))
    pair = [scored("p", i, [5, 9], [40 + i, 2], reward=float(i)) for i in range(2)]
    assert worker.step(examples(pair), updates=1, temperature=1.0).metrics["skipped"] == 0
    ((scalar,),), _ = worker.scalars(examples(pair))
    assert torch.tensor(scalar).bfloat16().item() != scalar
    worker.begin_stage(ppo(critic=adamw()))
    assert worker.step(groups(toy(0)), updates=2, temperature=1.0).metrics["critic_skipped"] == 0
