"""A learner rank that fails: the group is replaced, and another life of the run ends as if there had been one life only."""

import pytest

from cluster.fleet.calls import RoleFailed
from cluster.fleet.learner_group import LearnerFailed
from cluster.records.clock import Clock
from cluster.records.ledger import history
from cluster.records.metrics import read_jsonl
from cluster.records.samples import evaluation_rows
from cluster.run.checkpoints import Checkpoints
from cluster.run.launch import lived
from cluster.stopping import RunFailed, Stop
from tests.cluster.test_behind import Behind
from tests.cluster.test_iterations import ITERATIVE, Judged
from tests.cluster.test_iterations import configuration as iterative
from tests.cluster.test_pipeline import GRPO, SFT, FakeRoles, configuration, sample_files, trained

STEPS = [SFT, GRPO]
ONLY = [GRPO | {"steps": 3}]


class Failing:
    """Roles whose learner fails in the n-th call of a method, once for every pair; the next group has the weights on disk."""

    def __init__(self, tokenizer, *fails, budget=3):
        super().__init__(tokenizer)
        self.fails, self.budget, self.before = list(fails), budget, lambda: None

    def _count(self, method):
        if self.fails and method == self.fails[0][0]:
            self.fails[0] = method, self.fails[0][1] - 1
            if self.fails[0][1] == 0:
                self.fails.pop(0)
                raise LearnerFailed(f"learner-1: killed in {method}")

    def learn(self, method, *args):
        self._count(method)
        return super().learn(method, *args)

    def learner_logprobs(self, sequences):
        self._count("logprobs")
        return super().learner_logprobs(sequences)

    def publish(self, version, slots):
        self._count("publish")
        digest, failed, mixed = super().publish(version, slots)
        self._count("published")
        return digest, failed, mixed

    def restart_learner(self, why):
        self.before()
        self.deaths += 1
        if self.deaths > self.budget:
            raise RoleFailed(f"the crash budget is spent: {why}")
        self.weights, self.kept = 0, {}


class Restarted(Failing, FakeRoles):
    pass


class BehindAgain(Failing, Behind):
    def restart_learner(self, why):
        super().restart_learner(why)
        self.pending = None


class JudgedAgain(Failing, Judged):
    def send_reward_model(self, version, slots):
        self._count("send")
        return super().send_reward_model(version, slots)

    def restart_learner(self, why):
        super().restart_learner(why)
        self.judge_weights = self.judge_version = 0


def live(config, data, roles):
    roles.config = config
    config.output.mkdir(exist_ok=True)
    return lived(config, data, roles.tokenizer, roles, Clock(Stop()), None)


def settings(output, stages, staleness, every):
    stages = [stage | ({"max_staleness": staleness} if stage["algorithm"] == "grpo" else {}) for stage in stages]
    shape = configuration if SFT in stages else iterative
    return shape(output, stages=stages, checkpoint_every=every)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, tokenizer):
    """The undisturbed run by its stages and its staleness."""
    runs = tmp_path_factory.mktemp("whole")
    return {
        (len(stages), n): live(settings(runs / f"{len(stages)}{n}", stages, n, 1), data, Restarted(tokenizer))
        for stages in (STEPS, ONLY)
        for n in (0, 1)
    }


def same(loop, undisturbed):
    assert trained(loop.dir) == trained(undisturbed.dir)
    assert sample_files(loop.dir) == sample_files(undisturbed.dir)
    assert loop.serving.digests == undisturbed.serving.digests
    assert evaluation_rows(loop.dir) == evaluation_rows(undisturbed.dir)
    steps = [[row["step"] for row in read_jsonl(each.dir / "metrics.jsonl")] for each in (loop, undisturbed)]
    assert steps[0] == steps[1]


