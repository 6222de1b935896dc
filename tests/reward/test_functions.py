"""A user's reward function: its signature, what it may return, and its components as a reward."""

from dataclasses import replace

import pytest

from reward.config import RewardConfig
from reward.judging.judges import Function
from reward.judging.pool import Outcome, Pool
from reward.judging.user_function import Wants, adapt
from reward.labels.examples import better
from reward.scorer import FunctionScorer
from reward.worker import RewardWorker
from rollout.types import FinishReason
from tests.reward.builders import flat, judge_here, question, sample, sampled_groups

ROWS = [{"question": f"{i} + 1", "output": "x" * i, "gold": str(i + 1), "columns": {}} for i in range(3)]


def one(output, gold, weight=2):
    return weight * len(output)


async def later(question, output, gold):
    return {"correct": output == gold, "length": len(output)} if output else {"length": 0.0}


def many(outputs):
    return [len(output) for output in outputs]


async def many_later(questions, golds):
    return tuple({"a": float(gold), "b": len(question)} for question, gold in zip(questions, golds, strict=True))


def test_one_output_at_a_time_or_many_and_async_or_not():
    judge, batched, _ = adapt(one)
    assert not batched and [judge(**row) for row in ROWS] == [{"score": 0.0}, {"score": 2.0}, {"score": 4.0}]
    judge, batched, _ = adapt(later)
    assert not batched and judge(**ROWS[0]) == {"length": 0.0}
    judge, batched, _ = adapt(many)
    assert batched and judge(ROWS) == [{"score": 0.0}, {"score": 1.0}, {"score": 2.0}]
    judge, batched, _ = adapt(many_later)
    assert batched and judge(ROWS) == [{"a": float(i + 1), "b": 5.0} for i in range(3)]


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda text: 1, "found parameters text; expected some of question, output, gold, or of"),
        (lambda: 1, "found parameters none"),
        (lambda question, outputs: 1, "found parameters question, outputs"),
        (7, "found int, expected a function"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(function, found):
    with pytest.raises(TypeError, match=found):
        adapt(function)


class Number:
    """A scalar of an array library: no Python number."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


class Matrix(Number):
    ndim = 2

    def __init__(self):
        super().__init__(1.0)


@pytest.mark.parametrize(
    "value", [None, float("nan"), float("inf"), "1", [1.0], {"a": None}, {"a": "no"}, {1: 1.0}, {}, Matrix()]
)
def test_what_is_no_finite_number_is_an_error_that_names_the_function(value):
    def mine(output):
        return value

    judge, _, _ = adapt(mine)
    with pytest.raises(TypeError, match=r"test_functions.py:\d+: mine returned"):
        judge(output="x", question="", gold="", columns={})


def test_true_is_1_and_a_scalar_of_an_array_library_is_its_number():
    def mine(output):
        return {"right": True, "wrong": False, "shown": Number(True), "length": Number(2.5)}

    judge, _, _ = adapt(mine)
    found = judge(output="x", question="", gold="", columns={})
    assert found == {"right": 1.0, "wrong": 0.0, "shown": 1.0, "length": 2.5} and {type(x) for x in found.values()} == {float}


def leveled(output, level, weight=2, source="here", **others):
    return {"level": level * weight, "here": source == "here", "others": len(others)}


def leveled_all(outputs, levels, source=()):
    return [{"level": level, "sources": len(source)} for level in levels]


def test_columns_of_the_data_reach_a_function_by_name():
    row = {"question": "other", "level": 3, "source": "there", "id": 7}
    judge, batched, wants = adapt(leveled)
    wants = Wants(**wants)
    assert not batched and wants == Wants(required=("level",), optional=("weight", "source"), others=True)
    columns = wants.columns(row)
    assert columns == {"level": 3, "source": "there", "id": 7}, "no column is taken for the question"
    assert judge(question="", output="", gold="", columns=columns) == {"level": 6.0, "here": 0.0, "others": 1.0}
    judge, batched, wants = adapt(leveled_all)
    columns = [Wants(**wants).columns(row) for row in ({"level": 3, "source": 1}, {"levels": 4, "level": 9}, {"level": 5})]
    assert batched and columns == [{"levels": 3, "source": 1}, {"levels": 4}, {"levels": 5}]
    rows = [{"question": "", "output": "", "gold": "", "columns": given} for given in columns]
    assert [value["level"] for value in judge(rows)] == [3.0, 4.0, 5.0], "what only some rows have is left to the default"
    assert judge(rows)[0]["sources"] == 0.0


@pytest.mark.parametrize(("values", "found"), [([1.0], "1 values"), (3.0, "3.0"), (None, "None")])
def test_a_batch_of_another_length_is_an_error(values, found):
    judge, _, _ = adapt(lambda outputs: values)
    with pytest.raises(TypeError, match=f"returned {found} for 3 outputs; expected a list with one for each"):
        judge(ROWS)


def scorer(*values, **config):
    """A scorer whose function returns these components, or fails with this reason."""

    def function(rows):
        assert [set(row) for row in rows] == [{"question", "output", "gold", "columns"}] * len(rows)
        return [
            Outcome(status="error", value=None, reason=v, seconds=0.1)
            if isinstance(v, str)
            else Outcome(status="score", value=v, reason="", seconds=0.1)
            for v in values
        ]

    made = FunctionScorer(RewardConfig().model_copy(update=config), Function(judge=function), judge_here)
    return lambda samples, asked=None: flat(made.score(sampled_groups(samples, asked)))


def test_components_are_weighted_into_one_event_and_the_rules_stand_beside():
    one = sample("#### 7", tokens=4)
    (scored,) = scorer({"fit": 0.5, "style": 2.0}, weights={"fit": 2.0, "style": -0.25})([one])
    assert scored.verdict.reward == 0.5 and [(e.position, e.value) for e in scored.events] == [(3, 0.5)]
    assert scored.verdict.components == {"fit": 0.5, "style": 2.0, "correct": 1.0, "format": 1.0}
    assert (scored.verdict.extracted, scored.verdict.value, scored.verdict.seconds) == ("7", "7", 0.1)
    (plain,) = scorer({"fit": 0.5, "style": 2.0})([one])
    assert plain.verdict.reward == 2.5


def test_a_component_without_weight_is_no_part_of_the_rewards_rounding():
    values = [{"correct": float(i % 2), "stamp": 1.79e18} for i in range(4)]
    group = scorer(*values, weights={"correct": 1.0, "stamp": 0.0})([sample("#### 7", index=i) for i in range(4)])
    assert [s.verdict.reward for s in group] == [0.0, 1.0, 0.0, 1.0]
    assert [better(group[1], other) for other in group] == [True, False, True, False]


def test_its_own_correct_replaces_the_rules_and_is_needed_where_the_rule_cannot_judge():
    essay = question(gold="an essay about rain")
    (own,) = scorer({"correct": 0.0})([sample("#### 7", finish_reason=FinishReason.LENGTH)])
    assert own.verdict.components == {"correct": 0.0, "format": 0.0} and own.verdict.reward == 0.0
    good, bad = scorer({"correct": 1.0}, {"fit": 1.0})([sample("rain"), sample("rain", index=1)], [essay])
    assert good.verdict.status == "score" and good.verdict.components["correct"] == 1.0
    assert bad.verdict.status == "error" and "`correct` from it or from the rule" in bad.verdict.reason


def test_a_failure_names_function_and_sample_and_is_no_number():
    bad, other, empty = scorer("Traceback: boom", {"unasked": 1.0}, {"fit": 1.0}, weights={"fit": 1.0})(
        [sample("#### 7"), sample("#### 7", index=1), sample("", index=2, tokens=0)]
    )
    assert [x.verdict.status for x in (bad, other, empty)] == ["error", "error", "unscorable"]
    assert bad.verdict.reason == "reward.function on group grpo/0, index 0: Traceback: boom"
    assert "returned components unasked; expected fit" in other.verdict.reason
    assert all(x.verdict.reward is None and x.events == () for x in (bad, other, empty))


def test_the_rules_judge_is_named_where_it_was_the_one_that_failed():
    lost = Outcome(status="killed", value=None, reason="no answer within 10 s", seconds=10.0)
    good = Outcome(status="score", value={"fit": 1.0}, reason="", seconds=0.1)
    made = FunctionScorer(RewardConfig(), Function(judge=lambda rows: [good]), lambda rows: [lost])
    (scored,) = flat(made.score(sampled_groups([sample("#### 7")])))
    assert scored.verdict.reason == "the rule on group grpo/0, index 0: no answer within 10 s"


MINE = """
import time

def score(question, output, gold):
    if output == "hang":
        time.sleep(1000)
    return {"correct": output == gold, "length": len(output)}

def score_all(outputs, golds):
    return [score("", output, gold) for output, gold in zip(outputs, golds)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["score", "score_all"])
def test_a_function_of_a_file_in_the_pool(tmp_path, name):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    with Pool(f"{file}:{name}", workers=1, seconds=2, memory_gb=1, adapter="reward.judging.user_function:adapt") as pool:
        outcomes = pool([{"question": "", "output": text, "gold": "7", "columns": {}} for text in ("7", "hang", "abc")])
    assert [o.value for o in outcomes] == [{"correct": 1.0, "length": 1.0}, None, {"correct": 0.0, "length": 3.0}]
    assert outcomes[1].status == "killed"


@pytest.mark.slow
def test_the_reward_worker_scores_by_it_with_columns_and_keeps_what_it_prints(tmp_path):
    file, log = tmp_path / "mine.py", tmp_path / "run" / "logs" / "reward-0.log"
    file.write_text(MINE.replace("gold):", "gold, level):\n    print('level', level)", 1))
    config = RewardConfig(function=f"{file}:score", weights={"correct": 1.0, "length": 0.5})
    worker = RewardWorker(config, log)
    try:
        asked = [replace(question(n), columns={"level": n + 1}) for n in range(2)]
        scored = flat(worker.score(sampled_groups([sample("7", n) for n in range(2)], asked)))
        assert [s.verdict.reward for s in scored] == [1.5, 1.5] and worker.describe()["scorer"] == "FunctionScorer"
        assert log.read_text() == "level 1\nlevel 2\n"
        (lost,) = flat(worker.score(sampled_groups([sample("7")])))
        assert lost.verdict.status == "error" and "missing 1 required positional argument: 'level'" in lost.verdict.reason
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "mine"}, "expected a file and a function in it"),
        ({"function": "nowhere.py:score"}, "nowhere.py: no such file"),
        ({"weights": {"a": 1.0}}, "there is no reward.function"),
        ({"function": f"{__file__}:one", "format": 0.5}, "format: given, but reward.function is the reward"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)
