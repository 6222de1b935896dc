"""The loop with fakes at the seams: real data, ledger, buffer, checkpoints, records; no Ray, no vLLM, no torch step."""

import hashlib
import json
from collections import Counter

import pytest

from cluster.config.run_config import RunConfig
from cluster.records.catalogue import METRICS
from cluster.records.clock import Clock
from cluster.records.ledger import Ledger, history, incarnations
from cluster.records.metrics import JsonlSink, Sinks, read_jsonl
from cluster.records.records import Records
from cluster.records.samples import evaluation_rows
from cluster.run.checkpoints import Checkpoints
from cluster.run.loop import Loop
from cluster.stopping import RunFailed, Stop
from learner.types import StepReport
from reward.config import RewardConfig
from reward.judging.pool import Outcome
from reward.scorer import RuleScorer
from rollout.types import FinishReason, Group, Sample, sample_seed
from tests.cluster.fleet import LearnerCalls
from tests.reward.builders import flat, judge_here

SFT = {"algorithm": "sft", "steps": 2, "questions_per_step": 4, "optimizer": {"learning_rate": 1e-3}}
GRPO = {
    "algorithm": "grpo",
    "reward": "rule",
    "steps": 4,
    "questions_per_step": 2,
    "samples_per_question": 3,
    "optimizer": {"learning_rate": 1e-3},
}


def configuration(output, **changes):
    task = {"task": "chained-arithmetic", "rows": 40}
    return RunConfig.model_validate(
        {
            "name": "fake", "output": str(output), "model": {"init": "small-llama"}, "stages": [SFT, GRPO],
            "data": {"questions": task, "demonstrations": task, "hold_out": 6, "prompt": {"template": "plain"}},
            "evaluation": {"samples_per_question": 2}, "checkpoint_every": 1, "rollout": {"workers": 2}, **changes,
        }
    )  # fmt: skip


class FakeRoles:
    """Two engines and a learner whose weights are one number; outputs depend on weights and seed alone, as the real ones do."""

    def __init__(self, tokenizer, die_at=None, fail_step=None):
        self.tokenizer, self.die_at, self.fail_step = tokenizer, die_at, fail_step
        self.weights, self.held, self.steps, self.deaths, self.info = 0, {0: 0, 1: 0}, 0, 0, {}
        self.stale, self.version, self.kept, self.lives, self.canary, self.split = set(), {0: 0, 1: 0}, {}, Counter(), None, {}
        self.aside, self.wanted = set(), {}
        self.calls, self.reward, self.learner = 0, RuleScorer(RewardConfig(), judge_here), LearnerCalls(self.learn)

    def slots(self):
        return [0, 1]

    def rest(self):
        pass

    def allowed_s(self, waves):
        return 610.0

    def generate(self, waves, sampling, name, each, failed):
        self.calls += 1
        errors = {1: "killed"} if self.calls == self.die_at else {}
        for slot, leases in waves.items():
            for x in leases if slot not in errors else ():
                each(x, Group(question=x.question, samples=tuple(self._sample(slot, x, i) for i in x.indices)))
        return errors

    def _sample(self, slot, lease, i):
        right = (sample_seed(0, lease.group_id, i) + self.held[slot]) % 3 == 0
        text = f"#### {lease.question.gold if right else 0}"
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Sample(
            ordinal=lease.question.ordinal, group_id=lease.group_id, index=i, attempt=lease.attempt, text=text,
            prompt_ids=lease.question.prompt_ids, output_ids=ids, sampled_mask=(True,) * len(ids),
            logprobs=(-0.5,) * len(ids), versions=((self.version[slot], 0),), finish_reason=FinishReason.STOP,
        )  # fmt: skip

    def reward_slots(self):
        return [0]

    def score(self, parts, by, name):
        return {0: self.judged(parts[0], by)}, {}

    def judged(self, groups, by):
        return self.reward.score(groups)

    def learn(self, method, *args):
        if method == "step":
            self.steps += 1
            if self.steps == self.fail_step:
                raise RuntimeError("killed")
            batch = [item.sample.output_ids for item in flat(args[0])]
            self.weights = (self.weights * 31 + hashlib.sha256(repr(batch).encode()).digest()[0]) % 1000
            return StepReport(metrics={"grad_norm": 1.0}, advantages=[0.0] * len(batch), tokens=len(batch))
        if method == "save":
            args[1](self.store(args[0]))
        if method == "load":
            self.weights = int((args[0] / "weights").read_text())
        return None

    def store(self, folder):
        folder.mkdir()
        return {"weights": (folder / "weights").write_text(str(self.weights))}

    def learner_logprobs(self, sequences):
        return [[-1.0 - self.weights / 1e6]]

    def engine_logprobs(self, slots, sequences):
        return {s: [[-1.0 - self.held[s] / 1e6]] for s in slots}, {}

    def publish(self, version, slots):
        self.kept.setdefault(version, self.weights)
        self.held |= dict.fromkeys(slots, self.kept[version])
        self.version |= dict.fromkeys(slots, version)
        return f"digest of {self.weights}", {}, False

    def replace(self, slot, why):
        self.deaths += 1
        self.held[slot] = self.version[slot] = 0