FAILS = [("step", n) for n in range(1, 7)] + [("publish", n) for n in (1, 2, 4)] + [("published", n) for n in (2, 5)]
FAILS += [("save", 1), ("save", 2), ("begin_stage", 1), ("begin_stage", 2), ("logprobs", 1), ("logprobs", 3)]


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("fail", FAILS, ids=str)
def test_a_run_whose_learner_fails_anywhere_ends_as_the_undisturbed_one(
    tmp_path, data, tokenizer, whole, fail, every, staleness
):
    roles = Restarted(tokenizer, fail)
    loop = live(settings(tmp_path / "run", STEPS, staleness, every), data, roles)
    assert (roles.fails, roles.deaths) == ([], 1)
    same(loop, whole[2, staleness])


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("fail", [("step", 2), ("step", 3), ("publish", 2)], ids=str)
def test_without_a_checkpoint_the_run_begins_again_on_engines_that_are_given_the_first_weights(
    tmp_path, data, tokenizer, whole, fail, staleness
):
    roles = Restarted(tokenizer, fail)
    held, canaries = [], []
    roles.before = lambda: (held.append(dict(roles.held)), canaries.append(roles.canary))
    loop = live(settings(tmp_path / "run", ONLY, staleness, 100), data, roles)
    assert roles.deaths == 1 and (fail == ("step", 2)) <= all(held[0].values()), "they held what the dead learner made"
    assert roles.canary is canaries[0], "engines and learner held the same weights when it was calibrated"
    assert loop.serving.digests.keys() == {"1", "2", "3"}
    same(loop, whole[1, staleness])


@pytest.mark.parametrize("fail", [("writing", 1), ("writing", 4), ("save", 3), ("step", 4)], ids=str)
def test_a_learner_that_fails_while_its_checkpoint_is_written_goes_on_from_the_one_before(
    tmp_path, data, tokenizer, whole, fail
):
    roles = BehindAgain(tokenizer, fail)
    loop = live(settings(tmp_path / "run", STEPS, 1, 1), data, roles)
    assert (roles.fails, roles.deaths) == ([], 1)
    same(loop, whole[2, 1])
    assert Checkpoints(loop.dir, keep=2).steps()[-1] == 6 and not list((loop.dir / "checkpoints").glob(".*"))


def test_a_learner_that_fails_in_every_life_ends_as_the_undisturbed_run_within_the_budget(tmp_path, data, tokenizer, whole):
    fails = [("step", 3), ("load", 1), ("step", 2), ("publish", 3)]
    roles = Restarted(tokenizer, *fails, budget=4)
    loop = live(settings(tmp_path / "run", STEPS, 1, 1), data, roles)
    assert roles.deaths == 4 and {x["incarnation"] for x in history(loop.dir / "ledger.jsonl")} >= {0, 4}
    same(loop, whole[2, 1])


def test_the_budget_spent_the_run_fails_with_the_last_error(tmp_path, data, tokenizer):
    roles = Restarted(tokenizer, ("step", 3), ("step", 1), budget=1)
    with pytest.raises(RoleFailed, match="the crash budget is spent: learner-1: killed in step"):
        live(settings(tmp_path / "run", STEPS, 0, 1), data, roles)
    assert roles.deaths == 2


def test_where_every_checkpoint_is_damaged_the_run_fails_and_names_them(tmp_path, data, tokenizer):
    config = settings(tmp_path / "run", STEPS, 0, 1)
    roles = Restarted(tokenizer, ("step", 2))
    roles.before = lambda: (config.output / "checkpoints/step_1/learner/weights").write_text("999")
    with pytest.raises(RunFailed, match=r"(?s)killed in step.*step_1: learner/weights does not have the content"):
        live(config, data, roles)


def test_a_stop_that_comes_with_the_failure_is_not_answered_by_a_restart(tmp_path, data, tokenizer):
    roles, stop = Restarted(tokenizer, ("step", 3)), Stop()
    roles.config = config = settings(tmp_path / "run", STEPS, 0, 1)
    config.output.mkdir()
    learn = roles.learn

    def stopped(method, *args):
        if method == "step" and roles.steps == 2:
            stop._asked_at = 0.0
        return learn(method, *args)

    roles.learner._learn = stopped
    with pytest.raises(KeyboardInterrupt):
        lived(config, data, tokenizer, roles, Clock(stop), None)
    assert roles.deaths == 0


@pytest.mark.slow
@pytest.mark.parametrize("fail", [("step", n) for n in (2, 5, 7, 10)] + [("send", 1), ("send", 2), ("scalars", 1)], ids=str)
def test_nobody_is_judged_by_a_model_that_the_dead_learner_trained(tmp_path, data, tokenizer, fail, undisturbed):
    roles = JudgedAgain(tokenizer, fail)
    loop = live(iterative(tmp_path / "run", ITERATIVE, checkpoint_every=100), data, roles)
    assert roles.deaths == 1
    same(loop, undisturbed)
    assert read_jsonl(loop.dir / "reward_model.jsonl") == read_jsonl(undisturbed.dir / "reward_model.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, tokenizer):
    return live(iterative(tmp_path_factory.mktemp("runs") / "run", ITERATIVE), data, JudgedAgain(tokenizer))
