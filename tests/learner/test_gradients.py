"""For every row the full gradient, through packing, sharding and the trainer, is its textbook loss's, on one rank and two."""

from functools import partial

import pytest
import torch

from learner.training.reward_model_stage import bootstrap, outputs, pairs
from reward.models.scalar_model import build
from tests.learner.builders import new_worker
from tests.learner.ranks import MEMBERS, REWARD_MODEL_BATCHES, ROWS, all_gradients, run_ranks
from tests.learner.slow import HEAD_SEED, batch_of, label_gradients, policy_gradients, ranking_gradients
from tests.learner.stages import assert_close

pytestmark = pytest.mark.slow

LOSSES = {"outcome_model": ("outcome", pairs, ranking_gradients), "process_model": ("process", outputs, label_gradients)}


@pytest.fixture(scope="module")
def found(model_dir, other_dir, tmp_path_factory):
    """Of one rank with micro-batches of one row each, and of both of two ranks."""
    worker = new_worker(model_dir, max_tokens_per_microbatch=1)
    one = all_gradients(worker, tmp_path_factory.mktemp("one"), other_dir)
    worker.close()
    return [one, *run_ranks(partial(all_gradients, reference_dir=other_dir), model_dir, tmp_path_factory.mktemp("two"))]


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_of_a_row_is_that_of_its_textbook_loss(found, model_dir, other_dir, name):
    batch = batch_of(ROWS[name].weighting.unit, process=ROWS[name].reward == "process_model")
    policy, critic = policy_gradients(name, model_dir, other_dir, batch)
    for each in found:
        assert_close(each[name, "policy"], policy)
        if (name, "critic") in each:
            assert_close(each[name, "critic"], critic)
    assert (name, "critic") in found[0] or name != "ppo"


@pytest.mark.parametrize("members", [1, MEMBERS])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_reward_model_is_that_of_its_loss_on_each_members_bootstrap_sample(found, model_dir, name, members):
    kind, examples, gradients = LOSSES[name]
    batch = REWARD_MODEL_BATCHES[name]
    model = build(model_dir, kind, members=members, seed=HEAD_SEED, dtype=torch.float64)
    counts = bootstrap(examples(batch), members, HEAD_SEED)
    expected = gradients(model, batch, counts)
    for each in found:
        assert_close(each[name, members], expected)
    assert members == 1 or len({tuple(count) for count in counts}) == members


def test_every_rank_reports_the_same_and_as_one_rank_does(found):
    one, first, second = found
    for key, report in one.items():
        if key[-1] == "report":
            assert first[key] == second[key]
            metrics = {name: value for name, value in report.metrics.items() if name != "padding_share"}
            assert {name: first[key].metrics[name] for name in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-5)
            assert [a is None for a in first[key].advantages] == [a is None for a in report.advantages]
            mine = [a for a in first[key].advantages if a is not None]
            assert mine == pytest.approx([a for a in report.advantages if a is not None], rel=1e-4, abs=1e-5)