def drive(config, data, roles, stop=None):
    """One driver's life, from the newest checkpoint if there is one."""
    run_dir, roles.config = config.output, config
    run_dir.mkdir(exist_ok=True)
    found = Checkpoints(run_dir, keep=2).newest()
    state = found[1] if found else {}
    path = run_dir / "ledger.jsonl"
    ledger = Ledger(path, incarnation=incarnations(path), offset=state.get("ledger_offset", 0))
    sinks = Sinks({"metrics": lambda: JsonlSink(run_dir / "metrics.jsonl", resume_step=state.get("step", 0))})
    records = Records(dir=run_dir, ledger=ledger, sinks=sinks)
    loop = Loop(config, data, roles.tokenizer, roles, records, Clock(stop or Stop()))
    try:
        loop.run(found)
    finally:
        sinks.close()
        ledger.close()
    return loop


def trained(run_dir):
    return [
        (g, i)
        for x in history(run_dir / "ledger.jsonl")
        if x["event"] == "trained"
        for g, ids in x["groups"].items()
        for i in ids
    ]


def sample_files(run_dir, without=("attempt", "lives")):
    rows = {p.name: read_jsonl(p) for p in (run_dir / "samples").iterdir()}
    return {name: [{k: v for k, v in row.items() if k not in without} for row in part] for name, part in rows.items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, data, tokenizer):
    config = configuration(tmp_path_factory.mktemp("runs") / "unbroken")
    return drive(config, data, FakeRoles(tokenizer))


def test_every_ordinal_of_every_stage_is_trained_exactly_once_in_order(unbroken):
    assert trained(unbroken.dir) == [(f"sft/{n}", 0) for n in range(8)] + [(f"grpo/{n}", i) for n in range(8) for i in range(3)]


def test_metrics_hold_one_line_a_step_and_evaluations_stand_between_the_stages(unbroken):
    rows = read_jsonl(unbroken.dir / "metrics.jsonl")
    assert [(r["step"], r["stage"], r["version"]) for r in rows] == [
        (1, "sft", 0), (2, "sft", 0), (3, "grpo", 1), (4, "grpo", 2), (5, "grpo", 3), (6, "grpo", 4),
    ]  # fmt: skip
    assert [r["stage_number"] for r in rows] == [1, 1, 2, 2, 2, 2] and {r.get("staleness_bound", 0) for r in rows} == {0}
    ahead = {(r["samples_leased"], r["samples_generated"], r["samples_scored"], r["deaths"]) for r in rows}
    assert ahead == {(0, 0, 0, 0)}, "nothing is asked for ahead"
    assert {name for r in rows for name in r} - {"time", "stage", "staleness_0"} <= set(METRICS)
    assert [(r["step"], r["version"]) for r in evaluation_rows(unbroken.dir)] == [(2, 1), (6, 5)]
    parts = ("generate", "score", "train", "sync", "other")
    assert all(sum(r[f"seconds_{p}"] for p in parts) == pytest.approx(r["seconds_step"]) for r in rows)


