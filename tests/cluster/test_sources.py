"""Where groups come from: made once, read from a file, or chosen by what was learnt; with fakes at the seams."""

import json
import shutil
from dataclasses import replace

import pytest

from cluster.records.balance import Balance
from cluster.records.samples import evaluation_rows
from cluster.run import offline
from cluster.run.mirror import Mirror, restore
from cluster.run.store import Store
from reward.config import RewardConfig
from reward.judging.judges import gold_check
from rollout.data.datasets import load_data
from tests.cluster.test_iterations import GRPO, Judged, configuration
from tests.cluster.test_pipeline import FakeRoles, drive, sample_files, trained


@pytest.fixture(scope="module")
def data(tokenizer):
    return load_data(configuration("unused", [GRPO | {"reward": "rule"}]).data, tokenizer, 0, gold_check(RewardConfig()))


def test_offline_outputs_are_made_once_by_the_policy_that_the_stage_starts_from(tmp_path, data, tokenizer):
    rft = {"algorithm": "rft", "steps": 6, "questions_per_step": 2, "samples_per_question": 3, "offline_questions": 4}
    config = configuration(tmp_path / "run", [rft])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=4))
    (made,) = (config.output / "offline").iterdir()
    before = made.read_text()
    loop = drive(config, data, FakeRoles(tokenizer))
    assert [path.read_text() for path in (config.output / "offline").iterdir()] == [before]
    assert trained(loop.dir) == [(f"rft/{n}", i) for n in range(12) for i in range(3)]
    rows = [row for n in range(1, 7) for row in sample_files(loop.dir)[f"step_{n}.jsonl"]]
    texts = [[row["response"] for row in rows[i : i + 3]] for i in range(0, len(rows), 3)]
    epochs = [sorted(texts[i : i + 4]) for i in range(0, 12, 4)]
    assert epochs[0] == epochs[1] == epochs[2], "each epoch trains on the same outputs"
    assert list(loop.serving.digests) == ["1"], "the weights go out at the stage's end"


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
@pytest.mark.parametrize("fail_step", range(1, 7))
def test_an_offline_stage_that_is_evaluated_on_its_way_resumes_with_its_first_outputs(
    tmp_path, data, tokenizer, algorithm, fail_step
):
    stage = {"algorithm": algorithm, "steps": 6, "questions_per_step": 2, "samples_per_question": 4, "offline_questions": 8}
    often = {"evaluation": {"samples_per_question": 2, "every": 2}}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage], **often), data, FakeRoles(tokenizer))
    assert list(unbroken.serving.digests) == ["1", "2", "3"]
    with pytest.raises(RuntimeError, match="killed"):
        drive(configuration(tmp_path / "run", [stage], **often), data, FakeRoles(tokenizer, fail_step=fail_step))
    (made,) = (tmp_path / "run" / "offline").iterdir()
    changed = stage | {"optimizer": {"learning_rate": 2e-3}}
    loop = drive(configuration(tmp_path / "run", [changed], checkpoint_every=2, **often), data, FakeRoles(tokenizer))
    assert sample_files(loop.dir) == sample_files(unbroken.dir)
    assert evaluation_rows(loop.dir) == evaluation_rows(unbroken.dir)
    if fail_step > 1:
        assert list((tmp_path / "run" / "offline").iterdir()) == [made]


def test_offline_outputs_that_were_lost_are_not_made_again_by_another_policy(tmp_path, data, tokenizer):
    rft = {"algorithm": "rft", "steps": 4, "questions_per_step": 2, "samples_per_question": 3}
    config = configuration(tmp_path / "run", [rft])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=3))
    next((config.output / "offline").iterdir()).unlink()
    with pytest.raises(ValueError, match="is missing; expected the outputs that stage rft made when it began"):
        drive(config, data, FakeRoles(tokenizer))


