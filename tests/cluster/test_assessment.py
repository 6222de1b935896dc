import math

import pytest

from cluster.evaluation.held_out import outcome_quality, process_quality
from reward.config import RewardModelConfig
from reward.types import Labelled, LabelledGroup, Target
from tests.reward.builders import sample


def example(*labels) -> Labelled:
    targets = tuple(Target(position=p, value=v) for p, v in enumerate(labels))
    return Labelled(sample=sample("", tokens=len(labels)), targets=targets)


def group(*examples):
    return LabelledGroup(labelled=examples)


def test_an_outcome_model_is_measured_on_pairs_within_questions_and_on_all_outputs():
    examples = [group(example(1.0), example(0.0), example(0.0)), group(example(1.0)), group(example(0.0))]
    scalars = [[(2.0,)], [(1.0,)], [(3.0,)], [(-1.0,)], [(-2.0,)]]
    found = outcome_quality(examples, scalars, RewardModelConfig())
    assert (found["pairs"], found["pair_accuracy"], found["spread"]) == (2, 0.5, 0.0)
    assert found["auroc"] == pytest.approx((2 + 1) / 6), "right 2 and -1 against wrong 1, 3 and -2: (2+0) and (0+1) of 6"


def test_a_process_model_is_measured_on_every_step_at_probability_one_half():
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    examples = [group(example(1.0, 0.0)), group(example(1.0, 1.0))]
    scalars = [[(logit(0.9),), (logit(0.4),)], [(logit(0.8),), (logit(0.3),)]]
    found = process_quality(examples, scalars, RewardModelConfig())
    assert (found["steps"], found["accuracy"]) == (4, 0.75)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["auroc"] == pytest.approx(2 / 3)
    assert found["calibration_error"] == pytest.approx((0.1 + 0.4 + 0.2 + 0.7) / 4)


def test_an_ensemble_is_measured_as_it_scores():
    examples = [group(example(1.0), example(0.0))]
    scalars = [[(3.0, 1.0)], [(2.5, 1.5)]]
    mean, low = (outcome_quality(examples, scalars, RewardModelConfig(members=2, combine=c)) for c in ("mean", "minimum"))
    assert (mean["pair_accuracy"], low["pair_accuracy"], mean["spread"]) == (0.5, 0.0, 0.75)


def test_nothing_to_measure_is_none_and_not_a_number():
    found = outcome_quality([], [], RewardModelConfig())
    assert (found["pairs"], found["pair_accuracy"], found["auroc"], found["spread"]) == (0, None, None, None)
    assert process_quality([], [], RewardModelConfig())["accuracy"] is None
