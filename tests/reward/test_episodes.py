"""What outputs are worth whose reward an environment gave."""

from dataclasses import replace

from reward.config import RewardConfig
from reward.judging.judges import Function
from reward.judging.pool import Outcome
from reward.scorer import FunctionScorer
from reward.types import RewardEvent
from rollout.types import Ended
from tests.reward.builders import flat, judge_here, sample, sampled_groups
from tests.reward.test_scorer import score


def test_an_environments_parts_are_the_reward_and_the_rule_reads_the_last_turn_for_the_record():
    ended = Ended(rewards={"solved": 1.0, "at_once": -0.25}, answer="#### 7")
    [scored] = score(replace(sample("#### 3\nno\n#### 7", tokens=5), ended=ended))
    assert scored.verdict.reward == 0.75 and scored.events == (RewardEvent(position=4, value=0.75),)
    assert scored.verdict.components == {"correct": 1.0, "format": 1.0, "solved": 1.0, "at_once": -0.25}
    [own] = score(replace(sample("#### 7"), ended=Ended(rewards={"correct": 0.5}, answer="#### 8")))
    assert own.verdict.components == {"correct": 0.5, "format": 1.0} and own.verdict.reward == 0.5
    assert own.verdict.extracted == "8" and own.verdict.summands == (0.5,)


def test_a_reward_function_beside_an_environment_adds_to_its_parts_and_may_not_give_the_same_ones():
    ended = Ended(rewards={"solved": 1.0}, answer="#### 7")

    def scored(**components):
        function = Function(judge=lambda rows: [Outcome(status="score", value=components, reason="", seconds=0.0)])
        made = FunctionScorer(RewardConfig(), function, judge_here)
        [found] = flat(made.score(sampled_groups([replace(sample("#### 7"), ended=ended)])))
        return found.verdict

    assert scored(short=0.5).reward == 1.5 and scored(short=0.5).summands == (0.5, 1.0)
    twice = scored(solved=1.0)
    assert (twice.status, twice.reason) == ("error", "reward.function and the environment both give solved")
