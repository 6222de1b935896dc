"""How good a reward model is on held-out examples. Pure functions; None where there is nothing to measure, never a number."""

import math
from collections.abc import Sequence
from itertools import groupby


def pair_accuracy(better: Sequence[float], worse: Sequence[float]) -> float | None:
    """Share of pairs whose better output has the higher score; a tie counts half. None without pairs."""
    wins = [(a > b) + 0.5 * (a == b) for a, b in zip(better, worse, strict=True)]
    return sum(wins) / len(wins) if wins else None


def balanced_accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float | None:
    """Mean of the shares found among the right and among the wrong ones (both 0 or 1). None when a class is absent."""
    _check_binary("predicted", predicted)
    _check_binary("labels", labels)
    found = {label: [p == y for p, y in zip(predicted, labels, strict=True) if y == label] for label in (0, 1)}
    return sum(sum(hits) / len(hits) for hits in found.values()) / 2 if all(found.values()) else None


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """Area under the ROC curve: the chance that a right one (label 1) scores above a wrong one (label 0), ties counting half.

    From ranks (Mann-Whitney). None when a class is absent.
    """
    _check_binary("labels", labels)
    rows = sorted(zip(scores, labels, strict=True))
    above, ones, zeros = 0.0, 0, 0
    for _, tied in groupby(rows, key=lambda row: row[0]):
        marks = [label for _, label in tied]
        above += sum(marks) * (zeros + marks.count(0) / 2)
        ones, zeros = ones + sum(marks), zeros + marks.count(0)
    return above / (ones * zeros) if ones and zeros else None


def expected_calibration_error(probabilities: Sequence[float], labels: Sequence[float], bins: int = 10) -> float | None:
    """Mean |mean probability - mean label| over bins of equal width, weighted by their sizes; labels may be soft.

    A probability on an edge belongs to the bin above it, 1 to the last. None without any; raises ValueError outside [0, 1].
    """
    if wrong := [p for p in probabilities if not 0 <= p <= 1]:
        raise ValueError(f"probability {wrong[0]}, expected 0 to 1")
    held: dict[int, list[float]] = {}
    for p, label in zip(probabilities, labels, strict=True):
        held.setdefault(min(int(p * bins), bins - 1), []).append(p - label)
    return math.fsum(abs(math.fsum(gaps)) for gaps in held.values()) / len(probabilities) if held else None


def _check_binary(name: str, values: Sequence[float]) -> None:
    if wrong := [value for value in values if value not in (0, 1)]:
        raise ValueError(f"{name} has {wrong[0]}, expected 0 or 1")
