from itertools import combinations, product

import pytest

from reward.answers.equality import canonical, same
from reward.statistics.at_k import maj_at_k, pass_at_k, rm_at_k


def vote(answers, gold, k, seed=0):
    return maj_at_k(list(map(canonical, answers)), [same(gold, answer) for answer in answers], k, seed)


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (4, 1, 4, 1.0),
        (4, 0, 4, 0.0),
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),
        (4, 2, 2, 5 / 6),
        (5, 2, 3, 0.9),
        (1, 1, 1, 1.0),
        (8, 8, 3, 1.0),
    ],
)
def test_pass_at_k_matches_the_table_worked_by_hand(n, c, k, value):
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-15)


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations(range(n), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_needs_k_of_n_samples(n, c, k):
    with pytest.raises(ValueError, match="expected 0 <= c <= n and 1 <= k <= n"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "k", "value"),
    [
        (["7", "7", "8"], 3, 1.0),
        (["8", "8", "7"], 3, 0.0),
        (["7", "8"], 2, 1.0),  # a tie goes to the first
        (["8", "7"], 2, 0.0),
        (["8", "7.0", "14/2"], 3, 1.0),  # pooled by value
        ([None, None, "7"], 3, 1.0),  # no answer, no vote
        ([None, None, None], 3, 0.0),
        (["7", "8", "8"], 1, 1 / 3),
        (["7", "8", "8"], 2, 2 / 3),  # (7, 8), (7, 8), (8, 8)
        (["8", "7", "7", "8"], 3, 0.5),  # 877, 878, 878, 778
    ],
)
def test_maj_at_k_matches_the_table_worked_by_hand(answers, k, value):
    estimate = vote(answers, "7", k)
    assert estimate.value == pytest.approx(value, abs=1e-15) and estimate.standard_error == 0.0


def test_maj_at_1_is_the_mean_accuracy():
    assert vote(["7", "8", None, "7"], "7", 1).value == 0.5


def test_many_subsets_are_drawn_by_the_seed_with_their_standard_error():
    answers = ["7"] * 8 + ["8"] * 8
    exact = maj_at_k(answers[:1] + answers[8:], [True] + [False] * 8, 3, 0)
    assert exact == (0.0, 0.0)
    first = vote(answers, "7", 7)  # C(16, 7) = 11,440 subsets; with an odd k and 8 against 8, each side wins half of them
    assert first == vote(answers, "7", 7) and first != vote(answers, "7", 7, seed=1)
    assert abs(first.value - 0.5) < 0.08
    assert first.standard_error == pytest.approx((first.value * (1 - first.value) / 1000) ** 0.5)


def test_at_most_ten_thousand_subsets_are_all_counted():
    assert vote(["7"] * 8 + ["8"] * 8, "7", 5).value == 0.5  # C(16, 5) = 4,368


@pytest.mark.parametrize("answers", ["77889", "78899", "78787", "88779", "7-8-7"])
def test_losing_a_judgement_never_raises_maj_at_k(answers):
    answers = [None if a == "-" else a for a in answers]
    marks = [a == "7" for a in answers]
    figures = {}
    for lost in product((False, True), repeat=len(answers)):
        known = [None if gone else mark for gone, mark in zip(lost, marks, strict=True)]
        figures[lost] = [maj_at_k(answers, known, k, 0).value for k in range(1, 6)]
        for i in (i for i, gone in enumerate(lost) if gone):
            before = figures[(*lost[:i], False, *lost[i + 1 :])]
            assert all(now <= then for now, then in zip(figures[lost], before, strict=True)), (lost, i)
    assert figures[(True,) * 5] == [0.0] * 5


def test_maj_at_k_needs_k_samples_and_a_judgement_for_each():
    with pytest.raises(ValueError, match="maj@k with 1 answers, 1 judgements, k=2"):
        vote(["7"], "7", 2)
    with pytest.raises(ValueError, match="maj@k with 1 answers, 2 judgements, k=1"):
        maj_at_k(["7"], [True, True], 1, 0)


@pytest.mark.parametrize(
    ("scores", "correct", "k", "value"),
    [
        ([1, 2, 3], [1, 0, 1], 1, 2 / 3),
        ([1, 2, 3], [0, 0, 1], 2, 2 / 3),  # of (1, 2), (1, 3), (2, 3)
        ([1, 2, 3], [0, 1, 0], 3, 0.0),
        ([1, 1], [1, 0], 2, 0.5),  # a tie is shared
        ([2, 2, 1], [1, 0, 1], 2, (1 / 2 + 1 + 0) / 3),
    ],
)
def test_rm_at_k_matches_the_table_worked_by_hand(scores, correct, k, value):
    assert rm_at_k(scores, correct, k) == pytest.approx(value, abs=1e-15)


def test_rm_at_k_is_the_mean_over_subsets_of_their_best():
    scores, correct = [0.3, -1, 2.5, 0.3, 7, -2, 0.3], [True, False, True, False, False, True, True]
    for k in range(1, 8):
        wins = []
        for subset in combinations(range(7), k):
            best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
            wins.append(sum(correct[i] for i in best) / len(best))
        assert rm_at_k(scores, correct, k) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    with pytest.raises(ValueError, match="rm@k with 2 scores, 2 judgements, k=3"):
        rm_at_k([1, 2], [True, True], 3)
