"""Adding an algorithm touches its cells' module and the table: here a module that the packages do not know, and a row."""

import importlib
from dataclasses import replace

import pytest

from learner.algorithms import table
from learner.algorithms.cells import Plan
from learner.algorithms.table import Algorithm, DataSource
from reward.config import RewardConfig
from tests.learner.builders import adamw, groups, scored
from tests.learner.stages import stage

MODULE = '''
from typing import ClassVar, Literal

from learner.algorithms.cells import Need
from learner.algorithms.credit import Credit
from learner.algorithms.weighting import Averaged
from reward.types import samples_of


class Shaped(Credit):
    """The reward less the mean log pi_old/pi_ref, at every token."""

    cell: Literal["shaped"] = "shaped"
    formula: ClassVar[str] = "r - mean log(pi_old/pi_ref)"

    @property
    def needs(self):
        return frozenset({Need.REFERENCE})

    def __call__(self, batch, signals):
        rows = zip(samples_of(batch), signals.old_logprobs, signals.reference_logprobs, strict=True)
        return [
            (item.verdict.reward - sum(old) / len(old) + sum(ref) / len(ref),) * len(old) if item.events else None
            for item, old, ref in rows
        ]


class Halved(Averaged):
    cell: Literal["halved"] = "halved"
    formula: ClassVar[str] = "A / 2"

    def __call__(self, logprob_N, micro):
        return micro.advantage_N / 2, {"objective": (micro.token_weight_N * micro.advantage_N * logprob_N).sum() / 2}
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    (tmp_path / "shaped_cells.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    cells = importlib.import_module("shaped_cells")
    row = Algorithm(
        data_source=DataSource.POLICY_SAMPLES, reward="rule", credit=cells.Shaped(), weighting=cells.Halved(average="sum")
    )
    monkeypatch.setattr(table, "TABLE", {**table.TABLE, "shaped": row})
    return table.resolve("shaped")


def test_a_row_of_new_cells_trains(start, model_dir, added):
    worker = start(model_dir)
    worker.begin_stage(stage(added, adamw(learning_rate=1e-2), 8))
    ids = [(5, 9, 6 + i, 2) for i in range(2)]
    recorded = [row[1:] for row in worker.logprobs(ids)]
    batch = [
        scored("g", i, [5, 9], [6 + i, 2], reward=float(2 * i - 1), logprobs=[x - 0.5 for x in row])
        for i, row in enumerate(recorded)
    ]
    unjudged = scored("g", 2, [5, 9], [8, 2], logprobs=[-1.0, -1.0])
    report = worker.step(groups([*batch, unjudged]), updates=1, temperature=1.0)
    # The engine's log-probabilities are 0.5 below those of the reference, which is still the policy.
    assert report.advantages == [pytest.approx(-0.5, abs=1e-5), pytest.approx(1.5, abs=1e-5), None]
    sums = [sum(row) + 1 for row in ([x - 0.5 for x in row] for row in recorded)]
    assert report.metrics["objective"] == pytest.approx((-0.5 * sums[0] + 1.5 * sums[1]) / 2 / 2, abs=1e-4)
    for _ in range(5):
        worker.step(groups(batch), updates=1, temperature=1.0)
    (worse, better), before = ([sum(row[1:]) for row in worker.logprobs(ids)], [sum(row) for row in recorded])
    assert better > before[1] and worse < before[0]


def test_it_prints_its_coefficient_says_what_it_needs_and_objects_to_what_it_cannot_have(added):
    assert added.formula == "A / 2; A = r - mean log(pi_old/pi_ref)" and added.needs == {"reference"}
    plan = Plan(group_size=1, updates_per_batch=2, on_policy=True, reward=RewardConfig())
    ((key, why),) = added.contradictions(plan)
    assert key == ("updates_per_batch",) and "'halved' takes outputs of an older policy as if they were new" in why
    assert added.contradictions(replace(plan, updates_per_batch=1)) == []
