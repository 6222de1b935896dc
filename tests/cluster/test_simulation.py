"""Schedules of a simulated run: none breaks an invariant, and planted bugs are found."""

import logging

import pytest

from tests.cluster.planted import PLANTED
from tests.cluster.simulation import Violated, simulate

pytestmark = pytest.mark.slow

FOUND = {
    "double_accept": r"leased \(attempt 0\) after the end|trained were|resumed",
    "lost_lease": "awaits range|wait for each other|held-out",
    "early_admission": "max_staleness",
    "version_reuse": "stand|does not hold the published weights",
    "mixture_served": "made by weights that are not those",
    "early_service": "max_staleness|made by weights that are not those",
    "early_end": "is ended, and has not ended what it was asked|is asked, and is not there",
}
"""What is said of each planted bug."""


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("part", range(4))
def test_no_schedule_breaks_an_invariant(part):
    for seed in range(part * 100, (part + 1) * 100):
        try:
            simulate(seed)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(bug):
    with bug(), pytest.raises((Violated, RuntimeError, KeyError, ValueError), match=FOUND[bug.__name__]):
        for seed in range(100):
            simulate(seed)


def test_a_seed_repeats_its_schedule(monkeypatch):
    ends = []
    for _ in range(2):
        with PLANTED[2](), pytest.raises(Exception) as failed:
            for seed in range(60):
                simulate(seed)
        ends.append((seed, str(failed.value)))
    assert ends[0] == ends[1]
