import os

from reward.config import RewardConfig
from reward.scorer import RuleScorer
from reward.worker import RewardWorker
from tests.reward.builders import question, sample


def test_a_worker_scores_as_its_scorer_does_and_says_who_it_is():
    config = RewardConfig(answer_format="boxed", format=0.5)
    samples = [sample(r"\boxed{7}"), sample("#### 7", index=1)]
    worker = RewardWorker(config)
    scored = worker.score([question()], samples)
    assert scored == RuleScorer(config).score([question()], samples)
    assert [x.verdict.reward for x in scored] == [1.5, 0.0]
    described = worker.describe()
    assert (described["role"], described["scorer"], described["pid"]) == ("reward", "RuleScorer", os.getpid())
    assert described["answer_format"] == "boxed"
