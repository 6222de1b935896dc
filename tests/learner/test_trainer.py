"""The schedule, and which updates move the weights."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from learner.algorithms.credit import GroupRelative
from learner.algorithms.table import resolve
from learner.training.trainer import learning_rate
from tests.learner.builders import adamw, credit, groups, grpo, random_batch, scored, slow_gradients
from tests.learner.stages import assert_close, assert_equal, fill, gradients, stage, weights


def gradients_of(worker, batch, temperature=1.0):
    worker.step(groups(batch), updates=1, temperature=temperature)
    return gradients(worker)


def test_warm_up_and_schedules_end_where_they_say():
    warm = adamw(learning_rate=1.0, warmup_updates=4)
    assert [learning_rate(warm, u, 10) for u in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = adamw(learning_rate=1.0, warmup_updates=2, schedule="linear", final_fraction=0.0)
    assert [learning_rate(linear, u, 7) for u in range(7)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0])
    cosine = adamw(learning_rate=2.0, schedule="cosine", final_fraction=0.1)
    assert [learning_rate(cosine, u, 5) for u in (0, 2, 4, 9)] == pytest.approx([2.0, 1.1, 0.2, 0.2])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_the_slow_references(start, model_dir, other_dir, temperature):
    batch = random_batch(groups=4)
    worker = start(model_dir, max_tokens_per_microbatch=48, logprob_chunk_tokens=8)
    worker.begin_stage(stage(grpo(), adamw(max_grad_norm=1e9), 5))
    other = AutoModelForCausalLM.from_pretrained(other_dir, dtype=torch.float32)
    fill(worker._stage.models["reference"].causal_lm, dict(other.named_parameters()))
    found = gradients_of(worker, batch, temperature)
    expected = slow_gradients(model_dir, other_dir, batch, credit(GroupRelative(), batch), temperature=temperature)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "config", [{"max_tokens_per_microbatch": 1}, {"logprob_chunk_tokens": 3}, {"compute_dtype": "float32"}]
)
def test_micro_batches_chunks_and_order_never_change_the_update(start, model_dir, config):
    batch = random_batch(groups=4)
    plain = start(model_dir)
    plain.begin_stage(stage(grpo(), adamw(max_grad_norm=1e9), 5))
    expected = gradients_of(plain, batch)
    worker = start(model_dir, **config)
    worker.begin_stage(stage(grpo(), adamw(max_grad_norm=1e9), 5))
    assert_close(gradients_of(worker, batch[::-1]), expected)


class Count(TorchDispatchMode):
    """How often each operation was computed."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_what_is_computed_again_for_the_backward_pass_has_the_same_bits(start, model_dir):
    gradients, calls = [], []
    for what in ("none", "selective", "full"):
        worker = start(model_dir, activation_checkpointing=what)
        worker.begin_stage(stage(grpo(), adamw(max_grad_norm=1e9), 5))
        with Count() as count:
            gradients.append(gradients_of(worker, random_batch()))
        calls.append(count.calls)
    none, selective, full = calls
    assert none["mm"] == selective["mm"] < full["mm"] and none["silu"] < selective["silu"] == full["silu"]
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys() and all(torch.equal(other[name], x) for name, x in gradients[0].items())


@pytest.mark.slow
def test_compiled_layers_have_the_gradients_of_others(start, model_dir, monkeypatch):
    """What is captured; code for the CPU is not made of it, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    counters.clear()
    for compiled in (False, True):
        assert not counters["stats"]
        worker = start(model_dir, compile=compiled, activation_checkpointing="selective")
        worker.begin_stage(stage(grpo(), adamw(max_grad_norm=1e9), 5))
        found.append(gradients_of(worker, random_batch()))
    assert counters["stats"]["calls_captured"] and not counters["graph_break"]
    plain, compiled = found
    assert plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_gradient_over_the_threshold_is_scaled_to_it_and_one_below_is_left(start, model_dir):
    batch, norms = random_batch(), []
    for limit in (1e9, 1.001, 0.999):
        worker = start(model_dir)
        if norms:
            limit *= norms[0]
        worker.begin_stage(stage(grpo(), adamw(max_grad_norm=limit), 5))
        applied = gradients_of(worker, batch)
        norms.append(math.sqrt(sum(g.square().sum().item() for g in applied.values())))
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert norms[2] == pytest.approx(0.999 * norms[0], rel=1e-6)


def test_a_non_finite_update_is_skipped_and_three_in_a_row_stop(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    good = random_batch()
    bad = [*good, *(scored("bad", i, [5], [6], reward=float(i), logprobs=[x]) for i, x in enumerate([math.nan, -1.0]))]
    before = weights(worker)
    metrics = worker.step(groups(bad), updates=2, temperature=1.0).metrics
    assert metrics["skipped"] == 2 and "grad_norm" not in metrics
    assert_equal(weights(worker), before)
    assert worker.step(groups(good), updates=1, temperature=1.0).metrics["skipped"] == 0
    assert not torch.equal(before["lm_head.weight"], weights(worker)["lm_head.weight"])
    with pytest.raises(RuntimeError, match="3 updates in a row"):
        worker.step(groups(bad), updates=3, temperature=1.0)


def equal_rewards(batch):
    samples = [x.sample for x in batch]
    return [scored(s.group_id, s.index, s.prompt_ids, s.output_ids, reward=0.3, logprobs=s.logprobs) for s in samples]


def test_without_signal_the_step_is_skipped_and_the_schedule_advances(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(kl=0.0), adamw(learning_rate=1.0, warmup_updates=4), 10))
    before = weights(worker)
    for batch in (equal_rewards(random_batch()), [scored("g", i, [5], [6]) for i in range(3)]):
        report = worker.step(groups(batch), updates=1, temperature=1.0)
        assert (report.metrics["no_signal"], report.metrics["skipped"]) == (1, 0)
    assert_equal(weights(worker), before)
    assert report.tokens == 0 and report.advantages == [None] * 3
    assert worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics["learning_rate"] == 0.75


def test_equal_rewards_still_feel_the_kl_term(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    metrics = worker.step(groups(equal_rewards(random_batch())), updates=1, temperature=1.0).metrics
    assert metrics["no_signal"] == 0 and metrics["grad_norm"] > 0


def test_a_learning_rate_of_zero_leaves_every_bit(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(learning_rate=0.0, weight_decay=0.1), 10))
    before = weights(worker)
    worker.step(groups(random_batch()), updates=3, temperature=1.0)
    assert_equal(weights(worker), before)


def test_a_step_of_adamw_moves_every_weight_by_the_learning_rate(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve("sft", {}, {}), adamw(learning_rate=1e-5), 10))
    before = weights(worker)
    worker.step(groups(random_batch()), updates=1, temperature=1.0)
    moved = (weights(worker)["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]).abs()
    assert moved.median().item() == pytest.approx(1e-5, rel=1e-2)