def test_every_sample_record_says_which_version_made_it_and_what_became_of_it(unbroken):
    rows = sample_files(unbroken.dir)["step_3.jsonl"]
    assert [(r["group"], r["index"], r["fate"]) for r in rows] == [
        (f"grpo/{n}", i, "trained") for n in (0, 1) for i in range(3)
    ]
    assert {tuple(map(tuple, r["versions"])) for r in rows} == {((1, 0),)}


def test_a_finished_run_resumes_to_nothing(tmp_path, data, tokenizer):
    config = configuration(tmp_path / "run")
    drive(config, data, FakeRoles(tokenizer))
    before = sample_files(config.output)
    again = FakeRoles(tokenizer)
    drive(config, data, again)
    assert (again.steps, sample_files(config.output)) == (0, before)


def test_judge_errors_above_the_threshold_stop_the_run_with_the_traceback(tmp_path, data, tokenizer):
    failed = Outcome(status="error", value=None, reason="ZeroDivisionError: in the judge", seconds=0.0)
    roles = FakeRoles(tokenizer)
    roles.reward = RuleScorer(RewardConfig(), lambda rows: [failed] * len(rows))
    with pytest.raises(RunFailed, match="ZeroDivisionError: in the judge"):
        drive(configuration(tmp_path / "run"), data, roles)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, data, tokenizer, unbroken):
    config = configuration(tmp_path / "run")
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=5))
    newest = config.output / "checkpoints" / "step_4"
    (newest / "learner" / "weights").write_text("999")
    assert json.loads((newest / "state.json").read_text())["step"] == 4
    assert Checkpoints(config.output, keep=2).newest()[1]["step"] == 3
    loop = drive(config, data, FakeRoles(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)


class Other(FakeRoles):
    """Learns something else of the same outputs, as a run does that cannot be repeated."""

    def learn(self, method, *args):
        made = super().learn(method, *args)
        self.weights += method == "step"
        return made


def test_a_version_that_two_lives_made_is_told_apart_in_all_records(tmp_path, data, tokenizer):
    config = configuration(tmp_path / "run", checkpoint_every=2)
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=6))
    loop = drive(config, data, Other(tokenizer))
    lines = [json.loads(line) for line in (loop.dir / "ledger.jsonl").read_text().splitlines()]
    published = {(x["incarnation"], x["version"]): x["digest"] for x in lines if x["event"] == "published"}
    assert list(published) == [(0, "1"), (0, "2"), (0, "3"), (0, "4"), (1, "4"), (1, "5")]
    assert published[0, "4"] != published[1, "4"] == loop.serving.digests["4"]
    asked = [(x["version"], x["life"]) for x in lines if x["event"] == "leased" and "draw" in x]
    assert asked == [(1, 0), (2, 0), (3, 0), (4, 0), (3, 0), (4, 1)]
    rows = read_jsonl(loop.dir / "metrics.jsonl")
    assert [(row["version"], row["life"]) for row in rows] == [(0, 0), (0, 0), (1, 0), (2, 0), (3, 0), (4, 1)]
    made = [sample_files(loop.dir, ())[f"step_{n}.jsonl"][0]["lives"] for n in (2, 3, 5, 6)]
    assert made == [{"0": 0}, {"1": 0}, {"3": 0}, {"4": 1}]
    assert loop.serving.lives == {"0": 0, "1": 0, "2": 0, "3": 0, "4": 1, "5": 1}
