"""The worker's methods, on one rank."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from learner.algorithms.credit import GroupRelative
from learner.algorithms.table import resolve
from tests.learner.builders import VOCABULARY, adamw, credit, groups, grpo, random_batch, scored
from tests.learner.stages import stage


def with_logprobs(worker, batch, temperature):
    """The batch as if sampled from the worker's policy."""
    sequences = [x.sample.prompt_ids + x.sample.output_ids for x in batch]
    behaviour = worker.logprobs(sequences, temperature)
    return [
        scored(s.group_id, s.index, s.prompt_ids, s.output_ids, reward=x.verdict.reward, logprobs=row[len(s.prompt_ids) - 1 :])
        for x, row in zip(batch, behaviour, strict=True)
        for s in [x.sample]
    ]


def test_the_first_step_on_policy_has_no_kl_no_mismatch_and_ratio_one(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    report = worker.step(groups(with_logprobs(worker, random_batch(), 0.7)), updates=1, temperature=0.7)
    assert report.metrics["kl"] == 0
    assert report.metrics["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert report.metrics["clip_fraction"] == 0
    assert report.metrics["mismatch_max"] < 1e-5
    assert report.metrics["grad_norm"] > 0


def test_another_temperature_is_seen_as_mismatch(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    report = worker.step(groups(with_logprobs(worker, random_batch(), 1.0)), updates=1, temperature=0.7)
    assert report.metrics["mismatch_p50"] > 0.05


def test_the_reference_stays_while_the_policy_moves(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    assert worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics["kl"] == 0
    assert worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics["kl"] > 1e-4
    worker.begin_stage(stage(grpo(), adamw(), 10))
    assert worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics["kl"] == 0


def test_recomputed_old_logprobs_start_at_ratio_exactly_one_and_then_move(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(old="learner"), adamw(), 10))
    assert worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics["ratio_mean"] == 1
    assert worker.step(groups(random_batch()), updates=2, temperature=1.0).metrics["ratio_mean"] != 1


def test_mismatch_percentiles_are_those_of_the_trained_tokens(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    batch = random_batch()
    rows = worker.logprobs([x.sample.prompt_ids + x.sample.output_ids for x in batch])
    gaps = sorted(
        abs(found - behaviour)
        for x, row in zip(batch, rows, strict=True)
        for found, behaviour, sampled in zip(
            row[len(x.sample.prompt_ids) - 1 :], x.sample.logprobs, x.sample.sampled_mask, strict=True
        )
        if sampled
    )
    report = worker.step(groups(batch), updates=2, temperature=1.0)
    metrics = report.metrics
    assert metrics["trained_tokens"] == len(gaps)
    by_token = [abs(x) for row in report.mismatch for x in row or () if x]
    assert sorted(by_token) == pytest.approx(gaps, abs=1e-5)
    x, row, found = batch[0], rows[0], report.mismatch[0]
    assert found[0] == pytest.approx(row[len(x.sample.prompt_ids) - 1] - x.sample.logprobs[0], abs=1e-5), "with its sign"
    assert [row[0] for row in report.token_advantages] == report.advantages
    assert metrics["mismatch_max"] == pytest.approx(gaps[-1], abs=1e-5)
    assert metrics["mismatch_p50"] == pytest.approx(gaps[math.ceil(0.5 * len(gaps)) - 1], abs=1e-5)
    assert metrics["mismatch_mean"] == pytest.approx(math.fsum(gaps) / len(gaps), abs=1e-5)


def test_the_report_has_the_advantage_of_every_sample(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(), 10))
    batch = [*random_batch(), scored("x", 0, [5], [6, 7]), scored("x", 1, [5], [6], reward=1.0, logprobs=[-1.0])]
    report = worker.step(groups(batch), updates=1, temperature=1.0)
    assert report.advantages == [row[0] if row else None for row in credit(GroupRelative(), batch)]
    assert report.advantages[-2:] == [None, None]


def test_demonstrations_train_without_behaviour_and_report_no_ratio(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(resolve("sft", {}, {}), adamw(learning_rate=3e-3), 30))
    batch = [scored(f"d/{i}", 0, [5 + i], [6 + i, 7 + i, 2]) for i in range(4)]
    reports = [worker.step(groups(batch), updates=1, temperature=1.0) for _ in range(30)]
    assert reports[-1].metrics["objective"] > reports[0].metrics["objective"] + 1
    assert not [name for name in reports[0].metrics if name.startswith(("mismatch", "kl", "ratio", "clip"))]


def test_group_relative_training_raises_the_probability_of_what_was_rewarded(start, model_dir):
    worker = start(model_dir)
    worker.begin_stage(stage(grpo(), adamw(learning_rate=1e-3), 5))
    batch = with_logprobs(worker, [scored("g", i, [5, 9], [6 + i, 2], reward=float(i == 2)) for i in range(4)], 1.0)
    before = worker.logprobs([(5, 9, 6 + i, 2) for i in range(4)])
    for _ in range(3):
        worker.step(groups(batch), updates=1, temperature=1.0)
    after = worker.logprobs([(5, 9, 6 + i, 2) for i in range(4)])
    assert after[2][1] > before[2][1]
    assert all(after[i][1] < before[i][1] for i in (0, 1, 3))


def test_logprobs_are_those_of_transformers(start, tied_dir):
    worker = start(tied_dir, max_tokens_per_microbatch=16)
    sequences = [[5, 6, 7, 2], [9, 2], [3] * 9, [8]]
    model = AutoModelForCausalLM.from_pretrained(tied_dir, dtype=torch.float32)
    for ids, found in zip(sequences, worker.logprobs(sequences, temperature=0.8), strict=True):
        whole = (model(torch.tensor([ids])).logits[0, :-1] / 0.8).log_softmax(-1)
        assert found == pytest.approx(whole[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-5)


def test_bfloat16_compute_keeps_float32_masters_and_starts_at_kl_zero(start, model_dir):
    worker = start(model_dir, compute_dtype="bfloat16")
    worker.begin_stage(stage(grpo(), adamw(learning_rate=1e-6), 10))
    before = {name: x.clone() for name, x in worker.source("float32")}
    metrics = worker.step(groups(random_batch()), updates=1, temperature=1.0).metrics
    assert metrics["kl"] == 0 and metrics["skipped"] == 0
    moved = torch.cat([(x - before[name]).abs().flatten() for name, x in worker.source("float32")])
    assert (moved > 0).float().mean() > 0.9
    assert {p.dtype for p in worker._stage.models["reference"].parameters()} == {torch.bfloat16}


class LogitShapes(TorchDispatchMode):
    """Remembers the sizes of every operation's results that have a dimension of the vocabulary's size."""

    def __init__(self):
        super().__init__()
        self.elements = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = result if isinstance(result, tuple | list) else (result,)
        self.elements += [x.numel() for x in leaves if isinstance(x, torch.Tensor) and VOCABULARY in x.shape]
        return result


def test_a_step_never_makes_the_logits_of_all_trained_tokens(start, model_dir):
    worker = start(model_dir, logprob_chunk_tokens=16)
    worker.begin_stage(stage(grpo(old="learner"), adamw(), 3))
    with LogitShapes() as seen:
        tokens = worker.step(groups(random_batch(groups=5, size=6)), updates=1, temperature=1.0).tokens
    assert 16 * VOCABULARY in seen.elements
    assert max(seen.elements) < tokens * VOCABULARY / 2


def test_a_step_before_a_stage_is_refused(start, model_dir):
    with pytest.raises(RuntimeError, match="begin_stage"):
        start(model_dir).step(groups(random_batch()), updates=1, temperature=1.0)


def test_describe_counts_parameters_once(start, tied_dir):
    described = start(tied_dir).describe()
    assert described["parameters"] == AutoModelForCausalLM.from_pretrained(tied_dir).num_parameters()
    assert (described["rank"], described["world_size"]) == (0, 1)
