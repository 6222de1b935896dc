"""pass@k and maj@k: pure functions of the judged answers to one question. The averaging over questions is the caller's."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations
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


def maj_at_k(
    answers: Sequence[str | None],
    correct: Sequence[bool],
    k: int,
    same: Callable[[str | None, str | None], bool],
    seed: int,
) -> Estimate:
    """The chance that the plurality answer of k samples is right.

    Answers are pooled by `same`; ties go to the answer that occurs first; a missing answer has no vote, and no votes at
    all are wrong. Over all subsets of size k when there are at most 10,000, else over 1,000 drawn by `seed`.
    """
    n = len(answers)
    if not 1 <= k <= n or len(correct) != n:
        raise ValueError(
            f"maj@k with {n} answers, {len(correct)} judgements, k={k}; expected as many judgements and 1 <= k <= n"
        )
    pools = _pools(answers, same)
    if math.comb(n, k) <= ALL_SUBSETS:
        wins = [_plurality_is_right(subset, pools, correct) for subset in combinations(range(n), k)]
        return Estimate(sum(wins) / len(wins), 0.0)
    rng = random.Random(seed)
    wins = [_plurality_is_right(sorted(rng.sample(range(n), k)), pools, correct) for _ in range(DRAWN_SUBSETS)]
    value = sum(wins) / len(wins)
    return Estimate(value, math.sqrt(value * (1 - value) / len(wins)))


def _pools(answers: Sequence[str | None], same: Callable[[str | None, str | None], bool]) -> list[int | None]:
    """Per answer, the place of the first answer with its value; None for no answer."""
    firsts: list[int] = []
    pools: list[int | None] = []
    for place, answer in enumerate(answers):
        if answer is None:
            pools.append(None)
            continue
        pool = next((first for first in firsts if same(answers[first], answer)), place)
        if pool == place:
            firsts.append(place)
        pools.append(pool)
    return pools


def _plurality_is_right(subset: Sequence[int], pools: Sequence[int | None], correct: Sequence[bool]) -> bool:
    votes: dict[int, int] = {}
    first: dict[int, int] = {}
    for place in subset:
        pool = pools[place]
        if pool is not None:
            votes[pool] = votes.get(pool, 0) + 1
            first.setdefault(pool, place)
    if not votes:
        return False
    # dicts keep the order of first occurrence, and max takes the first of equals
    return correct[first[max(votes, key=votes.__getitem__)]]
