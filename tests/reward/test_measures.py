import random
from statistics import fmean

import pytest

from reward.statistics.classification import auroc, balanced_accuracy, expected_calibration_error, pair_accuracy


def draws(seed):
    """Scores with many ties, and labels that follow them somewhat."""
    rng = random.Random(seed)
    scores = [rng.randint(0, 8) / 8 for _ in range(rng.randint(2, 40))]
    return scores, [int(rng.random() < 0.2 + 0.6 * score) for score in scores]


def test_pair_accuracy_counts_ties_half():
    assert pair_accuracy([3, 1, 2, 0], [1, 1, 3, -1]) == (1 + 0.5 + 0 + 1) / 4
    assert pair_accuracy([], []) is None


@pytest.mark.parametrize("seed", range(30))
def test_auroc_is_the_share_of_right_and_wrong_ones_in_order(seed):
    scores, labels = draws(seed)
    both = [(a, b) for a, la in zip(scores, labels, strict=True) for b, lb in zip(scores, labels, strict=True) if la > lb]
    expected = fmean([(a > b) + (a == b) / 2 for a, b in both]) if both else None
    assert auroc(scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(30))
def test_balanced_accuracy_weighs_both_classes_alike(seed):
    scores, labels = draws(seed)
    predicted = [int(score > 0.5) for score in scores]
    hits = {y: [p == y for p, label in zip(predicted, labels, strict=True) if label == y] for y in (0, 1)}
    expected = (fmean(hits[0]) + fmean(hits[1])) / 2 if hits[0] and hits[1] else None
    assert balanced_accuracy(predicted, labels) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(30))
def test_calibration_error_is_the_gap_in_every_bin_weighted_by_its_size(seed):
    rng = random.Random(seed)
    probabilities = [rng.random() for _ in range(30)] + [0.0, 1.0, 0.5]
    labels = [rng.random() for _ in probabilities]
    total = 0.0
    for k in range(4):
        inside = [(p, y) for p, y in zip(probabilities, labels, strict=True) if k <= 4 * p < k + 1 or (k == 3 and p == 1)]
        if inside:
            total += len(inside) / len(labels) * abs(fmean(p for p, _ in inside) - fmean(y for _, y in inside))
    assert expected_calibration_error(probabilities, labels, bins=4) == pytest.approx(total)


def test_hand_worked_values():
    assert auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert auroc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert balanced_accuracy([1, 1, 1, 0], [1, 1, 0, 0]) == 0.75
    assert expected_calibration_error([0.9, 0.9, 0.1], [1, 0, 0]) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.1)


def test_what_cannot_be_measured_is_none_and_what_is_no_label_is_refused():
    assert auroc([0.5, 0.6], [1, 1]) is None and auroc([], []) is None
    assert balanced_accuracy([1, 0], [0, 0]) is None
    assert expected_calibration_error([], []) is None
    with pytest.raises(ValueError, match="labels has 0.5"):
        auroc([0.5], [0.5])
    with pytest.raises(ValueError, match="predicted has 0.7"):
        balanced_accuracy([0.7], [1])
    with pytest.raises(ValueError, match="probability 1.5"):
        expected_calibration_error([1.5], [1])
