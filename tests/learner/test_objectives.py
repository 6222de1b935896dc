"""Objectives of scalar models against their formulas, on given scalars."""

import math

import pytest
import torch

from learner.training import objectives
from learner.training.objectives import LabelObjective, RankingObjective, ValueObjective, policy_loss
from learner.types import LabelBatch, PackedBatch, ValueBatch

F64 = torch.float64


def micro(kind, count: int, **columns):
    """Trained tokens with these columns, of equal weight."""
    whole = torch.arange(count)
    given = {name: torch.empty(0) for name in ("input_ids_BT", "position_ids_BT", "segment_BT", "target_N")}
    given |= {"source_N": whole, "index_N": whole, "sample_N": whole, "group_N": whole, "slot_N": whole}
    given |= {"token_weight_N": torch.full((count,), 1 / max(count, 1), dtype=F64)}
    return kind(**given | columns)


@pytest.fixture(autouse=True)
def the_scalars_are_the_model(monkeypatch):
    """A model is here what it would say: (K, positions)."""
    monkeypatch.setattr(objectives, "scalars", lambda model, micro, at_N: model[:, at_N])


def metrics_of(objective, sums, count: int) -> dict[str, float]:
    packed = PackedBatch(micro_batches=(), trained_tokens=count, padding_share=0.0)
    return objective.metrics({name: float(value) for name, value in sums.items()}, packed, [])


def test_the_policy_loss_has_the_coefficient_as_its_derivative():
    logprob = torch.tensor([-1.0, -2.0], requires_grad=True)
    policy_loss(torch.tensor([3.0, -1.0]), logprob, torch.tensor([0.5, 0.25])).backward()
    assert logprob.grad.tolist() == [-1.5, 0.25]


def test_the_value_loss_is_the_larger_of_the_free_and_the_clipped_square():
    draw = torch.Generator().manual_seed(0)
    value, old, target = (torch.randn(3, 200, generator=draw, dtype=F64)).unbind()
    model = value[None].clone().requires_grad_()
    loss, sums, _ = ValueObjective(clip=0.5)(model, micro(ValueBatch, 200, return_N=target, old_value_N=old))
    loss.backward()
    expected = value.clone().requires_grad_()
    near = torch.max(torch.min(expected, old + 0.5), old - 0.5)
    losses = 0.5 * torch.max((expected - target) ** 2, (near - target) ** 2)
    losses.mean().backward()
    torch.testing.assert_close(loss, losses.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.grad[0], expected.grad, rtol=0, atol=1e-12)
    beyond = ((near - target) ** 2 > (expected - target) ** 2).sum().item()
    assert 20 < beyond < 180
    metrics = metrics_of(ValueObjective(clip=0.5), sums, 200)
    assert metrics == {"value_loss": pytest.approx(losses.mean().item()), "value_clip_fraction": beyond / 200}


def test_a_value_that_has_not_moved_is_not_clipped():
    value = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    _, sums, _ = ValueObjective(clip=0.1)(value, micro(ValueBatch, 50, return_N=torch.ones(50), old_value_N=value[0]))
    assert sums["clipped"] == 0


def test_the_value_is_read_before_the_token_and_labels_at_it():
    model = torch.tensor([[10.0, 20.0, 30.0]])
    at = {"source_N": torch.tensor([0]), "index_N": torch.tensor([2])}
    value = micro(ValueBatch, 1, **at, return_N=torch.zeros(1), old_value_N=torch.zeros(1))
    assert ValueObjective(clip=1.0)(model, value)[2].tolist() == [10.0]
    label = micro(LabelBatch, 1, **at, label_N=torch.zeros(1))
    assert LabelObjective(weight_KS=torch.ones(1, 1))(model, label)[2].tolist() == [[30.0]]


def ranking(scalars, labels, groups, weight=None):
    model = torch.tensor(scalars, dtype=F64, requires_grad=True)
    counts = torch.ones(model.shape) if weight is None else torch.tensor(weight)
    objective = RankingObjective(weight_KS=counts)
    given = micro(LabelBatch, len(labels), label_N=torch.tensor(labels), group_N=torch.tensor(groups))
    loss, sums, _ = objective(model, given)
    loss.backward()
    return loss.item(), model.grad.tolist(), metrics_of(objective, sums, len(labels))


def test_ranking_averages_over_pairs_whichever_output_comes_first():
    loss, grad, metrics = ranking([[2.0, 5.0, 1.0, 4.0]], [1.0, 0.0, 0.0, 1.0], [7, 3, 7, 3])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert loss == pytest.approx((right + wrong) / 2)
    assert grad[0] == pytest.approx([-0.5 / (1 + math.e), 0.5 / (1 + 1 / math.e), 0.5 / (1 + math.e), -0.5 / (1 + 1 / math.e)])
    assert metrics == {"ranking_loss": pytest.approx((right + wrong) / 2), "ranking_accuracy": 0.5}


def test_a_tie_is_not_ranked_right():
    loss, _, metrics = ranking([[1.0, 1.0]], [1.0, 0.0], [0, 0])
    assert loss == pytest.approx(math.log(2)) and metrics["ranking_accuracy"] == 0


def test_every_member_of_an_ensemble_is_trained_on_its_own_sample_and_judged_on_all():
    scalars, labels, groups = [[0.0, 2.0, 0.0, 1.0], [0.0, -1.0, 0.0, 3.0]], [0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1]
    loss, grad, metrics = ranking(scalars, labels, groups, weight=[[2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    each = [[math.log(1 + math.exp(-m)) for m in row] for row in ([2.0, 1.0], [-1.0, 3.0])]
    assert loss == pytest.approx((2 * each[0][0] + each[1][1]) / 2)
    assert grad[0][2:] == [0, 0] and grad[1][:2] == [0, 0]
    assert metrics["ranking_loss"] == pytest.approx(sum(map(sum, each)) / 4)
    assert metrics["ranking_accuracy"] == 1


def test_labels_are_averaged_over_the_batch_and_may_be_soft():
    scalars, labels = [0.5, -1.0, 2.0, 3.0], [1.0, 0.0, 0.25, 0.75]
    model = torch.tensor([scalars], dtype=F64, requires_grad=True)
    objective = LabelObjective(weight_KS=torch.ones(1, 4))
    loss, sums, _ = objective(model, micro(LabelBatch, 4, label_N=torch.tensor(labels, dtype=F64)))
    loss.backward()
    p = [1 / (1 + math.exp(-x)) for x in scalars]
    each = [-y * math.log(q) - (1 - y) * math.log(1 - q) for y, q in zip(labels, p, strict=True)]
    assert loss.item() == pytest.approx(sum(each) / 4)
    assert model.grad[0].tolist() == pytest.approx([(q - y) / 4 for y, q in zip(labels, p, strict=True)])
    assert metrics_of(objective, sums, 4) == {"label_loss": pytest.approx(sum(each) / 4), "label_accuracy": 0.75}


def test_a_micro_batch_without_rows_adds_nothing():
    none = torch.empty(0)
    values = micro(ValueBatch, 0, return_N=none, old_value_N=none, token_weight_N=none)
    labels = micro(LabelBatch, 0, label_N=none, token_weight_N=none)
    empty = torch.empty(2, 1, requires_grad=True)
    of_labels = [(kind(weight_KS=torch.ones(2, 0)), labels) for kind in (RankingObjective, LabelObjective)]
    for objective, nothing in [(ValueObjective(clip=1.0), values), *of_labels]:
        loss, sums, _ = objective(empty, nothing)
        loss.backward()
        assert loss == 0 and not any(sums.values())