class Cut(FakeRoles):
    """Its driver is killed when it asks for the chunk of offline outputs with this number; `asked`: the ordinals of each."""

    def __init__(self, tokenizer, cut=None):
        super().__init__(tokenizer)
        self.cut, self.asked = cut, []

    def generate(self, waves, *args):
        asked = [x.question.ordinal for leases in waves.values() for x in leases if "/initial/" in x.group_id]
        if asked and len(self.asked) == self.cut:
            raise RuntimeError("killed")
        self.asked += [sorted(asked)] * bool(asked)
        return super().generate(waves, *args)


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
def test_offline_sampling_that_was_killed_goes_on_with_what_is_missing(tmp_path, data, tokenizer, algorithm, monkeypatch):
    monkeypatch.setattr(offline, "CHUNK", 2)
    stage = {"algorithm": algorithm, "steps": 3, "questions_per_step": 2, "samples_per_question": 4, "offline_questions": 7}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage]), data, Cut(tokenizer))
    (made,) = (unbroken.dir / "offline").iterdir()
    chunks = [[0, 1], [2, 3], [4, 5], [6]]
    for cut in range(4):
        config = configuration(tmp_path / f"run{cut}", [stage])
        with pytest.raises(RuntimeError, match="killed"):
            drive(config, data, Cut(tokenizer, cut))
        (part,) = (config.output / "offline").iterdir()
        lines = part.read_text().splitlines(keepends=True)
        assert part.name == made.with_suffix(".part").name
        assert [json.loads(line)["question"]["ordinal"] for line in lines] == [n for chunk in chunks[:cut] for n in chunk]
        if cut:  # the kill came while the next chunk was being written: a row and the half of one
            part.write_text("".join([*lines, lines[0], lines[1][:40]]))
        roles = Cut(tokenizer)
        loop = drive(config, data, roles)
        assert roles.asked == chunks[cut:]
        (again,) = (config.output / "offline").iterdir()
        assert (again.name, again.read_bytes()) == (made.name, made.read_bytes())
        assert sample_files(loop.dir, without=()) == sample_files(unbroken.dir, without=())
        assert trained(loop.dir) == trained(unbroken.dir) and loop.serving.digests == unbroken.serving.digests
        assert str(Balance(loop.dir / "ledger.jsonl", finished=True)).startswith("ledger: PASS")


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
def test_a_run_restored_from_a_copy_trains_on_the_outputs_that_its_stage_had_made(tmp_path, data, tokenizer, algorithm):
    stage = {"algorithm": algorithm, "steps": 4, "questions_per_step": 2, "samples_per_question": 4, "offline_questions": 8}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage]), data, FakeRoles(tokenizer))
    config, url = configuration(tmp_path / "run", [stage]), f"file://{tmp_path}/far"
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=3))
    assert Mirror(Store(url), config.output, 2).finish()["copied"] == 2
    (made,) = (config.output / "offline").iterdir()
    shutil.rmtree(config.output)
    (new := tmp_path / "new").mkdir()
    restore(url, new)
    loop = drive(configuration(new, [stage]), data, FakeRoles(tokenizer))
    assert [path.name for path in (new / "offline").iterdir()] == [made.name]
    assert trained(loop.dir) == trained(unbroken.dir) and loop.serving.digests == unbroken.serving.digests
    assert sample_files(loop.dir) == {f"step_{n}.jsonl": sample_files(unbroken.dir)[f"step_{n}.jsonl"] for n in (3, 4)}


def test_pairs_are_a_better_and_a_worse_output_of_one_question(tmp_path, data, tokenizer):
    dpo = {"algorithm": "dpo", "steps": 2, "questions_per_step": 3, "samples_per_question": 4, "offline_questions": 12}
    loop = drive(configuration(tmp_path / "run", [dpo]), data, FakeRoles(tokenizer))
    rows = sample_files(loop.dir)["step_1.jsonl"]
    assert [(r["group"], r["index"], r["reward"]) for r in rows] == [
        (f"dpo/{n}", i, reward) for n in range(3) for i, reward in ((0, 1.0), (1, 0.0))
    ]


