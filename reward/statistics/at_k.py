"""pass@k, maj@k and rm@k: pure functions of the judged answers to one question. The caller averages over questions."""

import math
import random
from collections.abc import Sequence
from itertools import combinations, groupby
from operator import itemgetter
from typing import NamedTuple

ALL_SUBSETS = 10_000
DRAWN_SUBSETS = 1_000


class Estimate(NamedTuple):
    value: float
    standard_error: float
    """Of drawing subsets; 0 where all were counted."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one. Unbiased for n >= k."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k with n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool | None], k: int, seed: int) -> Estimate:
    """The chance that the plurality answer of k samples is right.

    Answers are in canonical form: the same text for equal ones. Ties go to the answer that occurs first; a missing answer
    has no vote, and no votes at all are wrong. A sample of which nobody knows whether it is correct (None) votes against the
    right answer, so that losing judgements never helps. Over all subsets of size k when there are at most 10,000, else over
    1,000 drawn by `seed`.
    """
    n = len(answers)
    if not 1 <= k <= n or len(correct) != n:
        raise ValueError(
            f"maj@k with {n} answers, {len(correct)} judgements, k={k}; expected as many judgements and 1 <= k <= n"
        )
    if math.comb(n, k) <= ALL_SUBSETS:
        wins = [_plurality_is_right(subset, answers, correct) for subset in combinations(range(n), k)]
        return Estimate(sum(wins) / len(wins), 0.0)
    rng = random.Random(seed)
    wins = [_plurality_is_right(sorted(rng.sample(range(n), k)), answers, correct) for _ in range(DRAWN_SUBSETS)]
    value = sum(wins) / len(wins)
    return Estimate(value, math.sqrt(value * (1 - value) / len(wins)))


def rm_at_k(scores: Sequence[float], correct: Sequence[bool], k: int) -> float:
    """The chance that the sample with the highest score of k is right (best of k), over all subsets; equal scores share it."""
    n = len(scores)
    if not 1 <= k <= n or len(correct) != n:
        raise ValueError(f"rm@k with {n} scores, {len(correct)} judgements, k={k}; expected as many judgements and 1 <= k <= n")
    chance, below = 0.0, 0
    for _, tied in groupby(sorted(zip(scores, correct, strict=True), key=itemgetter(0)), key=itemgetter(0)):
        marks = [mark for _, mark in tied]
        best_here = math.comb(below + len(marks), k) - math.comb(below, k)
        chance += best_here / math.comb(n, k) * sum(marks) / len(marks)
        below += len(marks)
    return chance


def _plurality_is_right(subset: Sequence[int], answers: Sequence[str | None], correct: Sequence[bool | None]) -> bool:
    votes: dict[str, int] = {}
    first: dict[str, int] = {}
    unknown = 0
    for index in subset:
        answer = answers[index]
        if correct[index] is None:
            unknown += 1
        elif answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
            first.setdefault(answer, index)
    if not votes:
        return False
    if unknown:
        right, wrong = (max((n for a, n in votes.items() if correct[first[a]] is mark), default=0) for mark in (True, False))
        return right > wrong + unknown
    # dicts keep the order of first occurrence, and max takes the first of equals
    return bool(correct[first[max(votes, key=votes.__getitem__)]])
