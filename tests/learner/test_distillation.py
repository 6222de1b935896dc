"""On-policy distillation: the credit of a teacher's log-probabilities, and policies that come closer to one."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.algorithms.distillation import ReverseKL, TopK
from learner.algorithms.table import resolve
from learner.training.description import Reader
from learner.training.objectives import policy_loss
from rollout.types import FinishReason
from tests.learner.builders import VOCABULARY, adamw, credit, groups, random_batch, scored, signals
from tests.learner.slow import batch_of
from tests.learner.stages import assert_equal, stage, weights

PROMPTS = [(5, 9), (11, 4, 6), (30,)]


ROWS = ["distill", "distill_top_k"]


def taught(teacher, optimizer=None, row="distill", **weighting):
    return stage(resolve(row, {}, weighting), optimizer or adamw(), 100, teacher=teacher)


def test_the_credit_of_a_token_is_what_the_teacher_gives_it_less_what_the_policy_gave_it():
    batch = [
        scored("g", 0, [5], [6, 7, 8], reward=1.0, mask=[True, False, True], finish=FinishReason.LENGTH),
        scored("g", 1, [5], [6]),
        scored("h", 0, [5], [6], reward=0.0),
    ]
    said = signals(3, old=[(-1.0, -9.0, -2.0), (-1.0,), (-0.5,)], teacher=[(-3.0, -1.0, -0.5), None, (-1.5,)])
    assert credit(ReverseKL(), batch, said) == [(-2.0, 0.0, 1.5), None, (-1.0,)]
    assert ReverseKL().metrics(groups(batch), said) == {"teacher_kl": pytest.approx((2.0 - 1.5 + 1.0) / 3)}
    assert ReverseKL().metrics(groups(batch[1:2]), signals(1)) == {}


@pytest.mark.parametrize("missing", ["teacher", "old"])
def test_log_probabilities_that_do_not_fit_their_output_are_refused(missing):
    rows = {"teacher": [(-1.0, -1.0)], "old": [(-1.0, -1.0)]} | {missing: [(-1.0,)]}
    with pytest.raises(ValueError, match=f"group g, index 0: found 1 {missing} log-probabilities, expected 2"):
        credit(ReverseKL(), [scored("g", 0, [5], [6, 7], reward=1.0)], signals(1, **rows))


def test_over_the_policys_outputs_its_mean_gradient_is_that_of_the_reverse_kl():
    """Every token as an output, weighted by its probability, in float64."""
    draw = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 9, generator=draw, dtype=torch.float64)
    teacher, logprob = other.log_softmax(0), logits.requires_grad_().log_softmax(0)
    (expected,) = torch.autograd.grad((logprob.exp() * (logprob - teacher)).sum(), logits, retain_graph=True)
    batch = [scored(f"g/{v}", 0, [5], [v], reward=0.0) for v in range(9)]
    said = signals(9, old=[(x,) for x in logprob.tolist()], teacher=[(x,) for x in teacher.tolist()])
    advantage = torch.tensor([a for (a,) in credit(ReverseKL(), batch, said)], dtype=torch.float64)
    (found,) = torch.autograd.grad((logprob.detach().exp() * advantage * logprob).sum(), logits)
    torch.testing.assert_close(-found, expected, rtol=0, atol=1e-14)


def test_the_divergence_of_several_tokens_and_the_rest_is_at_most_the_whole_one_and_has_its_own_gradient():
    """In float64 over logits: with k one less than the vocabulary it is the whole one."""
    draw = torch.Generator().manual_seed(1)
    logits, other = (2 * torch.randn(5, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    teacher, weight = other.log_softmax(1), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    everything, found = logits.requires_grad_().log_softmax(1), []
    whole_N = (everything.exp() * (everything - teacher)).sum(1)
    for k in (1, 4, 11):
        token_NM = everything.topk(k).indices
        rest = torch.ones(5, 12, dtype=torch.bool).scatter(1, token_NM, False)

        def outcomes(logprob, token_NM=token_NM, rest=rest):
            others = logprob.masked_fill(~rest, -torch.inf).logsumexp(1, keepdim=True)
            return torch.cat([logprob.gather(1, token_NM), others], 1)

        mine_NO, theirs_NO = outcomes(everything), outcomes(teacher)
        micro = SimpleNamespace(advantage_N=torch.full((5,), 3.0), token_weight_N=weight, teacher_logprob_NO=theirs_NO)
        coefficient_NO, sums = TopK(k=k)(mine_NO.detach(), micro)
        divergence_N = (mine_NO.exp() * (mine_NO - theirs_NO)).sum(1)
        (expected,) = torch.autograd.grad(3 * (weight * divergence_N).sum(), logits, retain_graph=True)
        (gradient,) = torch.autograd.grad(policy_loss(coefficient_NO, mine_NO, weight[:, None]), logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-14)
        assert sums["teacher_kl"].item() == pytest.approx(divergence_N.sum().item(), abs=1e-14)
        assert sums["objective"].item() == pytest.approx(-3 * (weight * divergence_N).sum().item(), abs=1e-14)
        assert (divergence_N <= whole_N + 1e-12).all()
        found.append(divergence_N.sum().item())
    assert found[0] < found[1] < found[2] == pytest.approx(whole_N.sum().item(), abs=1e-12)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_that_is_the_policy_teaches_exactly_nothing(start, model_dir, dtype, row):
    worker = start(model_dir, compute_dtype=dtype)
    worker.begin_stage(taught(model_dir, row=row, **({"old": "learner"} if row == "distill" else {})))
    before = weights(worker)
    report = worker.step(groups(batch_of("token")), updates=2, temperature=0.7)
    assert {a for a in report.advantages if a is not None} == {0.0 if row == "distill" else 1.0}
    assert (report.metrics["teacher_kl"], report.metrics["no_signal"], report.metrics["grad_norm"]) == (0.0, 2, 0.0)
    assert_equal(weights(worker), before)


@torch.no_grad()
def slow_logprobs(directory, prompt) -> torch.Tensor:
    """Of every token after the prompt."""
    return (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)(torch.tensor([prompt]))
        .logits[0, -1]
        .log_softmax(-1)
    )


def of_every_token(worker, prompt) -> torch.Tensor:
    rows = worker.logprobs([(*prompt, v) for v in range(VOCABULARY)])
    return torch.tensor([row[-1] for row in rows], dtype=torch.float64)


def reverse_kl(worker, teacher) -> float:
    """Mean over the prompts."""
    student = [of_every_token(worker, prompt) for prompt in PROMPTS]
    pairs = zip(student, (slow_logprobs(teacher, prompt) for prompt in PROMPTS), strict=True)
    return sum((s.exp() * (s - t)).sum().item() for s, t in pairs) / len(PROMPTS)


def sampled(worker, seed: int, count: int = 64):
    """One-token outputs of the policy."""
    draw, batch = torch.Generator().manual_seed(seed), []
    for g, prompt in enumerate(PROMPTS):
        logprob = of_every_token(worker, prompt)
        tokens = torch.multinomial(logprob.exp(), count, replacement=True, generator=draw).tolist()
        batch += [scored(f"s/{g}", i, prompt, [v], reward=0.0, logprobs=[logprob[v].item()]) for i, v in enumerate(tokens)]
    return groups(batch)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_policy_comes_closer_to_its_teacher_whatever_the_rewards(start, model_dir, other_dir, row):
    worker = start(model_dir)
    worker.begin_stage(taught(other_dir, adamw(learning_rate=3e-3), row))
    before = reverse_kl(worker, other_dir)
    reports = [worker.step(sampled(worker, seed), updates=1, temperature=1.0) for seed in range(20)]
    assert reports[0].metrics["teacher_kl"] == pytest.approx(before, rel=0.2), "an estimate of it"
    assert reverse_kl(worker, other_dir) < 0.4 * before
    assert reports[-1].metrics["teacher_kl"] < 0.5 * reports[0].metrics["teacher_kl"]


def test_a_rejected_output_is_left_out_and_the_others_count_as_without_it(start, model_dir, other_dir):
    worker, batch = start(model_dir), random_batch()
    rejected = scored("g/0", 9, batch[0].sample.prompt_ids, [7, 8])
    rejected = replace(rejected, sample=replace(rejected.sample, rejected="log-probability nan at token 0"))
    reports = []
    for items in (batch, [*batch, rejected]):
        worker.begin_stage(taught(other_dir, adamw(learning_rate=0.0), "distill_top_k"))
        reports.append(worker.step(groups(items), updates=1, temperature=1.0))
    assert sorted(map(str, reports[1].advantages)) == ["1.0"] * 12 + ["None"]
    assert reports[1].metrics == pytest.approx(reports[0].metrics, rel=1e-5, abs=1e-7)


def test_a_checkpoint_leaves_the_teacher_where_it_is_and_goes_on_with_it(start, model_dir, other_dir, tmp_path):
    plan = taught(other_dir, adamw(learning_rate=3e-3))
    worker = start(model_dir)
    worker.begin_stage(plan)
    worker.step(groups(random_batch(0)), updates=1, temperature=1.0)
    worker.save(tmp_path)
    worker.writing(wait=True)
    expected = worker.step(groups(random_batch(1)), updates=1, temperature=1.0)
    names = Reader(tmp_path).read_metadata().state_dict_metadata
    assert {name.partition(".")[0] for name in names} == {"policy", "policy_trainer", "rng"}
    after = weights(worker)
    again = start(model_dir)
    again.load(tmp_path, plan)
    assert again.step(groups(random_batch(1)), updates=1, temperature=1.0) == expected
    assert_equal(weights(again), after)
    again.load(tmp_path, plan.model_copy(update={"teacher": None}))  # as an export does
    assert math.isfinite(again.logprobs([(5, 6)])[0][0])


def test_a_stage_has_a_teacher_where_its_row_needs_one_and_only_there(model_dir):
    with pytest.raises(ValueError, match="teacher: found none, expected one: the row decides"):
        stage(resolve("distill"), adamw(), 1)
    with pytest.raises(ValueError, match="teacher: found one, expected none: the row decides"):
        stage(resolve("sft"), adamw(), 1, teacher=model_dir)