GIVEN = {
    "dpo": ("preferences", {"chosen": "#### {right}", "rejected": "#### {wrong}"}, [1.0, 0.0]),
    "outcome_model": ("preferences", {"chosen": "#### {right}", "rejected": "#### {wrong}"}, [1.0, 0.0]),
    "process_model": ("labelled_steps", {"steps": "steps", "labels": "labels"}, [None]),
}


@pytest.mark.parametrize("algorithm", GIVEN)
def test_a_stage_from_a_file_trains_on_what_the_file_says(tmp_path, tokenizer, algorithm):
    name, columns, rewards = GIVEN[algorithm]
    rows = [{"question": f"1 + {i}", "right": 1 + i, "wrong": i, "steps": ["1", "2"], "labels": [1, 0]} for i in range(4)]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"algorithm": algorithm, "from_file": True, "steps": 2, "questions_per_step": 2}
    source = {name: {"file": str(tmp_path / "given.jsonl"), **columns}}
    questions = {"questions": {"task": "chained-arithmetic", "rows": 20}, "hold_out": 6, "prompt": {"template": "plain"}}
    config = configuration(tmp_path / "run", [stage], model={"path": "models/any"}, data=questions | source)
    roles = Judged(tokenizer)
    loop = drive(config, load_data(config.data, tokenizer, 0, gold_check(RewardConfig())), roles)
    assert len(trained(loop.dir)) == 2 * 2 * len(rewards)
    assert [row["reward"] for row in sample_files(loop.dir)["step_1.jsonl"]] == rewards * 2
    if algorithm != "dpo":
        values = [[[target.value for target in item.targets] for item in batch] for batch in roles.batches]
        assert values == [{"outcome_model": [[1.0], [0.0]] * 2, "process_model": [[1.0, 0.0]] * 2}[algorithm]] * 2


def test_a_group_without_spread_is_replaced_at_most_so_often(tmp_path, data, tokenizer):
    dapo = {"algorithm": "dapo", "steps": 2, "questions_per_step": 3, "samples_per_question": 2, "max_refills": 2}
    loop = drive(configuration(tmp_path / "run", [dapo]), data, FakeRoles(tokenizer))
    rows = [row for name in ("step_1.jsonl", "step_2.jsonl") for row in sample_files(loop.dir)[name]]
    groups = {row["group"]: set() for row in rows}
    for row in rows:
        groups[row["group"]].add(row["reward"])
    assert len(groups) == 6
    assert all(len(rewards) == 2 or group.endswith(".2") for group, rewards in groups.items())
    assert any("." in group for group in groups), "some were replaced"


def test_a_group_whose_rewards_are_equal_but_for_rounding_is_replaced(tmp_path, data, tokenizer):
    class Rounded(FakeRoles):
        def judged(self, *args):
            return [replace(group, scored=tuple(map(self._rounded, group.scored))) for group in super().judged(*args)]

        def _rounded(self, s):
            return replace(s, events=(replace(s.events[0], value=(0.1 + 0.2, 0.3)[s.sample.index]),))

    dapo = {"algorithm": "dapo", "steps": 1, "questions_per_step": 3, "samples_per_question": 2, "max_refills": 2}
    loop = drive(configuration(tmp_path / "run", [dapo]), data, Rounded(tokenizer))
    assert {row["group"] for row in sample_files(loop.dir)["step_1.jsonl"]} == {f"dapo/{n}.2" for n in range(3)}


def test_what_a_selection_learnt_survives_a_kill(tmp_path, data, tokenizer):
    stage = GRPO | {"algorithm": "rloo", "steps": 4, "selection": {"cell": "by_difficulty"}, "samples_per_question": 4}
    unbroken = drive(configuration(tmp_path / "unbroken", [stage]), data, FakeRoles(tokenizer))
    assert len(unbroken.progress.memory) == 8, "two new questions a step"
    config = configuration(tmp_path / "run", [stage])
    with pytest.raises(RuntimeError, match="killed"):
        drive(config, data, FakeRoles(tokenizer, fail_step=3))
    assert sample_files(drive(config, data, FakeRoles(tokenizer)).dir) == sample_files(unbroken.dir)
